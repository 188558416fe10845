"""The functions that look for the events of a room in both segments find those that a plain reading finds."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

LAST = 36
ROOMS = ["q", "r", "s"]
"""The room "r" is asked for. In the index it lies between the others."""


@dataclass(frozen=True)
class Row:
    offset: int
    segment: int
    kind: int
    namespace: str
    rooms: list[str]
    skip_sids: list[str] | None
    skip_rooms: list[str] | None


@pytest.fixture(params=range(3))
async def rows(db, request) -> list[Row]:
    """Records of three namespaces and rooms in both segments. Most are events of the room "r" in "/m"."""
    chance, rows = random.Random(request.param), []
    for offset in range(2, LAST, chance.choice([1, 2])):
        rooms = chance.choice(
            [["r"], ["r"], ["q"], ["s"], ["q", "r"], ["s", "r"], ["r", "q"], ["r", "s"], ["r", "r"]]
        )
        kind, namespace = chance.choice([0, 0, 0, 0, 3]), chance.choice(["/m", "/m", "/m", "/", "/n"])
        skips = [chance.choice([None, None, [], ["s"], ["t", "s"], ["t"]]) for _ in range(2)]
        rows.append(Row(offset, chance.randrange(2), kind, namespace, rooms, *(skips if kind == 0 else [None, None])))
    for row in rows:
        await db.execute(
            f'INSERT INTO sio_packets_{row.segment} ("offset", kind, namespace, room, skip_sids, skip_rooms, body)'
            " VALUES ($1, $2, $3, $4, $5, $6, '[\"e\"]')",
            *(row.offset, row.kind, row.namespace, row.rooms[0], row.skip_sids, row.skip_rooms),
        )
        for room in row.rooms[1:] if row.kind == 0 else []:
            await db.execute(
                f"INSERT INTO sio_packet_rooms_{row.segment} VALUES ($1, $2, $3)", row.namespace, room, row.offset
            )
    return rows


def events(rows: list[Row], room: str) -> list[int]:
    return [row.offset for row in rows if row.kind == 0 and row.namespace == "/m" and room in row.rooms]


async def test_the_history_of_a_room(db, rows):
    found = await db.fetch(
        "SELECT a, u, l, ARRAY(SELECT sio_history('/m', 'r', a, u, l)) FROM generate_series(0, $1) u,"
        " unnest(array_append(ARRAY(SELECT generate_series(0, $1)), NULL)) a, unnest(ARRAY[1, 2, 5, 100]) l",
        LAST,
    )
    offsets = events(rows, "r")
    for after, upto, limit, history in found:
        if after is None:
            assert history == [at for at in reversed(offsets) if at <= upto][:limit]
        else:
            assert history == [at for at in [at for at in offsets if at > after][:limit] if at <= upto]


async def test_how_many_events_there_are_since_an_offset_for_each_room(db, rows):
    found = await db.fetch(
        "SELECT a, b, l, sio_count_since('/m', ARRAY['q', 'r'], ARRAY[a, b], l)"
        " FROM generate_series(0, $1) a, generate_series(0, $1, 5) b, unnest(ARRAY[1, 3, 100]) l",
        LAST,
    )
    for in_q, in_r, limit, count in found:
        due = {at for at in events(rows, "q") if at > in_q} | {at for at in events(rows, "r") if at > in_r}
        assert count == min(limit, len(due))
    assert await db.fetchval("SELECT sio_count_since('/m', '{}', '{}', 100)") == 0


@pytest.mark.parametrize("sid", ["s", "u"])
async def test_the_last_event_between_two_offsets_that_does_not_skip_a_sid(db, rows, sid):
    found = await db.fetch(
        "SELECT a, b, ARRAY(SELECT sio_last_due('/m', 'r', $2, a, b))"
        " FROM generate_series(0, $1) a, generate_series(0, $1) b",
        LAST,
        sid,
    )
    offsets = set(events(rows, "r")) - {row.offset for row in rows if sid in (row.skip_sids or ())}
    for above, below, last in found:
        assert last == [max((at for at in offsets if above < at < below), default=None)]


async def test_the_last_event_between_two_offsets_that_skips_a_room(db, rows):
    found = await db.fetch(
        "SELECT a, b, sio_last_skipping('/m', 's', a, b) FROM generate_series(0, $1) a, generate_series(0, $1) b",
        LAST,
    )
    offsets = [row.offset for row in rows if row.namespace == "/m" and "s" in (row.skip_rooms or ())]
    for above, below, last in found:
        assert last == max((at for at in offsets if above < at < below), default=None)


@pytest.mark.parametrize("segment", [0, 1])
@pytest.mark.parametrize("setting", ["enable_seqscan", "enable_indexscan"])
async def test_of_the_events_that_skip_rooms_1000_are_looked_at_and_the_last_of_these_counts(db, segment, setting):
    await db.execute(f"SET {setting} = off")
    await db.execute(f"""
        INSERT INTO sio_packets_{segment} ("offset", kind, namespace, skip_rooms, body)
        SELECT i, 0, '/', CASE WHEN i % 2 = 0 THEN ARRAY['other'] END, '["e"]' FROM generate_series(1, 2020) i""")
    for above, below, last in ((0, 2021, 22), (0, 2020, 20), (21, 2021, 22), (22, 2021, None)):
        assert await db.fetchval("SELECT sio_last_skipping('/', 's', $1, $2)", above, below) == last
    assert await db.fetchval("SELECT sio_last_skipping('/', 'other', 0, 2021)") == 2020
