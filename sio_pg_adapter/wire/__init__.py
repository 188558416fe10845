"""Bytes to and from clients: frames, packets and websockets."""
