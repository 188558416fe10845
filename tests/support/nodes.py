"""``Node``: a server in the test's own event loop. ``StartNode`` is the type of the fixture that starts one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from support.asgi_client import AsgiClient


@dataclass
class Node:
    """A server and its manager; `a.sio.emit(...)` emits there."""

    sio: AsyncServer
    manager: AsyncPostgresManager

    @contextlib.asynccontextmanager
    async def client(self, namespace: str = "/", **auth: Any) -> AsyncIterator[AsgiClient]:
        """Connect a client, whose sid and pid are attributes."""
        async with AsgiClient(self.sio) as wire:
            wire.sid, wire.pid = await wire.connect(namespace, **auth)
            yield wire

    async def emit_numbers(self, first: int, count: int, **to: Any) -> None:
        for i in range(first, first + count):
            await self.sio.emit("e", i, **to)

    async def passed(self, offset: int) -> None:
        assert await self.manager.node.cursor.passed(offset, 20)


StartNode = Callable[..., Awaitable[Node]]
