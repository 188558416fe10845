"""The pings of an Engine.IO server: one timer for all connections, since all wait equally long.

python-engineio has a task for each.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from engineio.async_socket import AsyncSocket
from engineio.packet import PING

from . import upstream
from .frames import Frame
from .transport import Connections

AT_ONCE = 100
"""How many pings are sent in one tick. After a storm of reconnects they are due together."""

_PING = Frame(PING)


class Pings:
    """Sends pings.

    :param connections: the connections of the server.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._due: list[tuple[float, int, AsyncSocket]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def schedule(self, socket: AsyncSocket) -> None:
        """Ping a connection after the server's ``ping_interval``, unless it is waiting for that already."""
        if not socket.last_ping:
            return
        socket.last_ping = None
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the timer of a loop that has ended never fires
            self._loop, self._timer = loop, None
            self._due.clear()
        heapq.heappush(self._due, (loop.time() + socket.server.ping_interval, next(self._order), socket))
        self._arm(loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._due:
            return
        when = self._due[0][0]
        if self._timer is None or when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when  # not the handle's when(): uvloop's has none if the time is over
            self._timer = loop.call_at(when, self._send, loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time() + 0.001  # a timer may fire a little early
        for _ in range(AT_ONCE):
            if not self._due or self._due[0][0] > now:
                break
            self._ping(heapq.heappop(self._due)[2])
        self._arm(loop)

    def _ping(self, socket: AsyncSocket) -> None:
        if socket.closing or socket.closed:
            return
        socket.last_ping = time.time()
        wire = self._connections.of(socket).wire
        if wire is None or not wire.write([_PING]):
            socket.queue.put_nowait(_PING)
        socket.server.logger.info("%s: Sending packet PING data None", socket.sid)


def socket_class(
    pings: Pings, take_post: Callable[[AsyncSocket, dict[str, Any]], Awaitable[None]]
) -> type[AsyncSocket]:
    """Return the class of a server's Engine.IO sockets. python-engineio makes them, so they change to it.

    A class for each server takes less memory than functions for each socket.

    :param take_post: handles a POST of a client that polls.
    """

    class Socket(AsyncSocket):
        __slots__ = ()

        def schedule_ping(self) -> None:
            if upstream.pings_are_reported():
                super().schedule_ping()
            else:
                pings.schedule(self)

        async def handle_post_request(self, environ: dict[str, Any]) -> None:
            await take_post(self, environ)

    return Socket
