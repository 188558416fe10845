"""Roles: an owner needs no right but its database, and sessions in the replica role are like all others."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import asyncpg
import psycopg
import pytest

from integration.test_migrate import introspect
from integration.test_segments import KEEP, MANY, QUERIES, active, fill
from integration.test_transactions_sql import snippets
from sio_pg_adapter import emit_async, migrate
from sio_pg_adapter.schema.rights import grants
from support.roles import NODE
from support.store import Store

RIGHTS = "rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"


# -- the owner --------------------------------------------------------------------------------------------------
async def test_an_owner_without_any_other_right_migrates_and_runs_nodes(pg_empty_dsn, start_node):
    """As on a managed PostgreSQL. It fails if a function sets in its definition what only a superuser may set."""
    before = introspect(pg_empty_dsn)
    owner = await asyncpg.connect(pg_empty_dsn)
    try:
        rights = await owner.fetchrow(f"SELECT {RIGHTS} FROM pg_roles WHERE rolname = session_user")
        assert list(rights) == [False] * 5
        assert await owner.fetchval("SELECT count(*) FROM pg_auth_members WHERE member = session_user::regrole") == 0
        await asyncio.to_thread(migrate.upgrade, pg_empty_dsn)

        node = await start_node(dsn=pg_empty_dsn)
        async with node.client() as wire:
            await node.sio.enter_room(wire.sid, "x")
            await node.sio.save_session(wire.sid, {"a": 1})
            await node.sio.emit("stored", room="x")
            await emit_async(owner, "outbox", room="x")
            assert [await wire.event(), await wire.event()] == [["stored"], ["outbox"]]
            await wire.drop()
            await node.sio.emit("missed", room="x")
            async with node.client(pid=wire.pid, offset=wire.offset) as again:
                assert again.sid == wire.sid and await again.event() == ["missed"]
        await node.sio.shutdown()

        await owner.execute("DELETE FROM sio_packets")
        await fill(owner)
        assert await owner.fetchval(QUERIES["switch_segment"], KEEP) is True and await active(owner) == 1
        assert await owner.fetchval(QUERIES["trim"], KEEP, MANY) == MANY
        await asyncio.to_thread(migrate.downgrade, pg_empty_dsn)
        assert introspect(pg_empty_dsn) == before
    finally:
        await owner.close()


# -- default privileges -----------------------------------------------------------------------------------------
@pytest.fixture
def anybody(pg_admin, pg_admin_dsn, pg_empty_dsn) -> Iterator[str]:
    """A role that has every right on whatever the owner creates, as Supabase's "anon", and so has PUBLIC."""
    name = f"anybody_{secrets.token_hex(4)}"
    pg_admin.execute(f"CREATE ROLE {name}")
    with psycopg.connect(pg_empty_dsn, autocommit=True) as owner:
        for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            owner.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO {name} WITH GRANT OPTION")
            owner.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO PUBLIC")
        owner.execute("CREATE TABLE sio_of_the_application ()")
    yield name
    with psycopg.connect(pg_empty_dsn, autocommit=True) as owner:
        for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            owner.execute(f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON {kind} FROM {name}, PUBLIC")
        owner.execute("ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC")
        owner.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name}")
    pg_admin.execute(f"DROP ROLE {name}")


async def test_default_privileges_open_nothing(pg_empty_dsn, anybody, start_node):
    await asyncio.to_thread(migrate.upgrade, pg_empty_dsn)
    owner = await asyncpg.connect(pg_empty_dsn)
    try:
        open_to = await owner.fetch(
            """
            SELECT c.relname, a.privilege_type FROM pg_class c, aclexplode(c.relacl) a
            WHERE c.relname LIKE 'sio\\_%' AND c.relname !~ 'alembic' AND a.grantee <> c.relowner
            UNION ALL
            SELECT p.proname, a.privilege_type FROM pg_proc p, aclexplode(p.proacl) a
            WHERE p.proname LIKE 'sio\\_%' AND a.grantee <> p.proowner AND (a.grantee <> 0 OR p.prosecdef)
            """
        )
        assert {row[0] for row in open_to} == {"sio_of_the_application"}
        assert not await owner.fetchval(
            f"SELECT has_function_privilege('{anybody}', oid, 'EXECUTE') FROM pg_proc WHERE proname = 'sio_emit'"
        )
        node = await start_node(dsn=pg_empty_dsn)
        async with node.client() as wire:
            await emit_async(owner, "e")
            assert await wire.event() == ["e"]
        await node.sio.shutdown()
        await asyncio.to_thread(migrate.downgrade, pg_empty_dsn)
    finally:
        await owner.close()


@pytest.fixture
def role(pg_admin, pg_admin_dsn) -> Iterator[str]:
    name = f"somebody_{secrets.token_hex(4)}"
    pg_admin.execute(f"CREATE ROLE {name}")
    yield name
    with psycopg.connect(pg_admin_dsn, autocommit=True) as admin:
        admin.execute(f"DROP OWNED BY {name}")
    pg_admin.execute(f"DROP ROLE {name}")


