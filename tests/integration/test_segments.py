"""The log in two segments: one is appended to, the other goes as a whole when its last record has expired."""

from __future__ import annotations

import asyncio
import uuid

import asyncpg
import pytest
from psycopg import sql

from sio_pg_adapter import emit_async
from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.store.pruner import Pruned
from sio_pg_adapter.store.queries import Queries
from support.pruning import prune_once
from support.roles import NODE

QUERIES = Queries("public")
MANY = 9_500  # records of FILL: over the 16 MB from which on the segments are switched
FILL = """
    INSERT INTO sio_packets_{} ("offset", kind, namespace, room, body, created_at)
    SELECT nextval('sio_packets_offset_seq'), 0, '/', 'r' || i % 7, repeat(md5(i::text), 58),
           clock_timestamp() - make_interval(secs => $2)
    FROM generate_series(1, $1::integer) i
"""
KEEP = 325.0  # seconds: what the log is kept for without a node
HOUR = 3_600.0


async def active(db) -> int:
    return await db.fetchval("SELECT last_value FROM sio_active_segment")


async def fill(db, count: int = MANY, age: float = HOUR) -> None:
    await db.execute(FILL.format(await active(db)), count, age)


async def turned(db) -> None:
    """What there is, and a burst, has had its time; what comes now goes to the other segment."""
    await fill(db)
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    assert await db.fetchval(QUERIES["switch_segment"], KEEP) is True


async def sizes(db) -> list[int]:
    return [await db.fetchval(f"SELECT pg_total_relation_size('sio_packets_{n}')") for n in (0, 1)]


async def epochs(db) -> int:
    return await db.fetchval("SELECT max(epoch) FROM sio_epochs")


async def test_a_large_log_goes_as_a_whole_and_begins_no_epoch(pg_dsn, store, db):
    await store.open(rooms={room: [(0, None)] for room in ("r", *(f"r{i}" for i in range(7)))})
    last = await store.emit("r")
    began = await epochs(db)
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    await fill(db)
    upto = await db.fetchval('SELECT max("offset") FROM sio_packets')
    assert await prune_once(pg_dsn) == Pruned(records=MANY + 1)
    assert await db.fetchval("SELECT floor FROM sio_log") == upto
    assert sum(await sizes(db)) < 200_000, "dead rows were left behind"
    floors = dict(await db.fetch('SELECT room, "offset" FROM sio_room_floors'))
    assert floors == {"r": last} | {f"r{i % 7}": last + i for i in range(MANY - 6, MANY + 1)}
    assert await store.emit("r") == upto + 1
    assert await active(db) == 1 and await epochs(db) == began
    assert await db.fetchval(QUERIES["in_epoch"])


async def test_nothing_goes_before_the_last_of_a_segment_has_had_its_time(pg_dsn, store, db):
    await fill(db)
    await fill(db, 1, age=0.0)
    assert await prune_once(pg_dsn) == Pruned()
    assert await active(db) == 1  # its first had
    young = await store.emit()
    await fill(db)  # a clock that went back: old ones behind a young one, in the other segment
    assert await prune_once(pg_dsn) == Pruned()
    await db.execute("UPDATE sio_packets_0 SET created_at = created_at - interval '1 hour'")
    assert await prune_once(pg_dsn) == Pruned(records=MANY + 1)
    assert await db.fetchval('SELECT min("offset") FROM sio_packets') == young


async def test_a_young_record_in_the_middle_keeps_the_segment(pg_dsn, db):
    await turned(db)
    await db.execute('UPDATE sio_packets_0 SET created_at = clock_timestamp() WHERE "offset" = 100')
    assert await prune_once(pg_dsn) == Pruned()
    assert await db.fetchval("SELECT count(*) FROM sio_packets_0") == MANY
    assert await db.fetchval("SELECT count(*) FROM sio_room_floors") == 0


async def test_a_small_log_stays_in_its_segment(pg_dsn, store, db):
    await store.emit()
    await fill(db, 100)
    assert (await prune_once(pg_dsn)).records == 0  # behind a young one
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    assert await prune_once(pg_dsn) == Pruned(records=101)
    assert await active(db) == 0


