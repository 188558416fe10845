"""The functions of the relay, called directly: what waits, what is moved, and which node does so."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import Any

import asyncpg
import pytest

from sio_pg_adapter import emit_async
from support.waiting import until, until_waiting

NODE = """
INSERT INTO sio_nodes (id, channel, role, recovery_seconds, margin_seconds)
VALUES ($1, 'c', (SELECT oid FROM pg_roles WHERE rolname = current_user), 120, 205) RETURNING number"""
ALIVE = "SELECT pg_advisory_lock_shared('sio_nodes'::regclass::oid::integer, $1)"
STATE = "SELECT last_value FROM sio_relay_state"


@pytest.fixture
async def relaying(db):
    """The relay is on, and an epoch runs."""
    await db.execute("SELECT sio_set_relay(true)")
    await db.execute("SELECT sio_lock_and_check_epoch()")


@pytest.fixture
async def heard(connect, db):
    """The notifications of the log, once the last one was waited for."""
    ear, payloads = await connect(), []
    await ear.add_listener(await db.fetchval("SELECT channel FROM sio_log"), lambda *args: payloads.append(args[-1]))

    async def all_so_far() -> list[str]:
        await db.execute("SELECT pg_notify(channel, 'end') FROM sio_log")
        await until(lambda: payloads[-1:] == ["end"])
        result = payloads[:-1]
        payloads.clear()
        return result

    return all_so_far


async def bodies(db) -> list[str]:
    return [row[0] for row in await db.fetch('SELECT coalesce(body, kind::text) FROM sio_packets ORDER BY "offset"')]


async def waiting(db) -> int:
    return await db.fetchval("SELECT count(*) FROM sio_relay")


async def wait_in_relay(db, *transactions: int) -> list[int]:
    """Have a row of each of some transactions wait. Its body is its number. Return the ids."""
    rows = await db.fetch(
        """INSERT INTO sio_relay (transaction, kind, namespace, room, body)
           SELECT t.transaction, 0, '/', '', t.i FROM unnest($1::bigint[]) WITH ORDINALITY t (transaction, i)
           RETURNING id""",
        transactions,
    )
    return [row[0] for row in rows]


async def row_in_relay(db, **columns: Any) -> int:
    """Have a row with these columns wait. Return its id."""
    columns = {"transaction": 0, "kind": 0, "namespace": "/", "room": "", **columns}
    names, marks = ", ".join(columns), ", ".join(f"${i}" for i in range(1, len(columns) + 1))
    return await db.fetchval(f"INSERT INTO sio_relay ({names}) VALUES ({marks}) RETURNING id", *columns.values())


async def move(db, *ids: int) -> int | None:
    return await db.fetchval("SELECT sio_relay_move($1, sio_last_in_epoch() >> 40)", ids)


async def batches(db, limit, most=None, upto=None) -> list[list[int]]:
    rows = await db.fetch("SELECT sio_relay_waiting($1, $2, $3)", limit, most, upto)
    return [row[0] for row in rows]


# -- what waits --------------------------------------------------------------------------------------------
async def test_a_batch_has_whole_transactions_in_the_order_of_their_last_rows(db):
    ids = await wait_in_relay(db, 7, 8, 7, 9, 8, 9, 9, 5)
    first, second, third, last = [ids[0], ids[2]], [ids[1], ids[4]], [ids[3], ids[5], ids[6]], [ids[7]]
    assert await batches(db, 1) == [first, second, third, last]
    assert await batches(db, 2) == [first, second, third, last]
    assert await batches(db, 3) == [first + second, third, last]
    assert await batches(db, 4) == [first + second, third + last]
    assert await batches(db, 5) == [first + second + third, last]
    assert await batches(db, 500) == [first + second + third + last]


async def test_a_look_for_rows_ends_after_so_many_or_at_an_id(db):
    ids = await wait_in_relay(db, 7, 8, 7, 9, 8, 9, 9, 5)
    assert await batches(db, 1, 1) == [[ids[0], ids[2]]]
    assert await batches(db, 1, 2) == [[ids[0], ids[2]]]
    assert await batches(db, 1, 3) == [[ids[0], ids[2]], [ids[1], ids[4]]]
    assert await batches(db, 1, None, ids[1]) == []
    assert await batches(db, 1, None, ids[2]) == [[ids[0], ids[2]]]
    assert await batches(db, 1, None, ids[5]) == [[ids[0], ids[2]], [ids[1], ids[4]]]
    assert await batches(db, 1, None, ids[7]) == await batches(db, 1)


async def test_a_look_for_rows_leaves_out_those_below_the_floor_and_those_at_fault(db):
    ids = await wait_in_relay(db, 1, 2, 3)
    assert await batches(db, 1) == [[each] for each in ids]
    await db.execute("UPDATE sio_relay SET fault = 'why' WHERE id = $1", ids[1])
    assert await batches(db, 1) == [[ids[0]], [ids[2]]]
    await db.execute("SELECT setval('sio_relay_floor', $1)", ids[0])
    assert await batches(db, 1) == [[ids[2]]]
    assert await batches(db, 1, None, ids[2]) == [[ids[0]], [ids[2]]]
    await db.execute("SELECT setval('sio_relay_floor', $1)", ids[2])
    assert await batches(db, 1) == []


# -- what is moved -------------------------------------------------------------------------------------------
async def test_rows_that_two_nodes_move_at_once_are_moved_once_and_in_order(relaying, db):
    await wait_in_relay(db, 1, 1, 2, 3)
    found = await batches(db, 1)
    assert await move(db, *found[0]) == 2
    await wait_in_relay(db, 4)
    for ids, moved in zip(await batches(db, 1), [1, 1, 1], strict=True):
        assert await move(db, *ids) == moved
    for ids in found:
        assert await move(db, *ids) == 0
    assert await bodies(db) == ["1", "2", "3", "4", "1"]


async def test_moving_a_batch_waits_for_the_log_before_it_locks_rows(relaying, connect, db):
    ids, holder, other = await wait_in_relay(db, 1), await connect(), await connect()
    async with holder.transaction():
        await holder.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        moving = asyncio.create_task(move(other, *ids))
        await until_waiting(db)
        await holder.execute("SELECT sio_relay_drain()")
    assert await moving == 0
    assert await bodies(db) == ["1"]


async def test_rows_that_were_found_in_another_epoch_are_not_moved(db):
    ids = await wait_in_relay(db, 1)
    running = "SELECT sio_last_in_epoch() >> 40"
    assert await db.fetchval(running) is None
    assert await db.fetchval("SELECT sio_relay_move($1, NULL)", ids) is None
    first = await db.fetchval(running)
    for epoch in (None, first - 1, first + 1):
        assert await db.fetchval("SELECT sio_relay_move($1, $2)", ids, epoch) is None
    await db.execute("TRUNCATE sio_marker")  # as a crash does
    assert await db.fetchval("SELECT sio_relay_move($1, $2)", ids, first) is None
    second = await db.fetchval(running)
    assert second > first
    assert await db.fetchval("SELECT sio_relay_move($1, $2)", ids, first) is None
    assert await waiting(db) == 1
    assert await db.fetchval("SELECT sio_relay_move($1, $2)", ids, second) == 1


async def test_a_batch_is_moved_as_one(relaying, db, heard):
    await move(db, *await wait_in_relay(db, 1, 2, 3))
    assert len(await heard()) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [("kind", 99), ("rooms", "no json"), ("rooms", '["x", null]'), ("room", "".join(map(chr, range(256, 4000))))],
)
async def test_whatever_is_wrong_with_a_row_it_stops_no_other(relaying, db, column, value):
    ids = await wait_in_relay(db, 1, 1, 1)
    await db.execute(f"UPDATE sio_relay SET {column} = $1 WHERE id = $2", value, ids[1])
    assert await move(db, *ids) == 2
    assert await bodies(db) == ["1", "3"]
    assert await db.fetchval("SELECT fault FROM sio_relay")


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_rows_are_not_moved_in_a_transaction_with_an_old_snapshot(relaying, connect, db, isolation):
    ids, other = await wait_in_relay(db, 1), await connect()
    async with other.transaction(isolation=isolation):
        with pytest.raises(asyncpg.PostgresError, match="read committed"):
            await move(other, *ids)
    assert await waiting(db) == 1


async def test_a_row_is_moved_with_all_its_columns(relaying, db):
    large = uuid.uuid4()
    names = "kind, namespace, room, rooms, skip_sids, skip_rooms, sid, body, parts, attachment, data"
    skips = {"skip_sids": '["s"]', "skip_rooms": '["r", "q"]'}
    await move(
        db,
        await row_in_relay(db, namespace="/n", room="a", rooms='["a", "b"]', body='["e"]', parts=b"1", **skips),
        await row_in_relay(db, room="c", attachment=large),
        await row_in_relay(db, kind=1, room="x", sid="sid"),
        await row_in_relay(db, kind=3, room="y"),
        await row_in_relay(db, kind=8, room="", members='["m"]'),
    )
    assert [tuple(row) for row in await db.fetch(f'SELECT {names} FROM sio_packets ORDER BY "offset"')] == [
        (0, "/n", "a", ["a", "b"], ["s"], ["r", "q"], None, '["e"]', b"1", None, None),
        (0, "/", "c", None, None, None, None, None, None, large, None),
        (1, "/", "x", None, None, None, "sid", None, None, None, None),
        (3, "/", "y", None, None, None, None, None, None, None, None),
        (8, "/", "", None, None, None, None, None, None, None, '["m"]'),
    ]
    assert await waiting(db) == 0


async def test_a_key_is_taken_when_its_event_is_moved(relaying, db):
    ids = [await row_in_relay(db, body=f'["{name}"]', key="k" if name != "c" else None) for name in "abc"]
    assert await move(db, *ids) == 3
    assert await bodies(db) == ['["a"]', '["c"]']
    assert await db.fetch("SELECT key FROM sio_keys") == [("k",)]


async def test_a_batch_is_moved_in_the_order_that_it_has(relaying, db):
    ids = [
        await row_in_relay(db, body="0", room="0"),
        await row_in_relay(db, body="1", sid="1", kind=1, room="1"),
        await row_in_relay(db, body="2", rooms='["2", "0"]', skip_sids='["2"]', skip_rooms='["2"]', room="2"),
        await row_in_relay(db, body="3", parts=b"3", namespace="/3", key="3"),
    ]
    await move(db, ids[3], ids[1], ids[0], ids[2])
    names = "kind, namespace, room, rooms, skip_sids, skip_rooms, sid, parts"
    assert [tuple(row) for row in await db.fetch(f'SELECT {names} FROM sio_packets ORDER BY "offset"')] == [
        (0, "/3", "", None, None, None, None, b"3"),
        (1, "/", "1", None, None, None, "1", None),
        (0, "/", "0", None, None, None, None, None),
        (0, "/", "2", ["2", "0"], ["2"], ["2"], None, None),
    ]
    first = await db.fetchval('SELECT min("offset") FROM sio_packets')
    assert await db.fetchval('SELECT "offset" FROM sio_keys') == first


async def test_the_notification_of_a_batch_carries_small_events(relaying, db, heard):
    await move(
        db,
        await row_in_relay(db, body='["a"]', room="x"),
        await row_in_relay(
            db, body='["b"]', rooms='["x","y"]', skip_sids='["s"]', skip_rooms='["r"]', namespace="/n"
        ),
    )
    [payload] = await heard()
    assert payload.split(" ", 3)[0] == "relay"
    assert "".join(payload.split(" ", 3)[3].split()) == (
        '[["/",["x"],[],[],"[\\"a\\"]"],["/n",["x","y"],["s"],["r"],"[\\"b\\"]"]]'
    )


@pytest.mark.parametrize(
    "columns", [{"kind": 3, "room": "x"}, {"parts": b"1", "body": '["e"]'}, {"attachment": uuid.UUID(int=1)}]
)
@pytest.mark.parametrize("place", [0, 1])
async def test_the_notification_carries_nothing_if_there_is_more_than_a_body(relaying, db, heard, columns, place):
    plain = {"body": '["a"]'}
    for each in (columns, plain) if place else (plain, columns):
        await row_in_relay(db, **each)
    await db.execute("SELECT sio_relay_drain()")
    [payload] = await heard()
    assert len(payload.split()) == 3


async def test_the_notification_carries_no_more_than_fits(relaying, db, heard):
    carried = len('[["/", [""], [], [], "1"]]') - 1
    for size, letter, fits in ((7_600 - carried, "1", True), (7_601 - carried, "1", False), (7_600, "1", False)):
        await move(db, await row_in_relay(db, body=letter * size))
        [payload] = await heard()
        assert (len(payload.split(" ", 3)) == 4) is fits, size


async def test_an_own_room_that_is_entered_is_a_fault(relaying, store, db):
    await store.open("s", "p")
    good, bad = await row_in_relay(db, body="1"), await row_in_relay(db, kind=3, room="s")
    assert await move(db, bad, good) == 1
    assert await bodies(db) == ["1"]
    assert "own room" in await db.fetchval("SELECT fault FROM sio_relay")


@pytest.mark.parametrize(("state", "left"), [(0, 1), (1, 0), (2, 0), (3, 0)])
async def test_a_direct_append_moves_rows_if_the_relay_is_or_was_on(db, state, left):
    await wait_in_relay(db, 1)
    await db.execute("SELECT setval('sio_relay_state', $1)", state)
    await db.execute("SELECT sio_relay_before()")
    assert await waiting(db) == left


@pytest.mark.parametrize(
    ("isolation", "left"),
    [("read uncommitted", 0), ("read committed", 0), ("repeatable read", 1), ("serializable", 1)],
)
async def test_a_commit_with_an_old_snapshot_moves_no_rows(relaying, db, isolation, left):
    await wait_in_relay(db, 1)
    async with db.transaction():
        await db.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        await db.execute("SELECT sio_relay_before_commit()")
    assert await waiting(db) == left


# -- which node --------------------------------------------------------------------------------------------
@pytest.fixture
async def nodes(db, connect):
    """Two nodes, of which the second lives: their ids, and the states in which they move rows."""
    first, second = uuid.UUID(int=1), uuid.UUID(int=2)
    numbers = [await db.fetchval(NODE, each) for each in (first, second)]
    await (await connect()).execute(f"{ALIVE}".replace("$1", str(numbers[1])))
    return first, second, *(3 + 2 * number for number in numbers)


async def attend(db, node) -> tuple[str, int]:
    return await db.fetchval("SELECT sio_relay_attend($1)", node), await db.fetchval(STATE)


async def set_state(db, state: int) -> None:
    await db.execute("SELECT setval('sio_relay_state', $1)", state)


@pytest.mark.parametrize("rows", [0, 1])
async def test_no_node_moves_rows_while_the_relay_is_off(db, nodes, rows):
    await wait_in_relay(db, *range(rows))
    await set_state(db, 0)
    assert await attend(db, nodes[0]) == ("off", 0)
    await set_state(db, 2)
    assert await attend(db, nodes[0]) == ("ending", 2)


async def test_a_node_begins_to_move_rows_when_one_waits(db, nodes):
    first, _, moving, _ = nodes
    await set_state(db, 1)
    assert await attend(db, first) == ("asleep", 1)
    await row_in_relay(db, kind=99, fault="why")
    assert await attend(db, first) == ("asleep", 1)
    await wait_in_relay(db, 1)
    assert await attend(db, first) == ("moving", moving)
    assert await attend(db, first) == ("moving", moving)


@pytest.mark.parametrize("drowsy", [0, 1])
async def test_a_node_goes_on_if_it_is_the_one_or_if_that_is_dead(db, nodes, drowsy):
    first, second, moving_first, moving_second = nodes
    await set_state(db, moving_second + drowsy)
    assert await attend(db, first) == ("other", moving_second + drowsy)
    assert await attend(db, second) == ("moving", moving_second)
    await set_state(db, moving_first + drowsy)
    assert await attend(db, second) == ("moving", moving_second)
    await set_state(db, moving_first + drowsy)
    assert await attend(db, first) == ("moving", moving_first)


async def test_a_node_that_is_not_registered_does_not_move_rows(db, nodes):
    await wait_in_relay(db, 1)
    await set_state(db, 1)
    with pytest.raises(asyncpg.NoDataFoundError):
        await attend(db, uuid.UUID(int=3))


async def test_of_two_nodes_that_begin_at_once_one_does(db, connect, nodes):
    first, second, _, moving = nodes
    holder, other = await connect(), await connect()
    await wait_in_relay(db, 1)
    await set_state(db, 1)
    async with holder.transaction():
        await holder.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        asking = asyncio.create_task(attend(other, first))
        await until_waiting(db)
        assert await attend(holder, second) == ("moving", moving)
    assert await asking == ("other", moving)


async def test_a_node_that_begins_when_all_is_moved_stays_asleep(relaying, db, connect, nodes):
    holder, other = await connect(), await connect()
    ids = await wait_in_relay(db, 1)
    await set_state(db, 1)
    async with holder.transaction():
        await holder.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        asking = asyncio.create_task(attend(other, nodes[0]))
        await until_waiting(db)
        await move(holder, *ids)
    assert await asking == ("asleep", 1)


async def test_the_state_changes_for_the_node_that_has_it(db, nodes):
    first, second, moving, moving_second = nodes
    states = {"off": 0, "asleep": 1, "ending": 2, "moving": moving, "drowsy": moving + 1}
    for (before, wanted), (after, changed) in itertools.product(states.items(), states.items()):
        for state in {*states.values(), moving_second, moving_second + 1}:
            await set_state(db, state)
            done = await db.fetchval("SELECT sio_relay_change($1, $2, $3)", first, before, after)
            assert done is (state == wanted)
            assert await db.fetchval(STATE) == (changed if done else state)
    await set_state(db, moving_second)
    assert await db.fetchval("SELECT sio_relay_change($1, 'moving', 'drowsy')", second) is True
    assert await db.fetchval(STATE) == moving_second + 1


async def test_the_state_is_compared_under_the_logs_lock(db, connect, nodes):
    first, _, moving, _ = nodes
    holder, other = await connect(), await connect()
    await set_state(db, moving)
    async with holder.transaction():
        await holder.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        changing = asyncio.create_task(other.fetchval("SELECT sio_relay_change($1, 'moving', 'drowsy')", first))
        await until_waiting(db)
        await holder.execute("SELECT sio_set_relay(false)")
    assert await changing is False
    assert await db.fetchval(STATE) == 2


# -- on and off --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("on", "before", "after"),
    [
        (True, 0, 1),
        (True, 2, 1),
        (True, 1, 1),
        (True, 9, 9),
        (False, 0, 0),
        (False, 2, 2),
        (False, 1, 2),
        (False, 9, 2),
    ],
)
async def test_switching_rings_the_nodes_if_it_changes_something(db, heard, on, before, after):
    await set_state(db, before)
    await db.execute("SELECT sio_set_relay($1)", on)
    assert await db.fetchval(STATE) == after
    assert await heard() == (["relay"] if after != before else [])


async def test_switching_waits_for_the_log(db, connect):
    holder, other = await connect(), await connect()
    async with holder.transaction():
        await holder.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        switching = asyncio.create_task(other.execute("SELECT sio_set_relay(true)"))
        await until_waiting(db)
        await holder.execute("SELECT sio_set_relay(true)")
        await set_state(holder, 5)
    await switching
    assert await db.fetchval(STATE) == 5


async def test_an_emit_waits_in_the_relay_while_that_is_on(relaying, db):
    await emit_async(db, "e")
    assert await waiting(db) == 1
