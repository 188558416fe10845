"""The functions of room changes in transactions, called directly: what each stores, appends and announces."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest

CHANGE = "SELECT sio_change($1, $2, $3, $4, $5, $6, $7)"
WAITING = "SELECT kind, namespace, rooms, sid, members, skip_sids, skip_rooms, immediate FROM sio_outbox_changes"
RELAYED = "SELECT kind, namespace, room, rooms, skip_sids, skip_rooms, members, sid FROM sio_relay ORDER BY id"
LONG = "ü" * 256
INSERT = """
INSERT INTO sio_outbox_changes (kind, namespace, rooms, sid, members, skip_sids, skip_rooms, immediate)
VALUES ($1, '/', $2, $3, $4, $5, $6, false)"""
IMMEDIATE = "SET CONSTRAINTS ALL IMMEDIATE"


@pytest.fixture(autouse=True)
async def sessions(db) -> None:
    await db.execute("""
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
        SELECT i, int4send(i), namespace, sid, 0, 0
        FROM (VALUES (1, '/', 's'), (2, '/', 't'), (3, '/n', 'v')) x (i, namespace, sid)""")


async def change(
    db: asyncpg.Connection,
    name: str,
    rooms: list | None = None,
    sid: str | None = None,
    members: list | None = None,
    skips: list | None = None,
    skip_rooms: list | None = None,
    namespace: str | None = "/",
) -> None:
    lists = [None if names is None else json.dumps(names) for names in (rooms, members, skips, skip_rooms)]
    await db.execute(CHANGE, name, namespace, lists[0], sid, *lists[1:])


async def announcements(db: asyncpg.Connection) -> list[str]:
    """Return the list to which the payload of each notification is added."""
    payloads: list[str] = []
    await db.add_listener(await db.fetchval("SELECT channel FROM sio_log"), lambda *args: payloads.append(args[3]))
    return payloads


async def records(db: asyncpg.Connection, after: int = 0) -> list[tuple]:
    text = 'SELECT kind, room, rooms, sid FROM sio_packets WHERE "offset" > $1 ORDER BY "offset"'
    return [tuple(row) for row in await db.fetch(text, after)]


async def emitted(db: asyncpg.Connection) -> int:
    """Append an event. Return its offset, which is the last one of the log."""
    return int(await db.fetchval("SELECT sio_append_event(1, '/', 'r', '[\"e\"]', NULL, NULL)"))


# -- the call ---------------------------------------------------------------------------------------------------
CALLS = [
    (("enter_room", ["a"], "s"), (1, ["a"], "s", None, [], [])),
    (("enter_room", ["a", "b", "a"], "s"), (1, ["a", "b"], "s", None, [], [])),
    (("enter_room", ["s", "a"], "s"), (1, ["a"], "s", None, [], [])),
    (("enter_room", ["s", "a", "b"], "s"), (1, ["a", "b"], "s", None, [], [])),
    (("enter_room", ["v"], "s"), (1, ["v"], "s", None, [], [])),
    (("enter_room", ["a"], "unstored"), (1, ["a"], "unstored", None, [], [])),
    (("enter_room", ["a", "b"], None, ["", "x"]), (1, ["a", "b"], None, ["", "x"], [], [])),
    (("enter_room", ["a", "b", "c"], None, ["x"]), (1, ["a", "b", "c"], None, ["x"], [], [])),
    (("leave_room", ["a"], "s"), (2, ["a"], "s", None, [], [])),
    (("leave_room", ["t"], "s"), (2, ["t"], "s", None, [], [])),
    (("leave_room", ["a"], None, ["x"], ["t"], ["y"]), (2, ["a"], None, ["x"], ["t"], ["y"])),
    (("leave_room", ["t"], None, ["x"], ["t", "u"], ["y", "z"]), (2, ["t"], None, ["x"], ["t", "u"], ["y", "z"])),
    (("close_room", ["a"]), (3, ["a"], None, None, [], [])),
    (("close_room", ["v"]), (3, ["v"], None, None, [], [])),
    (("disconnect", None, "s"), (5, [""], "s", None, [], [])),
    (("disconnect", [], None, ["x"], ["t"]), (5, [""], None, ["x"], ["t"], [])),
]


@pytest.mark.parametrize(("call", "waiting"), CALLS)
@pytest.mark.parametrize("state", [0, 2])
async def test_a_change_waits_in_the_outbox_until_its_transaction_commits(db, state, call, waiting):
    await db.execute("SELECT setval('sio_relay_state', $1)", state)
    async with db.transaction():
        await change(db, *call)
        [(kind, namespace, rooms, *rest, immediate)] = await db.fetch(WAITING)
        assert (kind, sorted(rooms), *rest) == waiting and namespace == "/" and immediate is False
        assert await db.fetch(RELAYED) == []
    assert await db.fetch(WAITING) == []


@pytest.mark.parametrize(("call", "waiting"), CALLS)
async def test_a_change_is_inserted_into_the_relay(db, call, waiting):
    """Those of one client are a row for each room. Those of members are one row."""
    kind, rooms, sid, members, skips, skip_rooms = waiting
    await db.execute("SELECT setval('sio_relay_state', 3)")
    await change(db, *call)
    rows = sorted(tuple(row) for row in await db.fetch(RELAYED))
    lists = [json.dumps(names, separators=(",", ":")) if names else None for names in (skips, skip_rooms, members)]
    if members is None:
        assert rows == [(kind, "/", room, None, *lists, sid) for room in rooms]
    else:
        [(*_, first, several, _, _, _, _)] = rows
        several = None if several is None else json.loads(several)
        assert (sorted(several or [first]), (several or [first])[0]) == (rooms, first)
        assert (several is None) == (len(rooms) == 1)
        kinds = {1: 6, 2: 7, 5: 8}
        assert [(*row[:2], *row[4:]) for row in rows] == [(kinds[kind], "/", *lists, None)]
    assert await db.fetchval("SELECT bool_and(transaction > 0) FROM sio_relay") and await records(db) == []


@pytest.mark.parametrize(("state", "rings"), [(1, True), (3, False), (4, True), (5, False)])
async def test_a_change_rings_unless_a_node_moves_rows(db, state, rings):
    """An odd state from 3 on names the node that moves rows. An even one names a node that falls asleep."""
    payloads = await announcements(db)
    await db.execute("SELECT setval('sio_relay_state', $1)", state)
    await change(db, "close_room", ["a"])
    assert payloads == (["relay"] if rings else [])
    assert len(await db.fetch(RELAYED)) == 1


@pytest.mark.parametrize("relay", [0, 1])
async def test_no_client_enters_or_leaves_its_own_room(db, relay):
    await db.execute("SELECT setval('sio_relay_state', $1)", relay)
    payloads = await announcements(db)
    for name in ("enter_room", "leave_room"):
        await change(db, name, ["s"], "s")
    assert await db.fetch(RELAYED) == [] == payloads


@pytest.mark.parametrize("state", [0, 2])
async def test_a_change_that_waits_while_the_relay_is_switched_off_is_not_inserted_into_it(db, connect, state):
    """An insert takes a lock on the relay, and then reads its state."""
    app = await connect()
    await db.execute("SELECT setval('sio_relay_state', 1)")
    async with db.transaction():
        await db.execute("LOCK TABLE sio_relay IN ACCESS EXCLUSIVE MODE")
        task = asyncio.create_task(change(app, "close_room", ["a"]))
        pid = app.get_server_pid()
        while not await db.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
            assert not task.done()
        await db.execute("SELECT setval('sio_relay_state', $1)", state)
    await task
    assert await db.fetch(RELAYED) == []
    assert await records(db) == [(3, "a", None, None)]


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_change_is_refused_in_a_stricter_transaction(db, isolation):
    with pytest.raises(asyncpg.InvalidTransactionStateError, match="sio_close_room: this transaction is"):
        async with db.transaction(isolation=isolation):
            await change(db, "close_room", ["a"])


CLIENT = "name one client by sid, or all members"
ROOM = "name the room"
OWN = '"t" is the own room of a client'
LENGTH = "longer than 512 bytes"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (("kick", None, "s"), "a change is enter_room, leave_room, close_room or disconnect"),
        ((None, None, "s"), "a change is"),
        (("disconnect", None, "s", None, None, None, None), "a change is"),
        *(((name, rooms, "s"), ROOM) for name in ("enter_room", "leave_room") for rooms in (None, [])),
        *((("enter_room", rooms, "s"), ROOM) for rooms in ([""], ["a", ""], [None], ["a", None])),
        (("enter_room", ["a", ""], None, ["x"]), ROOM),
        *((("close_room", rooms), ROOM) for rooms in (None, [], [""], [None, "a"])),
        (("disconnect", ["r"], "s"), ROOM),
        (("disconnect", ["r"], None, ["x"]), ROOM),
        *(((name, ["a"]), CLIENT) for name in ("enter_room", "leave_room")),
        *(((name, ["a"], "s", ["x"]), CLIENT) for name in ("enter_room", "leave_room", "close_room")),
        *(((name, ["a"], ""), CLIENT) for name in ("enter_room", "leave_room")),
        *(((name, ["a"], None, of), CLIENT) for name in ("enter_room", "leave_room") for of in ([], [None, "x"])),
        (("close_room", ["a"], "s"), CLIENT),
        (("close_room", ["a"], ""), CLIENT),
        (("close_room", ["a"], None, ["x"]), CLIENT),
        (("disconnect",), CLIENT),
        (("disconnect", None, ""), CLIENT),
        (("disconnect", None, "s", ["x"]), CLIENT),
        (("disconnect", None, None, []), CLIENT),
        (("disconnect", None, None, ["x", None]), CLIENT),
        (("enter_room", ["t"], "s"), OWN),
        (("enter_room", ["a", "t"], "s"), OWN),
        (("enter_room", ["s", "t"], "s"), OWN),
        (("enter_room", ["t", "a"], None, ["x"]), OWN),
        (("enter_room", ["t"], None, ["t"]), OWN),
        (("close_room", ["t"]), OWN),
        (("close_room", ["a", "t"]), OWN),
    ],
)
@pytest.mark.parametrize("relay", [0, 1])
async def test_a_change_that_is_refused_is_not_stored(db, relay, call, says):
    await db.execute("SELECT setval('sio_relay_state', $1)", relay)
    with pytest.raises(asyncpg.InvalidParameterValueError, match=says) as e:
        await change(db, *call)
    assert says.startswith("a change") or f"sio_{call[0]}: " in str(e.value)
    assert await db.fetch(RELAYED) == [] == await records(db)


@pytest.mark.parametrize("place", range(6))
async def test_names_have_at_most_512_bytes(db, place):
    def call(name: str) -> dict:
        names = {"rooms": ["a"], "members": ["x"], "skips": ["t"], "skip_rooms": ["y"], "namespace": "/"}
        if place == 5:
            return {"rooms": ["a"], "sid": name}
        key = [*names][place]
        return names | {key: name if key == "namespace" else [*names[key], name]}

    await change(db, "leave_room", **call(LONG))
    with pytest.raises(asyncpg.ProgramLimitExceededError, match=rf"sio_leave_room: .*{LENGTH}"):
        await change(db, "leave_room", **call(LONG + "x"))
    assert len(await records(db)) == 1


# -- the functions for SQL --------------------------------------------------------------------------------------
NAMED = "SELECT sio_change_named($1, $2, $3, $4, $5)"


@pytest.mark.parametrize(
    ("arguments", "waiting"),
    [
        (("enter_room", "a", "s", ""), (1, ["a"], "s", None)),
        (("leave_room", "a", "", "x"), (2, ["a"], None, ["x"])),
        (("close_room", "a", "", ""), (3, ["a"], None, None)),
        (("disconnect", "", "s", ""), (5, [""], "s", None)),
        (("disconnect", "", "", "x"), (5, [""], None, ["x"])),
    ],
)
async def test_an_empty_name_stands_for_an_argument_that_is_left_out(db, arguments, waiting):
    async with db.transaction():
        await db.execute(NAMED, *arguments, "/n")
        kind, rooms, sid, members = waiting
        assert [tuple(row) for row in await db.fetch(WAITING)] == [(kind, "/n", rooms, sid, members, [], [], False)]


@pytest.mark.parametrize("missing", range(1, 5))
async def test_null_is_no_argument_of_a_change(db, missing):
    arguments: list[str | None] = ["leave_room", "a", "", "x", "/"]
    await db.execute(NAMED, *arguments)
    arguments[missing] = None
    with pytest.raises(asyncpg.NullValueNotAllowedError, match=r"sio_leave_room: .* are not null"):
        await db.execute(NAMED, *arguments)


# -- the commit -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("waiting", "appended"),
    [
        ((1, ["a"], "s", None), [(1, "a", None, "s")]),
        ((1, ["b", "a"], "s", None), [(1, "b", None, "s"), (1, "a", None, "s")]),
        ((2, ["a", "b"], "unstored", None), [(2, "a", None, "unstored"), (2, "b", None, "unstored")]),
        ((3, ["a", "b"], None, None), [(3, "a", None, None), (3, "b", None, None)]),
        ((5, [""], "s", None), [(5, "", None, "s")]),
        ((1, ["a", "b"], None, ["s"]), [(6, "a", ["a", "b"], None)]),
        ((2, ["a"], None, ["s"]), [(7, "a", None, None)]),
        ((5, [""], None, ["s", "v"]), [(5, "", None, "s"), (8, "", None, None)]),
    ],
)
async def test_the_commit_appends_a_change_and_announces_it(db, waiting, appended):
    head = await emitted(db)
    payloads = await announcements(db)
    await db.execute(INSERT, *waiting, [], [])
    assert await records(db, head) == appended
    assert payloads == [f"{head} {head + len(appended)}"]
    assert await db.fetch(WAITING) == []


async def test_the_commit_appends_whom_a_change_skips(db):
    await db.execute(INSERT, 2, ["a"], None, [""], ["t"], ["y"])
    row = await db.fetchrow("SELECT skip_sids, skip_rooms, data, batch FROM sio_packets")
    assert tuple(row) == (["t"], ["y"], '[""]', None)


@pytest.mark.parametrize("moved", [0, 1])
async def test_what_a_commit_announces_when_the_sequence_is_to_give_its_first_offset(db, moved):
    """As after a setval() of a script: the sequence has given no offset since then."""
    head = await emitted(db)
    payloads = await announcements(db)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1, false)", head + 1)
    await db.execute(INSERT, 2, ["a"], "unstored" if moved else "s", None, [], [])
    assert payloads == [f"{head} {head + 1}" if moved else "0 0"]


async def test_a_commit_that_changes_nothing_announces_no_offset(db):
    await emitted(db)
    payloads = await announcements(db)
    await db.execute(INSERT, 2, ["a"], "s", None, [], [])
    assert payloads == ["0 0"]


@pytest.mark.parametrize("rooms", [["t"], ["t", "a"], ["a", "t"]])
@pytest.mark.parametrize("kind", [1, 3])
async def test_a_commit_fails_if_a_room_is_the_own_room_of_a_client_by_then(db, kind, rooms):
    head = await emitted(db)
    with pytest.raises(asyncpg.InvalidParameterValueError, match="a room is the own room of a client"):
        await db.execute(INSERT, kind, rooms, "s" if kind == 1 else None, None, [], [])
    assert await records(db, head) == []


async def test_a_commit_waits_for_the_log(db, connect):
    app = await connect()
    await app.execute("SET lock_timeout = '50ms'")
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await change(app, "close_room", ["a"])


async def test_a_stricter_transaction_does_not_commit_a_change(db):
    with pytest.raises(asyncpg.InvalidTransactionStateError, match="read committed"):
        async with db.transaction(isolation="repeatable_read"):
            await db.execute(INSERT, 3, ["a"], None, None, [], [])


async def test_a_change_comes_after_what_the_relay_has(db):
    await db.execute("SELECT setval('sio_relay_state', 1); SELECT sio_emit('e')")
    await db.execute("SELECT setval('sio_relay_state', 2)")
    await change(db, "close_room", ["a"])
    assert [record[0] for record in await records(db)] == [0, 3]


async def test_a_change_begins_an_epoch_if_the_last_one_ended(db):
    head = await emitted(db)
    await db.execute("DELETE FROM sio_marker")
    payloads = await announcements(db)
    await change(db, "close_room", ["a"])
    last = ((head >> 40) + 1 << 40) + 1
    assert payloads == [f"{last - 1} {last}"]
    assert await db.fetchval('SELECT max("offset") FROM sio_packets') == last


SETTINGS = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"


async def test_constraints_that_are_immediate_bound_the_rest_of_the_transaction(db):
    """The change is appended when they are set IMMEDIATE for the second time, and all appends wait from then on."""
    head = await emitted(db)
    async with db.transaction():
        await change(db, "close_room", ["a"])
        await db.execute(IMMEDIATE)
        assert await records(db, head) == [] and tuple(await db.fetchrow(SETTINGS)) == ("0", "0")
        await db.execute(IMMEDIATE)
        assert await records(db, head) == [(3, "a", None, None)]
        assert tuple(await db.fetchrow(SETTINGS)) == ("2s", "10s")
    assert tuple(await db.fetchrow(SETTINGS)) == ("0", "0")


async def test_a_commit_bounds_only_how_long_it_waits(db):
    async with db.transaction():
        await change(db, "close_room", ["a"])
        await db.execute("SET CONSTRAINTS sio_changes_take IMMEDIATE")
        await db.execute("SET CONSTRAINTS sio_changes_append IMMEDIATE")
        assert tuple(await db.fetchrow(SETTINGS)) == ("2s", "0")


@pytest.mark.parametrize(("setting", "committed"), [("off", "on"), ("on", "on"), ("local", "local")])
async def test_a_change_is_on_disk_when_its_commit_returns(db, setting, committed):
    await db.execute(f"SET synchronous_commit = {setting}")
    async with db.transaction():
        await change(db, "close_room", ["a"])
        await db.execute("SET CONSTRAINTS sio_changes_take IMMEDIATE")
        await db.execute("SET CONSTRAINTS sio_changes_append IMMEDIATE")
        assert await db.fetchval("SHOW synchronous_commit") == committed
    assert await db.fetchval("SHOW synchronous_commit") == setting