async def test_both_segments_are_read_as_one_log(store, db):
    held = await store.open()
    await store.move(Kind.ENTER, "s", "x")
    first = [await store.emit("x"), await store.emit("y", "x"), await store.emit("s")]
    await turned(db)
    second = [await store.emit("x"), await store.emit("y", "x"), await store.emit(), await store.emit("z", "x")]
    await store.move(Kind.LEAVE, "s", "x")
    await emit_async(db, "outbox", room="s")
    second.append(await store.reader.head())
    assert await db.fetchval('SELECT min("offset") FROM sio_packets_1') == second[0]
    assert await db.fetchval("SELECT count(*) FROM sio_packets_1") == 6
    assert await store.due(held, first[0]) == [*first[1:], *second]
    assert await store.due(held, second[0]) == second[1:]
    head = await store.reader.head()
    _, records = await store.reader.range(second[0] - 3, 100)
    assert [r.offset for r in records] == list(range(second[0] - 2, head + 1))
    _, records = await store.reader.range(0, 3)
    assert [r.offset for r in records] == [first[0] - 1, *first[:2]]
    claimed = await store.claim(after=first[0])
    assert not claimed.lost and claimed.offset == head + 1


async def test_a_transaction_that_began_before_the_switch_appends_behind_it(pg_dsn, store, db):
    """Its snapshot is older: were the segment read from a table, its record would come to stand in the former one."""
    other = await asyncpg.connect(pg_dsn)
    try:
        async with other.transaction(isolation="repeatable_read"):
            await emit_async(other, "e")
            await turned(db)
            await store.emit()
        assert await db.fetchval("SELECT count(*) FROM sio_packets_1") == 2
    finally:
        await other.close()
    assert await prune_once(pg_dsn) == Pruned(records=MANY)


async def test_a_reader_that_stays_keeps_the_segment_and_nobody_waits(pg_dsn, store, db):
    """A pg_dump, for example. Other readers and appends do not queue behind a lock that cannot be granted."""
    await turned(db)
    other = await asyncpg.connect(pg_dsn)
    try:
        async with other.transaction():
            await other.fetch("SELECT FROM sio_packets LIMIT 1")
            pruning = asyncio.create_task(prune_once(pg_dsn))
            waiting = 0
            while not pruning.done():
                waiting += await db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                await store.reader.range(0, 10)
                await store.emit()
            assert await pruning == Pruned() and waiting == 0
        assert await prune_once(pg_dsn) == Pruned(records=MANY)
    finally:
        await other.close()


async def test_a_role_that_may_not_truncate_deletes(pg_dsn, pg_admin, db):
    role = f"siopg_{pg_dsn.rpartition('/')[2][:20]}"
    pg_admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        await db.execute(
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}";'
            f'GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO "{role}"'
        )
        await turned(db)
        await fill(db, 10)
        other = await asyncpg.connect(pg_dsn, user=role)
        assert await other.fetchval(QUERIES["switch_segment"], KEEP) is False
        assert await other.fetchval(QUERIES["trim"], KEEP, MANY) == MANY
        assert await other.fetchval(QUERIES["trim"], KEEP, MANY) == 10
        await other.close()
    finally:
        await db.execute(f'REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "{role}"')
        await db.execute(f'REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM "{role}"')
        pg_admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("table", ["sio_packets_0", "sio_packets_1", "sio_packet_rooms_0", "sio_packet_rooms_1"])
async def test_a_role_truncates_only_if_it_may_truncate_both_segments(pg_dsn, db, table):
    node = await asyncpg.connect(pg_dsn)
    assert await node.fetchval("SELECT sio_may_truncate()") is True
    await db.execute(f"REVOKE TRUNCATE ON {table} FROM {NODE}")
    assert await node.fetchval("SELECT sio_may_truncate()") is False
    await node.close()


# -- sio_switch_segment and sio_truncate_segment, in both directions ------------------------------------------------
SLEEPS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep')"
LOCKED = "SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock'"


