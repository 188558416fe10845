"""The functions of the outbox: what the commit of an event appends, under which settings, and when it has to fail."""

from __future__ import annotations

import asyncpg
import pytest

from sio_pg_adapter.log.offsets import EPOCH_BITS

EMIT = "SELECT sio_emit('e', room => $1)"
SEQUENCE = "SELECT last_value, is_called FROM sio_packets_offset_seq"
IMMEDIATE = "SET CONSTRAINTS ALL IMMEDIATE"
ISOLATIONS = pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
SEGMENTS = pytest.mark.parametrize("segment", [0, 1])


async def use(db: asyncpg.Connection, segment: int) -> None:
    """Make a segment the one that is appended to."""
    await db.execute("SELECT setval('sio_active_segment', $1)", segment)


async def emit(db: asyncpg.Connection, room: str = "r") -> int:
    """Append an event, and return its offset."""
    await db.execute(EMIT, room)
    return await db.fetchval('SELECT max("offset") FROM sio_packets')


async def rooms(db: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await db.fetch('SELECT room FROM sio_packets ORDER BY "offset"')]


async def epoch(db: asyncpg.Connection) -> int:
    return await db.fetchval("SELECT max(epoch) FROM sio_epochs")


# -- what the commit appends -------------------------------------------------------------------------------------
COLUMNS = "namespace, room, rooms, skip_sids, skip_rooms, body, parts, attachment"


@pytest.mark.parametrize("segment", [None, 0, 1])
async def test_an_event_is_appended_to_the_segment_in_use(db, announced, segment):
    if segment is not None:
        await use(db, segment)
    appended, carried = [], []
    for call in (
        "sio_emit('e', '1', 'r')",
        "sio_emit('e', '1', 'r', rooms => '{r}', skip_rooms => '{m}')",
        "sio_emit('e', rooms => '{a,b,c}', skip_sids => '{s}', key => 'k', namespace => '/n')",
        "sio_emit_encoded('/', 'a', '[\"a\",\"b\",\"b\",\"a\"]', NULL, '[\"e\"]', '\\x0000000107')",
        "sio_emit('e', to_json(repeat('x', 70000)))",
    ):
        async with db.transaction():
            await db.execute(f"SELECT {call}")
            row = await db.fetchrow(f"SELECT {COLUMNS}, carried FROM sio_outbox")
            appended.append((0, *row[:-1]))
            carried.append(row[-1])
    rows = await db.fetch(f'SELECT "offset", kind, {COLUMNS} FROM ONLY sio_packets_{segment or 0} ORDER BY "offset"')
    first = rows[0]["offset"]
    assert [tuple(row) for row in rows] == [(first + i, *event) for i, event in enumerate(appended)]
    further = await db.fetch(f'SELECT namespace, room, "offset" FROM ONLY sio_packet_rooms_{segment or 0}')
    expected = {("/n", "b", first + 2), ("/n", "c", first + 2), ("/", "a", first + 3), ("/", "b", first + 3)}
    assert len(further) == 4 and {tuple(row) for row in further} == expected
    assert [tuple(row) for row in await db.fetch("SELECT * FROM sio_keys")] == [("/n", "k", first + 2)]
    assert announced == [f"{first + i - 1} {first + i}{text}" for i, text in enumerate(carried)]


@ISOLATIONS
async def test_of_two_events_with_a_key_the_first_commit_stores_one(db, connect, announced, isolation):
    """The other announces nothing, with a notification that keeps its transaction from being prepared."""
    app = await connect()
    async with app.transaction(isolation="read_committed"):
        await app.execute("SELECT sio_emit('e', room => 'second', key => 'k'), sio_emit('e', room => 'third')")
        async with db.transaction(isolation=isolation):
            await db.execute("SELECT sio_emit('e', room => 'first', key => 'k')")
        await db.execute("SELECT sio_emit('e', room => 'other', key => 'l')")
    assert await rooms(db) == ["first", "other", "third"]
    assert len(announced) == 4 and announced[2] == "0 0"


async def test_a_commit_moves_what_waits_in_the_relay_first(db, connect):
    """While the relay is asleep, and while a node moves rows. Its own event was not given to the relay."""
    app = await connect()
    for i, state in enumerate((1, 3)):
        await db.execute("SELECT setval('sio_relay_state', $1)", state)
        await db.execute(EMIT, f"waits {i}")
        await db.execute("SELECT setval('sio_relay_state', 0)")
        async with app.transaction():
            await app.execute(EMIT, f"direct {i}")
            await db.execute("SELECT setval('sio_relay_state', $1)", state)
    assert await rooms(db) == ["waits 0", "direct 0", "waits 1", "direct 1"]


