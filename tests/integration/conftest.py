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

from integration.wire import Wire
from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from sio_pg_adapter.log.entries import Entry, Held
from sio_pg_adapter.log.records import EPOCH_BITS, Kind
from sio_pg_adapter.log.verdict import Claim, Memberships


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


class Store:
    """Log and sessions as one node writes them, without a server: nobody follows the log here."""

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self.manager = manager
        self.log, self.sessions, self.reader = manager.log, manager.sessions, manager.log_reader
        self.node = manager.node

    async def emit(self, *rooms: str, namespace: str = "/", skip: tuple[str, ...] = (), body: str = '["e"]') -> int:
        entry = Entry(Kind.EVENT, namespace, rooms or ("",), skip, body=body)
        return (await self.log.append(entry)).offset

    async def move(self, kind: Kind, sid: str, room: str, **args: Any) -> int:
        return (await self.log.append(Entry(kind, "/", (room,), sid=sid, args=args))).offset

    async def close_room(self, room: str) -> int:
        return (await self.log.append(Entry(Kind.CLOSE, "/", (room,)))).offset

    async def kick(self, sid: str) -> int:
        return (await self.log.append(Entry(Kind.KICK, "/", sid=sid))).offset

    async def open(self, sid: str = "s", pid: str = "p", *, cursor: int | None = None, **more: Any) -> Held | None:
        """Open a session; `rooms` as memberships have them, `start` and `cursor` at the head if not given."""
        head = await self.reader.head() if cursor is None else cursor
        memberships = Memberships(sid, more.pop("start", head), more.pop("rooms", {}))
        return await self.sessions.open(
            more.pop("namespace", "/"), memberships, pid=pid, cursor=head, data=more.pop("data", "{}")
        )

    async def claim(
        self, pid: str = "p", after: int | None = None, *, cap: int = 10_000, namespace: str = "/"
    ) -> Any:
        await self.reader.learn()
        key = None if after is None else self.manager.database.codec.epochs[after >> EPOCH_BITS].key.hex()
        return await self.sessions.claim(namespace, Claim(pid, after, key), cap)

    async def due(self, held: Held, after: int) -> list[int]:
        page = await self.sessions.page(held, after, 1_000)
        return [record.offset for record in page.records]


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