@pytest.fixture(params=[0, 1])
async def segment(db, request) -> int:
    """The number of the active segment."""
    await db.execute("SELECT setval('sio_active_segment', $1)", request.param)
    await db.execute("SET lock_timeout = '5s'")  # nobody has to wait for a segment
    return request.param


async def put(db, segment: int, offset: int, *, room: str = "r", age: float = HOUR, kind: int = 0, **more) -> None:
    """Insert a record into a segment."""
    columns = {"offset": offset, "kind": kind, "namespace": "/", "room": room, **more}
    names = ", ".join(f'"{name}"' for name in columns)
    values = ", ".join(f"${n}" for n in range(2, len(columns) + 2))
    await db.execute(
        f"INSERT INTO sio_packets_{segment} (created_at, {names})"
        f" VALUES (clock_timestamp() - make_interval(secs => $1), {values})",
        *(age, *columns.values()),
    )


async def put_large(db, segment: int, offset: int, **more) -> None:
    """Insert a record that is larger than the 16 MB from which on segments are switched."""
    await db.execute(f"ALTER TABLE sio_packets_{segment} ALTER body SET STORAGE EXTERNAL")
    await put(db, segment, offset, body="x" * (17 << 20), **more)


async def files(db) -> dict[str, int]:
    tables = [f"{table}_{n}" for table in ("sio_packets", "sio_packet_rooms") for n in (0, 1)]
    return {table: await db.fetchval("SELECT pg_relation_filenode($1::text)", table) for table in tables}


async def test_the_other_segment_gets_files_of_its_own_and_becomes_the_active_one(db, segment):
    """The first record counts, whatever the place of its row."""
    await put(db, segment, 2, age=0.0)
    await put_large(db, segment, 1)
    before = await files(db)
    assert await db.fetchval(QUERIES["switch_segment"], KEEP) is True
    assert await active(db) == 1 - segment
    assert await db.fetchval(f"SELECT count(*) FROM sio_packets_{segment}") == 2
    after = await files(db)
    assert {table for table in before if before[table] != after[table]} == {
        f"sio_packets_{1 - segment}",
        f"sio_packet_rooms_{1 - segment}",
    }


@pytest.mark.parametrize("reason", ["empty", "young", "small", "the other has a record", "forbidden"])
async def test_a_segment_that_is_not_due_stays_the_active_one_and_nothing_is_locked(db, segment, reason):
    if reason == "small":
        await put(db, segment, 1)
    elif reason != "empty":
        await put_large(db, segment, 1, age=KEEP - 20 if reason == "young" else HOUR)
    if reason == "the other has a record":
        await put(db, 1 - segment, 2)
    if reason == "forbidden":
        await db.execute("REVOKE TRUNCATE ON sio_packets_0 FROM CURRENT_USER")
    before = await files(db)
    async with db.transaction():
        assert await db.fetchval(QUERIES["switch_segment"], KEEP) is False
        assert await db.fetch(LOCKED) == []
    assert await active(db) == segment and await files(db) == before


async def test_a_segment_is_switched_and_truncated_by_one_at_a_time(db, connect, segment):
    await put_large(db, segment, 2)
    other = await connect()
    async with other.transaction():
        await other.execute("SELECT FROM sio_log FOR UPDATE")
        assert await db.fetchval(QUERIES["switch_segment"], KEEP) is False
        assert await db.fetchval(QUERIES["trim"], KEEP, MANY) == 0
    assert await active(db) == segment
    assert await db.fetchval(QUERIES["switch_segment"], KEEP) is True


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_segments_are_neither_switched_nor_truncated_in_a_stricter_transaction(db, isolation):
    for call in ("sio_switch_segment(60)", "sio_trim(60, 10)"):
        with pytest.raises(asyncpg.InvalidTransactionStateError, match="read committed"):
            async with db.transaction(isolation=isolation):
                await db.execute(f"SELECT {call}")


