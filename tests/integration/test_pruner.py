"""Retention: by the clock of the database, which the tests shift in the rows, and with a floor for each room."""

from __future__ import annotations

import asyncio
import math

import asyncpg
import pytest

from sio_pg_adapter.log.records import Held, Kind
from sio_pg_adapter.store import pruner
from sio_pg_adapter.store.pruner import Pruned, Pruner
from sio_pg_adapter.store.queries import Queries
from support.pruning import prune_once
from support.waiting import until_answer

QUERIES = Queries("public")


async def age(db, upto: int | None = None, hours: float = 1.0) -> None:
    """Records up to an offset are older than they are."""
    await db.execute(
        'UPDATE sio_packets SET created_at = created_at - make_interval(secs => $1) WHERE "offset" <= $2',
        hours * 3600.0,
        (1 << 62) if upto is None else upto,
    )


async def kept(db) -> list[int]:
    return [row[0] for row in await db.fetch('SELECT "offset" FROM sio_packets ORDER BY 1')]


async def floor(db) -> int:
    return await db.fetchval("SELECT floor FROM sio_log")


async def test_a_pass_with_nothing_to_do_writes_nothing(pg_dsn, store, db):
    await store.emit()
    await store.open()
    await store.manager.aclose()  # a backend reports its counts when it ends, at the latest
    written = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables"
    before = await db.fetchval(written)
    assert await prune_once(pg_dsn) == Pruned()
    assert await db.fetchval(written) == before


async def test_case_54_expired_sessions_go_with_their_rooms(pg_dsn, store, db):
    for sid in "abc":
        held = await store.open(sid, sid)
        await store.move(Kind.ENTER, sid, "x")
        if sid != "a":
            await store.sessions.release(held, seconds=60.0)
    await db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp() - interval '1 s' WHERE sid = 'b'")
    assert await prune_once(pg_dsn) == Pruned(sessions=1)
    assert [row[0] for row in await db.fetch("SELECT sid FROM sio_sessions ORDER BY 1")] == ["a", "c"]
    assert await db.fetchval("SELECT count(*) FROM sio_rooms") == 2


async def test_old_records_go_and_floors_tell_of_it(pg_dsn, store, db):
    await store.open(rooms={"x": [(0, None)], "y": [(0, None)]})
    await store.open("t", "q", namespace="/n")
    x = await store.emit("x")
    xy = await store.emit("x", "y")
    everybody = await store.emit()
    await store.emit(namespace="/n", body='["e"]')
    await store.move(Kind.ENTER, "s", "z")  # no packet: it loses nobody anything
    new = await store.emit("x")
    await age(db, new - 1)
    assert await prune_once(pg_dsn) == Pruned(records=5)
    assert await kept(db) == [new] and await floor(db) == new - 1
    floors = {(r[0], r[1]): r[2] for r in await db.fetch('SELECT namespace, room, "offset" FROM sio_room_floors')}
    assert floors == {("/", "x"): xy, ("/", "y"): xy, ("/", ""): everybody, ("/n", ""): everybody + 1}
    assert x < xy and await db.fetchval("SELECT count(*) FROM sio_packet_rooms") == 0
    assert (await store.reader.range(0, 10))[0] == new - 1


