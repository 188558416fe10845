"""What a connection must be: the right server, writable, read committed, listening, and holding its lock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

from integration.test_epochs import make_database, query
from sio_pg_adapter import AsyncPostgresManager, ConfigurationError, SchemaMismatch, StoreUnavailable
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import downgrade, upgrade
from sio_pg_adapter.servers import check_support
from sio_pg_adapter.store import listener
from sio_pg_adapter.store.failures import OutcomeUnknown, unknown_outcome
from sio_pg_adapter.store.kept import is_closed
from support.asgi_client import Closed
from support.proxy import Proxy
from support.roles import NODE, grants
from support.store import Store
from support.waiting import until, until_answer

OF_NODES = "application_name LIKE 'sio_pg%' AND datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def expected_errors() -> list[str]:
    return []


@pytest.fixture
def quick_probes(monkeypatch) -> None:
    for module in ("store.listener", "node"):
        monkeypatch.setattr(f"sio_pg_adapter.{module}.PROBE_INTERVAL", 0.2)
        monkeypatch.setattr(f"sio_pg_adapter.{module}.PROBE_TIMEOUT", 0.5)


async def healthy(node) -> None:
    await until_answer(node.manager.health, lambda health: health.ok)


async def reason(node, part: str) -> None:
    """Health is false, for this reason."""
    health = await until_answer(node.manager.health, lambda health: part in health.reason)
    assert not health.ok


# -- isolation ------------------------------------------------------------------------------------------------
@pytest.fixture
async def strict(pg_dsn, db) -> str:
    """All new connections to the database are stricter than read committed."""
    name = await db.fetchval("SELECT current_database()")
    await db.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
    return pg_dsn


async def test_own_connections_are_read_committed_whatever_the_default_is(strict, start_node):
    node = await start_node()
    database = node.manager.database
    for kept in (database.writer, database.reader):
        async with kept as connection:
            assert await connection.fetchval("SHOW transaction_isolation") == "read committed"
    async with database.connection() as connection:
        assert await connection.fetchval("SHOW transaction_isolation") == "read committed"
    connection = node.manager.node.listener._connection
    assert await connection.fetchval("SHOW transaction_isolation") == "read committed"


async def test_a_pool_that_is_stricter_is_refused_by_name(strict, start_node):
    async with asyncpg.create_pool(strict, min_size=0, max_size=8) as pool:
        with pytest.raises(ConfigurationError, match="default_transaction_isolation"):
            await start_node(dsn=None, manager={"pool": pool})


async def test_functions_that_lock_the_log_refuse_stricter_transactions(db):
    for call in ("sio_lock_and_check_epoch()", "sio_append_event(1, '/', '', '[\"e\"]', NULL, NULL)", "sio_expire(1)",
                 "sio_take_expired('{*}', NULL, 1)",
                 "sio_delete_expired(NULL, NULL)", "sio_trim(1, 1)", "sio_switch_segment(1)",
                 "sio_stored_batch(1, 1)",
                 "sio_append_batch(1, '{0}', '{/}', '{r}', NULL, NULL, NULL, NULL, '{e}', NULL, NULL, NULL, NULL)",
                 "sio_move_members(1, 1::smallint, '/', '{x}', '{}', '{}', '{}', '{y}')"):  # fmt: skip
        for level in ("repeatable_read", "serializable"):
            with pytest.raises(asyncpg.InvalidTransactionStateError, match="read committed"):
                async with db.transaction(isolation=level):
                    await db.execute(f"SELECT {call}")


# -- the right server -----------------------------------------------------------------------------------------
@pytest.fixture
def two_servers() -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    with EmbeddedPostgres() as one, EmbeddedPostgres() as other:
        yield one, other


async def bodies(server: EmbeddedPostgres) -> list[str]:
    rows = await query(server.dsn("epochs"), 'SELECT body FROM sio_packets WHERE kind = 0 ORDER BY "offset"')
    return [json.loads(row["body"])[0] for row in rows]


async def terminate(server: EmbeddedPostgres, name: str) -> None:
    await query(
        server.admin_dsn(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", name
    )


async def test_a_connection_that_comes_back_on_another_server_takes_the_node_along(
    two_servers, start_node, expected_errors
):
    """Two primaries and one name: the node never writes to one and listens to the other."""
    expected_errors += ["the log is another one"]
    one, other = two_servers
    await make_database(one)
    async with Proxy(await make_database(other)).running() as way:
        way.lead_to(one.dsn("epochs"))
        node = await start_node(dsn=way.dsn)
        async with node.client() as wire:
            for _ in range(5):
                await node.sio.emit("first")
            way.lead_to(other.dsn("epochs"))
            await terminate(one, "sio_pg_adapter")  # all but the one that listens
            await node.sio.emit("second")
            assert await bodies(other) == ["second"] and await bodies(one) == ["first"] * 5
            assert [name for name, *_ in [await wire.event() for _ in range(5)]] == ["first"] * 5
            assert await wire.rest() == []
        await healthy(node)
        async with node.client(pid=wire.pid) as again:
            assert again.sid != wire.sid
            await node.sio.emit("third")
            assert await again.event() == ["third"]
            await query(other.dsn("epochs"), "SELECT sio_emit('of another process')")
            assert await again.event() == ["of another process"]
        await node.sio.shutdown()


async def comes_back(stack: contextlib.AsyncExitStack, node):
    """Connect as a client does: until it is let in."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Closed):
                return await stack.enter_async_context(node.client())