@pytest.mark.parametrize("table", ["sio_packets", "sio_packet_rooms"])
async def test_a_segment_that_is_read_is_not_switched_to(db, connect, segment, table):
    await put_large(db, segment, 1)
    other = await connect()
    async with other.transaction():
        await other.execute(f"SELECT FROM {table}_{1 - segment}")
        assert await db.fetchval(QUERIES["switch_segment"], KEEP) is False
        assert await active(db) == segment
        assert await db.fetchval(QUERIES["trim"], KEEP, MANY) == 1  # one by one


async def commits_before_the_lock(db, other, third, offset: int, call: str) -> object:
    """Have a record committed to the segment that is not active, while a function waits for the lock of it."""
    async with other.transaction():
        await put(other, 1 - await active(db), offset)
        calling = asyncio.create_task(db.fetchval(call))
        while not await third.fetchval(SLEEPS, db.get_server_pid()):
            assert not calling.done()
    return await calling


async def test_a_segment_that_got_a_record_before_it_was_locked_is_not_switched_to(db, connect, segment):
    """Another node's switch came between, say, and an append behind it: what is to be truncated holds a record."""
    await put_large(db, segment, 1)
    call = f"SELECT sio_switch_segment({KEEP})"
    assert await commits_before_the_lock(db, await connect(), await connect(), 2, call) is False
    assert await db.fetchval(f"SELECT count(*) FROM sio_packets_{1 - segment}") == 1 and await active(db) == segment


async def contents(db) -> list[object]:
    """What retention deletes or writes."""
    queries = (
        'SELECT "offset" FROM sio_packets ORDER BY 1',
        'SELECT room, "offset" FROM sio_packet_rooms ORDER BY 1, 2',
        "SELECT key FROM sio_keys ORDER BY 1",
        "SELECT encode(data, 'escape') FROM sio_attachments ORDER BY 1",
        'SELECT namespace, room, "offset" FROM sio_room_floors ORDER BY 1, 2',
        "SELECT floor FROM sio_log",
    )
    return [[tuple(row) for row in await db.fetch(query)] for query in queries]


async def put_much(db, segment: int) -> None:
    """Put records 11 to 19 into the segment that is not active, and 20 and 21 into the active one."""
    old, ids = 1 - segment, {name: uuid.uuid4() for name in "abc"}
    for name, attachment in ids.items():
        await db.execute("INSERT INTO sio_attachments VALUES ($1, $2, false)", attachment, name.encode())
    await db.execute("UPDATE sio_log SET floor = 10")
    await put(db, old, 11, attachment=ids["a"])
    await put(db, old, 12, room="q")
    await put(db, old, 13, room="r", namespace="/n")
    await put(db, old, 14, room="x", kind=1, sid="s")
    await put(db, old, 15, room="nobody's")
    await put(db, old, 16, room="t")
    await put(db, old, 17, room="q")
    await put(db, old, 19, room="nobody's")
    await put(db, segment, 20, age=0.0, attachment=ids["b"])
    await put(db, segment, 21)
    for room, offset in (("x", 12), ("x", 13), ("q", 15), ("first", 11), ("r", 15), ("late", 16)):
        await db.execute(f"INSERT INTO sio_packet_rooms_{old} VALUES ('/', $1, $2)", room, offset)
    await db.execute(f"INSERT INTO sio_packet_rooms_{segment} VALUES ('/', 'x', 20)")
    for offset in (11, 19, 20, 21):
        await db.execute("INSERT INTO sio_keys VALUES ('/', $1::bigint::text, $1)", offset)
    await db.execute("""
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
        VALUES (1, '1', '/', 's', 11, 11), (2, '2', '/', 't', 16, 16)""")
    await db.execute("""
        INSERT INTO sio_rooms (session, room, joined_at, namespace)
        SELECT 1, room, 0, '/' FROM unnest(ARRAY['r', 'x', 'first']) room
        UNION ALL VALUES (1, 'q', 16, '/'), (1, 'late', 16, '/')""")


TRUNCATE = f"SELECT sio_truncate_segment({KEEP})"


