"""Nodes in the test's own loop, on a database of the test's own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest

from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from sio_pg_adapter.migrate import upgrade
from sio_pg_adapter.server import replay
from support.nodes import Node, StartNode
from support.store import Store


@pytest.fixture
async def start_node(pg_dsn: str) -> AsyncIterator[StartNode]:
    """Start a node: `await start_node(recovery=True, manager={...}, **options of AsyncServer)`."""
    nodes: list[Node] = []

    async def start(
        *, dsn: str | None = pg_dsn, recovery: Any = True, manager: dict[str, Any] | None = None, **options: Any
    ) -> Node:
        one = AsyncPostgresManager(dsn, **(manager or {}))
        options = {"async_mode": "asgi", "monitor_clients": False, **options}
        node = Node(AsyncServer(client_manager=one, connection_state_recovery=recovery, **options), one)
        nodes.append(node)
        await one.start()
        return node

    yield start
    for node in nodes:
        await node.sio.shutdown()


@pytest.fixture
async def db(pg_owner_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection, to look and to shift clocks with."""
    connection = await asyncpg.connect(pg_owner_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def announced(db: asyncpg.Connection) -> list[str]:
    """What is announced on the log's channel. It is complete after the next statement of ``db``."""
    payloads: list[str] = []
    channel = await db.fetchval("SELECT channel FROM sio_log")
    await db.add_listener(channel, lambda *message: payloads.append(message[-1]))
    return payloads


@pytest.fixture
async def superuser(pg_admin_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to the test's database, to break what no other role can break."""
    connection = await asyncpg.connect(pg_admin_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def connect(pg_owner_dsn: str) -> AsyncIterator[Callable[[], Awaitable[asyncpg.Connection]]]:
    """Open connections of the application's: `await connect()`."""
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> asyncpg.Connection:
            connection = await asyncpg.connect(pg_owner_dsn)
            stack.push_async_callback(connection.close, timeout=5)
            return connection

        yield connect


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays take several pages, because a page has few events, and a node forgets them soon."""
    monkeypatch.setattr(replay, "PAGE", 7)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 3)


@pytest.fixture
def pg_migrated_dsn(pg_create: Any) -> Iterator[str]:
    """A database of this test alone as a migration leaves it, for its owner. No role has been granted anything."""
    with pg_create("template0") as dsn:
        upgrade(dsn)
        yield dsn


@pytest.fixture
def expected_errors() -> list[str]:
    """What a test expects to be logged as an error, in part."""
    return []


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture, expected_errors: list[str]) -> Iterator[None]:
    """An exception that was logged and went no further would be seen by nobody."""
    yield
    for when in ("setup", "call"):
        for record in caplog.get_records(when):
            if record.levelno >= logging.ERROR:
                message = record.getMessage()
                assert any(part in message for part in expected_errors), caplog.text


@pytest.fixture
async def start_store(pg_dsn: str) -> AsyncIterator[Callable[..., Awaitable[Store]]]:
    managers: list[AsyncPostgresManager] = []

    async def start(**options: Any) -> Store:
        manager = AsyncPostgresManager(pg_dsn, write_only=True, **options)
        managers.append(manager)
        await manager.start()
        return Store(manager)

    yield start
    for manager in managers:
        await manager.aclose()


@pytest.fixture
async def store(start_store: Callable[..., Awaitable[Store]]) -> Store:
    return await start_store()


@pytest.fixture
async def living(start_node: StartNode) -> Store:
    """As `store`, of a node that is seen to live: its sessions have a holder."""
    return Store((await start_node()).manager)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "transfer" in metafunc.fixturenames:
        direct = metafunc.definition.get_closest_marker("direct") is not None
        metafunc.parametrize("transfer", ["direct"] if direct else ["direct", "relay"], indirect=True)


@pytest.fixture
async def transfer(request: pytest.FixtureRequest, db: asyncpg.Connection) -> None:
    """How events of transactions get to the log: by the commit itself, or by the relay."""
    if request.param == "relay":
        await db.execute("SELECT sio_set_relay(true)")