async def test_a_listener_that_the_node_replaces_while_it_connects_is_replaced(start_node):
    """It was judged before the node decided to follow another server, and listens to the former one."""
    node = await start_node()
    listens = node.manager.node.listener
    on_ready, judged = listens._on_ready, []

    async def decided_meanwhile(connection):
        await on_ready(connection)
        judged.append(connection)
        if len(judged) == 1:
            listens.renew()

    listens._on_ready = decided_meanwhile
    reconnects = listens.reconnects
    listens.renew()
    await until(lambda: listens.connected)
    assert listens._connection is judged[1]
    assert listens.reconnects == reconnects + 1


async def test_a_client_of_a_restored_copy_is_served_before_the_listener_is_back(
    two_servers, start_node, expected_errors, monkeypatch
):
    expected_errors += ["the log is another one"]
    one, other = two_servers
    await make_database(one)
    async with Proxy(await make_database(other)).running() as way:
        way.lead_to(one.dsn("epochs"))
        node = await start_node(dsn=way.dsn)
        for _ in range(50):
            await node.sio.emit("first")
        monkeypatch.setattr("sio_pg_adapter.store.listener.BACKOFF", (60.0,))
        way.lead_to(other.dsn("epochs"))
        await terminate(one, "sio_pg_adapter listen")
        await terminate(one, "sio_pg_adapter")
        async with contextlib.AsyncExitStack() as stack:
            wire = await comes_back(stack, node)
            await node.sio.emit("e", 1)
            assert await wire.event() == ["e", 1]
            assert not (await node.manager.health()).ok
            await wire.drop()
            await node.sio.emit("e", 2)
            async with node.client(pid=wire.pid, offset=wire.offset) as again:
                assert again.sid == wire.sid and await again.event() == ["e", 2]
        await node.sio.shutdown()


async def test_a_process_that_only_emits_loses_no_answer_on_a_server_with_a_shorter_log(two_servers):
    """It knows offsets of the former log, which the new one has not reached. The event is stored once."""
    one, other = two_servers
    await make_database(one)
    async with Proxy(await make_database(other)).running() as way:
        way.lead_to(one.dsn("epochs"))
        async with AsyncPostgresManager(way.dsn, write_only=True) as manager:
            for _ in range(5):
                await manager.emit("former", None)
            way.lead_to(other.dsn("epochs"))
            await terminate(one, "sio_pg_adapter")
            await manager.emit("first", None)
            superuser = await asyncpg.connect(other.admin_dsn())
            lost = Store(manager).lose_next_answer(superuser)
            await manager.emit("second", None)
            await superuser.close()
            assert lost and await bodies(other) == ["first", "second"]


async def test_a_node_that_would_listen_on_another_server_does_not_start(two_servers, start_node):
    one, other = two_servers
    dsn, listen_dsn = await make_database(one), await make_database(other)
    with pytest.raises(StoreUnavailable, match="another server"):
        await start_node(dsn=dsn, manager={"listen_dsn": listen_dsn})


