"""Writing to connections, and a shortcut for websockets: one frame, made once, written to every recipient's
transport.

On the regular path, python-engineio puts every packet of every client in a queue. A task waits on that queue with a
timeout, and sends a message to the ASGI server, which encodes it. That takes most of the CPU of a large fan-out
(``python bench/run.py --only fanout`` shows both).

The regular path is still taken where the shortcut could overtake something or send too much:

- while packets wait in the queue, or one of them is being sent;
- while the client reads more slowly than it is sent;
- during an upgrade, and under a server whose transport is not known.

So the order, and the limit for slow clients, are those of the queue.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING

from engineio.packet import NOOP, Packet

from .frames import Frames
from .outbox import Outbox

if TYPE_CHECKING:
    from engineio.async_socket import AsyncSocket

UNSENT_BYTES = 64 * 1024
"""How much may wait in a transport's own buffer before the queue is used, in bytes: asyncio's high-water mark."""

COMPRESS_FROM = 1024
"""From how many bytes on a frame is left to a server that may compress it: the threshold of Engine.IO in Node.js."""

logger = logging.getLogger("sio_pg_adapter")

Traffic = Callable[[int, int], None]


class TrafficCounter:
    """Where packets and bytes are counted, for the Admin UI. Both are ``None`` while nobody counts.

    :ivar on_read: called with the packets and bytes of each read.
    :ivar on_write: called with the packets and bytes of each write.
    """

    def __init__(self) -> None:
        self.on_read: Traffic | None = None
        self.on_write: Traffic | None = None


class Cork:
    """Holds writes back while it is entered, and writes them all when it is left.

    For records that are applied in one tick: one system call for each connection, instead of one for each frame.
    """

    def __init__(self) -> None:
        self.is_in = False
        self.holding: list[Wire] = []

    def __enter__(self) -> None:
        self.is_in = True

    def __exit__(self, *_: object) -> None:
        self.is_in = False
        holding, self.holding = self.holding, []
        for wire in holding:
            wire.flush()


class Wire:
    """The transport below the websocket of an Engine.IO socket.

    :param outbox: the socket's queue.
    :param is_open: whether data may be sent: no close frame has been sent or received.
    :param cork: may hold writes back.
    :param compresses: whether the server may have agreed with the client to compress large frames.
    :param traffic: counts each write.
    :ivar idle: whether nothing is on its way from the queue to the transport.
    """

    __slots__ = (
        "__weakref__",
        "_cork",
        "_held",
        "_held_bytes",
        "_is_open",
        "_largest",
        "_outbox",
        "_traffic",
        "_transport",
        "idle",
    )

    def __init__(
        self,
        outbox: Outbox,
        transport: asyncio.Transport,
        is_open: Callable[[], bool],
        cork: Cork,
        *,
        compresses: bool,
        traffic: TrafficCounter,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._is_open = is_open
        self._largest = COMPRESS_FROM if compresses else None
        self._traffic = traffic
        self._cork = cork
        self._held: list[bytes] | None = None
        self._held_bytes = 0
        self.idle = False

    def write(self, frames: Frames) -> bool:
        """Write an event. ``False`` means that it has to go through the queue."""
        transport = self._transport
        if not self.idle or not self._outbox.empty() or transport.is_closing() or not self._is_open():
            return False
        # Only after is_closing(): uvicorn closes asyncio's TLS transport twice, and then it has no buffer any more.
        if transport.get_write_buffer_size() + self._held_bytes > UNSENT_BYTES:
            self.flush()  # it may be taken at once
            if transport.get_write_buffer_size() > UNSENT_BYTES:
                return False
        if len(frames) == 1:
            data = frames[0].wire
        elif frames:
            data = b"".join(frame.wire for frame in frames)
        else:
            return True
        if self._largest is not None and len(data) > self._largest:
            return False
        if self._cork.is_in:
            self._hold(data)
        else:
            transport.write(data)
        if self._traffic.on_write is not None:
            self._traffic.on_write(len(frames), len(data))
        return True

    @property
    def drains(self) -> bool:
        """Whether the client keeps up, so that little waits in the transport."""
        return not self._transport.is_closing() and self._transport.get_write_buffer_size() <= UNSENT_BYTES

    def _hold(self, data: bytes) -> None:
        if self._held is None:
            self._cork.holding.append(self)
            self._held = []
        self._held.append(data)
        self._held_bytes += len(data)

    def flush(self) -> None:
        """Write the data that is held. This runs before the queue's writer, so nothing queued later overtakes it."""
        if self._held is None:
            return
        data, self._held, self._held_bytes = b"".join(self._held), None, 0
        try:
            self._transport.write(data)
        except Exception:  # a connection that breaks must not keep the event from the others
            logger.exception("could not write to a connection: it is closed, and its client recovers from the log")
            self._transport.abort()

    def abort(self) -> None:
        """Drop the transport, with what waits in it."""
        self._held, self._held_bytes = None, 0
        self._transport.abort()