async def test_what_goes_with_a_segment(db, segment):
    """Floors come for rooms whose sessions may have missed one of its events."""
    await put_much(db, segment)
    assert await db.fetchval(TRUNCATE) == 8
    assert await contents(db) == [
        [(20,), (21,)],
        [("x", 20)],
        [("20",), ("21",)],
        [("b",), ("c",)],
        [("/", "q", 17), ("/", "r", 15), ("/", "t", 16), ("/", "x", 13)],
        [(19,)],
    ]


async def test_a_segment_of_which_no_session_may_have_missed_an_event_leaves_no_floor(db, segment):
    await put_much(db, segment)
    await db.execute("DELETE FROM sio_sessions")
    assert await db.fetchval(TRUNCATE) == 8
    assert (await contents(db))[4:] == [[], [(19,)]]


async def test_a_segment_below_the_floor_goes_and_the_floor_stays(db, segment):
    await put(db, 1 - segment, 11)
    await db.execute("UPDATE sio_log SET floor = 12")
    assert await db.fetchval(TRUNCATE) == 1
    assert (await contents(db))[5] == [(12,)]


MAKE_YOUNG = 'UPDATE sio_packets SET created_at = clock_timestamp() WHERE "offset" = $1'


@pytest.mark.parametrize(
    ("reason", "result"),
    [
        ("a record of the active segment lies between", None),
        ("the role may not", None),
        ("the last record is young", 0),
        ("a record is young", 0),
        ("somebody reads", 0),
    ],
)
async def test_a_segment_stays_as_it_is(db, connect, segment, reason, result):
    await put_much(db, segment)
    other = await connect()
    if reason == "a record of the active segment lies between":
        await put(db, segment, 18)
    elif reason == "the role may not":
        await db.execute("REVOKE TRUNCATE ON sio_packet_rooms_1 FROM CURRENT_USER")
    elif reason == "the last record is young":
        await db.execute(MAKE_YOUNG, 19)
    elif reason == "a record is young":
        await db.execute(MAKE_YOUNG, 15)
    before = await contents(db)
    async with other.transaction():
        if reason == "somebody reads":
            await other.execute(f"SELECT FROM sio_packet_rooms_{1 - segment}")
        async with db.transaction():
            assert await db.fetchval(TRUNCATE) == result
            assert await db.fetch(LOCKED) == []
    assert await contents(db) == before


async def test_an_empty_segment_is_not_truncated(db, segment):
    await put(db, segment, 1)
    before = await files(db)
    assert await db.fetchval(TRUNCATE) is None
    assert await files(db) == before


async def test_a_segment_that_got_a_record_before_it_was_locked_is_not_truncated(db, connect, segment):
    await put_much(db, segment)
    before = await contents(db)
    assert await commits_before_the_lock(db, await connect(), await connect(), 22, TRUNCATE) == 0
    assert await contents(db) == [[*before[0], (22,)], *before[1:]]


async def test_the_lock_of_a_segment(db, segment):
    async with db.transaction():
        assert await db.fetchval("SELECT sio_lock_segment($1)", segment) is True
        locked = await db.fetch(LOCKED.replace("SELECT", "SELECT relation::regclass::text"))
        assert {row[0] for row in locked} == {f"sio_packets_{segment}", f"sio_packet_rooms_{segment}"}


async def test_an_emptied_segment_ends_no_session_and_a_users_truncate_behind_it_does(store, db, segment):
    count = "SELECT count(*) FROM sio_sessions"
    for in_transaction in (True, False):
        async with db.transaction():
            await store.open()
            before = await files(db)
            await db.execute("SELECT sio_empty_segment($1)", segment)
            after = await files(db)
            assert {table for table in before if before[table] != after[table]} == {
                f"sio_packets_{segment}",
                f"sio_packet_rooms_{segment}",
            }
            assert await db.fetchval(count) == 1
            if in_transaction:
                await db.execute("TRUNCATE sio_packets")
                assert await db.fetchval(count) == 0
        if not in_transaction:
            await db.execute("TRUNCATE sio_packets")
            assert await db.fetchval(count) == 0