# -- a server that takes no writes, a role without rights ------------------------------------------------------
async def test_kept_connections_leave_a_server_that_became_read_only(start_node, quick_probes, db, superuser):
    node = await start_node()
    name = await db.fetchval("SELECT current_database()")
    async with node.client() as wire:
        await node.sio.emit("e", 1)
        await db.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await superuser.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OF_NODES}")
        await reason(node, "read-only")
        with pytest.raises(StoreUnavailable, match="read-only") as error:
            await node.sio.emit("e", 2)
        assert not error.value.may_be_stored
        await db.execute("SET default_transaction_read_only = off")
        await db.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await healthy(node)
        await node.sio.emit("e", 3)
        assert [await wire.event(), await wire.event()] == [["e", 1], ["e", 3]]


async def test_a_role_that_lost_its_rights_is_named_and_the_node_goes_on_when_it_has_them(
    start_node, quick_probes, pg_dsn, db, pg_admin, pg_admin_dsn
):
    role = f"siopg_node_{(await db.fetchval('SELECT current_database()'))[-12:]}"
    at = conninfo_to_dict(pg_dsn)
    pg_admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        await db.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {role};"
            f"GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO {role};"
            f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}"
        )
        dsn = f"postgresql://{role}:secret@/{at['dbname']}?host={quote(at['host'], safe='')}&port={at['port']}"
        node = await start_node(dsn=dsn)
        async with node.client() as wire:
            await db.execute(f"REVOKE INSERT ON sio_packets_0, sio_packets FROM {role}")
            await reason(node, role)
            with pytest.raises(StoreUnavailable):
                await node.sio.emit("e", 1)
            await db.execute(f"GRANT INSERT ON sio_packets_0, sio_packets TO {role}")
            await healthy(node)
            await node.sio.emit("e", 2)
            assert await wire.event() == ["e", 2]
        await node.sio.shutdown()
    finally:
        await query(pg_admin_dsn, f"DROP OWNED BY {role}")
        pg_admin.execute(f"DROP ROLE {role}")


# -- the connection that listens --------------------------------------------------------------------------------
async def on_listening(node, sql: str) -> None:
    """Run a statement on the connection that listens, between two probes."""
    while True:
        with contextlib.suppress(asyncpg.InterfaceError):
            await node.manager.node.listener._connection.execute(sql)
            return
        await asyncio.sleep(0.01)


async def test_a_connection_that_does_not_listen_any_more_is_replaced(start_node, quick_probes):
    node, other = await start_node(), await start_node()
    async with node.client() as wire:
        await on_listening(node, "UNLISTEN *")
        await other.sio.emit("e", 1)
        await until(lambda: node.manager.node.diagnosis.reconnects > 0)
        await healthy(node)
        assert await wire.event() == ["e", 1]


async def test_a_node_that_lost_its_lock_takes_it_again(start_node, quick_probes, db):
    node = await start_node()
    await on_listening(node, "SELECT pg_advisory_unlock_all()")
    await until(lambda: node.manager.node.diagnosis.reconnects > 0)
    await healthy(node)
    assert await db.fetchval("SELECT sio_node_alive(number, role) FROM sio_nodes")


async def test_a_node_that_was_counted_dead_while_it_listens_finds_out(start_node, quick_probes, db):
    node = await start_node()
    await db.execute("UPDATE sio_nodes SET missed_at = now(), died_at = now()")
    await until(lambda: node.manager.node.diagnosis.reconnects > 0)
    await healthy(node)
    assert await db.fetchval("SELECT died_at IS NULL FROM sio_nodes")


async def test_records_that_nothing_announced_are_found_by_a_probe(start_node, quick_probes, db):
    node, other = await start_node(), await start_node()
    async with node.client() as wire:
        await db.execute("UPDATE sio_log SET channel = 'sio_elsewhere'")
        await other.sio.emit("e", 1)
        assert await wire.event() == ["e", 1]


async def node_status(dsn: str) -> str:
    """Return what `sio-pg status` shows."""
    command = [sys.executable, "-m", "sio_pg_adapter", "status", "--dsn", dsn]
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True)
    return done.stdout


