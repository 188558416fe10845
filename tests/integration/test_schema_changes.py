"""The rule of docs/schema-changes.md: a package of schema version n works iff compatible <= n <= version."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sio_pg_adapter import SchemaMismatch, database, emit_async, migrate

DOCS = Path(__file__).parents[2] / "docs" / "schema-changes.md"


async def versions(db):
    return tuple(await db.fetchrow("SELECT version, compatible FROM sio_log"))


async def test_the_tables_say_what_this_package_needs_and_the_docs_say_so_too(db):
    version, compatible = await versions(db)
    assert version == database.SCHEMA_VERSION
    assert f"| {version} | {compatible} |" in DOCS.read_text(encoding="utf-8").splitlines()[-1]


@pytest.mark.parametrize(
    ("version", "compatible", "says"),
    [
        (2, 1, None),
        (2, 2, None),
        (9, 1, None),
        (9, 2, None),
        (1, 1, "run `sio-pg migrate`"),
        (9, 3, "upgrade the package"),
    ],
)
async def test_case_91_a_node_starts_where_the_tables_serve_it(start_node, db, version, compatible, says):
    await db.execute("UPDATE sio_log SET version = $1, compatible = $2", version, compatible)
    if says is None:
        await start_node()
    else:
        with pytest.raises(SchemaMismatch, match=f"are of version {version}, this package needs 2: .*{says}"):
            await start_node()


async def test_servers_of_version_1_run_through_the_second_migration_and_back(start_node, db, pg_dsn, monkeypatch):
    """Clients of a server that is older than the tables notice nothing; it may be restarted; new ones join it."""
    await asyncio.to_thread(migrate.downgrade, pg_dsn, revision="sio0001")
    assert await versions(db) == (1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(database, "SCHEMA_VERSION", 1)
        old = await start_node()
    with pytest.raises(SchemaMismatch, match="sio-pg migrate"):
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
        await asyncio.to_thread(migrate.upgrade, pg_dsn)
        assert await versions(db) == (2, 1)
        new = await start_node()
        with monkeypatch.context() as patch:
            patch.setattr(database, "SCHEMA_VERSION", 1)
            await start_node()
        await emit_async(db, "outbox")
        async with new.client(pid=moving.pid, offset=moving.offset) as again:
            assert again.sid == moving.sid
            await asyncio.to_thread(migrate.downgrade, pg_dsn, revision="sio0001")
            done.set()
            await emitting
            await new.sio.emit("end")
            expected = [["e", i] for i in range(sent)]
            for one, first in ((wire, 0), (again, 1)):
                events = await one.events_until("end")
                assert [e for e in events if e != ["outbox"]] == expected[first:]
                assert events.count(["outbox"]) == 1
