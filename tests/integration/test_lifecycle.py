"""Start and stop: nothing is left open, and an error names the command that fixes it."""

from __future__ import annotations

import asyncio
import logging
import shlex

import asyncpg
import httpx
import pytest
import socketio
import uvicorn

from sio_pg_adapter import (
    AsyncClient,
    AsyncPostgresManager,
    AsyncServer,
    ConfigurationError,
    SchemaMismatch,
    StoreUnavailable,
    migrate,
)
from support.asgi_client import AsgiClient
from support.waiting import until, until_answer

BACKENDS = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
              AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""


async def no_backend(db) -> None:
    """Wait until none is left. A backend ends after its connection."""
    await until_answer(lambda: db.fetchval(BACKENDS), lambda count: count == 0)


async def test_case_91_an_unmigrated_database_names_the_command(pg_empty_dsn):
    manager = AsyncPostgresManager(pg_empty_dsn)
    sio = AsyncServer(async_mode="asgi", client_manager=manager, connection_state_recovery=True)
    with pytest.raises(SchemaMismatch, match="sio-pg migrate"):
        await manager.start()
    with pytest.raises(SchemaMismatch, match="sio-pg migrate"):
        await sio.emit("e")
    await sio.shutdown()


@pytest.mark.parametrize(("version", "command"), [(0, "sio-pg migrate"), (1_000, "upgrade the package")])
async def test_case_91_another_version_names_the_command(pg_dsn, db, version, command):
    await db.execute("UPDATE sio_log SET version = $1, compatible = $1", version)
    manager = AsyncPostgresManager(pg_dsn, write_only=True)
    with pytest.raises(SchemaMismatch, match=f"version {version}.*{command}"):
        await manager.start()
    await manager.aclose()
    await no_backend(db)


async def test_case_91_another_schema_is_named_with_its_option(pg_dsn):
    async with asyncio.timeout(20):
        with pytest.raises(SchemaMismatch, match="sio-pg migrate --schema other"):
            await AsyncPostgresManager(pg_dsn, schema="other", write_only=True).start()


async def test_the_command_that_mends_can_be_pasted(pg_dsn):
    name = "my app; --"
    with pytest.raises(SchemaMismatch) as e:
        await AsyncPostgresManager(pg_dsn, schema=name, write_only=True).start()
    assert shlex.split(str(e.value).split("`")[1]) == ["sio-pg", "migrate", "--schema", name]


async def test_a_manager_without_a_server_names_write_only(pg_dsn, db):
    manager, before = AsyncPostgresManager(pg_dsn), asyncio.all_tasks()
    with pytest.raises(ConfigurationError, match="write_only=True"):
        await manager.start()
    with pytest.raises(ConfigurationError, match="write_only=True"):
        await manager.emit("e", 1)
    assert asyncio.all_tasks() == before
    await no_backend(db)
    AsyncServer(async_mode="asgi", client_manager=manager)
    async with manager:
        await manager.emit("e", 1)


@pytest.mark.parametrize(
    ("more", "options"),
    [({"listen_dsn": "postgresql://postgres@127.0.0.1:1/x"}, {}), ({}, {"ping_interval": "25"})],
    ids=["nowhere to listen", "an option of upstream's"],
)
async def test_a_start_that_fails_leaves_nothing(pg_dsn, db, more, options):
    before = asyncio.all_tasks()
    manager = AsyncPostgresManager(pg_dsn, **more)
    AsyncServer(async_mode="asgi", client_manager=manager, **options)
    with pytest.raises((StoreUnavailable, TypeError)):
        await manager.start()
    assert asyncio.all_tasks() == before
    await no_backend(db)


WRONG = [
    "postgresql://h:secret/d",
    "postgresql://u:secret/w@h/d",
    "postgresql://[secret/d",
    "postgresql://127.0.0.1:99999/secret",
    "postgresql://127.0.0.1/secret?sslmode=never",
]