async def test_health_says_why_an_append_cannot_be_made(start_node, quick_probes, pg_dsn, db):
    node = await start_node()
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        emit = asyncio.create_task(node.sio.emit("e"))
        await reason(node, "writer has not answered")
        assert "writer has not answered" in await node_status(pg_dsn)
    with contextlib.suppress(StoreUnavailable):
        await emit
    await healthy(node)


# -- health: false within 20 s of whatever keeps an event from a client -------------------------------------------
def test_a_probe_notices_within_20_seconds():
    assert listener.PROBE_INTERVAL + listener.PROBE_TIMEOUT <= 20


@pytest.mark.parametrize("only_emits", [False, True])
async def test_health_says_who_holds_the_lock_of_the_log(start_node, start_store, quick_probes, db, only_emits):
    """The process itself has nothing to append."""
    node = await (start_store() if only_emits else start_node())
    pid = await db.fetchval("SELECT pg_backend_pid()")
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        await reason(node, f"the log's lock was not free for 0.4 s. Process {pid} of the server")
    await healthy(node)


async def test_health_names_a_standby_that_commits_wait_for(start_node, quick_probes):
    settings = {"wal_level": "replica", "max_wal_senders": "4", "synchronous_commit": "on"}
    with EmbeddedPostgres(settings=settings) as server:
        node = await start_node(dsn=await make_database(server))
        over = asyncio.Event()

        async def emits() -> int:
            """Emit on and on: the server reads its settings some time after it was asked to."""
            count = 0
            while not over.is_set():
                await node.sio.emit("e", count)
                count += 1
                await asyncio.sleep(0.02)
            return count

        async with node.client() as client:
            emitting = asyncio.create_task(emits())
            await query(server.admin_dsn(), "ALTER SYSTEM SET synchronous_standby_names = 'away'")
            await query(server.admin_dsn(), "SELECT pg_reload_conf()")
            await reason(node, "waits for a synchronous standby")
            await query(server.admin_dsn(), "ALTER SYSTEM RESET synchronous_standby_names")
            await query(server.admin_dsn(), "SELECT pg_reload_conf()")
            await healthy(node)
            over.set()
            count = await emitting
            assert [await client.event() for _ in range(count)] == [["e", i] for i in range(count)]
        await node.sio.shutdown()


async def test_health_says_that_a_reader_does_not_answer(start_node, quick_probes):
    node = await start_node()
    async with node.manager.database.reader:
        await reason(node, "reader has not answered")
    await healthy(node)


@pytest.mark.parametrize("name", ["cursor", "writer", "listener"])
async def test_health_says_which_task_has_ended(start_node, name):
    node = await start_node()
    task = getattr(node.manager.node, name)._task
    task.cancel()
    await asyncio.wait((task,))
    health = await node.manager.health()
    assert not health.ok and "task has ended" in health.reason


async def test_health_says_that_nothing_is_pruned_any_more(start_node):
    """No event is kept from a client by that."""
    node = await start_node()
    task = node.manager.node.pruner._task
    task.cancel()
    await asyncio.wait((task,))
    health = await node.manager.health()
    assert health.ok and "pruner" in health.reason


async def test_health_says_that_the_tables_are_of_another_version(start_node, quick_probes, db):
    node = await start_node()
    await db.execute("UPDATE sio_log SET version = 99, compatible = 99")
    await reason(node, "version 99")
    with pytest.raises(SchemaMismatch, match="upgrade the package"):
        await node.sio.emit("e")
    await db.execute("UPDATE sio_log SET version = 1, compatible = 1")
    await healthy(node)


async def test_health_says_that_the_tables_are_gone(start_node, quick_probes, pg_owner_dsn, db, expected_errors):
    expected_errors += ["the log is another one"]
    node = await start_node()
    await asyncio.to_thread(downgrade, pg_owner_dsn)
    await reason(node, "sio-pg migrate")
    await asyncio.to_thread(upgrade, pg_owner_dsn)
    await db.execute(grants(NODE))
    await healthy(node)


async def test_health_says_that_a_function_is_gone(start_node, quick_probes, db):
    node = await start_node()
    await db.execute("DROP FUNCTION sio_wait_for_lock")
    await reason(node, "sio_wait_for_lock")
    assert node.manager.node.diagnosis.reconnects == 0


