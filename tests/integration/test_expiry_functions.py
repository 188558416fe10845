"""The functions of presence and expiry, called directly: which nodes live, and which sessions end."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import asyncpg
import pytest

OWN_ROLE = "(SELECT oid FROM pg_roles WHERE rolname = current_user)"
NODE = f"""
INSERT INTO sio_nodes (id, channel, role, recovery_seconds, margin_seconds, missed_at, died_at, stopped_at)
VALUES ($1, 'c', {OWN_ROLE}, $2, 205, clock_timestamp() - $3::interval, clock_timestamp() - $4::interval,
        clock_timestamp() - $5::interval) RETURNING number"""
DAY = 86_400.0


def node_id(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def interval(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


async def add_node(
    db: asyncpg.Connection,
    number: int,
    *,
    lock: bool = False,
    recovery: float | None = 120.0,
    missed: float | None = None,
    died: float | None = None,
    stopped: float | None = None,
) -> None:
    """Insert a node.

    :param lock: whether the connection holds the lock of the node, so that it lives.
    :param missed: how many seconds ago that was, as ``died`` and ``stopped``.
    """
    key = await db.fetchval(NODE, node_id(number), recovery, *map(interval, (missed, died, stopped)))
    if lock:
        await db.execute("SELECT pg_advisory_lock_shared('sio_nodes'::regclass::oid::integer, $1)", key)


# -- which node lives -------------------------------------------------------------------------------------------
KEY = "'sio_nodes'::regclass::oid::integer"
LOCKS = {
    "of another number": f"SELECT pg_advisory_lock_shared({KEY}, 8)",
    "of another table": f"SELECT pg_advisory_lock_shared({KEY} + 1, 7)",
    "of one number": f"SELECT pg_advisory_lock_shared(({KEY}::bigint << 32) + 7)",
}
ALIVE = f"SELECT sio_node_alive(7, {OWN_ROLE})"


@pytest.mark.parametrize("lock", LOCKS)
async def test_a_node_lives_while_its_own_lock_is_held(db, connect, lock):
    other = await connect()
    await db.execute(LOCKS[lock])
    assert await db.fetchval(ALIVE) is False
    await other.execute(f"SELECT pg_advisory_lock_shared({KEY}, 7)")
    assert await db.fetchval(ALIVE) is True
    await other.execute("SELECT pg_advisory_unlock_all()")
    assert await db.fetchval(ALIVE) is False


async def test_a_lock_of_another_role_or_one_that_is_waited_for_is_no_sign_of_life(db, connect, superuser):
    other = await connect()
    await superuser.execute(f"SELECT pg_advisory_lock_shared({KEY}, 7)")
    assert await db.fetchval(ALIVE) is False
    task = asyncio.create_task(other.execute(f"SELECT pg_advisory_lock({KEY}, 7)"))
    pid = other.get_server_pid()
    while not await db.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
        assert not task.done()
    assert await db.fetchval(ALIVE) is False
    await superuser.execute("SELECT pg_advisory_unlock_all()")
    await task
    assert await db.fetchval(ALIVE) is True


async def test_a_lock_in_another_database_is_no_sign_of_life(db, pg_create):
    key = await db.fetchval(f"SELECT {KEY}")
    with pg_create("template0") as dsn:
        elsewhere = await asyncpg.connect(dsn)
        await elsewhere.execute("SELECT pg_advisory_lock_shared($1, 7)", key)
        assert await db.fetchval(ALIVE) is False
        await elsewhere.close()


# -- checks -----------------------------------------------------------------------------------------------------
async def nodes(db: asyncpg.Connection) -> dict[int, tuple]:
    """Return of each node which row it is, how many seconds ago it was missed, and whether it is dead."""
    rows = await db.fetch("""
        SELECT id, xmin::text AS row, round(extract(epoch FROM clock_timestamp() - missed_at)) AS missed,
               died_at > clock_timestamp() - interval '1 hour' AS died FROM sio_nodes""")
    return {row["id"].int: (row["row"], row["missed"], row["died"]) for row in rows}


async def test_a_node_is_missed_and_ten_seconds_later_dead(db):
    """Nothing is written about the others."""
    await add_node(db, 1, lock=True)
    await add_node(db, 2, lock=True, missed=DAY)
    for number in (3, 4, 5):
        await add_node(db, number)
    await add_node(db, 6, missed=5)
    await add_node(db, 7, missed=3)
    await add_node(db, 8, missed=11)
    await add_node(db, 9, missed=DAY, stopped=3600)
    await add_node(db, 10, lock=True, missed=DAY, stopped=3600)
    await add_node(db, 11, missed=DAY, died=DAY)
    await add_node(db, 12, lock=True, missed=DAY, died=DAY)
    before = await nodes(db)
    assert await db.fetchval("SELECT sio_check_nodes()") == 5
    after = await nodes(db)
    assert {number for number in before if after[number] == before[number]} >= {1, 9, 10, 11, 12}
    assert {number for number in before if after[number][0] != before[number][0]} == {2, 3, 4, 5, 8}
    assert after[2][1:] == (None, None)
    assert [after[number][2] for number in (3, 4, 5, 6, 7)] == [None] * 5
    assert [after[number][1] < 3 for number in (3, 4, 5, 6, 7)] == [True, True, True, False, False]
    assert after[8][1] > 10 and after[8][2] is True
    assert await db.fetchval("SELECT sio_check_nodes()") == 5


@pytest.mark.parametrize(("column", "missed"), [("missed_at", None), ("died_at", 11)])
async def test_of_two_checks_at_once_the_first_says_when_a_node_was_missed_or_died(db, connect, column, missed):
    other = await connect()
    await add_node(db, 1, missed=missed)
    async with db.transaction():
        first = await db.fetchval(f"UPDATE sio_nodes SET {column} = clock_timestamp() RETURNING {column}")
        task = asyncio.create_task(other.fetchval("SELECT sio_check_nodes()"))
        pid = other.get_server_pid()
        while not await db.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
            assert not task.done()
    await task
    assert await db.fetchval(f"SELECT {column} FROM sio_nodes") == first


@pytest.mark.parametrize(
    ("died", "seconds", "expiry"),
    [
        ("NULL", "5", None),
        ("NULL", "NULL", None),
        ("'epoch'", "NULL", "infinity"),
        ("'epoch'", "5", "1970-01-01 00:00:05+00"),
    ],
)
async def test_when_the_sessions_of_a_dead_node_expire(db, died, seconds, expiry):
    await db.execute("SET TimeZone = 'UTC'")
    assert await db.fetchval(f"SELECT sio_node_expiry({died}, {seconds})::text") == expiry


# -- expired sessions -------------------------------------------------------------------------------------------
SESSION = """
INSERT INTO sio_sessions (id, pid_hash, namespace, sid, data, node, start_offset, joined_at, expires_at, generation,
                          expiry_node, expiry_taken_at)