@pytest.mark.parametrize("dsn", WRONG)
async def test_a_dsn_that_cannot_be_read_is_named_and_not_shown(dsn, pg_dsn, db, monkeypatch):
    async def refused(name, manager):
        with pytest.raises(ConfigurationError, match=f"^{name} is wrong(?!.*secret)") as e:
            await manager.start()
        assert e.value.__cause__ is None or "secret" not in str(e.value.__cause__)

    await refused("dsn", AsyncPostgresManager(dsn, write_only=True))
    monkeypatch.setenv("SIO_PG_DSN", dsn)
    await refused("SIO_PG_DSN", AsyncPostgresManager(write_only=True))
    manager = AsyncPostgresManager(pg_dsn, listen_dsn=dsn)
    AsyncServer(async_mode="asgi", client_manager=manager)
    await refused("listen_dsn", manager)
    await no_backend(db)


async def test_a_database_that_is_not_there_is_unavailable():
    manager = AsyncPostgresManager("postgresql://postgres@127.0.0.1:1/x", write_only=True)
    with pytest.raises(StoreUnavailable, match="nothing was stored"):
        await manager.start()
    with pytest.raises(StoreUnavailable):
        await manager.emit("e", 1)
    await manager.aclose()


async def test_a_start_without_a_database_names_the_option_to_check(monkeypatch):
    dsn = "postgresql://postgres@127.0.0.1:1/x"
    with pytest.raises(StoreUnavailable, match=r"Refused.*\. Check dsn"):
        await AsyncPostgresManager(dsn, write_only=True).start()
    monkeypatch.setenv("SIO_PG_DSN", dsn)
    with pytest.raises(StoreUnavailable, match=r"\. Check SIO_PG_DSN"):
        await AsyncPostgresManager(write_only=True).start()
    monkeypatch.delenv("SIO_PG_DSN")
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")
    with pytest.raises(StoreUnavailable, match=r"\. Set dsn, SIO_PG_DSN or"):
        await AsyncPostgresManager(write_only=True).start()


async def test_case_93_a_hundred_starts_and_ends_leave_nothing(pg_dsn, db):
    before = asyncio.all_tasks()
    for _ in range(100):
        manager = AsyncPostgresManager(pg_dsn)
        sio = AsyncServer(async_mode="asgi", client_manager=manager, connection_state_recovery=True)
        await sio.emit("e", 1)
        await manager.aclose()
        await manager.aclose()
    assert asyncio.all_tasks() == before
    await no_backend(db)


async def test_case_93_start_close_start_of_one_manager(start_node, pg_dsn, db):
    node = await start_node()
    await node.manager.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await node.sio.emit("e")
    await node.manager.start()
    await node.manager.start()
    async with node.client() as wire:
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
    assert (await node.manager.health()).ok


async def test_case_93_ending_before_the_start_and_while_starting(pg_dsn, db):
    manager = AsyncPostgresManager(pg_dsn, write_only=True)
    await manager.aclose()
    before = asyncio.all_tasks()
    manager = AsyncPostgresManager(pg_dsn)
    AsyncServer(async_mode="asgi", client_manager=manager)
    starting = asyncio.create_task(manager.start())
    await asyncio.sleep(0)
    await manager.aclose()
    await asyncio.gather(starting, return_exceptions=True)
    assert asyncio.all_tasks() == before
    await no_backend(db)


async def test_case_93_clients_at_the_end_of_a_node(start_node, db):
    """They are away then, and can be recovered elsewhere."""
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        await a.manager.aclose()
        await b.sio.emit("e")
        async with b.client(pid=wire.pid) as again:
            assert again.sid == wire.sid and await again.event() == ["e"]


async def test_health_is_told(start_node):
    node = await start_node()
    async with node.client():
        await node.sio.emit("e")
        health = await node.manager.health()
        assert (health.ok, health.lag, health.listener, health.sessions) == (True, 0, "listening", 1)
        assert health.cursor == node.manager.node.cursor.offset > 0


async def test_case_98_two_schemas_of_one_database_do_not_hear_each_other(start_node, pg_owner_dsn):
    schema = '"; CREATE TABLE x(); --'
    await asyncio.to_thread(migrate.upgrade, pg_owner_dsn, schema=schema)
    one, other = await start_node(), await start_node(dsn=pg_owner_dsn, manager={"schema": schema})
    async with one.client() as wire, other.client() as elsewhere:
        await one.sio.emit("e", 1)
        await one.sio.emit("v", 1, volatile=True)
        await other.sio.emit("e", 2)
        assert await elsewhere.event() == ["e", 2]
        assert await wire.event() == ["e", 1]


