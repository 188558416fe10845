"""The websockets of an Engine.IO server, each read by one task, and written directly where that is possible.

python-engineio makes a task and a timer for each packet it waits for, has a task that waits for what it sends, and
takes two more turns of the event loop.

Under uvicorn, an event that a client sends does not even wake the task that reads (:class:`.inbox.Inbox`). The task
that handles the event is made as soon as its bytes are read. The reader still takes all other messages, and events
that would overtake one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import socket as sockets
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from engineio.exceptions import SocketIsClosedError, UnknownPacketError
from engineio.packet import NOOP, PING, PONG, UPGRADE, Packet

from . import upstream
from .inbox import Inbox
from .incoming import NotAPacket, engine_packet
from .transport import Connections, Cork, TrafficCounter, Wire

if TYPE_CHECKING:
    from engineio.async_socket import AsyncSocket

    Handler = Callable[[Any], Coroutine[Any, Any, None]]

logger = logging.getLogger("sio_pg_adapter")


def install(eio: Any, connections: Connections, cork: Cork, traffic: TrafficCounter) -> None:
    """Have an Engine.IO server's websockets read and written by this module."""
    upstream.use_outboxes(eio)
    theirs = upstream.websocket_class(eio)
    if theirs is None:
        return

    def websocket(handler: Handler, server: Any) -> Any:
        def accepted(ws: Any) -> Coroutine[Any, Any, None]:
            return Websocket(upstream.socket_of(handler), ws, connections, cork, traffic).run()

        return theirs(accepted, server)

    upstream.replace_websocket_class(eio, websocket)