async def test_health_says_that_the_node_is_behind_the_log(start_node, quick_probes, db, monkeypatch):
    """Nothing announces the record, and it cannot be read."""
    monkeypatch.setattr("sio_pg_adapter.node.HEAD_WAIT", 0.2)
    node, other = await start_node(), await start_node()

    async def unreadable(*_: object) -> None:
        raise StoreUnavailable("the range cannot be read")

    readable, node.manager.node.reader.range = node.manager.node.reader.range, unreadable
    await db.execute("UPDATE sio_log SET channel = 'sio_elsewhere'")
    async with node.client() as client:
        await other.sio.emit("e")
        await reason(node, "behind the log")
        node.manager.node.reader.range = readable
        await healthy(node)
        assert await client.event() == ["e"]


async def test_a_node_whose_number_is_taken_has_the_next_free_one(start_node, db):
    """The sequence may be behind the table, after logical replication."""
    await db.execute(
        "INSERT INTO sio_nodes (id, channel, role, margin_seconds, stopped_at) OVERRIDING SYSTEM VALUE"
        " SELECT gen_random_uuid(), 'x', 10, 1, now() FROM generate_series(1, 5);"
        "ALTER TABLE sio_nodes ALTER COLUMN number RESTART WITH 1"
    )
    await start_node()
    assert await db.fetchval("SELECT sio_node_alive(number, role) FROM sio_nodes WHERE stopped_at IS NULL")


async def test_a_node_lives_whatever_role_its_session_took_on(start_node, pg_admin_dsn, pg_dsn, db):
    """The lock is of the role that logged in, as PostgreSQL shows it to others."""
    owner = await db.fetchval("SELECT current_user")

    async def take_on(connection) -> None:
        await connection.execute(f'SET SESSION AUTHORIZATION "{owner}"')

    async with asyncpg.create_pool(pg_admin_dsn, min_size=0, max_size=6, setup=take_on) as pool:
        node = await start_node(dsn=None, manager={"pool": pool})
        assert await db.fetchval("SELECT sio_node_alive(number, role) FROM sio_nodes")
        await node.sio.shutdown()


async def test_a_node_that_comes_back_under_another_role_lives(start_node, quick_probes, db):
    """The roles of a server that takes over may have other numbers."""
    node = await start_node()
    await db.execute("UPDATE sio_nodes SET role = 10")
    await until(lambda: node.manager.node.diagnosis.reconnects > 0)
    await healthy(node)
    assert await db.fetchval("SELECT sio_node_alive(number, role) FROM sio_nodes")


# -- a client that vanishes -------------------------------------------------------------------------------------
@pytest.fixture
def tcp_server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tcp=True) as server:
        yield server


@pytest.mark.parametrize("given", [True, False], ids=["a given pool", "an own pool"])
async def test_the_server_notices_that_a_node_has_vanished(tcp_server, start_node, given):
    """A lock that the node held would stay for hours."""
    dsn = await make_database(tcp_server)
    async with asyncpg.create_pool(dsn, min_size=0, max_size=6) as pool:
        node = await (start_node(dsn=None, manager={"pool": pool}) if given else start_node(dsn=dsn))
        database = node.manager.node.database
        for kept in (database.writer, database.reader):
            async with kept as connection:
                assert await connection.fetchval("SHOW tcp_keepalives_idle") == "10"
                assert await connection.fetchval("SHOW tcp_user_timeout") == "20000"
        connection = node.manager.node.listener._connection
        assert await connection.fetchval("SHOW tcp_keepalives_idle") == "10"
        await node.sio.shutdown()
        async with pool.acquire() as connection:
            assert await connection.fetchval("SHOW tcp_user_timeout") == "0"


async def test_the_server_notices_that_a_migration_has_vanished(tcp_server):
    await make_database(tcp_server)
    for ddl in (
        "CREATE TABLE seen (setting text)",
        """CREATE FUNCTION seen() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN INSERT INTO public.seen VALUES (current_setting('tcp_user_timeout')); END $$""",
        "CREATE EVENT TRIGGER seen ON ddl_command_end EXECUTE FUNCTION seen()",
    ):
        await query(tcp_server.admin_dsn("epochs"), ddl)
    await asyncio.to_thread(upgrade, tcp_server.dsn("epochs"), schema="other")
    assert {row[0] for row in await query(tcp_server.admin_dsn("epochs"), "SELECT setting FROM seen")} == {"20000"}


