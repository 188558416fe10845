"""The rule of docs/schema-changes.md: a package of schema version n works iff compatible <= n <= version."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import asyncpg
import pytest

from integration.test_migrate import introspect
from integration.test_segments import QUERIES, turned
from sio_pg_adapter import SchemaMismatch, emit_async, migrate
from sio_pg_adapter.store import version as tables
from support.later import has_a_later_revision
from support.waiting import until_answer

DOCS = Path(__file__).parents[2] / "docs" / "schema-changes.md"


async def versions(db):
    return tuple(await db.fetchrow("SELECT version, compatible FROM sio_log"))


async def test_the_tables_say_what_this_package_needs_and_the_docs_say_so_too(db):
    version, compatible = await versions(db)
    assert version == tables.SCHEMA_VERSION
    assert f"| {version} | {compatible} |" in DOCS.read_text(encoding="utf-8").splitlines()[-1]


@pytest.mark.parametrize(
    ("version", "compatible", "says"),
    [
        (3, 1, None),
        (3, 3, None),
        (9, 1, None),
        (9, 3, None),
        (2, 1, "run `sio-pg migrate`"),
        (9, 4, "upgrade the package"),
    ],
)
async def test_case_91_a_node_starts_where_the_tables_serve_it(
    start_node, db, monkeypatch, version, compatible, says
):
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    await db.execute("UPDATE sio_log SET version = $1, compatible = $2", version, compatible)
    if says is None:
        await start_node()
    else:
        with pytest.raises(SchemaMismatch, match=f"are of version {version}, this package needs 3: .*{says}"):
            await start_node()


# -- a later revision while servers run -----------------------------------------------------------------
@contextlib.contextmanager
def package_of(monkeypatch, version):
    with monkeypatch.context() as patch:
        patch.setattr(tables, "SCHEMA_VERSION", version)
        yield


@pytest.fixture
def later(monkeypatch):
    """A package with the revision sio0002, which is written as docs/schema-changes.md asks."""
    has_a_later_revision(monkeypatch)


async def test_servers_run_through_a_later_revision_and_back(start_node, db, pg_owner_dsn, later, monkeypatch):
    """Clients of a server that is older than the tables notice nothing; it may be restarted; new ones join it."""
    assert await versions(db) == (1, 1)
    old = await start_node()
    with package_of(monkeypatch, 2), pytest.raises(SchemaMismatch, match="sio-pg migrate"):
        await start_node()

    sent = 0
    done = asyncio.Event()

    async def emit_on():
        nonlocal sent
        while not done.is_set():
            await old.sio.emit("e", sent)
            sent += 1

    async with old.client() as wire, old.client() as moving:
        emitting = asyncio.create_task(emit_on())
        await moving.event()
        await moving.drop()
        await asyncio.to_thread(migrate.upgrade, pg_owner_dsn)
        assert await versions(db) == (2, 1)
        with package_of(monkeypatch, 2):
            new = await start_node()
        await start_node()
        await emit_async(db, "outbox")
        async with new.client(pid=moving.pid, offset=moving.offset) as there:
            assert there.sid == moving.sid
            read = [["e", 0], await there.event()]
            await there.drop()
        assert await db.fetchval("SELECT max(priority) FROM sio_packets") == 1  # the later function has run
        await new.sio.shutdown()  # first the servers, then the tables
        done.set()  # what is under way then fails, and says so
        await emitting
        await asyncio.to_thread(migrate.downgrade, pg_owner_dsn, revision="sio0001")
        assert await versions(db) == (1, 1)
        async with old.client(pid=moving.pid, offset=there.offset) as again:
            assert again.sid == moving.sid
            await old.sio.emit("e", sent)
            await old.sio.emit("end")
            expected = [["e", i] for i in range(sent + 1)]
            for one, had in ((wire, []), (again, read)):
                events = had + await one.events_until("end")
                assert [e for e in events if e != ["outbox"]] == expected
                assert events.count(["outbox"]) == 1


@pytest.mark.parametrize("is_later", [False, True])
async def test_a_migration_restores_the_first_rows_of_all_revisions(pg_owner_dsn, db, monkeypatch, is_later):
    """Something has emptied all tables. It fails if a revision has first rows elsewhere than in its ROWS."""
    if is_later:
        has_a_later_revision(monkeypatch)
        await asyncio.to_thread(migrate.upgrade, pg_owner_dsn)
    named = "SELECT relname FROM pg_class WHERE relname LIKE 'sio\\_%' AND relkind = 'r' AND relname !~ 'alembic'"
    tables = [row[0] for row in await db.fetch(named)]
    counted = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in tables)
    before = (await db.fetch(counted), await versions(db))
    await db.execute(f"TRUNCATE {', '.join(tables)}")
    await asyncio.to_thread(migrate.upgrade, pg_owner_dsn)
    assert (await db.fetch(counted), await versions(db)) == before


async def test_a_later_revision_and_its_way_back_keep_rows_epoch_and_rights(pg_owner_dsn, start_store, db, later):
    every = 'SELECT "offset", namespace, room, rooms, body, created_at FROM sio_packets ORDER BY 1'
    running = "SELECT max(epoch), (SELECT count(*) FROM sio_marker) FROM sio_epochs"
    store = await start_store()
    await store.open()
    await store.emit("x", "y")
    await turned(db)
    last = await store.emit("x", "z")
    await db.execute(
        "GRANT SELECT ON sio_packets, sio_packets_0 TO PUBLIC; GRANT UPDATE ON sio_active_segment TO PUBLIC"
    )
    before, epoch, made = await db.fetch(every), await db.fetchrow(running), introspect(pg_owner_dsn)
    await store.manager.aclose()
    for revision in ("head", "sio0001"):
        work = migrate.upgrade if revision == "head" else migrate.downgrade
        await asyncio.to_thread(work, pg_owner_dsn, revision=revision)
        assert await db.fetch(every) == before
        assert await db.fetchval(QUERIES["in_epoch"]) and await db.fetchrow(running) == epoch
        assert (introspect(pg_owner_dsn) == made) is (revision == "sio0001")
        store = await start_store()
        last += 1
        assert await store.emit() == last and await db.fetchrow(running) == epoch
        before = await db.fetch(every)
        await store.manager.aclose()


async def test_a_later_revision_waits_for_a_reader_in_short_tries(pg_owner_dsn, db, later):
    """Somebody has read the log and is still in a transaction: the others go on meanwhile."""
    other = await asyncpg.connect(pg_owner_dsn)
    tries = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    try:
        async with other.transaction():
            await other.fetch("SELECT FROM sio_packets LIMIT 1")
            upgrading = asyncio.create_task(asyncio.to_thread(migrate.upgrade, pg_owner_dsn))
            await until_answer(lambda: db.fetchval(tries))
            await until_answer(lambda: db.fetchval(tries), lambda count: count == 0)  # gives up, for now
            async with db.transaction():
                await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")  # as an append does
        await upgrading
    finally:
        await other.close()
    assert await versions(db) == (2, 1)
