"""This node in memory: the cursor, its clients, their rooms, and what a record means for them."""
