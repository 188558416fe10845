"""This node in memory: the cursor, its clients, their rooms, and the effect of each record on them."""