# -- constraints that are set IMMEDIATE --------------------------------------------------------------------------
LOCKS = """
SELECT count(*) FROM pg_locks WHERE relation = 'sio_lock'::regclass AND mode = 'ExclusiveLock' AND granted"""


@pytest.mark.parametrize("before", [True, False])
async def test_an_event_waits_for_the_commit_if_constraints_are_immediate(db, before):
    """Setting them a second time is like the commit."""
    call = """
        SELECT sio_emit('e', '1', 'r', rooms => '{r,b}', skip_sids => '{s}', skip_rooms => '{m}', key => 'k'),
               sio_emit_encoded('/', 'a', NULL, NULL, '["e"]', '\\x0000000107')"""
    transaction = db.transaction()
    await transaction.start()
    await db.execute(call)
    expected = [tuple(row) for row in await db.fetch(f"SELECT {COLUMNS} FROM sio_outbox")]
    await transaction.rollback()
    async with db.transaction():
        if before:
            await db.execute(IMMEDIATE)
        await db.execute(call)
        if not before:
            await db.execute(IMMEDIATE)
        assert await db.fetchval(LOCKS) == 0 and await rooms(db) == []
        await db.execute(IMMEDIATE)
        assert await db.fetchval(LOCKS) == 1 and await rooms(db) == ["r", "a"]
    records = await db.fetch(f'SELECT {COLUMNS} FROM sio_packets ORDER BY "offset"')
    assert [tuple(row) for row in records] == expected
    assert await db.fetchval("SELECT count(*) FROM sio_keys WHERE key = 'k'") == 1


# -- settings of the rest of the transaction ---------------------------------------------------------------------
UNLIMITED = {
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
}
LIMITS = dict(zip(UNLIMITED, ("2s", "10s", "10s", "20s"), strict=True))
STRICTER = dict(zip(UNLIMITED, ("1500ms", "9s", "9s", "19s"), strict=True))
LOOSER = dict(zip(UNLIMITED, ("3s", "11s", "11s", "21s"), strict=True))
SHOW = """
SELECT name, current_setting(name) AS value FROM pg_settings
WHERE name = 'synchronous_commit' OR name ~ '^(lock|statement|transaction|idle_in_transaction_session)_timeout$'"""


async def settings(db: asyncpg.Connection, query: str = SHOW) -> dict[str, str]:
    return {row["name"]: row["value"] for row in await db.fetch(query)}


@pytest.mark.parametrize(
    ("before", "bounded"),
    [(UNLIMITED, LIMITS), (STRICTER, STRICTER), (LIMITS, LIMITS), (LOOSER, LIMITS)],
    ids=["unlimited", "stricter", "equal", "looser"],
)
@pytest.mark.parametrize("immediate", [True, False])
async def test_an_append_bounds_the_waits_that_follow_in_its_transaction(db, immediate, before, bounded):
    """If constraints are set IMMEDIATE, all waits, and else those for locks. A trigger of the application shows that.

    It runs in the commit and after the append.
    """
    await db.execute(f"""
        CREATE TABLE seen (name text, value text);
        CREATE TABLE t (id integer);
        CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id < 2 THEN UPDATE t SET id = NEW.id + 1; ELSE INSERT INTO seen {SHOW}; END IF;
            RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION t()""")
    known = await settings(db)
    before = {"synchronous_commit": "off"} | {name: value for name, value in before.items() if name in known}
    for name, value in before.items():
        await db.execute(f"SET {name} = '{value}'")
    async with db.transaction():
        await db.execute(EMIT, "r")
        await db.execute("INSERT INTO t VALUES (0)")
        if immediate:
            await db.execute(IMMEDIATE)
            await db.execute(IMMEDIATE)
            await db.execute(f"DELETE FROM seen; INSERT INTO seen {SHOW}")
    expected = before | {"synchronous_commit": "on", "lock_timeout": bounded["lock_timeout"]}
    if immediate:
        expected |= {name: value for name, value in bounded.items() if name in known}
    assert await settings(db, "SELECT * FROM seen") == expected
    assert await settings(db) == before, "the settings are those of the transaction"


async def test_a_commit_that_waits_for_the_local_disk_goes_on_to_do_so(db):
    await db.execute("SET synchronous_commit = local")
    async with db.transaction():
        await db.execute(EMIT, "r")
        await db.execute(IMMEDIATE)
        await db.execute(IMMEDIATE)
        assert (await settings(db))["synchronous_commit"] == "local"


