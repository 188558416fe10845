"""The functions that append to the log, called directly: what they store, what they announce, and what they check."""

from __future__ import annotations

import json
import uuid
from typing import Any

import asyncpg
import pytest

from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.log.verdict import pid_hash

EVENT = "SELECT sio_append_event(1, '/', 'r', '[\"e\"]', NULL, $1)"
BATCH = """
SELECT prev, offsets, results FROM sio_append_batch(
    1, $1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], NULL, NULL,
    $9::text[], $10, $11)"""

segments = pytest.mark.parametrize("segment", [0, 1])


def entry(
    kind: Kind, *rooms: str, skip: Any = None, skip_rooms: Any = None, sid: Any = None, args: Any = None
) -> tuple:
    """Return the columns of one entry of a batch."""
    several = json.dumps(rooms) if len(rooms) > 1 else None
    lists = [value and json.dumps(value) for value in (skip, skip_rooms)]
    return kind.value, "/", (*rooms, "")[0], several, *lists, sid, '["e"]', args and json.dumps(args)


async def append(db: asyncpg.Connection, *entries: tuple, carry: str | None = None, drain: bool = True) -> Any:
    *columns, args = ([*column] for column in zip(*entries, strict=True))
    return await db.fetchrow(BATCH, *columns, args if any(args) else None, carry, drain)


async def announcements(db: asyncpg.Connection) -> list[str]:
    """Return the list to which the payload of each notification is added."""
    payloads: list[str] = []
    await db.add_listener(await db.fetchval("SELECT channel FROM sio_log"), lambda *args: payloads.append(args[3]))
    return payloads


async def switch(db: asyncpg.Connection, segment: int) -> None:
    """Append to a segment. The first is the active one if nothing has been switched."""
    if segment:
        await db.execute("SELECT setval('sio_active_segment', $1)", segment)


async def stored(db: asyncpg.Connection, segment: int) -> list[tuple]:
    columns = '"offset", kind, room, rooms, skip_sids, skip_rooms'
    return [tuple(row) for row in await db.fetch(f'SELECT {columns} FROM sio_packets_{segment} ORDER BY "offset"')]


# -- what is stored and announced -------------------------------------------------------------------------------
@segments
async def test_one_event_is_stored_and_its_notification_carries_the_record(db, segment):
    await switch(db, segment)
    payloads = await announcements(db)
    first, second = [await db.fetchval(EVENT, carry) for carry in ("[carried]", None)]
    await db.execute("SELECT 1")
    assert await stored(db, segment) == [(at, 0, "r", None, None, None) for at in (first, second)]
    assert payloads == [f"{first - 1} {first} [carried]", f"{first} {second}"]


@segments
async def test_a_batch_of_events_is_stored_and_its_notification_carries_the_records(db, segment):
    await switch(db, segment)
    payloads = await announcements(db)
    first = await db.fetchval(EVENT, None)
    row = await append(
        db,
        entry(Kind.EVENT, "a"),
        entry(Kind.EVENT, "a", "b", "c", "c", skip=["s"], skip_rooms=["x", "y"]),
        carry="[carried]",
    )
    assert row["prev"] == first and row["offsets"] == [first + 1, first + 2]
    assert (await stored(db, segment))[1:] == [
        (first + 1, 0, "a", None, None, None),
        (first + 2, 0, "a", ["a", "b", "c", "c"], ["s"], ["x", "y"]),
    ]
    rooms = await db.fetch(f'SELECT room, "offset" FROM sio_packet_rooms_{segment} ORDER BY 1')
    assert [tuple(row) for row in rooms] == [("b", first + 2), ("c", first + 2)]
    await append(db, entry(Kind.EVENT, "a"), drain=False)
    await db.execute("SELECT 1")
    assert payloads[1:] == [f"{first} {first + 2} [carried]", f"relay {first + 2} {first + 3}"]


