"""Starts and stops the node. It is safe to start twice, to stop twice, and to stop before a start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .errors import ConfigurationError, StoreUnavailable
from .node import Node


class Lifecycle:
    """Starts a node at the first use, and stops it.

    :param make: makes the node. It may refuse.
    :ivar node: the node, from a start to the next stop. ``None`` in between.
    :ivar leaving: whether clients were sent away, so that new ones belong on another node.
    """

    def __init__(self, make: Callable[[], Node]) -> None:
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changing = asyncio.Lock()
        self._closed = False
        self.node: Node | None = None
        self.leaving = False

    async def start(self) -> Node:
        """Start a node if none runs, also after a stop.

        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated.
        """
        self._closed = self.leaving = False
        return await self.started()

    async def started(self) -> Node:
        """Return the node, started at the first use. After a stop only :meth:`start` starts one again.

        :raises StoreUnavailable: if the database cannot be reached, or the node was stopped.
        :raises SchemaMismatch: if it is not migrated.
        """
        self._enter_loop()
        if self.node is not None:
            return self.node
        if not self._closed:
            async with self._changing:
                if self.node is None and not self._closed:
                    node = self._make()
                    await node.start()
                    self.node = node
        if self.node is None:
            raise StoreUnavailable("the manager was closed")
        return self.node

    async def say_goodbye(self) -> None:
        """Let the clients go. The node runs until it is stopped, since requests may still emit."""
        self.leaving = True
        if self.node is not None:
            await self.node.endings.say_goodbye()

    async def stop(self) -> None:
        """Let the clients go, then stop the node."""
        self._closed = True
        self._enter_loop()
        async with self._changing:
            await self.say_goodbye()
            if self.node is not None:
                node, self.node = self.node, None
                await node.stop()

    def _enter_loop(self) -> None:
        """Check that a node runs in this event loop, or take this loop if none runs.

        Its connections, tasks and locks belong to the loop that it was started in. In another one each await of them
        would wait for ever.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self.node is not None or self._changing.locked():
            raise ConfigurationError(
                "The manager was started in another event loop, and works only there. Use it in one event loop, or "
                "close it there with `await manager.aclose()` first. With pytest-asyncio give tests and fixtures the "
                "same loop scope. Use Starlette's TestClient as `with TestClient(app) as client:`."
            )
        self._loop = loop
        self._changing = asyncio.Lock()