@pytest.mark.parametrize("whole", [False, True])
async def test_floors_are_kept_only_of_rooms_that_a_session_is_or_was_in(pg_dsn, store, db, whole):
    await store.open(rooms={"in": [(0, None)]})
    await store.open("t", "q")
    for room in ("was in", "late"):
        if room == "was in":
            await store.move(Kind.ENTER, "s", room)
        await store.emit(room)
        await store.emit("another")
        await store.move(Kind.LEAVE if room == "was in" else Kind.ENTER, "s", room)
    for room in ("in", "s", "t", "u", *(f"room {i}" for i in range(50))):
        await store.emit(room)
    await store.emit("another", "in")
    last = await store.emit(namespace="/nobody")
    await age(db, last)
    if whole:
        await db.execute("SELECT setval('sio_active_segment', 1)")
    assert await db.fetchval("SELECT sio_trim(60, 1000)") > 50
    rooms = [row[0] for row in await db.fetch("SELECT room FROM sio_room_floors ORDER BY 1")]
    assert rooms == ["in", "s", "t", "was in"]
    await db.execute("DELETE FROM sio_sessions WHERE sid = 't'; DELETE FROM sio_rooms WHERE room = 'was in'")
    await db.execute(QUERIES["drop_room_floors"])
    rooms = [row[0] for row in await db.fetch("SELECT room FROM sio_room_floors ORDER BY 1")]
    assert rooms == ["in", "s"]


async def test_a_young_record_keeps_those_behind_it_however_old(pg_dsn, store, db):
    """A clock that went back: offsets, not times, are the order."""
    old, young, older = await store.emit(), await store.emit(), await store.emit()
    await age(db, old)
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 day' WHERE \"offset\" = $1", older)
    assert await prune_once(pg_dsn) == Pruned(records=1)
    assert await kept(db) == [young, older]


async def test_records_are_kept_for_the_longest_window_of_the_nodes(pg_dsn, start_node, db):
    long = await start_node(recovery={"max_disconnection_duration": 7_200})
    await start_node(recovery={"max_disconnection_duration": 1})
    await long.sio.emit("e")
    await age(db, hours=1.9)
    assert await prune_once(pg_dsn) == Pruned()
    await long.sio.shutdown()  # in order: its clients may come back elsewhere, so its window still counts
    assert await prune_once(pg_dsn) == Pruned()
    await age(db, hours=1)
    assert await prune_once(pg_dsn) == Pruned(records=1)


@pytest.mark.parametrize("recovery", [True, None])
async def test_the_longest_retention_keeps_events_that_no_session_needs(pg_dsn, start_node, db, recovery):
    long = await start_node(recovery=recovery, manager={"retention": 7_200})
    await start_node(manager={"retention": 60})
    await start_node()
    await long.sio.emit("e")
    await age(db, hours=1.9)
    assert await prune_once(pg_dsn) == Pruned()
    await long.sio.shutdown()  # it promised to keep what was emitted in its time
    assert await prune_once(pg_dsn) == Pruned()
    await age(db, hours=0.2)
    assert await prune_once(pg_dsn) == Pruned(records=1)


async def test_a_retention_shorter_than_the_window_of_sessions_changes_nothing(pg_dsn, start_node, db):
    node = await start_node(manager={"retention": 10})
    await node.sio.emit("e")
    await age(db, hours=300 / 3_600)
    assert await prune_once(pg_dsn) == Pruned()
    await age(db, hours=60 / 3_600)
    assert await prune_once(pg_dsn) == Pruned(records=1)


async def test_sessions_expire_although_events_are_kept_for_ever(pg_dsn, start_node, db):
    await (await start_node(manager={"retention": math.inf})).sio.shutdown()
    await db.execute(END_NODES, 1)
    node = await start_node(manager={"retention": math.inf})
    async with node.client() as wire:
        await node.sio.emit("e")
        await wire.drop()
        await db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp() - interval '1 s'")
        await age(db, hours=1e5)
        assert await prune_once(pg_dsn) == Pruned(sessions=1)
        assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") == 1
    assert await retentions(db) == [None]  # nodes that stopped do not add up, though no record is ever deleted


END_NODES = "UPDATE sio_nodes SET stopped_at = stopped_at - make_interval(hours => $1)"


async def retentions(db) -> list[float | None]:
    return [row[0] for row in await db.fetch("SELECT retention_seconds FROM sio_nodes ORDER BY number")]


