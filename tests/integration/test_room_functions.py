"""The functions of rooms, called directly: which sessions and memberships each of them changes, and which not."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from sio_pg_adapter.store.queries import Queries

SESSIONS = """
INSERT INTO sio_sessions (id, pid_hash, namespace, sid, data, start_offset, joined_at, expires_at)
SELECT id, int4send(id), namespace, sid, format('{"id":%s}', id), 0, 0, clock_timestamp() + expires
FROM (VALUES (1, '/', 's', NULL), (2, '/', 't', interval '1 hour'), (3, '/', 'u', interval '-1 hour'),
             (4, '/n', 's', NULL), (5, '/n', 'v', NULL), (6, '/', 'w', NULL)) x (id, namespace, sid, expires)"""
ROOMS = """
INSERT INTO sio_rooms (session, namespace, room, joined_at, left_at)
VALUES (1, '/', 'x', 10, NULL), (1, '/', 'x', 1, 5), (1, '/', 'muted', 1, 5),
       (2, '/', 'x', 1, 5), (2, '/', 'y', 1, NULL), (2, '/', 'muted', 1, NULL),
       (3, '/', 'x', 1, NULL), (4, '/n', 'y', 1, NULL), (5, '/n', 'x', 1, NULL), (6, '/', 'z', 1, NULL)"""
REPLICA = "SET session_replication_role = replica"


@pytest.fixture
async def head(db) -> int:
    """Sessions of two namespaces with rooms, one of them expired. The last offset of the log."""
    await db.execute(SESSIONS)
    await db.execute(ROOMS)
    return int(await db.fetchval("SELECT sio_append_event(1, '/', 'r', '[\"e\"]', NULL, NULL)"))


async def rooms(db: asyncpg.Connection) -> set[tuple]:
    """Return the memberships, each as (session, room, joined_at, left_at)."""
    return {tuple(row) for row in await db.fetch("SELECT session, room, joined_at, left_at FROM sio_rooms")}


async def records(db: asyncpg.Connection, after: int) -> list[tuple]:
    rows = await db.fetch(
        """SELECT kind, namespace, room, rooms, skip_sids, skip_rooms, sid, data FROM sio_packets
        WHERE "offset" > $1 ORDER BY "offset" """,
        after,
    )
    return [tuple(row) for row in rows]


# -- who is a member --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("of", "skip", "skip_rooms", "members"),
    [
        (["x"], [], [], {1}),
        (["x", "y"], [], [], {1, 2}),
        (["s"], [], [], {1}),
        (["s", "t"], [], [], {1, 2}),
        (["v", "nobody's"], [], [], set()),
        ([""], [], [], {1, 2, 6}),
        (["", "x"], [], [], {1, 2, 6}),
        ([], [], [], set()),
        ([""], ["s"], [], {2, 6}),
        ([""], ["s", "nobody"], [], {2, 6}),
        ([""], [], ["muted"], {1, 6}),
        ([""], [], ["nobody's", "muted"], {1, 6}),
        ([""], ["w"], ["t"], {1}),
        (["x", "y"], [], ["x"], {2}),
    ],
)
async def test_members_of_rooms(db, head, of, skip, skip_rooms, members):
    rows = await db.fetch("SELECT sio_members('/', $1, $2, $3) AS id", of, skip, skip_rooms)
    assert {row["id"] for row in rows} == members


# -- a room is closed -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("room", ["x", "v"])
async def test_closing_a_room_ends_its_memberships_in_the_namespace(db, head, room):
    """A session of another namespace has the name of a room."""
    before = await rooms(db)
    assert await db.fetchval("SELECT sio_close(1, '/', $1)", room) == head + 1
    ended = {(1, "x", 10, None), (3, "x", 1, None)} if room == "x" else set()
    assert await rooms(db) == before - ended | {(*row[:3], head + 1) for row in ended}
    assert await records(db, head) == [(3, "/", room, None, None, None, None, None)]


async def test_the_own_room_of_a_client_is_not_closed(db, head):
    before = await rooms(db)
    assert await db.fetchval("SELECT sio_close(1, '/', 't')") is None
    assert await rooms(db) == before and await records(db, head) == []


# -- one record for all members ---------------------------------------------------------------------------------
async def change(db, kind: int, of: list[str], targets: list[str], skip=(), skip_rooms=()) -> int | None:
    offset = "SELECT sio_change_members(1, $1, '/', $2, $3, $4, $5)"
    return await db.fetchval(offset, kind, of, targets, list(skip), list(skip_rooms))


async def test_members_enter_the_rooms_in_which_they_are_not(db, head):
    before = await rooms(db)
    at = head + 1
    assert await change(db, 6, ["x", "y"], ["x", "a"], ["nobody"], ["nobody's"]) == at
    assert await rooms(db) == before | {(2, "x", at, None), (1, "a", at, None), (2, "a", at, None)}
    assert await change(db, 6, ["x"], ["b"], ["t"]) == at + 1
    assert await rooms(db) - before >= {(1, "b", at + 1, None)} and (2, "b", at + 1, None) not in await rooms(db)
    assert await records(db, head) == [
        (6, "/", "x", ["x", "a"], ["nobody"], ["nobody's"], None, '["x","y"]'),
        (6, "/", "b", None, ["t"], None, None, '["x"]'),
    ]


async def test_members_do_not_enter_the_own_room_of_a_client_of_the_namespace(db, head):
    before = await rooms(db)
    for targets in (["t"], ["a", "t"]):
        assert await change(db, 6, [""], targets) is None
    assert await rooms(db) == before and await records(db, head) == []
    assert await change(db, 6, ["x"], ["v"]) == head + 1
    assert await change(db, 7, ["x"], ["t"]) == head + 2


async def test_members_leave_the_rooms_that_are_named(db, head):
    """A membership that began with the record before contains no offset, and is deleted."""
    await db.execute("DELETE FROM sio_rooms WHERE session = 3")
    for session, room in ((1, "y"), (1, "other"), (2, "z"), (6, "x")):
        insert = "INSERT INTO sio_rooms (session, namespace, room, joined_at) VALUES ($1, '/', $2, $3)"
        await db.execute(insert, session, room, head)
    before = await rooms(db)
    assert await change(db, 7, ["x", "y"], ["x", "y", "z"], ["w"], ["nobody's"]) == head + 1
    gone = {(1, "y", head, None), (2, "z", head, None)}
    ended = {(1, "x", 10, None), (2, "y", 1, None)}
    assert await rooms(db) == before - gone - ended | {(*row[:3], head + 1) for row in ended}
    assert await records(db, head) == [
        (7, "/", "x", ["x", "y", "z"], ["w"], ["nobody's"], None, '["x","y"]'),
    ]


@pytest.mark.parametrize("segment", [0, 1])
async def test_members_are_kicked_with_their_data(superuser, head, segment):
    """In the replica role, too, in which no row is deleted by the foreign key."""
    await superuser.execute(REPLICA)
    await superuser.execute("SELECT setval('sio_active_segment', $1)", segment)
    before = await rooms(superuser)
    assert await change(superuser, 8, ["x", "y"], [""]) == head + 3
    assert {row["id"] for row in await superuser.fetch("SELECT id FROM sio_sessions")} == {3, 4, 5, 6}
    assert await rooms(superuser) == {row for row in before if row[0] > 2}
    *kicks, last = await records(superuser, head)
    assert sorted(kicks) == [
        (5, "/", "", None, None, None, "s", '{"id":1}'),
        (5, "/", "", None, None, None, "t", '{"id":2}'),
    ]
    assert last == (8, "/", "", None, None, None, None, '["x","y"]')
    assert await superuser.fetchval(f"SELECT count(*) FROM sio_packets_{segment} WHERE kind > 0") == 3


async def test_members_that_enter_keep_a_hundred_memberships_that_ended(db, head):
    for session, ended in ((1, 98), (2, 100), (6, 200)):
        await db.execute(
            "INSERT INTO sio_rooms SELECT $1, 'ended ' || i, i, i + 2, '/' FROM generate_series(1, $2::int) i",
            session,
            ended,
        )
    counts = "SELECT session, count(*) FROM sio_rooms WHERE left_at IS NOT NULL GROUP BY 1"
    before = dict(await db.fetch(counts))
    assert before == {1: 100, 2: 101, 6: 200}
    assert await change(db, 6, ["x", "y"], ["a"]) == head + 1
    assert dict(await db.fetch(counts)) == before | {2: 50}


# -- memberships that are forgotten -----------------------------------------------------------------------------
FORGOTTEN = """
INSERT INTO sio_rooms (session, namespace, room, joined_at, left_at)
VALUES (1, '/', 'older', 10, 15), (1, '/', 'old', 20, 30), (6, '/', 'old', 20, 30);
INSERT INTO sio_rooms (session, namespace, room, joined_at, left_at)
SELECT session, '/', 'kept', session * 1000 + i * 2, session * 1000 + i * 2 + 2
FROM unnest(ARRAY[1, 2]) session, generate_series(1, 40 + 10 * session) i"""


def event(offset: int, room: str, skip: str = "{}", skip_rooms: str = "{}") -> str:
    return (
        'INSERT INTO sio_packets_0 ("offset", kind, namespace, room, skip_sids, skip_rooms, body)'
        f" VALUES ({offset}, 0, '/', '{room}', '{skip}', nullif('{skip_rooms}', '{{}}')::text[], '[\"e\"]')"
    )


def deleted(offset: int) -> str:
    return f"INSERT INTO sio_room_floors VALUES ('/', 'old', {offset})"


@pytest.mark.parametrize(
    ("happened", "lost_below"),
    [
        ([], 0),
        ([event(25, "old")], 25),
        ([event(12, "older")], 12),
        ([event(25, "old", "{s}"), event(31, "old"), event(25_000, "old")], 0),
        ([event(22, "old"), event(26, "r", "{}", "{old}")], 26),
        ([event(22, "r", "{}", "{old}"), event(26, "old")], 26),
        ([deleted(20)], 0),
        ([deleted(21)], 21),
        ([deleted(40)], 29),
        ([deleted(22), event(26, "old")], 26),
        (["UPDATE sio_sessions SET lost_below = 28 WHERE id = 1", event(25, "old")], 28),
    ],
)
async def test_memberships_that_are_forgotten_leave_the_last_event_that_they_were_due(db, head, happened, lost_below):
    """Or the last event that skips the room. It may be deleted already, within the membership."""
    await db.execute(FORGOTTEN)
    for statement in happened:
        await db.execute(statement)
    before = await rooms(db)
    await db.execute("SELECT sio_forget_rooms(1)")
    forgotten = {row for row in before if row[0] == 1 and row[3] is not None and row[1] != "kept"}
    assert len(forgotten) == 4 and await rooms(db) == before - forgotten
    lost = {row["id"]: row["lost_below"] for row in await db.fetch("SELECT id, lost_below FROM sio_sessions")}
    assert lost == dict.fromkeys(range(1, 7), 0) | {1: lost_below}


# -- a record for each member -----------------------------------------------------------------------------------
MOVE = "SELECT * FROM sio_move_members(1, $1::smallint, '/', $2, $3, $4, $5, $6)"


async def moved(db, *args) -> list[tuple] | None:
    """Return the rooms and sids of the records of a move, or None if it was refused."""
    row = await db.fetchrow(MOVE, *args)
    if row["offsets"] is None:
        return None
    if not row["offsets"]:
        return []
    made = await records(db, row["prev"])
    assert [at for at in row["offsets"] if at > 0] == [row["prev"] + 1 + i for i in range(len(made))]
    return sorted((kind, room, sid) for kind, _, room, _, _, _, sid, _ in made)


@pytest.mark.parametrize(
    ("args", "moves"),
    [
        ((1, ["x"], ["unstored"], [], [], ["a"]), [(1, "a", "s"), (1, "a", "unstored")]),
        ((1, [""], ["w", "unstored"], [], [], ["a", "b"]), None),
        ((1, [], ["1", "2", "3"], ["1"], ["2"], ["a"]), [(1, "a", "3")]),
        ((1, ["x"], [], [], [], ["s"]), []),
        ((1, ["x"], [], [], [], ["v"]), [(1, "v", "s")]),
        ((2, ["x", "y"], [], [], [], ["x"]), [(2, "x", "s")]),
        ((2, ["x", "y"], [], [], [], ["t"]), []),
        ((5, ["x"], ["unstored"], [], [], [""]), [(5, "", "s"), (5, "", "unstored")]),
        ((2, ["nobody's"], [], [], [], ["x"]), []),
    ],
)
async def test_each_member_has_a_record_for_each_room(db, head, args, moves):
    if moves is None:  # the sid is named once, although it is a member and has no session
        moves = sorted((1, room, sid) for room in "ab" for sid in ("s", "t", "w", "unstored"))
    assert await moved(db, *args) == moves


async def test_nobody_enters_the_own_room_of_another_client(db, head):
    for targets in (["t"], ["a", "t"]):
        assert await moved(db, 1, ["x"], [], [], [], targets) is None
    assert await records(db, head) == []


async def test_members_are_those_when_the_lock_is_granted(db, head, connect):
    """A client enters the room while the move of its members waits."""
    first, second = await connect(), await connect()
    async with first.transaction():
        await first.execute(Queries("public")["check_epoch"])
        pid = second.get_server_pid()
        moving = asyncio.create_task(moved(second, 2, ["new"], [], [], [], ["new"]))
        while not await first.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
            assert not moving.done()
        await first.execute("INSERT INTO sio_rooms (session, namespace, room, joined_at) VALUES (1, '/', 'new', 1)")
    assert await moving == [(2, "new", "s")]


# -- what a session is due --------------------------------------------------------------------------------------
MEMBERSHIPS = "SELECT * FROM sio_memberships($1, $2)"


@pytest.mark.parametrize("after", [0, 4, 5, 9])
async def test_memberships_above_an_offset(db, head, after):
    """Those of everybody and of the own room begin with the session."""
    await db.execute("UPDATE sio_sessions SET joined_at = id")
    expected = {("", 1, None), ("s", 1, None), ("x", 10, None)}
    expected |= {("x", 1, 5), ("muted", 1, 5)} if after < 5 else set()
    rows = await db.fetch(MEMBERSHIPS, 1, after)
    assert {tuple(row) for row in rows} == {("/", "s", *row) for row in expected} and len(rows) == len(expected)
    rows = await db.fetch(MEMBERSHIPS, 4, after)
    assert {tuple(row) for row in rows} == {
        ("/n", "s", *row) for row in (("", 4, None), ("s", 4, None), ("y", 1, None))
    }
    assert await db.fetch(MEMBERSHIPS, 99, after) == []


@pytest.mark.parametrize(("upto", "limit", "count"), [(24, 9, 0), (25, 9, 1), (26, 9, 1), (27, 9, 2), (30, 2, 2)])
async def test_how_many_events_a_session_missed_up_to_an_offset(db, head, upto, limit, count):
    for offset, room in ((20, "x"), (25, "x"), (26, "z"), (27, ""), (30, "s")):
        await db.execute(event(offset, room))
    assert await db.fetchval("SELECT sio_missed(1, 20, $1, $2)", upto, limit) == count
