"""``TALLIES``: what the demo must count, in the terminal and on its page alike."""

# what happens to a client, (missed, replayed) of each absence, and how many events it lost and had twice
TALLIES = [
    (["hello", 5, 6, "drop", "hello", 7], [(0, 0)], 0, 0),
    (["hello", 5, 6, "drop", 7, 8, "hello", 9, 10], [(2, 2)], 0, 0),
    (["hello", 5, 6, "drop", "hello", 9], [(2, 0)], 2, 0),
    (["hello", 5, 6, "drop", 7, "hello", 9], [(2, 1)], 1, 0),
    (["hello", 5, 6, "drop", 6, 7, "hello", 8], [(1, 1)], 0, 1),
    (["hello", 5, 6, "drop", 7, "drop", 8, "hello", 9], [(2, 2)], 0, 0),
    (["hello", 5, 6, "drop", 7, "hello", "drop", 8, "hello", 9], [(2, 2)], 0, 0),
    (["hello", 5, 7, 6], [], 1, 1),
    ([5, 6, "hello", 7], [], 0, 0),  # in the room already, and the welcome comes after
    ([5, "drop", 6, 7, "hello", 8], [(2, 2)], 0, 0),
]