VALUES ($1, int8send($1), $2, 's' || $1::bigint, format('{"id":%s}', $1::bigint), $3, 0, 0,
        clock_timestamp() - $4::interval, 5, $5, clock_timestamp() - $6::interval)"""


async def add_session(
    db: asyncpg.Connection,
    number: int,
    namespace: str = "/",
    *,
    node: int | None = None,
    expired: float | None = None,
    taken_by: int | None = None,
    taken: float | None = None,
) -> None:
    """Insert a session.

    :param expired: how many seconds ago it expired, as ``taken``.
    """
    holder, taker = [None if n is None else node_id(n) for n in (node, taken_by)]
    await db.execute(SESSION, number, namespace, holder, interval(expired), taker, interval(taken))


async def stored(db: asyncpg.Connection) -> set[int]:
    return {row["id"] for row in await db.fetch("SELECT id FROM sio_sessions")}


@pytest.fixture
async def sessions(db) -> None:
    """Sessions 1, 2 and 3 have expired, 2 and 3 with their node."""
    await add_node(db, 1)
    await add_node(db, 2, died=121)
    await add_node(db, 3, died=119)
    await add_node(db, 4, died=DAY, recovery=None)
    await add_session(db, 1, expired=1)
    await add_session(db, 2, node=2)
    await add_session(db, 3, "/n", node=2)
    await add_session(db, 4, expired=-3600)
    await add_session(db, 5)
    for number, node in ((6, 1), (7, 3), (8, 4)):
        await add_session(db, number, node=node)


async def test_sessions_expire_by_themselves_or_with_their_node(db, sessions):
    assert sorted(row["id"] for row in await db.fetch("SELECT id FROM sio_expired()")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("handlers", "kept"), [([], set()), (["/"], {1, 2}), (["/other", "/n"], {3}), (["*"], {1, 2, 3})]
)
async def test_expired_sessions_are_deleted_unless_a_handler_is_to_be_called(db, sessions, handlers, kept):
    for namespace in handlers:
        await db.execute("INSERT INTO sio_expiry_handlers VALUES ($1)", namespace)
    assert await db.fetchval("SELECT sio_expire(100)") == 3 - len(kept)
    assert await stored(db) == kept | {4, 5, 6, 7, 8}


async def test_as_many_expired_sessions_are_deleted_as_are_asked_for(db, sessions):
    assert [await db.fetchval("SELECT sio_expire(2)") for _ in range(3)] == [2, 1, 0]
    assert await stored(db) == {4, 5, 6, 7, 8}


TAKE = "SELECT * FROM sio_take_expired($1, $2, $3)"


@pytest.mark.parametrize(
    ("namespaces", "taken"),
    [(["/"], {1, 2}), (["/n", "/other"], {3}), (["/", "/n"], {1, 2, 3}), (["*"], {1, 2, 3}), (["/x", "*"], {1, 2, 3}),
     ([], set())],
)  # fmt: skip
async def test_expired_sessions_are_taken_for_the_handlers_of_some_namespaces(db, sessions, namespaces, taken):
    before = {row["id"]: row for row in await db.fetch("SELECT * FROM sio_sessions")}
    began = await db.fetchval("SELECT clock_timestamp()")
    rows = await db.fetch(TAKE, namespaces, node_id(9), 100)
    answers = {(n, before[n]["namespace"], f"s{n}", f'{{"id":{n}}}') for n in taken}
    assert {tuple(row) for row in rows} == answers and len(rows) == len(answers)
    for row in await db.fetch("SELECT * FROM sio_sessions"):
        former = before[row["id"]]
        if row["id"] not in taken:
            assert row == former
            continue
        assert (row["node"], row["generation"], row["expiry_node"]) == (None, 6, node_id(9))
        assert row["expiry_taken_at"] > began
        expires_at = row["expires_at"]
        assert expires_at == former["expires_at"] if row["id"] == 1 else expires_at > began


async def test_as_many_expired_sessions_are_taken_as_are_asked_for(db, sessions):
    await add_node(db, 9, lock=True)
    taken = [len(await db.fetch(TAKE, ["*"], node_id(9), 2)) for _ in range(3)]
    assert taken == [2, 1, 0]


async def test_a_session_that_a_node_has_taken_is_left_to_it_for_ten_minutes(db):
    """Unless that node does not live any more."""
    await add_node(db, 1, lock=True)
    await add_node(db, 2)
    await add_node(db, 3, lock=True, stopped=1)
    for number, taker, taken in ((1, 1, 540), (2, 1, 660), (3, 2, 1), (4, 3, 1), (5, 4, 1)):
        await add_session(db, number, expired=3600, taken_by=taker, taken=taken)
    await add_session(db, 6, expired=3600)
    assert {row["id"] for row in await db.fetch(TAKE, ["/"], node_id(1), 100)} == {2, 3, 4, 5, 6}
    assert await db.fetch(TAKE, ["/"], node_id(1), 100) == []


async def test_a_node_deletes_only_the_sessions_that_it_has_taken(db):
    for number, taker in ((1, 1), (2, 1), (3, 1), (4, 2), (5, None)):
        await add_session(db, number, expired=3600, taken_by=taker, taken=1)
    await db.execute("SELECT sio_delete_expired($1, $2)", [1, 2, 4, 5], node_id(1))
    assert await stored(db) == {3, 4, 5}
