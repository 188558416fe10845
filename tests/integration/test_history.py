"""The history of a room: its events in the log, in order, as its clients receive them."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import json
import random
from types import SimpleNamespace

import asyncpg
import pytest

from integration.test_segments import QUERIES, turned
from sio_pg_adapter import AsyncNamespace, ConfigurationError, NotSerializable, PositionLost, StoredEvent
from support.pruning import prune_once

LARGE = "x" * 100_000


async def named(manager, room, **options) -> list[str]:
    return [stored.event for stored in await manager.history(room, **options)]


async def test_the_events_of_a_room_are_what_its_clients_received(start_node, db):
    node = await start_node()
    sio = node.sio
    before = await db.fetchval("SELECT clock_timestamp()")
    await sio.emit("none", room="r")
    await sio.emit("one", {"text": "hällo", "n": [1, 2.5, None, True]}, room="r")
    await sio.emit("two", ("a", {"b": 1}), room="r", skip_sid="s")
    await sio.emit("binary", {"file": b"\0\1", "more": [b"", "x"]}, room="r")
    await sio.emit("large", (LARGE, LARGE.encode()), room=["other", "r"])
    await sio.emit("volatile", room="r", volatile=True)
    await sio.emit("everybody")
    await sio.emit("elsewhere", room="other")
    await sio.emit("of another namespace", room="r", namespace="/n")
    after = await db.fetchval("SELECT clock_timestamp()")
    events = await sio.history("r")
    assert [(stored.event, stored.args) for stored in events] == [
        ("none", ()),
        ("one", ({"text": "hällo", "n": [1, 2.5, None, True]},)),
        ("two", ("a", {"b": 1})),
        ("binary", ({"file": b"\0\1", "more": [b"", "x"]},)),
        ("large", (LARGE, LARGE.encode())),
    ]
    times = [stored.at for stored in events]
    assert times == sorted(times) and before <= times[0] and times[-1] <= after
    assert {at.tzinfo for at in times} == {dt.UTC}
    assert len({stored.position for stored in events}) == 5 and isinstance(events[0], StoredEvent)
    assert await named(node.manager, "other") == ["large", "elsewhere"]
    assert await named(node.manager, "r", namespace="/n") == ["of another namespace"]
    assert await named(node.manager, None) == ["everybody"]
    assert await named(node.manager, "nobody's") == []


async def test_a_clients_own_room_is_a_room(start_node):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("for you", to=wire.sid)
        await node.sio.emit("for all")
        assert await named(node.manager, wire.sid) == ["for you"]


async def test_a_namespace_reads_its_own_rooms(start_node):
    node = await start_node()
    chat = AsyncNamespace("/chat")
    node.sio.register_namespace(chat)
    await chat.emit("said", "x", room="r")
    assert [stored.event for stored in await chat.history("r")] == ["said"]
    assert await chat.history("r", namespace="/") == []


async def test_two_events_with_several_names_of_one_room_are_two(db, store):
    for _ in range(2):
        await db.execute("""SELECT sio_emit_encoded('/', 'r', '["r","a","r","a"]', NULL, '["e"]', NULL)""")
    assert await named(store.manager, "r") == await named(store.manager, "a") == ["e", "e"]


@pytest.mark.parametrize("serializer", ["default", "msgpack"])
async def test_the_values_are_those_of_the_servers_serializer(start_node, serializer):
    node = await start_node(serializer=serializer)
    await node.sio.emit("e", {"n": 1, "file": b"\0"}, room="r")
    [stored] = await node.sio.history("r")
    assert stored.args == ({"n": 1, "file": b"\0"},)


async def test_the_servers_json_module_decodes(start_node, store):
    def loads(text):
        return json.loads(text, parse_float=decimal.Decimal)

    node = await start_node(json=SimpleNamespace(dumps=json.dumps, loads=loads))
    await store.emit("r", body='["price",1.10]')
    [stored] = await node.sio.history("r")
    assert stored.args == (decimal.Decimal("1.10"),) and isinstance(stored.args[0], decimal.Decimal)


async def test_a_number_that_engineio_does_not_read_is_read(start_node):
    node = await start_node()
    await node.sio.emit("e", 10**200, room="r")
    [stored] = await node.sio.history("r")
    assert stored.args == (10**200,)


@pytest.mark.parametrize("damage", ["body = '['", "body = NULL", "parts = '\\x00'", "attachment = gen_random_uuid()"])
async def test_one_record_that_cannot_be_read_does_not_hide_the_others(store, db, expected_errors, damage):
    expected_errors.append("is left out of a history, because it cannot be read")
    await store.emit("r", body='["a"]')
    offset = await store.emit(
        "r", body=f'["damaged","{LARGE}"]' if damage.startswith("attachment") else '["damaged"]'
    )
    await store.emit("r", body='["b"]')
    await db.execute(f'UPDATE sio_packets SET {damage} WHERE "offset" = $1', offset)
    assert await named(store.manager, "r") == ["a", "b"]


# -- which of them -----------------------------------------------------------------------------------------------
async def test_since_until_and_limit(store, db):
    """Random combinations, over both segments, return the events that they mean."""
    positions, of_room = [await store.manager.position()], []
    choice = random.Random(7)
    for n in range(60):
        if n == 30:
            await db.execute("SELECT setval('sio_active_segment', 1)")
        rooms = choice.choice([("q",), ("r",), ("z",), ("q", "r"), ("r", "z"), ("",), ("r", "r2"), ("z", "q")])
        await store.emit(*rooms, body=f'["{n}"]')
        if "r" in rooms:
            of_room.append((len(positions), str(n)))
        positions.append(await store.manager.position())
    for _ in range(200):
        since, until = (choice.choice([None, *range(len(positions))]) for _ in range(2))
        limit = choice.choice([1, 2, 5, 100])
        events = [event for at, event in of_room if (since is None or at > since) and (until is None or at <= until)]
        expected = events[-limit:] if since is None else events[:limit]
        options = {"since": None if since is None else positions[since]}
        options["until"] = None if until is None else positions[until]
        assert await named(store.manager, "r", limit=limit, **options) == expected, (since, until, limit)


async def test_pages_in_both_directions(store):
    start, forward = await store.manager.position(), []
    for n in range(25):
        await store.emit("r", body=f'["{n}"]')
        await store.emit("s")
    while page := await store.manager.history("r", since=start, limit=10):
        forward += [stored.event for stored in page]
        start = page[-1].position
    assert forward == [str(n) for n in range(25)]
    newest = await store.manager.history("r", limit=10)
    backward = [stored.event for stored in newest]
    while newest := (await store.manager.history("r", until=newest[0].position, limit=11))[:-1]:
        backward[:0] = [stored.event for stored in newest]
    assert backward == [str(n) for n in range(25)]


async def test_an_event_of_an_open_transaction_has_no_place_yet(store, pg_dsn):
    await store.emit("r", body='["first"]')
    connection = await asyncpg.connect(pg_dsn)
    async with connection.transaction():
        await connection.execute("SELECT sio_emit('late', room => 'r')")
        before = await store.manager.history("r")
        await store.emit("r", body='["second"]')
    assert [stored.event for stored in before] == ["first"]
    assert await named(store.manager, "r", since=before[-1].position) == ["second", "late"]
    await connection.close()


# -- what is no longer stored -------------------------------------------------------------------------------------
async def test_since_below_the_floor_is_lost_and_the_newest_events_begin_where_the_log_begins(pg_dsn, store, db):
    for n in range(3):
        await store.emit("r", body=f'["{n}"]')
    first, second, third = await store.manager.history("r")
    assert await named(store.manager, "r", since=first.position) == ["1", "2"]
    await db.execute(
        "UPDATE sio_packets SET created_at = created_at - interval '1 hour' WHERE body IN ('[\"0\"]', '[\"1\"]')"
    )
    await prune_once(pg_dsn)
    with pytest.raises(PositionLost, match="since= is older than the events that are stored"):
        await store.manager.history("r", since=first.position)
    assert await named(store.manager, "r", since=second.position) == ["2"]  # the floor itself: nothing is missing
    assert await named(store.manager, "r") == ["2"]
    assert await named(store.manager, "r", until=first.position) == []
    assert await store.manager.history("r", since=third.position) == []


async def test_an_event_that_is_truncated_while_it_is_read_is_lost_and_not_left_out(pg_dsn, store, db, superuser):
    """A TRUNCATE is not MVCC-safe: a snapshot from before it finds no rows, and the former floor."""
    start = await store.manager.position()
    await turned(db)
    other = await asyncpg.connect(pg_dsn)
    truncating = other.transaction()
    await truncating.start()
    assert await other.fetchval(QUERIES["trim"], 325.0, 2_000) > 0
    reading = asyncio.create_task(store.manager.history("r0", since=start))
    async with asyncio.timeout(20):
        while not await superuser.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert not reading.done()
            await asyncio.sleep(0.01)
    await truncating.commit()
    with pytest.raises(PositionLost):
        await reading
    await other.close()


async def test_events_of_an_epoch_that_another_node_has_just_begun(start_store, db):
    writer, reader = await start_store(), await start_store()
    await writer.emit("r", body='["old"]')
    await db.execute("DELETE FROM sio_marker")  # as after a crash
    await writer.emit("r", body='["new"]')
    events = await reader.manager.history("r")
    assert [stored.event for stored in events] == ["old", "new"]
    assert await named(writer.manager, "r", since=events[0].position) == ["new"]


# -- what is refused ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [0, -1, 10_001, 1.0, "10", True, None])
async def test_a_limit_is_refused_by_its_name(store, limit):
    with pytest.raises(ConfigurationError, match=r"^limit takes a whole number from 1 to 10000, not"):
        await store.manager.history("r", limit=limit)


@pytest.mark.parametrize("argument", ["since", "until"])
async def test_a_malformed_position_is_refused_by_its_argument(store, argument):
    await store.emit("r")
    elsewhere = await store.manager.position(namespace="/n")
    for wrong in ("", "1099511627777", 7, b"x" * 36):
        with pytest.raises(ConfigurationError, match=f"^{argument} takes a position that"):
            await store.manager.history("r", **{argument: wrong})
    with pytest.raises(ConfigurationError, match=f"{argument} has a position of another namespace"):
        await store.manager.history("r", **{argument: elsewhere})


@pytest.mark.parametrize(
    ("room", "error"), [("", ConfigurationError), (["r"], NotSerializable), (7, NotSerializable)]
)
async def test_a_room_is_one_name(store, room, error):
    with pytest.raises(error, match=r"^room takes"):
        await store.manager.history(room)