async def test_a_node_that_stopped_counts_until_its_retention_is_over(pg_dsn, start_node, store, db):
    await (await start_node(manager={"retention": 7_200})).sio.shutdown()
    await store.emit()
    await age(db, hours=1)
    await db.execute(END_NODES, 1)
    await db.execute(QUERIES["drop_nodes"])
    assert await retentions(db) == [7_200]
    assert await prune_once(pg_dsn) == Pruned()
    await db.execute(END_NODES, 2)
    await db.execute(QUERIES["drop_nodes"])
    assert await retentions(db) == []
    assert await prune_once(pg_dsn) == Pruned(records=1)


@pytest.mark.parametrize("long", [7_200.0, math.inf])
async def test_a_node_that_stopped_goes_when_another_has_its_retention(start_node, db, long):
    for retention in (long, long, 3_600.0, None):
        await (await start_node(manager={"retention": retention})).sio.shutdown()
    await db.execute(END_NODES, 1)
    await db.execute(QUERIES["drop_nodes"])  # the second stopped after the first, and the third promises less
    kept_forever = None if long == math.inf else long
    assert await retentions(db) == [kept_forever]
    await start_node(manager={"retention": 60})
    await db.execute(QUERIES["drop_nodes"])
    assert await retentions(db) == [kept_forever, 60.0]
    await start_node(manager={"retention": long})
    await db.execute(QUERIES["drop_nodes"])
    assert await retentions(db) == [60.0, kept_forever]


async def test_a_node_that_stopped_first_does_not_take_over_the_retention_of_another(start_node, db):
    first, second = [await start_node(manager={"retention": 7_200}) for _ in range(2)]
    await second.sio.shutdown()
    await db.execute(END_NODES, 3)
    await first.sio.shutdown()
    await db.execute("UPDATE sio_nodes SET recovery_seconds = 0, margin_seconds = 0")
    await db.execute(QUERIES["drop_nodes"])
    assert await retentions(db) == [7_200]


async def test_math_inf_keeps_all(pg_dsn, start_node, db):
    node = await start_node(recovery={"max_disconnection_duration": math.inf})
    async with node.client() as wire:
        await wire.drop()
        await node.sio.emit("e", 1)
        await age(db, hours=1e5)
        assert await prune_once(pg_dsn) == Pruned()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid and await again.event() == ["e", 1]


async def test_case_24_a_quiet_client_recovers_when_its_rooms_lost_nothing(pg_dsn, store, db):
    await store.open()
    await store.move(Kind.ENTER, "s", "mine")
    seen = await store.emit("mine")
    await store.emit("elsewhere")
    await store.emit("s", skip=("s",))
    await age(db)
    await prune_once(pg_dsn)
    missed = await store.emit("mine")
    claimed = await store.claim(after=seen)
    assert claimed.lost is False
    assert await store.due(Held(claimed.id, claimed.generation), seen) == [missed]


async def test_case_24_at_the_floor_of_other_rooms_nothing_is_lost(pg_dsn, store, db):
    await store.open()
    await store.move(Kind.ENTER, "s", "mine")
    seen = await store.emit("mine")
    for _ in range(3):
        await store.emit("elsewhere")
        await store.emit(namespace="/n")
    await age(db)
    await prune_once(pg_dsn)
    assert await floor(db) > seen
    claimed = await store.claim(after=seen)
    assert claimed.lost is False and claimed.memberships.current() == ["mine"]


async def test_a_room_that_was_left_as_of_an_offset_has_lost_nothing_from_there_on(pg_dsn, store, db):
    """Retention deleted an event above that offset before the room was left, so the membership has no floor."""
    held = await store.open()
    entered = await store.move(Kind.ENTER, "s", "x")
    for room in ("y", "y", "x"):
        await store.emit(room)
    await age(db)
    await prune_once(pg_dsn)
    await store.open("t", "q")  # it knows nothing of what was deleted
    await store.move(Kind.LEAVE, "s", "x", as_of=entered + 2)
    lost = [await db.fetchval("SELECT sio_lost($1, $2)", held.id, entered + after) for after in (-1, 0, 1, 2)]
    assert lost == [True, True, False, False]


