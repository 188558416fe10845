"""A shorter way onto a websocket: one frame, made once, written to the transports of all who receive it.

The longer one, which upstream takes for every packet of every client, is a queue, a task that waits on it under a
timeout, a message to the ASGI server, and an encoder there: five sixths of the CPU of a large fan-out. It is still
taken whenever the shorter one could overtake or overrun something: while packets wait in the queue or one of them is
being sent, while the client takes less than it is sent, while an upgrade is under way, and under a server whose
transport is not known. So the order and the limit for slow consumers are the queue's, as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import socket as sockets
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from .frames import Frames

if TYPE_CHECKING:
    from engineio.async_socket import AsyncSocket

    Handler = Callable[[Any], Coroutine[Any, Any, None]]

UNSENT_BYTES = 64 * 1024
"""What may wait in a transport's own buffer before the queue is used: asyncio's high-water mark."""

COMPRESS_FROM = 1024
"""Bytes from which on a frame is left to the server to compress, where it may: engine.io's own threshold."""


class Wire:
    """The transport below the websocket of an Engine.IO socket.

    :param queue: the socket's queue.
    :param is_open: tells whether data may be sent: no close frame has been sent or received.
    :param compresses: the server may have agreed with the client to compress what is large.
    :param on_write: called with the packets and bytes of each write: who counts them wraps the longer way.
    """

    def __init__(
        self,
        queue: asyncio.Queue[Any],
        transport: asyncio.Transport,
        is_open: Callable[[], bool],
        *,
        compresses: bool,
        on_write: Callable[[int, int], None] | None = None,
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._is_open = is_open
        self._largest = COMPRESS_FROM if compresses else None
        self._on_write = on_write
        self._idle = False

    def write(self, frames: Frames) -> bool:
        """Write an event, or leave it to the queue (``False``)."""
        transport = self._transport
        if not self._idle or not self._queue.empty() or transport.is_closing() or not self._is_open():
            return False
        # Not before: asyncio's of TLS has no buffer any more once it was closed twice, as uvicorn does.
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
        transport.write(data)
        if self._on_write is not None:
            self._on_write(len(frames), len(data))
        return True

    async def poll(self) -> list[Any]:
        """Wait for packets in the queue: upstream's, without its timeout, which the reader of the socket has, too.

        Only while it waits here is nothing under way to the transport.
        """
        queue = self._queue
        self._idle = True
        try:
            packets = [await queue.get()]
        finally:
            self._idle = False
        queue.task_done()
        while packets[-1] is not None and not queue.empty():
            packets.append(queue.get_nowait())
            queue.task_done()
        if packets[-1] is None and len(packets) > 1:
            packets.pop()
            queue.put_nowait(None)  # found again by the next poll, which ends the writer
        return [] if packets == [None] else packets


def install(eio: Any) -> None:
    """Have an Engine.IO server's websockets written to directly, where their transport is known."""
    upstream = eio._async.get("websocket")  # noqa: SLF001 - where upstream looks up its websocket class
    if upstream is None:
        return

    def websocket(handler: Handler, server: Any) -> Any:
        async def accepted(ws: Any) -> None:
            attach(handler.__self__, ws)  # type: ignore[attr-defined] # a method of the socket
            await handler(ws)

        return upstream(accepted, server)

    eio._async = {**eio._async, "websocket": websocket}  # noqa: SLF001 - of this server only


def attach(socket: AsyncSocket, ws: Any) -> None:
    """Give an Engine.IO socket its wire, if the transport below its websocket is known.

    It has it from its writer's first poll on: before that the socket may be in an upgrade that fails, or have two.
    """
    try:
        below = _below_aiohttp(ws) if hasattr(ws, "_sock") else _below_uvicorn(ws)
    except AttributeError:  # a server of another version: the longer way
        return
    if below is None:
        return
    transport, is_open, compresses = below
    _send_at_once(transport)
    on_write = getattr(socket.server, "sio_pg_on_write", None)
    written.set(Wire(socket.queue, transport, is_open, compresses=compresses, on_write=on_write))
    if getattr(socket, "sio_pg_wire", None) is None:
        poll_of_requests = socket.poll

        async def poll() -> list[Any]:
            wire = written.get()
            if wire is None:
                packets: list[Any] = await poll_of_requests()
                return packets
            socket.sio_pg_wire = wire
            return await wire.poll()

        socket.poll = poll


# The wire of the websocket whose handler, or writer, runs: the writer is a task of the handler's.
written: contextvars.ContextVar[Wire | None] = contextvars.ContextVar("sio_pg_written", default=None)

Below = tuple[asyncio.Transport, Callable[[], bool], bool]


def _below_aiohttp(ws: Any) -> Below | None:
    response = ws._sock  # noqa: SLF001 - upstream's, set before its handler is called
    transport = ws.environ["aiohttp.request"].transport
    return None if transport is None else (transport, lambda: not response.closed, bool(response.compress))


def _below_uvicorn(ws: Any) -> Below | None:
    """Of uvicorn ``send`` is a method of the protocol; of another server, or within some middlewares, it is not."""
    protocol: Any = getattr(ws.asgi_send, "__self__", None)
    if not type(protocol).__module__.startswith("uvicorn.protocols.websockets."):
        return None
    connection = getattr(protocol, "conn", protocol)  # of websockets-sansio and wsproto; "websockets" is one itself
    if not isinstance(connection.state, enum.Enum):
        return None
    compresses = bool(protocol.config.ws_per_message_deflate)
    return protocol.transport, lambda: bool(connection.state.name == "OPEN"), compresses


def _send_at_once(transport: asyncio.Transport) -> None:
    """TCP_NODELAY: asyncio leaves it off where the listening socket was made without a protocol number, and a packet
    that follows another one then waits for the client's delayed acknowledgement, 40 ms."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (sockets.AF_INET, sockets.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