# -- the sequence ------------------------------------------------------------------------------------------------
@ISOLATIONS
@SEGMENTS
async def test_a_log_that_is_as_the_emit_saw_it(db, segment, isolation):
    await use(db, segment)
    last = await emit(db)
    for _ in range(3):
        async with db.transaction(isolation=isolation):
            await db.execute(EMIT, "r")
    assert await db.fetchval('SELECT max("offset") FROM sio_packets') == last + 3


@ISOLATIONS
async def test_a_sequence_that_was_set_and_not_used(db, isolation):
    last = await emit(db)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1, false)", last + 1)
    async with db.transaction(isolation=isolation):
        await db.execute(EMIT, "r")
    assert await db.fetchval('SELECT max("offset") FROM sio_packets') == last + 1


@SEGMENTS
@pytest.mark.parametrize("records", [1, 2])
async def test_records_above_the_sequence_in_either_segment_begin_an_epoch(db, segment, records):
    await use(db, segment)
    for _ in range(3):
        last = await emit(db)
    await use(db, 1 - segment)
    began = await epoch(db)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1, false)", last - records + 1)
    assert await emit(db) >> EPOCH_BITS == await epoch(db) == began + 1


@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted", "repeatable_read", "serializable"])
async def test_a_sequence_that_is_set_back_behind_the_emit(db, connect, isolation):
    """Records may have been deleted meanwhile. An older snapshot does not show the epochs that there are."""
    app = await connect()
    last = await emit(db)
    began = await epoch(db)
    transaction = app.transaction(isolation=isolation)
    await transaction.start()
    await app.execute(EMIT, "r")
    await db.execute("DELETE FROM sio_packets")
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", last - 1)
    if isolation.startswith("read"):
        await transaction.commit()
    else:
        with pytest.raises(asyncpg.SerializationError, match="the sequence of the log was set back"):
            await transaction.commit()
        assert tuple(await db.fetchrow(SEQUENCE)) == (1, False)
        await emit(app)
    assert await db.fetchval('SELECT "offset" >> 40 FROM sio_packets') == await epoch(db) == began + 1


@SEGMENTS
@pytest.mark.parametrize("others", [[], ["a"]])
async def test_an_offset_that_is_taken_fails_a_transaction_that_does_not_look(db, segment, others):
    """A serializable transaction would depend on all others, if it looked for records above the sequence."""
    await use(db, segment)
    last = await emit(db)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", last - 1)
    with pytest.raises(asyncpg.SerializationError, match="the sequence of the log was set back"):
        async with db.transaction(isolation="serializable"):
            await db.execute("SELECT sio_emit('e', room => 'r', rooms => $1, key => 'k')", others)
    assert tuple(await db.fetchrow(SEQUENCE)) == (1, False)
    assert await db.fetchval('SELECT array_agg("offset") FROM sio_packets') == [last]


# -- epochs ------------------------------------------------------------------------------------------------------
async def check(db: asyncpg.Connection, above: int | None, isolation: str = "read_committed") -> None:
    async with db.transaction(isolation=isolation):
        await db.execute("SELECT sio_outbox_epoch($1)", above)


@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
async def test_an_epoch_goes_on_if_its_last_offset_is_not_below_the_emit(db, isolation):
    last = await emit(db)
    began = await epoch(db)
    for above in (None, last - 1, last):
        await check(db, above, isolation)
        assert await epoch(db) == began
    await check(db, last + 1, isolation)
    assert await epoch(db) == began + 1


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_stricter_transaction_begins_the_epoch_that_the_emit_found_due(db, isolation):
    """If its snapshot shows all epochs."""
    await emit(db)
    for _ in range(3):
        await db.execute("DELETE FROM sio_marker")
        began = await epoch(db)
        await check(db, None, isolation)
        assert await epoch(db) == began + 1


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_stricter_transaction_does_not_begin_an_epoch_that_its_snapshot_does_not_show(db, connect, isolation):
    app = await connect()
    await emit(db)
    await db.execute("DELETE FROM sio_marker")
    with pytest.raises(asyncpg.SerializationError, match="the log began a new epoch"):
        async with app.transaction(isolation=isolation):
            await app.fetchval("SELECT count(*) FROM sio_epochs")
            await emit(db)
            await app.execute("SELECT sio_outbox_epoch(NULL)")
