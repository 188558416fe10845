"""One node at a time, from a start to a stop: safe to start twice, to stop twice, and to stop before a start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .errors import StoreUnavailable
from .node import Node


class Lifecycle:
    """Starts a node at the first use, and stops it.

    :param make: makes the node. It may refuse.
    :ivar node: the node, from a start to the next stop. ``None`` in between.
    """

    def __init__(self, make: Callable[[], Node]) -> None:
        self._make = make
        self._changing: asyncio.Lock | None = None  # one at a time starts or stops
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.node: Node | None = None

    async def start(self) -> Node:
        """Start a node if none runs, also after a stop.

        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated.
        """
        self._closed = False
        return await self.started()

    async def started(self) -> Node:
        """Return the node, started at the first use. After a stop only :meth:`start` starts one again.

        :raises StoreUnavailable: if the database cannot be reached, or the node was stopped.
        :raises SchemaMismatch: if it is not migrated.
        """
        if self.node is not None:
            return self.node
        if not self._closed:
            async with self._lock():
                if self.node is None and not self._closed:
                    node = self._make()
                    await node.start()
                    self.node = node
        if self.node is None:
            raise StoreUnavailable("the manager was closed")
        return self.node

    async def stop(self) -> None:
        """Close the clients' connections, then stop the node."""
        self._closed = True
        if self._changing is None:
            return
        async with self._lock():
            if self.node is not None:
                await self.node.endings.say_goodbye()
                node, self.node = self.node, None
                await node.stop()

    def _lock(self) -> asyncio.Lock:
        """Return the lock of the running event loop. A later start may be in another loop."""
        loop = asyncio.get_running_loop()
        if self._changing is None or self._loop is not loop:
            self._changing, self._loop = asyncio.Lock(), loop
        return self._changing