class Connection:
    """An Engine.IO connection, as this package writes to it. The clients of all its namespaces share it.

    :ivar socket: its Engine.IO socket.
    :ivar wire: the transport of its websocket, for as long as packets may be written to it. Before that the websocket
                may be in an upgrade that fails, or the client may have two.
    :ivar interrupt: ends the tasks of its websocket, for as long as that lasts.
    """

    __slots__ = ("__weakref__", "interrupt", "socket", "wire")

    def __init__(self, socket: AsyncSocket) -> None:
        self.socket = socket
        self.wire: Wire | None = None
        self.interrupt: Callable[[], None] | None = None

    def abort(self) -> None:
        """Drop the websocket's transport with all that waits there.

        An orderly close waits behind that data, which a client that reads nothing never takes.
        """
        if self.wire is not None:
            self.wire.abort()
        if self.interrupt is not None:
            self.interrupt()

    async def cut(self) -> None:
        """Close it without what waits there, which may be more than the client ever takes."""
        self.abort()
        await close_transport(self.socket, drop_queue=True)

    @property
    def is_open(self) -> bool:
        return not (self.socket.closed or self.socket.closing)


async def close_transport(socket: AsyncSocket, *, drop_queue: bool = False) -> None:
    """Close an Engine.IO connection in a way after which clients come back by themselves.

    Engine.IO's CLOSE packet would be final for the clients of python-socketio. So the transport just ends: a
    websocket is closed, and a poll is answered with NOOP and the next one with status 400.

    :param drop_queue: do not send what is queued.
    """
    if socket.closed or socket.closing:
        return
    while drop_queue and not socket.queue.empty():
        socket.queue.get_nowait()
        socket.queue.task_done()
    socket.queue.put_nowait(Packet(NOOP))  # ends a poll
    socket.queue.put_nowait(None)  # ends the websocket's writer, which closes it
    await socket.close(wait=False, abort=True, reason=socket.server.reason.TRANSPORT_CLOSE)


class Connections:
    """The connections of a server, by Engine.IO sid. Each lasts as long as a client or a websocket refers to it.

    :ivar take_event: called with the Engine.IO sid, the text of a Socket.IO packet and the context of the websocket's
                      reader. It returns whether a task handles the packet. ``None``: all packets go to the reader.
    """

    def __init__(self) -> None:
        self.take_event: Callable[[str, str, Context], bool] | None = None
        self._by_sid: weakref.WeakValueDictionary[str, Connection] = weakref.WeakValueDictionary()

    def of(self, socket: AsyncSocket) -> Connection:
        """Return the connection of a socket."""
        connection = self._by_sid.get(socket.sid)
        if connection is None or connection.socket is not socket:
            connection = self._by_sid[socket.sid] = Connection(socket)
        return connection
