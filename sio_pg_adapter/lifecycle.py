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
    :ivar leaving: whether clients were sent away, so that new ones belong on another node.
    """

    def __init__(self, make: Callable[[], Node]) -> None:
        self._make = make
        self._changing: asyncio.Lock | None = None
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
        if self.node is not None:
            return self.node
        if not self._closed:
            if self._changing is None:
                self._changing = asyncio.Lock()
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
        if self._changing is None:
            return
        async with self._changing:
            await self.say_goodbye()
            if self.node is not None:
                node, self.node = self.node, None
                await node.stop()
        self._changing = None  # it belongs to an event loop: the next start may be in another
