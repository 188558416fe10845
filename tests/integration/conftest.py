"""Nodes in the test's own loop, on a database of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from sio_pg_adapter import AsyncPostgresManager, AsyncServer

from integration.wire import Wire


@dataclass
class Node:
    """A server and its manager; `a.sio.emit(...)` emits there."""

    sio: AsyncServer
    manager: AsyncPostgresManager

    @contextlib.asynccontextmanager
    async def client(self, namespace: str = "/", **auth: Any) -> AsyncIterator[Wire]:
        """A wire with a client on it, whose sid and pid are attributes."""
        async with Wire(self.sio) as wire:
            wire.sid, wire.pid = await wire.connect(namespace, **auth)
            yield wire

    async def passed(self, offset: int) -> None:
        assert await self.manager.dispatcher.passed(offset, 20)


StartNode = Callable[..., Awaitable[Node]]


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
async def db(pg_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own, to look and to shift clocks with."""
    connection = await asyncpg.connect(pg_dsn)
    yield connection
    await connection.close()


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


async def until(true: Callable[[], Any], what: str = "it") -> None:
    """Give the loop turns until something in memory is so. Where there is an event to await, await that."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0)
