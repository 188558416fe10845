"""Reads of the log use their indexes, whatever PostgreSQL believes of the tables: by the pages of memory and disk
that a statement touches, functions included, among 100,000 packets of which next to none concern it."""

from __future__ import annotations

import json
import secrets

import asyncpg
import pytest

from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.log.verdict import pid_hash
from sio_pg_adapter.store.queries import Queries

OTHERS = 100_000
PAGES = 1_000
"""What a statement may touch, the catalog for its plan included. One that goes wrong took 8,000 to 17,000."""

QUERIES = Queries("public")

LIES = {
    # When ANALYZE ran. "" is never.
    "never": "",
    "when they were empty": "before",
    "when all that was stored was for the session's room": "meanwhile",
    "at last": "after",
}


@pytest.fixture(params=LIES, ids=lambda analyzed: analyzed.replace(" ", "-"))
async def log(db: asyncpg.Connection, request: pytest.FixtureRequest) -> int:
    """A log in which the session's room "x" is common at first and then silent, but for 20; where that was."""
    analyzed = LIES[request.param]
    await db.execute(QUERIES["check_epoch"])  # before there is an offset, so that all are of one epoch
    analyze = "ANALYZE sio_packets, sio_packet_rooms, sio_sessions, sio_rooms"
    if analyzed == "before":
        await db.execute(analyze)
    fill = """
        INSERT INTO sio_packets_0 ("offset", kind, namespace, room, rooms, body)
        SELECT nextval('sio_packets_offset_seq'), 0, '/', $1,
               CASE WHEN i % 10 = 0 THEN ARRAY[$1, 'second'] END, '["n",' || repeat('x', 100) || ']'
        FROM generate_series(1, $2::integer) i"""
    await db.execute(fill, "x", OTHERS // 2)
    if analyzed == "meanwhile":
        await db.execute(analyze)
    start = await db.fetchval('SELECT max("offset") FROM sio_packets')
    for i in range(20):
        await db.execute(fill, f"other {i}", OTHERS // 40)
        await db.execute(fill, "x", 1)
    await db.execute(
        "INSERT INTO sio_packet_rooms_0"
        " SELECT namespace, 'second', \"offset\" FROM sio_packets WHERE rooms IS NOT NULL"
    )
    if analyzed == "after":
        await db.execute(analyze)
    return int(start)


async def session(db: asyncpg.Connection, start: int, pid: str) -> int:
    """A session that was in many rooms, "x" among them, and has got all up to ``start``."""
    args = {"pid_hash": pid_hash(pid), "start": 0, "joined": 0, "cursor": await head(db)}
    args["rooms"] = [
        ["x", 1, None],
        ["second", start + 1, start + 2],
        ["other 7", 1, start - 1],
        *([f"of my own {i}", 1, None] for i in range(10)),
    ]
    opened = await write(db, Kind.OPEN, sid=pid, body="{}", args=args)
    return int(json.loads(opened["results"][0])["id"])


async def head(db: asyncpg.Connection) -> int:
    return int(await db.fetchval(QUERIES["head"]))


def entry(
    kind: Kind,
    *,
    sid: str | None = None,
    room: str = "",
    skip_rooms: list[str] | None = None,
    body: str | None = None,
    args: object = None,
) -> list[object]:
    nothing, skips = [None], [skip_rooms and json.dumps(skip_rooms)]
    columns: list[object] = [[int(kind)], ["/"], [room], nothing, nothing, skips, [sid], [body], nothing, nothing]
    return [secrets.randbits(62), *columns, [json.dumps(args or {})], None]


async def write(db: asyncpg.Connection, kind: Kind, **more: object) -> asyncpg.Record:
    return await db.fetchrow(QUERIES["write"], *entry(kind, **more))


async def pages(db: asyncpg.Connection, query: str, *args: object) -> int:
    """The pages that a statement touches."""
    return await pages_of(db, QUERIES[query], *args)


async def pages_of(db: asyncpg.Connection, statement: str, *args: object) -> int:
    explained = json.loads(await db.fetchval("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, *args))
    plan = explained[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


ROUNDS = 8  # PostgreSQL plans a statement five times for its values, then, perhaps, once for all values


@pytest.mark.parametrize("page", [0, 100])
async def test_a_claim(db, log, page):
    await session(db, log, "p")
    key = await db.fetchval("SELECT encode(key, 'hex') FROM sio_epochs ORDER BY epoch DESC LIMIT 1")
    args = {"pid_hash": pid_hash("p"), "after": log, "key": key, "missed": 10_000, "page": page, "page_bytes": 32_768}
    for _ in range(ROUNDS):
        assert await pages(db, "write", *entry(Kind.CLAIM, args=args)) < PAGES
    claimed = json.loads((await write(db, Kind.CLAIM, args=args))["results"][0])
    assert claimed["missed"] == (20 if page else None) and len(claimed["page"]) == (20 if page else 0)
    for _ in range(ROUNDS):
        assert await pages(db, "missed", claimed["id"], log, claimed["offset"], 10_001) < PAGES
    assert (await db.fetchrow(QUERIES["missed"], claimed["id"], log, claimed["offset"], 10_001))["missed"] == 20


async def test_a_claim_of_a_session_that_missed_much(db, log):
    """What it missed is counted behind the claim: 50,000 events, under the log's lock, held up all appends."""
    await session(db, 0, "p")
    args = {"pid_hash": pid_hash("p"), "after": None, "key": None, "missed": 10_000, "page": 10, "page_bytes": 32_768}
    for _ in range(ROUNDS):
        assert await pages(db, "write", *entry(Kind.CLAIM, args=args)) < PAGES


async def test_a_claim_of_a_session_that_left_rooms_1000_times(db, log):
    await session(db, log, "p")
    last = await head(db)
    for i in range(1_000):
        await write(db, Kind.ENTER, sid="p", room="toggled")
        await write(db, Kind.EVENT, room="elsewhere", body='["e"]')
        await write(db, Kind.LEAVE, sid="p", room="toggled")
        if i % 10 == 0:  # an event that skips the room while the client is not in it
            await write(db, Kind.EVENT, room="elsewhere", body='["e"]', skip_rooms=["toggled"])
    assert await db.fetchval("SELECT count(*) FROM sio_rooms WHERE left_at IS NOT NULL") <= 101
    key = await db.fetchval("SELECT encode(key, 'hex') FROM sio_epochs ORDER BY epoch DESC LIMIT 1")
    args = {"pid_hash": pid_hash("p"), "after": last, "key": key, "missed": 10_000, "page": 10, "page_bytes": 32_768}
    for _ in range(ROUNDS):
        assert await pages(db, "write", *entry(Kind.CLAIM, args=args)) < 2 * PAGES
    claimed = json.loads((await write(db, Kind.CLAIM, args=args))["results"][0])
    assert claimed["lost"] is False and claimed["missed"] == 0


async def test_a_page(db, log):
    key = await session(db, log, "p")
    for _ in range(ROUNDS):
        assert await pages(db, "page", key, 1, log, 500) < PAGES
    assert len(await db.fetch(QUERIES["page"], key, 1, log, 500)) == 20


async def test_the_end_of_a_long_replay(db, log):
    """Nothing is left but what does not concern the session."""
    key = await session(db, log, "p")
    last = await head(db)
    for _ in range(ROUNDS):
        assert await pages(db, "page", key, 1, last, 500) < PAGES
    assert [row["offset"] for row in await db.fetch(QUERIES["page"], key, 1, last, 500)] == [None]


@pytest.mark.parametrize("segment", [0, 1])
async def test_the_first_of_many_events_that_a_session_missed(db, segment):
    """In the first and in the second room of these events, in either segment."""
    await db.execute(f"""
        INSERT INTO sio_packets_{segment} ("offset", kind, namespace, room, body)
        SELECT i, 0, '/', 'first', repeat('x', 1000) FROM generate_series(1, 10000) i;
        INSERT INTO sio_packet_rooms_{segment} SELECT '/', 'second', i FROM generate_series(1, 10000) i;
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
        VALUES (1, '\\x01', '/', 's', 0, 0)""")
    for room in ("first", "second"):
        await db.execute("INSERT INTO sio_rooms (session, room, joined_at, namespace) VALUES (1, $1, 0, '/')", room)
        for _ in range(ROUNDS):
            touched = await pages_of(db, "SELECT sio_due(1, 0, 10)")
        assert touched < PAGES // 4
        await db.execute("DELETE FROM sio_rooms")


END = 2**63 - 1


@pytest.mark.parametrize("room", ["x", "second", "other 7", "nobody's"])
async def test_the_history_of_a_room(db, log, room):
    """The room "x" is common in the log, and has 20 events above ``log``."""
    middle = log + OTHERS // 4
    calls = {
        "newest": (None, END, 100),
        "newest up to a position": (None, middle, 100),
        "newest up to a position in the common range": (None, log - 10_000, 100),
        "after a position": (log, END, 100),
        "after a position, and many": (log, END, 10_000),
        "after the last event": (log + OTHERS - 1, END, 100),
        "between two positions": (log, middle, 100),
        "between two positions in the common range": (1, log - OTHERS // 4, 100),
    }
    for name, call in calls.items():
        each = 6 * len(await db.fetch(QUERIES["history"], "/", room, *call))  # they are looked up in the segments
        for _ in range(ROUNDS):
            assert await pages(db, "history", "/", room, *call) < PAGES + each, name
    rows = await db.fetch(QUERIES["history"], "/", "x", *calls["after a position"])
    assert len(rows) == 20


async def test_how_many_events_of_rooms_there_are(db, log):
    since = "SELECT sio_count_since('/', $1, $2, $3)"
    for rooms, limit, count in ((["x", "nobody's"], 10_000, 20), (["x", "second"], 10, 10)):
        for _ in range(ROUNDS):
            assert await pages_of(db, since, rooms, [log, log], limit) < PAGES
        assert await db.fetchval(since, rooms, [log, log], limit) == count


async def test_the_last_event_that_skips_a_room(db, log):
    """It looks at a thousand events that skip any room, and at none of the others. The settings are its caller's."""
    await db.execute(
        "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off"
    )
    skipping = "SELECT sio_last_skipping('/', 'muted', $1, $2)"
    for _ in range(ROUNDS):
        assert await pages_of(db, skipping, 0, log) < 100
    for segment in (0, 1):
        at = await head(db)
        await db.execute(f"""
            INSERT INTO sio_packets_{segment} ("offset", kind, namespace, room, skip_rooms, body)
            SELECT nextval('sio_packets_offset_seq'), 0, '/', 'x',
                   ARRAY['of others', CASE WHEN i = 5 THEN 'muted' END], '["e"]'
            FROM generate_series(1, 15000) i""")
        for _ in range(ROUNDS):
            assert await pages_of(db, skipping, at, at + 15_001) < 100
        assert await db.fetchval(skipping, at, at + 900) == at + 5
        assert await db.fetchval(skipping, at, at + 15_001) == at + 14_001  # it may be due what lies before
        assert await db.fetchval(skipping, at + 5, at + 900) is None


async def test_a_range_at_the_head(db, log):
    last = await head(db)
    for _ in range(ROUNDS):
        assert await pages(db, "range", last - 20, 500) < PAGES
        assert await pages(db, "head") < PAGES


async def test_an_event_with_a_key(db, log):
    """The plans are made while hardly a key is stored."""
    await db.execute("VACUUM ANALYZE sio_keys")
    one, many = {"key": "again"}, [json.dumps({"key": f"key {i}"}) for i in range(0, OTHERS, OTHERS // 20)]
    batch = [0, [0] * 20, ["/"] * 20, ["r"] * 20, *[None] * 4, ['["e"]'] * 20, None, None, many, None]

    async def rounds() -> None:
        for i in range(ROUNDS):
            assert await pages(db, "write", *entry(Kind.EVENT, body='["e"]', args=one)) < PAGES
            assert await pages(db, "write", *batch) < PAGES
            for key in ("again", f"{i} {secrets.token_hex(8)}"):
                assert await pages(db, "write_event", 0, "/", "r", '["e"]', key, None) < PAGES
                assert await pages(db, "emit", "/", "r", None, None, '["e"]', None, key, None) < PAGES

    await rounds()
    await db.execute("""
        INSERT INTO sio_keys
        SELECT namespace, 'key ' || "offset" || repeat('x', 200), "offset" FROM sio_packets ON CONFLICT DO NOTHING""")
    await rounds()
    assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE body = '[\"e\"]'") == 1 + 20 + 2 * ROUNDS
    count = await db.fetchval("SELECT count(*) FROM sio_keys")
    for _ in range(ROUNDS):
        assert await pages(db, "trim", 0.0, 10) < 2 * PAGES
    assert await db.fetchval("SELECT count(*) FROM sio_keys") == count - 10 * ROUNDS


async def test_the_event_of_a_key_in_a_log_that_was_analyzed_while_it_was_small(db):
    """Appends read the log themselves. With keys they read no more of it."""
    await db.execute(QUERIES["check_epoch"])
    keys = [json.dumps({"key": f"key {i}"}) for i in range(20)]
    events = [0, [0] * 20, ["/"] * 20, ["r"] * 20, *[None] * 4, ['["e"]'] * 20, None, None]

    async def rounds() -> None:
        for _ in range(ROUNDS):
            without = await pages(db, "write_event", 0, "/", "r", '["e"]', None, None)
            assert await pages(db, "write_event", 0, "/", "r", '["e"]', "key 1", None) < without + PAGES
            without = await pages(db, "write", *events, None, None)
            assert await pages(db, "write", *events, keys, None) < without + PAGES

    await rounds()
    await db.execute("VACUUM ANALYZE sio_packets_0, sio_packets_1, sio_keys")
    await rounds()
    await db.execute(
        """
        INSERT INTO sio_packets_0 ("offset", kind, namespace, room, body)
        SELECT nextval('sio_packets_offset_seq'), 0, '/', 'r', repeat('x', 100) FROM generate_series(1, $1::int)""",
        OTHERS,
    )
    await rounds()


async def test_a_session_that_is_opened(db, log):
    """It looks for what moved its sid above the node's cursor."""
    for i in range(ROUNDS):
        args = {"pid_hash": pid_hash(f"p{i}"), "start": 0, "joined": 0, "cursor": await head(db) - 20, "rooms": []}
        assert await pages(db, "write", *entry(Kind.OPEN, sid=f"s{i}", body="{}", args=args)) < PAGES


@pytest.mark.parametrize("analyzed", [False, True])
async def test_the_members_of_a_room_among_those_of_many(db, analyzed):
    await db.execute("""
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
        SELECT i, int4send(i), '/', 's' || i, 0, 0 FROM generate_series(1, 20000) i;
        INSERT INTO sio_rooms (session, room, joined_at, namespace)
        SELECT i, r, 0, '/' FROM generate_series(1, 20000) i, unnest(ARRAY['user:' || i % 10000, 'doc']) r""")
    if analyzed:
        await db.execute("ANALYZE sio_sessions, sio_rooms")
    for i in range(ROUNDS):
        members = "SELECT sio_members('/', $1::text[], '{}'::text[], '{}'::text[])"
        found = await db.fetch(members, [f"user:{i}", f"s{i + 1}"])
        assert len(found) == 3
        explained = await db.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {members}", [f"user:{i}", f"s{i + 1}"]
        )
        plan = json.loads(explained)[0]["Plan"]
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < PAGES


async def test_the_floor_of_a_session(db, log):
    """It had left a room before its 50,000 events, and the last of 2,500 events of another room skipped it."""
    args = {"pid_hash": pid_hash("p"), "start": 0, "joined": 0, "cursor": await head(db)}
    args["rooms"] = [["x", 1, 2], ["second", 1, log], ["other 7", 1, None], *([f"{i}", 1, None] for i in range(10))]
    await write(db, Kind.OPEN, sid="p", body="{}", args=args)
    await db.execute("""
        INSERT INTO sio_packets_0 ("offset", kind, namespace, room, skip_sids, body)
        SELECT nextval('sio_packets_offset_seq'), 0, '/', 'other 7', ARRAY['p'], '["e"]'""")
    upto = await head(db)
    raise_floors = "SELECT sio_raise_floors(0, $1::bigint, $2::text[], $3::text[], $4::bigint[])"
    for _ in range(ROUNDS):
        touched = await pages_of(db, raise_floors, upto, ["/"] * 3, ["x", "second", "other 7"], [upto] * 3)
        assert touched < PAGES
        floors = dict(await db.fetch('SELECT room, "offset" FROM sio_session_floors'))
        assert floors["x"] == 0 and floors["second"] <= log < floors["other 7"] < upto
        await db.execute("DELETE FROM sio_session_floors; DELETE FROM sio_room_floors")
    assert touched < PAGES // 4  # once the catalog has been read


MANY = 20_000
SCANS = {
    # What they find, and how many pages they may touch. All events of the room in a segment have 50 to 5,000. Before
    # PostgreSQL 18, each call of a function in SQL reads the catalog for its plan.
    "sio_history('/', 'r', 0, 20000, 10)": (range(1, 11), 30),
    "sio_history('/', 'r', NULL, 20000, 10)": (range(20_000, 19_990, -1), 30),
    "sio_due(1, 0, 10)": (range(1, 11), 120),
    "sio_count_since('/', '{r}', '{0}', 10)": ([10], 30),
    "sio_last_due('/', 'r', 's', 0, 20001)": ([20_000], 120),
}


@pytest.mark.parametrize("call", SCANS)
@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_few_of_many_events_of_a_room(db, call, analyzed):
    """They are in both segments. "r" is the first room of half of them, and the second room of the others."""
    for segment in (0, 1):
        await db.execute(f"""
            INSERT INTO sio_packets_{segment} ("offset", kind, namespace, room, body)
            SELECT i, 0, '/', CASE WHEN i % 4 < 2 THEN 'r' ELSE 'q' END, repeat('x', 200)
            FROM generate_series(2 - {segment}, {MANY}, 2) i;
            INSERT INTO sio_packet_rooms_{segment}
            SELECT namespace, 'r', "offset" FROM sio_packets_{segment} WHERE room = 'q'""")
    await db.execute("INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)"
                     " VALUES (1, '1', '/', 's', 0, 0)")  # fmt: skip
    await db.execute("INSERT INTO sio_rooms (session, room, joined_at, namespace) VALUES (1, 'r', 0, '/')")
    if analyzed:
        await db.execute("ANALYZE")
    expected, most = SCANS[call]
    for _ in range(ROUNDS):
        touched = await pages_of(db, f"SELECT {call}")
    assert touched < most
    assert [found for (found,) in await db.fetch(f"SELECT {call}")] == list(expected)
