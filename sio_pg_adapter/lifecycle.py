"""Starts and stops the node. It is safe to start twice, to stop twice, and to stop before a start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Self

from .errors import ConfigurationError, SioPgError, StoreUnavailable
from .node import Node
from .tasks import Tasks

logger = logging.getLogger("sio_pg_adapter")


class Lifecycle:
    """Starts a node at the first use, and stops it.

    :param make_node: makes the node. It may refuse.
    :ivar node: the node, from a start to the next stop. ``None`` in between.
    :ivar leaving: whether clients were sent away, because the process ends. New connections are refused.
    """

    def __init__(self, make_node: Callable[[], Node]) -> None:
        self._make = make_node
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changing = asyncio.Lock()
        self._early = Tasks()
        self._closed = False
        self.node: Node | None = None
        self.leaving = False

    async def start(self) -> None:
        """Connect, and begin to follow the log. Safe to call twice, and after :meth:`aclose`.

        :raises ConfigurationError: before anything is opened, if it has no server and is not ``write_only``.
        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated. The message names the command to run.
        """
        self._closed = self.leaving = False
        await self.started()

    async def started(self) -> Node:
        """Return the node, started at the first use. After :meth:`aclose` only :meth:`start` starts one again.

        :raises StoreUnavailable: if the database cannot be reached, or the manager was closed.
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

    def start_early(self) -> None:
        """Begin to start, in a task. An error is logged, and the first use raises it as well."""
        self._early.spawn(self._start_early(), "start")

    async def _start_early(self) -> None:
        try:
            await self.started()
        except SioPgError as e:
            logger.error("%s", e)  # noqa: TRY400 - one line is enough

    async def say_goodbye(self) -> None:
        """Close all connections in a way that makes clients reconnect, to another node, and refuse new ones.

        The manager still emits until :meth:`aclose`, which does this as well.
        """
        self.leaving = True
        if self.node is not None:
            await self.node.endings.say_goodbye()

    async def aclose(self) -> None:
        """Write the waiting entries, leave the cluster, close all connections. Safe to call twice, or unstarted."""
        self._closed = True
        self._enter_loop()
        async with self._changing:
            await self.say_goodbye()
            if self.node is not None:
                node, self.node = self.node, None
                await node.stop()
        await self._early.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

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