@pytest.mark.parametrize("room", ["", "s", "mine"])
async def test_case_50_what_was_deleted_above_the_offset_is_lost(pg_dsn, store, db, room):
    await store.open()
    await store.move(Kind.ENTER, "s", "mine")
    seen = await store.emit(room)
    missed = await store.emit(room)
    await age(db, seen)
    await prune_once(pg_dsn)
    assert (await store.claim(after=seen)).lost is False
    await age(db, missed)
    await prune_once(pg_dsn)
    claimed = await store.claim(after=seen)
    assert claimed.lost is True
    assert (await store.claim(after=missed)).lost is False


async def test_case_88_a_replay_that_retention_overtakes_is_reported(pg_dsn, store, db):
    held = await store.open()
    first, _ = await store.emit(), await store.emit()
    assert (await store.sessions.page(held, 0, 1)).records[0].offset == first
    await age(db)
    await prune_once(pg_dsn)
    assert (await store.sessions.page(held, first, 1)).lost is True


async def test_case_88_a_cursor_that_retention_overtakes_is_cut_and_exact(start_node, db, pg_dsn, expected_errors):
    """The node could not read for longer than records are kept; its clients come back, none with a hole."""
    expected_errors.append("retention deleted records that this node had not read")
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        await a.sio.emit("e", 1)
        assert await wire.event() == ["e", 1]
        hear = b.manager.node.listener._on_message
        b.manager.node.listener._on_message = lambda *_: None
        await a.sio.emit("e", 2)
        await age(db)
        assert (await prune_once(pg_dsn)).records > 0
        await a.sio.emit("e", 3)
        b.manager.node.listener._on_message = hear
        b.manager.node.cursor.ring()
        assert await wire.rest() == []
        async with b.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid


async def test_large_bodies_go_with_their_records_and_orphans_after_an_hour(pg_dsn, store, db):
    await store.emit(body='["e","' + "x" * 100_000 + '"]')
    assert await db.fetchval("SELECT count(*) FROM sio_attachments") == 1
    await age(db)
    await prune_once(pg_dsn)
    assert await db.fetchval("SELECT count(*) FROM sio_attachments") == 0
    insert = "INSERT INTO sio_attachments VALUES (gen_random_uuid(), '', $1, clock_timestamp() - $2::text::interval)"
    for ephemeral, since in [(True, "1 min"), (True, "3 min"), (False, "30 min"), (False, "2 h")]:
        await db.execute(insert, ephemeral, since)
    await store.emit(body='["e","' + "x" * 100_000 + '"]')
    await db.execute("UPDATE sio_attachments SET created_at = created_at - interval '2 h' WHERE length(data) > 1")
    await prune_once(pg_dsn)
    left = await db.fetch("SELECT ephemeral, length(data) > 1 FROM sio_attachments ORDER BY 1, 2")
    assert [tuple(row) for row in left] == [(False, False), (False, True), (True, False)]


async def test_orphans_are_looked_for_only_beyond_the_records_that_are_kept(pg_dsn, start_node, store, db):
    """Nearly all younger bodies have a record, so each pass would look for all of these records."""
    await start_node(manager={"retention": 7_200})
    for hours in (2.5, 4.0):
        await db.execute(
            "INSERT INTO sio_attachments"
            " VALUES (gen_random_uuid(), '', false, clock_timestamp() - make_interval(secs => $1))",
            hours * 3_600,
        )
    await prune_once(pg_dsn)
    left = await db.fetch("SELECT created_at > clock_timestamp() - interval '3 h' AS young FROM sio_attachments")
    assert [row["young"] for row in left] == [True]


