"""What nodes ask each other, and answer."""