@segments
async def test_a_batch_of_several_kinds_answers_for_each_entry(db, segment):
    await switch(db, segment)
    payloads = await announcements(db)
    first = await db.fetchval(EVENT, None)
    opening = {"pid_hash": pid_hash("p"), "start": first, "joined": first, "cursor": first, "rooms": []}
    claim = {"pid_hash": pid_hash("nobody's")}
    row = await append(
        db,
        entry(Kind.EVENT, "a", "b", "c", "c", skip=["s"], skip_rooms=["x", "y"], args={"key": "k"}),
        entry(Kind.OPEN, sid="s", args=opening),
        entry(Kind.EVENT, "a"),
        entry(Kind.CLAIM, args=claim),
        entry(Kind.RELEASE, args={"id": 0}),
        entry(Kind.EVENT, "a", args={"key": "k"}),
        entry(Kind.LEAVE, "a", sid="s"),
        entry(Kind.CLAIM, args={"pid_hash": opening["pid_hash"]}),
    )
    assert row["prev"] == first
    assert row["offsets"] == [first + 1, 0, first + 2, 0, 0, -first - 1, 0, first + 3]
    assert [result is None for result in row["results"]] == [True, False, *[True] * 5, False]
    assert (await stored(db, segment))[1:] == [
        (first + 1, 0, "a", ["a", "b", "c", "c"], ["s"], ["x", "y"]),
        (first + 2, 0, "a", None, None, None),
        (first + 3, 4, "", None, None, None),
    ]
    rooms = await db.fetch(f'SELECT room, "offset" FROM sio_packet_rooms_{segment} ORDER BY 1')
    assert [tuple(row) for row in rooms] == [("b", first + 1), ("c", first + 1)]
    assert await keys(db) == {"k": first + 1}
    await db.execute("SELECT 1")
    assert payloads[1:] == [f"{first} {first + 3}"]


async def keys(db: asyncpg.Connection) -> dict[str, int]:
    return dict(await db.fetch('SELECT key, "offset" FROM sio_keys'))


async def test_a_batch_of_events_whose_keys_are_taken_appends_nothing(db):
    payloads = await announcements(db)
    first, second = [entry(Kind.EVENT, "a", args={"key": key}) for key in ("first", "second")]
    at = (await append(db, first, second))["offsets"]
    row = await append(db, second, first, carry="[carried]")
    assert row["prev"] == at[1] and row["offsets"] == [-at[1], -at[0]]
    assert await keys(db) == {"first": at[0], "second": at[1]}
    await db.execute("SELECT 1")
    assert len(payloads) == 1 and len(await stored(db, 0)) == 2


async def test_a_batch_takes_the_key_of_an_event_that_is_gone(db):
    first = entry(Kind.EVENT, "a", args={"key": "first"})
    [at] = (await append(db, first))["offsets"]
    await db.execute("DELETE FROM sio_packets")
    assert (await append(db, first))["offsets"] == [at + 1]
    assert await keys(db) == {"first": at + 1}


async def test_a_batch_that_appends_nothing_announces_nothing(db):
    """Also if somebody has set the sequence so that its next value is the one that it has."""
    payloads = await announcements(db)
    first = await db.fetchval(EVENT, None)
    nothing = entry(Kind.RELEASE, args={"id": 0})
    await append(db, nothing)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1, false)", first + 1)
    assert (await append(db, nothing))["prev"] == first
    await db.execute("SELECT 1")
    assert len(payloads) == 1
    row = await append(db, entry(Kind.EVENT, "a"))
    assert row["prev"] == first and row["offsets"] == [first + 1]


# -- what is checked --------------------------------------------------------------------------------------------
async def append_event(db: asyncpg.Connection) -> int:
    return int(await db.fetchval(EVENT, None))


async def append_batch(db: asyncpg.Connection) -> int:
    return int((await append(db, entry(Kind.EVENT, "a")))["offsets"][0])


async def append_in_a_transaction(db: asyncpg.Connection) -> int:
    await db.execute("SELECT sio_emit('e')")
    return int(await db.fetchval("SELECT last_value FROM sio_packets_offset_seq"))


appends = pytest.mark.parametrize("append_one", [append_event, append_batch, append_in_a_transaction])


@appends
async def test_the_last_offset_of_an_epoch_is_followed_by_another_epoch(db, append_one):
    epoch = await append_one(db) >> EPOCH_BITS
    end = (epoch + 1) << EPOCH_BITS
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", end - 2)
    assert await append_one(db) == end - 1
    assert await append_one(db) == end + 1
    assert await db.fetchval("SELECT began_after FROM sio_epochs WHERE epoch = $1", epoch + 1) == end - 1