class Websocket:
    """The life of a websocket, in place of Engine.IO's ``_websocket_handler``.

    :param socket: its Engine.IO socket.
    :param ws: Engine.IO's websocket, which its framework has accepted.
    """

    __slots__ = (
        "_connection",
        "_connections",
        "_context",
        "_heard",
        "_inbox",
        "_reading",
        "_silence",
        "_socket",
        "_traffic",
        "_wire",
        "_writing",
        "_ws",
    )

    def __init__(
        self, socket: AsyncSocket, ws: Any, connections: Connections, cork: Cork, traffic: TrafficCounter
    ) -> None:
        self._socket = socket
        self._ws = ws
        self._connections = connections
        self._connection = connections.of(socket)
        self._traffic = traffic
        self._wire: Wire | None = None
        self._inbox = upstream.inbox(ws)
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._context: contextvars.Context | None = None
        if (below := upstream.below(ws)) is not None:
            transport, is_open, compresses = below
            _send_at_once(transport)
            self._wire = Wire(socket.queue, transport, is_open, cork, compresses=compresses, traffic=traffic)

    async def run(self) -> None:
        """Upgrade from polling if the client polls, then read and write until the websocket ends."""
        socket = self._socket
        if socket.connected:
            socket.upgrading = True  # holds polls back
            try:
                upgraded = await self._upgrade()
            finally:
                socket.upgrading = False
            if not upgraded:
                return
        socket.connected = socket.upgraded = True
        socket.server.logger.info("%s: Upgrade to websocket successful", socket.sid)
        self._reading = asyncio.current_task()
        self._begin()
        try:
            await self._read()
        except asyncio.CancelledError:  # by the cut, or a web server that stops or has lost the client: end in order
            logger.debug("a websocket's reader was cancelled")
        finally:
            self._end_reading()
        socket.queue.put_nowait(None)  # ends the writer, which may have to wait for the client's close frame
        await socket.close(wait=False, abort=True, reason=socket.server.reason.TRANSPORT_CLOSE)
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        self._end_writing()
        # Engine.IO forgets the sockets that are closed by now, but not one that another task is closing.
        socket.server.sockets.pop(socket.sid, None)

    def _interrupt(self) -> None:
        """End reading and writing at once. If the transport is not known, nothing else ends them."""
        self._end_writing()
        if self._writing is not None:
            self._writing.cancel()
        if self._reading is not None:
            self._reading.cancel()

    async def _upgrade(self) -> bool:
        """Exchange the ping "probe", end the poll, and await the UPGRADE packet (Engine.IO protocol, "Upgrade")."""
        try:
            probe = self._packet(await self._ws.wait())
            if probe.packet_type != PING or probe.data != "probe":
                return False
            await self._ws.send(Packet(PONG, data="probe").encode())
            self._socket.queue.put_nowait(Packet(NOOP))  # ends the poll
            return bool(self._packet(await self._ws.wait()).packet_type == UPGRADE)
        except (OSError, ValueError, NotAPacket) as e:  # closed, too large, or not a packet
            logger.debug("a websocket ended before its upgrade: %r", e)
            return False

    # -- reading -----------------------------------------------------------------------------------------
    def _packet(self, data: Any) -> Packet:
        """Return the packet in a message of the client, and count it."""
        if len(data) > self._socket.server.max_http_buffer_size:
            raise ValueError("packet is too large")
        if self._traffic.on_read is not None:
            self._traffic.on_read(1, len(data))
        return engine_packet(data)

    async def _read(self) -> None:
        """Read until the websocket is closed, breaks, or is silent for longer than a ping and its answer take."""
        server = self._socket.server
        if self._inbox is not None:
            self._inbox.take = self._take
            self._watch_silence(self._inbox)
        while True:
            try:
                if self._inbox is None:
                    async with asyncio.timeout(self._patience):
                        packet = self._packet(await self._ws.wait())
                else:
                    self._heard = asyncio.get_running_loop().time()
                    self._context = contextvars.copy_context()
                    packet = self._packet(await self._ws.wait())
            except Exception as e:  # noqa: BLE001 - web servers raise different errors where a connection ends
                logger.debug("a websocket ended: %r", e)
                return
            self._context = None
            try:
                await self._socket.receive(packet)
            except UnknownPacketError:
                continue
            except SocketIsClosedError:
                return
            except Exception:  # an application's handler that runs here
                server.logger.exception("Unknown receive error")
            del packet  # the next one may come in hours
            if self._socket.closed:  # by the packet
                return

    def _end_reading(self) -> None:
        self._reading = None
        if self._inbox is not None:
            self._inbox.take = None
        if self._silence is not None:
            self._silence.cancel()

    def _take(self, message: dict[str, Any]) -> bool:
        """Handle a message without the reader, which waits for it. Return whether that was possible.

        These are answers to pings, and events whose handlers run in tasks of their own.
        """
        socket, text, context = self._socket, message.get("text"), self._context
        if text is None or context is None or socket.closed or socket.closing or _logs(socket.server):
            return False
        if text != "3":
            take = self._connections.take_event
            if take is None or not text.startswith("42") or len(text) > socket.server.max_http_buffer_size:
                return False
            try:
                if not take(socket.sid, text[1:], context):
                    return False
            except Exception:  # as for the reader
                socket.server.logger.exception("Unknown receive error")
        else:
            socket.schedule_ping()
        self._heard = asyncio.get_running_loop().time()
        if self._traffic.on_read is not None:
            self._traffic.on_read(1, len(text))
        return True

    @property
    def _patience(self) -> float:
        """For how long a client may send nothing, in seconds."""
        server = self._socket.server
        return float(server.ping_interval + server.ping_timeout)

    def _watch_silence(self, inbox: Inbox) -> None:
        """End the reader if it has waited too long for a message. One timer serves for many messages."""
        loop = asyncio.get_running_loop()
        silent_at = self._heard + self._patience
        if self._context is not None and loop.time() >= silent_at:
            inbox.put_nowait({"type": "websocket.disconnect"})
        else:
            when = silent_at if self._context is not None else loop.time() + self._patience
            self._silence = loop.call_at(when, self._watch_silence, inbox)

    # -- writing -----------------------------------------------------------------------------------------
    def _begin(self) -> None:
        """From here on packets are written to the websocket."""
        self._connection.wire, self._connection.interrupt = self._wire, self._interrupt
        self._socket.queue.on_put = self._write_queued
        self._write_queued()

    def _write_queued(self) -> None:
        """Have a task write the queue. There is no task while the queue is empty."""
        if self._writing is None:
            if self._wire is not None:
                self._wire.idle = False
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="sio_pg websocket writer")

    async def _write(self) -> None:
        """Write until the queue is empty. After ``None``, or if the websocket breaks, close the websocket."""
        outbox = self._socket.queue
        try:
            while not outbox.empty():
                packet = outbox.get_nowait()
                outbox.task_done()
                if packet is None:
                    break
                encoded = packet.encode()
                await self._ws.send(encoded)
                if self._traffic.on_write is not None:
                    self._traffic.on_write(1, len(encoded))
            else:
                self._writing = None
                if self._wire is not None:
                    self._wire.idle = True
                return
        except Exception as e:  # noqa: BLE001 - as in _read
            logger.debug("a websocket ended: %r", e)
        self._end_writing()
        await self._ws.close()

    def _end_writing(self) -> None:
        """From here on nothing is written. Clients that refer to the connection do not keep this object alive."""
        self._connection.wire = self._connection.interrupt = None
        self._socket.queue.on_put = None


def _logs(eio: Any) -> bool:
    """Whether Engine.IO logs each packet, which its own code does."""
    is_enabled = getattr(eio.logger, "isEnabledFor", None)
    return is_enabled is None or bool(is_enabled(logging.INFO))


def _send_at_once(transport: asyncio.Transport) -> None:
    """Set TCP_NODELAY.

    asyncio leaves it off if the listening socket was made without a protocol number. A packet that follows another
    one then waits for the client's delayed acknowledgement, 40 ms.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (sockets.AF_INET, sockets.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