# -- what the user does -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "table",
    ["sio_packets", "sio_packets_0", "sio_packets_1", "sio_packet_rooms", "sio_packet_rooms_0", "sio_packet_rooms_1"],
)
async def test_a_users_truncate_of_any_part_begins_an_epoch(store, db, table):
    await store.open()
    await store.emit("x", "y")
    await turned(db)
    before, began = await store.emit("x", "y"), await epochs(db)
    await db.execute(f"TRUNCATE {table}")
    assert await store.emit() > before + (1 << 39)
    assert await epochs(db) == began + 1
    assert await db.fetchval("SELECT count(*) FROM sio_packets") == 1
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_a_users_truncate_behind_retention_in_one_transaction_ends_sessions(store, db):
    await store.open()
    async with db.transaction():
        await turned(db)
        assert await db.fetchval(QUERIES["trim"], KEEP, MANY) == MANY
        assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 1
        await db.execute("TRUNCATE sio_packets")
        assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_a_users_truncate_behind_a_retention_that_failed_ends_sessions(store, db):
    await store.open()
    await turned(db)
    async with db.transaction():
        await db.execute("DECLARE reader CURSOR FOR SELECT FROM sio_packets_0; FETCH reader")
        with pytest.raises(asyncpg.ObjectInUseError):
            async with db.transaction():
                await db.fetchval(QUERIES["trim"], KEEP, MANY)
        await db.execute("CLOSE reader; TRUNCATE sio_packets")
        assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_what_is_inserted_into_the_whole_comes_into_a_segment(store, db):
    """By INSERT and by COPY."""
    await db.execute("INSERT INTO sio_packets (kind, namespace, body) VALUES (0, '/', '[\"e\"]')")
    offset = await db.fetchval('SELECT max("offset") FROM sio_packets')
    copied = {"offset": offset + 1, "kind": 0, "namespace": "/", "room": "", "body": '["c"]'}
    columns, record = list(copied), tuple(copied.values())
    await db.copy_records_to_table("sio_packets", records=[record], columns=columns)
    await db.execute("INSERT INTO sio_packet_rooms VALUES ('/', 'x', 1)")
    await db.copy_records_to_table("sio_packet_rooms", records=[("/", "y", 1)])
    assert [(r.offset, r.body) for r in (await store.reader.range(0, 10))[1]] == [
        (offset, '["e"]'),
        (offset + 1, '["c"]'),
    ]
    assert await db.fetchval("SELECT count(*) FROM ONLY sio_packets") == 0
    assert await db.fetchval("SELECT count(*) FROM sio_packet_rooms_0") == 2


# -- size -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rows", "turned"), [(300, 1), (2_000, 5)], ids=["one by one", "by segments"])
async def test_under_a_steady_load_the_tables_stay_as_large_as_they_are(db, rows, turned):
    """An hour, a look a minute: the clock is in the records, and the time that they are kept for is what is left.

    Nobody vacuums: a log whose records go one by one is switched when its dead rows are too many.
    """
    await db.execute("ALTER TABLE sio_packets_0 SET (autovacuum_enabled = off)")
    await db.execute("ALTER TABLE sio_packets_1 SET (autovacuum_enabled = off)")
    now = await db.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    begun, found, turns = now - 2 * HOUR, [], 0
    for minute in range(60):
        at = begun + 60.0 * minute
        age = await db.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8 - $1", at)
        await fill(db, rows, age)
        while True:
            turns += await db.fetchval(QUERIES["switch_segment"], age + KEEP)
            if not await db.fetchval(QUERIES["trim"], age + KEEP, 2_000):
                break
        found.append(sum(await sizes(db)))
        young = "SELECT count(*) FROM sio_packets WHERE created_at > clock_timestamp() - make_interval(secs => $1)"
        assert await db.fetchval(young, age + KEEP - 2.0) == rows * min(minute + 1, 6)  # nothing too early
    row = 2_200  # bytes, with its entries in the indexes
    assert max(found) < 16 * 1024 * 1024 + 2 * 7 * rows * row
    assert max(found[40:]) <= 1.05 * max(found[:40])
    assert turns >= turned
