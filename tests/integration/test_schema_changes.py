"""The rule of docs/schema-changes.md: a package of schema version n works iff compatible <= n <= version."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from sio_pg_adapter import SchemaMismatch, emit_async, migrate
from sio_pg_adapter.store import database
from sio_pg_adapter.store.queries import Queries

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
        (3, 1, None),
        (3, 3, None),
        (9, 1, None),
        (9, 3, None),
        (2, 1, "run `sio-pg migrate`"),
        (9, 4, "upgrade the package"),
    ],
)
async def test_case_91_a_node_starts_where_the_tables_serve_it(start_node, db, version, compatible, says):
    await db.execute("UPDATE sio_log SET version = $1, compatible = $2", version, compatible)
    if says is None:
        await start_node()
    else:
        with pytest.raises(SchemaMismatch, match=f"are of version {version}, this package needs 3: .*{says}"):
            await start_node()


FORMER = {
    "write_event": """
        SELECT prev, offsets[1] AS at
        FROM sio_write($1::bigint, ARRAY[0]::smallint[], ARRAY[$2::text], ARRAY[$3::text], ARRAY[NULL::text],
                       ARRAY[NULL::text], ARRAY[NULL::text], ARRAY[$4::text], ARRAY[NULL::bytea], ARRAY[NULL::uuid],
                       ARRAY['{}'], $5::text)
    """,
    "range": """
        SELECT l.floor, p."offset", p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.sid, p.generation, p.node,
               p.body, p.parts, p.attachment
        FROM sio_log l LEFT JOIN LATERAL (
            SELECT * FROM sio_packets WHERE "offset" > $1::bigint ORDER BY "offset" LIMIT $2::integer) p ON true
        ORDER BY p."offset"
    """,
    "page": """
        SELECT h.head, h.lost, p."offset", p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.sid, p.generation,
               p.node, p.body, p.parts, p.attachment
        FROM (SELECT (SELECT coalesce(max("offset"), 0) FROM sio_packets) AS head, sio_lost(id, $3::bigint) AS lost
              FROM sio_sessions WHERE id = $1::bigint AND generation = $2::bigint) h
        LEFT JOIN LATERAL (
            SELECT q.* FROM sio_due($1::bigint, $3::bigint, $4::integer) d JOIN sio_packets q ON q."offset" = d) p
            ON true
        ORDER BY p."offset"
    """,
    "memberships": """
        SELECT (SELECT coalesce(max("offset"), 0) FROM sio_packets) AS head,
               (SELECT coalesce(json_agg(json_build_array(room, joined_at, left_at)), '[]')::text
                FROM sio_rooms WHERE session = s.id) AS rooms
        FROM sio_sessions s WHERE s.id = $1::bigint AND s.generation = $2::bigint
    """,
}
"""What packages of version 1 and 2 ask, where this one asks otherwise."""


class FormerQueries(Queries):
    def __getitem__(self, name: str) -> str:
        return FORMER.get(name) or super().__getitem__(name)


@contextlib.contextmanager
def package_of(monkeypatch, version):
    with monkeypatch.context() as patch:
        patch.setattr(database, "SCHEMA_VERSION", version)
        patch.setattr(database, "Queries", FormerQueries)
        yield


@pytest.mark.parametrize("version", [1, 2])
async def test_servers_of_a_former_version_run_through_the_migrations_and_back(
    start_node, db, pg_dsn, monkeypatch, version
):
    """Clients of a server that is older than the tables notice nothing; it may be restarted; new ones join it."""
    await asyncio.to_thread(migrate.downgrade, pg_dsn, revision=f"sio000{version}")
    assert await versions(db) == (version, 1)
    with package_of(monkeypatch, version):
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
        assert await versions(db) == (database.SCHEMA_VERSION, 1)
        new = await start_node()
        with package_of(monkeypatch, version):
            await start_node()
        await emit_async(db, "outbox")
        async with new.client(pid=moving.pid, offset=moving.offset) as there:
            assert there.sid == moving.sid
            read = [["e", 0], await there.event()]
            await there.drop()
        await new.sio.shutdown()  # first the servers, then the tables
        done.set()  # what is under way then fails, and says so
        await emitting
        await asyncio.to_thread(migrate.downgrade, pg_dsn, revision=f"sio000{version}")
        async with old.client(pid=moving.pid, offset=there.offset) as again:
            assert again.sid == moving.sid
            await old.sio.emit("e", sent)
            await old.sio.emit("end")
            expected = [["e", i] for i in range(sent + 1)]
            for one, had in ((wire, []), (again, read)):
                events = had + await one.events_until("end")
                assert [e for e in events if e != ["outbox"]] == expected
                assert events.count(["outbox"]) == 1