# -- a pool of the application's --------------------------------------------------------------------------------
def pool_with_codec(dsn: str, name: str) -> asyncpg.Pool:
    """A pool whose connections take and return a type as text in brackets."""

    async def init(connection) -> None:
        await connection.set_type_codec(
            name, encoder=lambda value: value[1:-1], decoder=lambda text: f"<{text}>", schema="pg_catalog"
        )

    return asyncpg.create_pool(dsn, min_size=0, max_size=6, init=init)


OTHERS = ("uuid", "json", "jsonb", "numeric", "timestamptz", "timestamp", "interval", "name", "oid", "float4", "date")


@pytest.mark.parametrize("name", OTHERS)
async def test_codecs_of_other_types_change_nothing(start_node, pg_dsn, db, superuser, name):
    async with pool_with_codec(pg_dsn, name) as pool:
        a, b = await start_node(dsn=None, manager={"pool": pool}), await start_node()
        async with a.client() as wire, b.client() as other:
            await a.sio.enter_room(other.sid, "r")
            await b.sio.emit("small")
            await b.sio.emit("large", "x" * 100_000)
            await a.sio.emit("own", "y" * 100_000)
            for one in (wire, other):
                assert [(await one.event())[0] for _ in range(3)] == ["small", "large", "own"]
            await wire.drop()
            await b.sio.emit("missed")
            async with a.client(pid=wire.pid, offset=wire.offset) as again:
                assert again.sid == wire.sid and await again.event() == ["missed"]
                await superuser.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await healthy(a)
                await a.sio.emit("after")
                assert await again.event() == ["after"]
            await a.manager.node.pruner.prune()
        await a.sio.shutdown()


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "bool", "float8", "text", "bytea"])
async def test_a_codec_of_a_type_that_the_statements_use_is_refused_by_name(start_node, pg_dsn, name):
    async with pool_with_codec(pg_dsn, name) as pool:
        with pytest.raises(ConfigurationError, match="codec for the type"):
            await start_node(dsn=None, manager={"pool": pool})


async def test_large_bodies_are_delivered_while_handlers_hold_the_whole_pool(start_node, pg_dsn):
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=4) as pool:
        node, other = await start_node(dsn=None, manager={"pool": pool}), await start_node()
        async with node.client() as wire, pool.acquire():
            await other.sio.emit("large", "x" * 100_000)
            assert (await wire.event())[0] == "large"
        await node.sio.shutdown()


@pytest.mark.parametrize("given", [True, False], ids=["a given pool", "an own pool"])
async def test_a_read_goes_on_when_its_backend_was_ended_while_nobody_used_it(
    start_node, pg_dsn, db, superuser, given
):
    """So a node that stops then has left the cluster, and its sessions expire from then on."""
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=6) as pool:
        node = await (start_node(dsn=None, manager={"pool": pool}) if given else start_node())
        presence, sessions = node.manager.node.presence, node.manager.node.sessions
        for look in (presence.others, sessions.held_here, presence.leave):
            async with node.manager.database.reader as connection:
                pid = await connection.fetchval("SELECT pg_backend_pid()")
            await superuser.execute("SELECT pg_terminate_backend($1)", pid)
            await look()
        assert await db.fetchval("SELECT stopped_at IS NOT NULL FROM sio_nodes")
        await node.sio.shutdown()


async def test_clients_recover_while_handlers_hold_the_whole_pool(start_node, pg_dsn, monkeypatch):
    """In pages, since the claim brings none along, and the node has forgotten what was missed."""
    monkeypatch.setattr("sio_pg_adapter.server.replay.PAGE", 7)
    monkeypatch.setattr("sio_pg_adapter.store.sessions.CARRIED_EVENTS", 0)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 3)
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=4) as pool:
        node = await start_node(dsn=None, manager={"pool": pool})
        async with node.client() as client, pool.acquire():
            await client.drop()
            for i in range(30):
                await node.sio.emit("e", i)
            async with node.client(pid=client.pid) as again:
                assert [await again.event() for _ in range(30)] == [["e", i] for i in range(30)]
        await node.sio.shutdown()


