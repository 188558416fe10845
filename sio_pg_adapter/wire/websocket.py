"""The websockets of an Engine.IO server, each read by one task and written directly where that is possible.

python-engineio makes a task and a timer for each packet it waits for, and takes two more turns of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket as sockets
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from engineio.exceptions import QueueEmpty, SocketIsClosedError, UnknownPacketError
from engineio.packet import NOOP, PING, PONG, UPGRADE, Packet

from . import upstream
from .incoming import NotAPacket, engine_packet
from .transport import Connections, Cork, TrafficCounter, Wire

if TYPE_CHECKING:
    from engineio.async_socket import AsyncSocket

    Handler = Callable[[Any], Coroutine[Any, Any, None]]

logger = logging.getLogger("sio_pg_adapter")


def install(eio: Any, connections: Connections, cork: Cork, traffic: TrafficCounter) -> None:
    """Have an Engine.IO server's websockets read and written by this module."""
    theirs = upstream.websocket_class(eio)
    if theirs is None:
        return

    def websocket(handler: Handler, server: Any) -> Any:
        async def accepted(ws: Any) -> None:
            await Websocket(upstream.socket_of(handler), ws, connections, cork, traffic).run()

        return theirs(accepted, server)

    upstream.replace_websocket_class(eio, websocket)


class Websocket:
    """The life of a websocket, in place of Engine.IO's ``_websocket_handler``.

    :param socket: its Engine.IO socket.
    :param ws: Engine.IO's websocket, which its framework has accepted.
    """

    def __init__(
        self, socket: AsyncSocket, ws: Any, connections: Connections, cork: Cork, traffic: TrafficCounter
    ) -> None:
        self._socket = socket
        self._ws = ws
        self._connections = connections
        self._traffic = traffic
        self._wire: Wire | None = None
        self._reading: asyncio.Task[Any] | None = None
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
        writing = asyncio.create_task(self._write(), name="sio_pg websocket writer")
        writing.add_done_callback(self._written)
        self._reading = asyncio.current_task()
        try:
            await self._read()
        except asyncio.CancelledError:  # by the cut, or a web server that stops or has lost the client: end in order
            logger.debug("a websocket's reader was cancelled")
        self._reading = None
        socket.queue.put_nowait(None)  # ends the writer, which may have to wait for the client's close frame
        await socket.close(wait=False, abort=True, reason=socket.server.reason.TRANSPORT_CLOSE)
        await asyncio.wait((writing,))
        # Engine.IO forgets the sockets that are closed by now, but not one that another task is closing.
        socket.server.sockets.pop(socket.sid, None)

    def _written(self, writing: asyncio.Task[None]) -> None:
        """End the reader as well if the connection was cut. If the transport is not known, nothing else ends it."""
        if writing.cancelled() and self._reading is not None:
            self._reading.cancel()

    async def _upgrade(self) -> bool:
        """Exchange the ping "probe", end the poll, and await the UPGRADE packet (Engine.IO protocol, "Upgrade")."""
        try:
            probe = engine_packet(await self._next())
            if probe.packet_type != PING or probe.data != "probe":
                return False
            await self._ws.send(Packet(PONG, data="probe").encode())
            self._socket.queue.put_nowait(Packet(NOOP))  # ends the poll
            return bool(engine_packet(await self._next()).packet_type == UPGRADE)
        except (OSError, ValueError, NotAPacket) as e:  # closed, too large, or not a packet
            logger.debug("a websocket ended before its upgrade: %r", e)
            return False

    async def _next(self) -> Any:
        data = await self._ws.wait()
        if len(data) > self._socket.server.max_http_buffer_size:
            raise ValueError("packet is too large")
        if self._traffic.on_read is not None:
            self._traffic.on_read(1, len(data))
        return data

    async def _read(self) -> None:
        """Read until the websocket is closed, breaks, or is silent for longer than a ping and its answer take."""
        server = self._socket.server
        while True:
            try:
                async with asyncio.timeout(server.ping_interval + server.ping_timeout):
                    data = await self._next()
                packet = engine_packet(data)
            except Exception as e:  # noqa: BLE001 - web servers raise different errors where a connection ends
                logger.debug("a websocket ended: %r", e)
                return
            try:
                await self._socket.receive(packet)
            except UnknownPacketError:
                continue
            except SocketIsClosedError:
                return
            except Exception:  # an application's handler that runs here
                server.logger.exception("Unknown receive error")
            if self._socket.closed:  # by the packet
                return

    async def _write(self) -> None:
        """Write until ``None`` is in the queue, or the websocket breaks."""
        socket, ws, wire = self._socket, self._ws, self._wire
        connection = self._connections.of(socket)
        connection.wire, connection.writing = wire, asyncio.current_task()
        try:
            while packets := await (socket.poll() if wire is None else wire.poll()):
                for packet in packets:
                    encoded = packet.encode()
                    await ws.send(encoded)
                    if self._traffic.on_write is not None:
                        self._traffic.on_write(1, len(encoded))
        except QueueEmpty:
            pass
        except Exception as e:  # noqa: BLE001 - as in _read
            logger.debug("a websocket ended: %r", e)
        finally:
            connection.wire = connection.writing = None
        await ws.close()


def _send_at_once(transport: asyncio.Transport) -> None:
    """Set TCP_NODELAY.

    asyncio leaves it off if the listening socket was made without a protocol number. A packet that follows another
    one then waits for the client's delayed acknowledgement, 40 ms.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (sockets.AF_INET, sockets.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