@pytest.mark.parametrize("size", [4, 8])
async def test_case_108_handlers_that_hold_the_whole_pool_and_emit(pg_dsn, start_node, size):
    pool = await asyncpg.create_pool(pg_dsn, min_size=0, max_size=size)
    try:
        node = await start_node(dsn=None, manager={"pool": pool})
        free = size - sum(1 for holder in pool._holders if holder._in_use)
        assert free > 0
        holding = asyncio.Barrier(free)

        async def handle(i: int) -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT 1")
                await holding.wait()
                await node.sio.emit("e", i)

        async with node.client() as wire:
            async with asyncio.timeout(20):
                await asyncio.gather(*(handle(i) for i in range(free)))
            got = {(await wire.event())[1] for _ in range(free)}
            assert got == set(range(free))
        await node.sio.shutdown()
        assert not any(holder._in_use for holder in pool._holders)
    finally:
        await asyncio.wait_for(pool.close(), 20)


async def test_case_90_a_pool_to_query_on_and_a_dsn_to_listen_on(pg_dsn, start_node, db):
    pool = await asyncpg.create_pool(pg_dsn, min_size=0, max_size=4)
    try:
        node = await start_node(dsn=None, manager={"pool": pool, "listen_dsn": pg_dsn})
        other = await start_node()
        async with node.client() as wire:
            await other.sio.emit("e")
            assert await wire.event() == ["e"]
        await node.sio.shutdown()
    finally:
        await asyncio.wait_for(pool.close(), 20)


# -- secrets -----------------------------------------------------------------------------------------------------
async def test_case_94_only_a_hash_is_at_rest_and_nothing_shows_the_pid(start_node, db, caplog):
    node = await start_node(logger=True, engineio_logger=True)
    for name in (
        "engineio.server",
        "socketio.server",
        "sio_pg_adapter",
    ):  # a server before may have set another level
        caplog.set_level(logging.DEBUG, logger=name)
    seen = []

    @node.sio.event
    async def connect(sid, environ, auth):
        seen.append(repr((environ, auth)))

    async with node.client(token="t") as wire:
        await node.sio.emit("e", 1)
        await wire.event()
        await wire.drop()
        async with node.client(pid=wire.pid, offset=wire.offset, token="t") as again:
            assert again.sid == wire.sid
            await again.drop()
    tables = await db.fetch("SELECT relname FROM pg_class WHERE relname LIKE 'sio\\_%' AND relkind = 'r'")
    assert len(tables) > 5
    for (table,) in [tuple(row) for row in tables]:
        for (row,) in [tuple(r) for r in await db.fetch(f"SELECT t::text FROM {table} t")]:
            assert wire.pid not in row and wire.pid.encode().hex() not in row, table
    assert wire.pid not in caplog.text and '"pid"' in caplog.text  # its packets were logged
    assert len(seen) == 2 and not any(wire.pid in text for text in seen)
    assert wire.sid not in wire.pid