@pytest.mark.parametrize(("size", "listens"), [(3, {}), (2, {"listen_dsn": True})])
async def test_a_pool_that_is_too_small_is_refused_with_the_number_it_needs(start_node, pg_dsn, size, listens):
    more = dict.fromkeys(listens, pg_dsn)
    async with asyncpg.create_pool(pg_dsn, min_size=0, max_size=size) as pool:
        with pytest.raises(ConfigurationError, match=f"needs {size + 1} connections"):
            await start_node(dsn=None, manager={"pool": pool, **more})


# -- hosts ------------------------------------------------------------------------------------------------------
async def test_a_host_that_never_answers_does_not_keep_a_node_from_the_next_one(start_node, pg_dsn, monkeypatch):
    """A machine that is gone refuses nothing."""
    monkeypatch.setattr("sio_pg_adapter.addresses.HOST_TIMEOUT", 0.5)
    taken = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await taken.wait()
        writer.close()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as silent, Proxy(pg_dsn).running() as way:
        port = silent.sockets[0].getsockname()[1]
        node = await start_node(dsn=way.dsn.replace("@", f"@127.0.0.1:{port},"))
        async with node.client() as wire:
            await node.sio.emit("e", 1)
            assert await wire.event() == ["e", 1]
        await node.sio.shutdown()
        taken.set()


# -- databases that cannot serve --------------------------------------------------------------------------------
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_an_encoding_without_all_text_is_refused_by_name(encoding):
    with EmbeddedPostgres() as server:
        await query(
            server.admin_dsn(),
            f"CREATE DATABASE odd OWNER app TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'",
        )
        with pytest.raises(ConfigurationError, match=f"{encoding}.*UTF8"):
            await asyncio.to_thread(upgrade, server.dsn("odd"))


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu)", "CockroachDB"),
        ("PostgreSQL 11.2-YB-2.19.0.0-b0 on x86_64-pc-linux-gnu", "YB"),
        ("PostgreSQL 8.0.2 on i686-pc-linux-gnu, Redshift 1.0.28422", "Redshift"),
    ],
)
def test_what_only_speaks_like_postgresql_is_refused_by_name(version, name):
    with pytest.raises(ConfigurationError, match=name):
        check_support(version, "UTF8")
    check_support("PostgreSQL 18.1 on x86_64-pc-linux-gnu, compiled by gcc", "UTF8")


async def test_row_level_security_is_refused_by_name(start_node, db):
    for how in ("ENABLE", "FORCE"):
        await db.execute(f"ALTER TABLE sio_sessions {how} ROW LEVEL SECURITY")
    with pytest.raises(ConfigurationError, match=r"row level security.*sio_sessions"):
        await start_node()


async def test_tables_that_were_emptied_are_named_and_migrate_repairs_them(start_node, pg_owner_dsn, db):
    named = "SELECT relname FROM pg_class WHERE relname LIKE 'sio\\_%' AND relkind = 'r'"
    tables = {row[0] for row in await db.fetch(named)} - {"sio_alembic_version"}
    await db.execute(f"TRUNCATE {', '.join(tables)}")
    with pytest.raises(SchemaMismatch, match=r"empty.*sio-pg migrate"):
        await start_node()
    await asyncio.to_thread(upgrade, pg_owner_dsn)
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e", 1)
        assert await wire.event() == ["e", 1]


async def test_a_node_goes_on_when_its_tables_were_emptied_and_repaired(
    start_node, quick_probes, pg_owner_dsn, db, expected_errors
):
    expected_errors += ["the log is another one"]
    node = await start_node()
    async with node.client():
        await node.sio.emit("e", 1)
        await db.execute("TRUNCATE sio_log, sio_epochs, sio_marker, sio_nodes, sio_sessions, sio_packets CASCADE")
        await reason(node, "LISTEN")
        await asyncio.to_thread(upgrade, pg_owner_dsn)
    await healthy(node)
    async with contextlib.AsyncExitStack() as stack:
        again = await comes_back(stack, node)
        await node.sio.emit("e", 2)
        assert await again.event() == ["e", 2]