async def test_case_88_one_node_deletes_at_a_time_and_nobody_waits_for_it(pg_dsn, store, db):
    await store.emit()
    await age(db)
    other = await asyncpg.connect(pg_dsn)
    try:
        async with other.transaction():
            assert await other.fetchval(QUERIES["trim"], 300.0, 10) == 1
            assert await db.fetchval(QUERIES["trim"], 300.0, 10) == 0
            assert await store.emit()  # an append does not wait for it either
    finally:
        await other.close()


async def test_short_batches_end_at_the_same_floor(store, db, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.store.pruner.BATCH", 3)
    offsets = [await store.emit(str(i % 2)) for i in range(10)]
    for sid in "abcdefg":
        await store.sessions.release(await store.open(sid, sid), seconds=0.0)
    await age(db, offsets[7])
    pruned = await Pruner(store.manager.database).prune()
    assert pruned == Pruned(sessions=7, records=8)
    assert await kept(db) == offsets[8:] and await floor(db) == offsets[7]


async def test_many_pruners_at_once_delete_each_row_once(pg_dsn, store, db):
    for i in range(50):
        await store.emit()
        await store.sessions.release(await store.open(str(i), str(i)), seconds=0.0)
    await age(db)
    done = await asyncio.gather(*(prune_once(pg_dsn) for _ in range(4)))
    assert sum(p.sessions for p in done) == 50
    assert sum(p.records for p in done) == 50
    assert await kept(db) == [] and await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_a_node_starts_at_the_head_of_an_emptied_log(pg_dsn, store, start_node, db):
    last = await store.emit()
    await age(db)
    await prune_once(pg_dsn)
    node = await start_node()
    assert node.manager.node.cursor.offset == last
    async with node.client() as wire:
        await node.sio.emit("e")
        assert await wire.event() == ["e"]


# -- records that go one by one -----------------------------------------------------------------------------------
MIXED = """
INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
VALUES (1, '\\x01', '/', 's', 0, 0), (2, '\\x02', '/', 't', 0, 0);
INSERT INTO sio_rooms (session, namespace, room, joined_at)
VALUES (1, '/', 'r', 0), (1, '/', 'more', 0), (2, '/', 'late', 11), (2, '/', 'r', 13);
INSERT INTO sio_packets_1 ("offset", kind, namespace, room, sid, attachment, created_at)
SELECT o, (o = 13)::int, '/', CASE o WHEN 15 THEN 'nobody''s' ELSE 'r' END, CASE o WHEN 13 THEN 't' END,
       CASE WHEN o <> 13 THEN lpad(o::text, 32, '0')::uuid END, clock_timestamp() - interval '1 hour'
FROM unnest(ARRAY[11, 13, 15]) o;
INSERT INTO sio_packets_0 ("offset", kind, namespace, room, attachment, created_at)
SELECT o, 0, '/', 'r', lpad(o::text, 32, '0')::uuid, clock_timestamp() - make_interval(hours => 16 - o)
FROM unnest(ARRAY[12, 14, 16]) o;
INSERT INTO sio_packet_rooms_1 VALUES ('/', 'late', 11), ('/', 'more', 15);
INSERT INTO sio_packet_rooms_0 VALUES ('/', 'late', 12), ('/', 'more', 12), ('/', 'more', 14), ('/', 'more', 16);
INSERT INTO sio_attachments (id, data, ephemeral) SELECT attachment, '\\x00', false FROM sio_packets WHERE kind = 0;
INSERT INTO sio_keys SELECT '/', "offset", "offset" FROM sio_packets WHERE kind = 0"""
"""Old records in both segments, which lie between each other. So neither goes as a whole. The last one is young."""


async def all_offsets(db) -> dict[str, list[int]]:
    """Return what is left of the records, and of all that belongs to them."""
    tables = {
        "sio_packets": '"offset"',
        "sio_packet_rooms": '"offset"',
        "sio_keys": '"offset"',
        "sio_attachments": "right(id::text, 2)::int",
    }
    queries = {table: f"SELECT {column} FROM {table} ORDER BY 1" for table, column in tables.items()}
    return {table: [row[0] for row in await db.fetch(query)] for table, query in queries.items()}


async def room_floors(db) -> dict[str, int]:
    return dict(await db.fetch('SELECT room, "offset" FROM sio_room_floors'))


async def test_a_pass_deletes_the_oldest_records_with_all_that_belongs_to_them(db):
    await db.execute(MIXED)
    assert await db.fetchval(QUERIES["trim"], 60.0, 3) == 3
    assert await floor(db) == 13 and await room_floors(db) == {"r": 12, "more": 12, "late": 12}
    assert await all_offsets(db) == {
        "sio_packets": [14, 15, 16],
        "sio_packet_rooms": [14, 15, 16],
        "sio_keys": [14, 15, 16],
        "sio_attachments": [14, 15, 16],
    }
    assert await db.fetchval(QUERIES["trim"], 60.0, 10) == 2
    assert await floor(db) == 15 and await room_floors(db) == {"r": 14, "more": 15, "late": 12}
    assert set(map(tuple, (await all_offsets(db)).values())) == {(16,)}
    assert await db.fetchval(QUERIES["trim"], 60.0, 10) == 0
    assert await floor(db) == 15 and await kept(db) == [16]


WHOLE = """
INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
VALUES (1, '\\x01', '/', 's', {start}, 0), (2, '\\x02', '/', 't', {start}, 0);
INSERT INTO sio_rooms (session, namespace, room, joined_at)
VALUES (1, '/', 'r', 0), (1, '/', 'more', 0), (1, '/', 'early', 0), (2, '/', 'late', 11), (2, '/', 'r', 13);
INSERT INTO sio_packets_{old} ("offset", kind, namespace, room, sid, attachment, created_at)
SELECT o, (o = 13)::int, '/', CASE o WHEN 10 THEN 'early' WHEN 14 THEN 'nobody''s' ELSE 'r' END,
       CASE o WHEN 13 THEN 't' END, CASE WHEN o <> 13 THEN lpad(o::text, 32, '0')::uuid END,
       clock_timestamp() - interval '1 hour'
FROM generate_series(10, 14) o;
INSERT INTO sio_packets_{active} ("offset", kind, namespace, room, attachment, created_at)
VALUES (15, 0, '/', 'r', lpad('15', 32, '0')::uuid, clock_timestamp() - interval '1 hour'),
       (16, 0, '/', 'r', lpad('16', 32, '0')::uuid, clock_timestamp());
INSERT INTO sio_packet_rooms_{old} VALUES ('/', 'late', 11), ('/', 'late', 12), ('/', 'more', 12);
INSERT INTO sio_packet_rooms_{active} VALUES ('/', 'more', 15);
INSERT INTO sio_attachments (id, data, ephemeral) SELECT attachment, '\\x00', false FROM sio_packets WHERE kind = 0;
INSERT INTO sio_keys SELECT '/', "offset", "offset" FROM sio_packets WHERE kind = 0;
SELECT setval('sio_active_segment', {active})"""
"""Old records in one segment, and two records in the active one, of which the first is old."""


@pytest.mark.parametrize("start", [0, 10])
@pytest.mark.parametrize("old", [0, 1])
async def test_a_segment_goes_with_all_that_belongs_to_its_records(db, old, start):
    """No session can ask for the floor of a room whose last event is not above the start of all sessions."""
    await db.execute(WHOLE.format(old=old, active=1 - old, start=start))
    assert await db.fetchval(QUERIES["trim"], 60.0, 1) == 5
    expected = {"r": 12, "more": 12, "late": 12} | ({} if start else {"early": 10})
    assert await floor(db) == 14 and await room_floors(db) == expected
    left = await all_offsets(db)
    assert left.pop("sio_packet_rooms") == [15]
    assert set(map(tuple, left.values())) == {(15, 16)}
    assert await db.fetchval(QUERIES["trim"], 60.0, 10) == 1
    assert await floor(db) == 15 and await room_floors(db) == expected | {"r": 15, "more": 15}


@pytest.mark.parametrize("old", [0, 1])
async def test_a_segment_stays_as_long_as_one_of_its_records_is_young(db, old):
    """The last one, or another one, which a clock that went back may have left."""
    await db.execute(WHOLE.format(old=old, active=1 - old, start=0))
    before = await all_offsets(db)
    for young in (14, 12):
        await db.execute('UPDATE sio_packets SET created_at = clock_timestamp() WHERE "offset" = $1', young)
        assert await db.fetchval(QUERIES["trim"], 60.0, 10) == 0
        await age(db, 14)
        assert await all_offsets(db) == before and await floor(db) == 0 and await room_floors(db) == {}
    assert await db.fetchval(QUERIES["trim"], 60.0, 10) == 5


@pytest.mark.parametrize("segment", [0, 1], ids=["row by row", "a segment"])
async def test_a_pass_leaves_the_log_to_another_that_is_at_work(db, store, connect, segment):
    await store.emit()
    await age(db)
    await db.execute("SELECT setval('sio_active_segment', $1)", segment)
    await db.execute("SET statement_timeout = '20s'")
    other = await connect()
    async with other.transaction():
        await other.execute("SELECT FROM sio_log FOR UPDATE")
        assert await db.fetchval(QUERIES["trim"], 60.0, 10) == 0
        assert len(await kept(db)) == 1
    assert await db.fetchval(QUERIES["trim"], 60.0, 10) == 1


# -- work that arrives as fast as it is done -----------------------------------------------------------------
async def test_a_pass_ends_while_sessions_go_on_to_expire(pg_dsn, db):
    await db.execute("""
        CREATE FUNCTION expire_one() RETURNS void LANGUAGE sql AS $$
            INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at, expires_at)
            SELECT i, i::text::bytea, '/', i::text, 0, 0, '2000-01-01' FROM (SELECT (random() * 1e17)::bigint AS i) x
        $$;
        CREATE FUNCTION goes_on() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM expire_one(); RETURN NULL; END $$;
        CREATE TRIGGER goes_on AFTER DELETE ON sio_sessions FOR EACH ROW EXECUTE FUNCTION goes_on();
        SELECT expire_one()
    """)
    assert await prune_once(pg_dsn) == Pruned(sessions=1)
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 1


OLD_BODIES = "INSERT INTO sio_attachments SELECT gen_random_uuid(), '', true, '2000-01-01' FROM generate_series(1, 5)"
BODIES = "SELECT count(*) FROM sio_attachments"


async def test_a_pass_deletes_all_bodies_of_old_messages(pg_dsn, db, monkeypatch):
    monkeypatch.setattr(pruner, "BATCH", 2)
    await db.execute(OLD_BODIES)
    await prune_once(pg_dsn)
    assert await db.fetchval(BODIES) == 0


async def test_a_pass_deletes_bodies_although_records_go_on_to_age(pg_dsn, store, db):
    await store.emit()
    await age(db, hours=1_000.0)
    await db.execute(OLD_BODIES)
    await db.execute("""
        CREATE FUNCTION goes_on() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO sio_packets_0 ("offset", kind, namespace, room, body, created_at)
            VALUES (nextval('sio_packets_offset_seq'), 0, '/', '', '["e"]', '2000-01-01');
            RETURN NULL;
        END $$;
        CREATE TRIGGER goes_on AFTER DELETE ON sio_packets_0 FOR EACH ROW EXECUTE FUNCTION goes_on()
    """)
    pruning = asyncio.create_task(prune_once(pg_dsn))
    await until_answer(lambda: db.fetchval(BODIES), lambda count: count == 0)
    await db.execute("DROP TRIGGER goes_on ON sio_packets_0")
    assert (await pruning).records > 0