def command(name: str, dsn: str, *options: str) -> str:
    """Return what a command prints."""
    line = [sys.executable, "-m", "sio_pg_adapter", name, "--dsn", dsn, *options]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


AS_DOCUMENTED = next(block for block in snippets() if block.startswith("-- roles"))


@pytest.mark.parametrize(
    ("grant", "rights"),
    [
        ("GRANT EXECUTE ON FUNCTION sio_emit TO sio_node", {}),
        (AS_DOCUMENTED, {}),
        (AS_DOCUMENTED + ";GRANT TRIGGER ON sio_log TO sio_node", {"TRIGGER": ["sio_log"]}),
        ("GRANT SELECT ON sio_log TO sio_node", {"SELECT": ["sio_log"]}),
        ("GRANT USAGE ON SEQUENCE sio_active_segment TO sio_node", {"USAGE": ["sio_active_segment"]}),
        ("GRANT EXECUTE ON FUNCTION sio_outbox_retry TO sio_node", {"EXECUTE": ["sio_outbox_retry"]}),
    ],
)
async def test_rights_that_the_documentation_does_not_give_are_named(db, pg_dsn, role, grant, rights):
    await db.execute(re.sub(r"\bsio_(node|emitter)\b", role, grant))
    status = json.loads(await asyncio.to_thread(command, "status", pg_dsn, "--json"))
    assert status["rights"] == ([{"role": role, "rights": rights}] if rights else [])


async def test_the_demo_gives_its_nodes_the_documented_rights(db, role):
    held = """
        SELECT relname, privilege_type FROM pg_class, aclexplode(relacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT proname, privilege_type FROM pg_proc, aclexplode(proacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT nspname, privilege_type FROM pg_namespace, aclexplode(nspacl) WHERE grantee = $1::regrole
    """
    await db.execute(grants(role))
    as_in_the_demo, documented = [set(await db.fetch(held, name)) for name in (role, NODE)]
    assert as_in_the_demo == documented and len(documented) > 100


async def test_status_and_migrate_say_who_has_rights_on_the_log(db, pg_owner_dsn, role):
    """As Supabase grants them: on the whole schema, to "anon"."""
    await db.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT SELECT ON sio_log TO PUBLIC")
    for name in ("migrate", "status"):
        printed = " ".join((await asyncio.to_thread(command, name, pg_owner_dsn)).split())
        assert f"The role {role} has rights that the documentation does not give: " in printed
        assert (
            "Every role (PUBLIC) has rights that the documentation does not give: SELECT on sio_log. Rev" in printed
        )
        assert "TRIGGER on sio_attachments and " in printed


# -- the replica role -------------------------------------------------------------------------------------------
@pytest.fixture
async def replica(pg_admin_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A session in which ordinary triggers do not fire: of a bulk load, or of logical replication."""
    connection = await asyncpg.connect(pg_admin_dsn, server_settings={"session_replication_role": "replica"})
    yield connection
    await connection.close()


async def test_events_of_the_replica_role_are_delivered(start_node, db, replica):
    node = await start_node()
    async with node.client() as wire:
        await emit_async(replica, "python", room=[wire.sid, "other"])
        await replica.execute("SELECT sio_emit('sql', '1')")
        async with replica.transaction():
            await replica.execute("SELECT sio_emit('first'), sio_emit('second')")
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with replica.transaction():
                await replica.execute("SELECT sio_emit('rolled back')")
                await replica.execute("SELECT 1 / 0")
        await replica.execute("SELECT sio_emit('end')")
        assert await wire.events_until("end") == [["python"], ["sql", 1], ["first"], ["second"]]
    assert await db.fetchval("SELECT count(*) FROM sio_outbox") == 0


@pytest.mark.parametrize("table", ["sio_packets", "sio_packets_1", "sio_packet_rooms", "sio_packet_rooms_0"])
async def test_a_truncate_of_the_replica_role_ends_sessions_and_the_epoch(store: Store, db, replica, table):
    await store.open(rooms={"x": [(0, None)]})
    before = await store.emit("x", "y")
    await replica.execute(f"TRUNCATE {table}")
    for name in ("sio_sessions", "sio_rooms", "sio_packets", "sio_packet_rooms"):
        assert await db.fetchval(f"SELECT count(*) FROM {name}") == 0
    assert await store.emit() > before + (1 << 39)


async def test_what_the_replica_role_inserts_into_the_whole_comes_into_a_segment(store: Store, db, replica):
    await replica.execute("INSERT INTO sio_packets (kind, namespace, body) VALUES (0, '/', '[\"e\"]')")
    await replica.execute("INSERT INTO sio_packet_rooms VALUES ('/', 'x', 1)")
    assert [r.body for r in (await store.reader.range(0, 10))[1]] == ['["e"]']
    assert await db.fetchval("SELECT count(*) FROM sio_packet_rooms_0") == 1