# -- a real web server and the Python client -----------------------------------------------------------------------
async def test_recovery_with_uvicorn_and_the_python_client(start_node):
    nodes = [await start_node(), await start_node()]
    servers, urls = [], []
    for node in nodes:
        config = uvicorn.Config(
            socketio.ASGIApp(node.sio), port=0, log_level="warning", lifespan="off", ws="websockets-sansio"
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        await until(lambda server=server: server.started)
        servers.append((server, task))
        urls.append(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    client = AsyncClient(reconnection_delay=0.01, randomization_factor=0)
    got, back = [], asyncio.Event()

    @client.on("e")
    async def on_e(value):
        got.append(value)

    @client.event
    async def connect():
        back.set()

    try:
        await client.connect(urls[0], transports=["websocket"])
        sid = client.get_sid()
        await nodes[1].sio.emit("e", 1)
        await until(lambda: got == [1])
        back.clear()
        client.connection_url = urls[1]
        await client.eio.ws.close()
        await nodes[0].sio.emit("e", 2)
        await asyncio.wait_for(back.wait(), 20)
        await nodes[0].sio.emit("e", 3)
        await until(lambda: len(got) >= 3)
        assert client.recovered() and client.get_sid() == sid and got == [1, 2, 3]
    finally:
        await client.disconnect()
        for server, task in servers:
            server.should_exit = True
            await task


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_client_whose_connect_handler_outlives_the_node_is_forgotten(start_node, comes_back):
    """Else the manager would have it as a client after the next start."""
    node = await start_node()
    asked, go_on = asyncio.Event(), asyncio.Event()
    async with node.client() as wire:
        pass

    @node.sio.event
    async def connect(sid, environ, auth):
        asked.set()
        await go_on.wait()

    async with AsgiClient(node.sio) as late:
        late.send(f'0{{"pid":"{wire.pid}"}}' if comes_back else "0")
        await asked.wait()
        await node.sio.shutdown()
        go_on.set()
        await late.ended()
    clients = node.manager.clients
    assert (clients.by_sid, clients.by_socket, clients.unsettled("/")) == ({}, {}, set())


# -- event loops -----------------------------------------------------------------------------------------------------
OTHER_LOOP = "another event loop.*aclose.*loop scope.*with TestClient"


def test_a_manager_in_a_second_event_loop_names_the_loop_and_the_ways_out(pg_dsn):
    manager = AsyncPostgresManager(pg_dsn)
    sio = AsyncServer(async_mode="asgi", client_manager=manager, connection_state_recovery=True)
    with asyncio.Runner() as first:
        first.run(manager.start())
        with asyncio.Runner() as second:
            for use in (
                lambda: sio.emit("e"),
                manager.start,
                sio.server_count,
                lambda: sio.disconnect("sid"),
                manager.aclose,
            ):
                with pytest.raises(ConfigurationError, match=OTHER_LOOP):
                    second.run(use())
        first.run(sio.shutdown())


def test_a_manager_that_was_closed_starts_in_a_second_event_loop(pg_dsn):
    async def once():
        async with manager:
            await manager.emit("e", 1)

    manager = AsyncPostgresManager(pg_dsn, write_only=True)
    asyncio.run(once())
    asyncio.run(once())


def test_connections_that_join_no_namespace_are_closed_in_a_second_event_loop_too(pg_dsn):
    """The timer of the first loop ended with it."""
    manager = AsyncPostgresManager(pg_dsn)
    sio = AsyncServer(
        async_mode="asgi",
        client_manager=manager,
        connection_state_recovery=True,
        monitor_clients=False,
        connect_timeout=0.2,
    )

    async def once(*, is_patient: bool) -> None:
        async with manager, AsgiClient(sio) as idle:
            if is_patient:
                assert await idle.rest() == []

    for is_patient in (False, True):
        asyncio.run(once(is_patient=is_patient))


def test_a_start_that_failed_may_be_tried_in_a_second_event_loop():
    manager = AsyncPostgresManager("postgresql://postgres@127.0.0.1:1/x", write_only=True)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            asyncio.run(manager.start())


async def test_a_post_to_a_connection_that_was_closed_is_refused(start_node):
    node = await start_node()
    async with node.client() as wire:
        await node.manager.say_goodbye()
        health = await node.manager.health()
        assert not health.ok and "sent away" in health.reason
        transport = httpx.ASGITransport(socketio.ASGIApp(node.sio))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            at = {"EIO": "4", "transport": "polling"}
            answer = await http.post("/socket.io/", params={**at, "sid": wire.eio_sid}, content="3")
            assert answer.status_code == 400
            assert (await http.get("/socket.io/", params=at)).status_code == 401  # a new one belongs elsewhere
        await node.sio.emit("still", 1)


async def test_a_listener_ends_although_its_connection_is_lost_at_that_moment(start_node):
    """asyncio.wait_for of Python 3.11 returns what it waited for, and forgets that it was cancelled."""
    listener = (await start_node()).manager.node.listener
    await asyncio.sleep(0.05)  # it waits
    listener.renew()
    async with asyncio.timeout(20):
        await listener.close()
    assert listener.ended and not listener.connected


async def test_a_pruner_ends_although_it_is_to_look_at_that_moment(start_node):
    pruner = (await start_node()).manager.node.pruner
    await asyncio.sleep(0.05)  # it waits
    pruner._soon.set()
    async with asyncio.timeout(20):
        await pruner.close()
    assert not pruner.running