@appends
async def test_another_server_begins_another_epoch(db, append_one):
    epoch = await append_one(db) >> EPOCH_BITS
    await db.execute("UPDATE sio_marker SET fingerprint = 'another server'")
    assert await append_one(db) == ((epoch + 1) << EPOCH_BITS) + 1


@segments
@appends
async def test_a_sequence_below_the_records_of_a_segment_begins_another_epoch(db, append_one, segment):
    await switch(db, segment)
    last = [await append_one(db) for _ in range(3)][-1]
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", last - 2)
    assert await append_one(db) == (((last >> EPOCH_BITS) + 1) << EPOCH_BITS) + 1


RUNNING = {
    "just begun": "SELECT sio_lock_and_check_epoch()",
    "with a record": "SELECT sio_emit('e')",
    "with a record in the other segment": "SELECT setval('sio_active_segment', 1); SELECT sio_emit('e')",
    "emptied": "SELECT sio_emit('e'); SELECT sio_trim(0, 10)",
    "before its last offset": """
        SELECT sio_lock_and_check_epoch(); SELECT setval('sio_packets_offset_seq', 2 * 1099511627776 - 2)""",
    "with a relay that was switched off": "SELECT sio_emit('e'); SELECT setval('sio_relay_state', 0)",
}


@pytest.mark.parametrize("state", RUNNING)
async def test_an_event_in_a_running_epoch_calls_no_function_that_it_can_do_without(db, superuser, state):
    """Each call would take longer than the append itself."""
    for statement in RUNNING[state].split(";"):
        await db.execute(statement)
    await superuser.execute("SET track_functions = 'pl'")
    async with superuser.transaction():
        await append_event(superuser)
        called = await superuser.fetch("SELECT funcname FROM pg_stat_xact_user_functions WHERE funcname ~ '^sio_'")
    assert {row["funcname"] for row in called} == {"sio_append_event", "sio_check_isolation"}


# -- one record, and the records of a batch ---------------------------------------------------------------------
@segments
@pytest.mark.parametrize(("room", "stored_room"), [("r", "r"), (None, "")])
async def test_a_record_is_put_into_the_active_segment(db, segment, room, stored_room):
    await switch(db, segment)
    node = uuid.uuid4()
    put = "SELECT sio_put_record(7, 4, '/n', $1, 's', 8, 9, $2, 'data', '{a,b}', '{t}', '{x,y}')"
    offset = await db.fetchval(put, room, node)
    assert offset == await db.fetchval("SELECT last_value FROM sio_packets_offset_seq")
    [row] = await db.fetch(f"""
        SELECT "offset", kind, namespace, room, rooms, skip_sids, skip_rooms, sid, generation, as_of, node, data,
               batch
        FROM ONLY sio_packets_{segment}""")
    lists = ["a", "b"], ["t"], ["x", "y"]
    assert tuple(row) == (offset, 4, "/n", stored_room, *lists, "s", 8, 9, node, "data", 7)


STORED_BATCH = "SELECT * FROM sio_stored_batch($1, $2)"


async def test_the_records_of_a_batch_are_found_in_both_segments_in_order(db):
    insert = 'INSERT INTO sio_packets_{} ("offset", kind, namespace, batch) VALUES ($1, $2, $3, $4)'
    for segment, offset, kind, batch in (
        (1, 4, 0, 1),
        (1, 5, 1, 1),
        (1, 6, 3, 1),
        (1, 7, 0, 2),
        (0, 9, 2, 1),
        (0, 8, 0, 1),
        (0, 10, 0, None),
    ):
        await db.execute(insert.format(segment), offset, kind, "/", batch)
    assert [tuple(row) for row in await db.fetch(STORED_BATCH, 5, 1)] == [(6, 3), (8, 0), (9, 2)]
    assert await db.fetch(STORED_BATCH, 9, 1) == []


async def test_what_reads_a_batch_or_only_waits_has_the_lock_of_the_log(db, connect):
    other = await connect()
    await other.execute("SET lock_timeout = '50ms'")
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await other.fetch(STORED_BATCH, 0, 1)
        await other.execute("SET lock_timeout = 0; SET statement_timeout = '10s'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await other.execute("SELECT sio_wait_for_lock(50)")
    await other.execute("SELECT sio_wait_for_lock(50)")
    assert await other.fetchval("SHOW lock_timeout") == "0"  # as before the call