# -- errors of the server about itself --------------------------------------------------------------------------
async def test_a_full_queue_of_notifications_is_not_the_fault_of_the_event(start_node, monkeypatch):
    """Always on the wheel's PostgreSQL: the limit on the queue is a setting from 17 on."""
    monkeypatch.delenv("SIO_PG_EMBEDDED_BIN", raising=False)
    with EmbeddedPostgres(settings={"max_notify_queue_pages": "64"}) as server:
        node = await start_node(dsn=await make_database(server))
        idle = await asyncpg.connect(server.dsn("epochs"))
        await idle.execute("LISTEN x")
        await idle.execute("BEGIN")
        with contextlib.suppress(asyncpg.ProgramLimitExceededError):
            for _ in range(100):
                await query(server.dsn("epochs"), "SELECT pg_notify('y', repeat('x', 7900))")
        with pytest.raises(StoreUnavailable, match="NOTIFY"):
            for _ in range(400):  # the last page of the queue takes some
                await node.sio.emit("e")
        await idle.close()
        await node.sio.emit("e")
        await node.sio.shutdown()


async def test_notifications_carry_no_records_while_the_queue_fills_up(monkeypatch):
    """A listener that stays in a transaction keeps all notifications in the queue."""
    monkeypatch.delenv("SIO_PG_EMBEDDED_BIN", raising=False)
    appends = [
        "SELECT sio_append_event(1, '/', 'r', '[\"e\"]', NULL, '[c]')",
        "SELECT sio_append_batch(1, '{0}', '{/}', '{r}', NULL, NULL, NULL, NULL, '{e}', NULL, NULL, NULL, '[c]')",
        "SELECT sio_emit_encoded('/', 'r', NULL, NULL, '[\"[c]\"]', NULL)",
    ]
    payloads = []
    with EmbeddedPostgres(settings={"max_notify_queue_pages": "64"}) as server:
        connection = await asyncpg.connect(await make_database(server))
        idle = await asyncpg.connect(server.dsn("epochs"))
        await idle.execute("LISTEN x")
        await idle.execute("BEGIN")
        channel = await connection.fetchval("SELECT channel FROM sio_log")
        await connection.add_listener(channel, lambda *args: payloads.append("[c]" in args[3]))
        for filled in (0, 10):  # pages of 64
            for _ in range(filled):
                await connection.execute("SELECT pg_notify('y', repeat('x', 7900))")
            for segment in (0, 1):
                await connection.execute("SELECT setval('sio_active_segment', $1)", segment)
                for append in appends:
                    await connection.execute(append)
        await connection.execute("SELECT 1")
        assert payloads == [True] * 6 + [False] * 6
        await idle.close()
        await connection.close()


@pytest.mark.parametrize("code", ["08006", "57P01", "58000", "58030", "XX000"])
def test_what_an_error_leaves_open_may_be_stored(code):
    """A pooler may answer with any of these after the commit."""
    assert unknown_outcome(asyncpg.PostgresError.new({"C": code, "M": "lost"})) is not None


async def test_a_backend_that_may_not_be_ended_leaves_an_append_open(start_store, db, monkeypatch):
    store = await start_store()
    await store.emit()

    async def not_allowed(*_: object) -> None:
        raise asyncpg.InsufficientPrivilegeError("permission denied to terminate process")

    async def lost(*_: object) -> None:
        raise OutcomeUnknown("the answer did not come")

    monkeypatch.setattr("sio_pg_adapter.store.commits.end_backend", not_allowed)
    store.log._commits._send = lost
    with pytest.raises(StoreUnavailable) as error:
        await store.emit()
    assert error.value.may_be_stored


@pytest.mark.parametrize("name", ["reader", "writer"])
async def test_a_lost_connection_is_not_replaced_by_an_idle_one_of_the_pool(start_node, pg_admin, name):
    """After a failover the idle one may lead to the former server."""
    database = (await start_node()).manager.database
    async with database.connection() as idle:
        idle_pid = idle.get_server_pid()
    kept = getattr(database, name)
    async with kept as connection:
        lost_pid = connection.get_server_pid()
    pg_admin.execute("SELECT pg_terminate_backend(%s)", [lost_pid])
    while not is_closed(connection):
        await asyncio.sleep(0.01)
    async with kept as connection:
        assert connection.get_server_pid() not in (idle_pid, lost_pid)
