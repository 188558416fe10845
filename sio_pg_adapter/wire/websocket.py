"""The websockets of an Engine.IO server: each is read in one task, and written to directly where that is possible.

Upstream makes a task and a timer for each packet that it waits for, and two turns of the event loop more.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import socket as sockets
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from engineio.exceptions import QueueEmpty, SocketIsClosedError, UnknownPacketError
from engineio.packet import NOOP, PING, PONG, UPGRADE, Packet

from .incoming import NoPacket, engine_packet
from .transport import Cork, Wire

if TYPE_CHECKING:
    from engineio.async_socket import AsyncSocket

    Handler = Callable[[Any], Coroutine[Any, Any, None]]

logger = logging.getLogger("sio_pg_adapter")


def install(eio: Any, cork: Cork) -> None:
    """Have an Engine.IO server's websockets read and written in the ways of this package.

    :param eio: its ``sio_pg_on_read`` and ``sio_pg_on_write``, if it has them, are called with how many packets and
                bytes are read from and written to one.
    :param cork: of what is written to them.
    """
    upstream = eio._async.get("websocket")  # where upstream looks up its websocket class
    if upstream is None:
        return

    def websocket(handler: Handler, server: Any) -> Any:
        async def accepted(ws: Any) -> None:
            await Websocket(handler.__self__, ws, cork).run()  # type: ignore[attr-defined] # a method of the socket

        return upstream(accepted, server)

    eio._async = {**eio._async, "websocket": websocket}  # of this server only


class Websocket:
    """The life of a websocket, in place of upstream's ``_websocket_handler``.

    :param socket: its Engine.IO socket. It has the wire, as ``sio_pg_wire``, from the writer's start to its end:
                   before that it may be in an upgrade that fails, or have two.
    :param ws: upstream's, which its framework has accepted.
    """

    def __init__(self, socket: AsyncSocket, ws: Any, cork: Cork) -> None:
        server = socket.server
        self._socket = socket
        self._ws = ws
        self._on_read: Callable[[int, int], None] | None = getattr(server, "sio_pg_on_read", None)
        self._on_write: Callable[[int, int], None] | None = getattr(server, "sio_pg_on_write", None)
        self._wire: Wire | None = None
        if (below := _below(ws)) is not None:
            transport, is_open, compresses = below
            _send_at_once(transport)
            self._wire = Wire(socket.queue, transport, is_open, cork, compresses=compresses, on_write=self._on_write)

    async def run(self) -> None:
        """Change over to it from polling, if it comes to that; then read and write until it ends."""
        socket = self._socket
        if socket.connected:
            socket.upgrading = True  # holds polls off
            try:
                upgraded = await self._upgrade()
            finally:
                socket.upgrading = False
            if not upgraded:
                return
        socket.connected = socket.upgraded = True
        socket.server.logger.info("%s: Upgrade to websocket successful", socket.sid)
        writing = asyncio.create_task(self._write(), name="sio_pg websocket writer")
        try:
            await self._read()
        except asyncio.CancelledError:  # by the web server, which stops or has lost the client: it ends in order
            logger.debug("a websocket's reader was cancelled")
        socket.queue.put_nowait(None)  # ends the writer, which may have to wait for the client's close frame
        await socket.close(wait=False, abort=True, reason=socket.server.reason.TRANSPORT_CLOSE)
        await asyncio.wait((writing,))
        # Upstream forgets those that are closed by now: not one that another task closes, whose handler takes long.
        socket.server.sockets.pop(socket.sid, None)

    async def _upgrade(self) -> bool:
        """A ping "probe" and its answer, a poll that ends, and the client's word that it has changed over (Engine.IO
        protocol, Upgrade)."""
        try:
            probe = engine_packet(await self._next())
            if probe.packet_type != PING or probe.data != "probe":
                return False
            await self._ws.send(Packet(PONG, data="probe").encode())
            self._socket.queue.put_nowait(Packet(NOOP))  # ends the poll
            return bool(engine_packet(await self._next()).packet_type == UPGRADE)
        except (OSError, ValueError, NoPacket) as e:  # closed; too large; no packet
            logger.debug("a websocket ended before its upgrade: %r", e)
            return False

    async def _next(self) -> Any:
        data = await self._ws.wait()
        if len(data) > self._socket.server.max_http_buffer_size:
            raise ValueError("packet is too large")
        if self._on_read is not None:
            self._on_read(1, len(data))
        return data

    async def _read(self) -> None:
        """Until it is closed, breaks, or is silent for longer than a ping and its answer take."""
        server = self._socket.server
        while True:
            try:
                async with asyncio.timeout(server.ping_interval + server.ping_timeout):
                    data = await self._next()
                packet = engine_packet(data)
            except Exception as e:  # noqa: BLE001 - what a web server raises where a connection ends differs
                logger.debug("a websocket ended: %r", e)
                return
            try:
                await self._socket.receive(packet)
            except UnknownPacketError:
                continue
            except SocketIsClosedError:
                return
            except Exception:  # of an application whose handlers run here
                server.logger.exception("Unknown receive error")
            if self._socket.closed:  # by what came
                return

    async def _write(self) -> None:
        """Until None is in the queue, or it breaks."""
        socket, ws, wire = self._socket, self._ws, self._wire
        socket.sio_pg_wire = wire
        try:
            while packets := await (socket.poll() if wire is None else wire.poll()):
                for packet in packets:
                    encoded = packet.encode()
                    await ws.send(encoded)
                    if self._on_write is not None:
                        self._on_write(1, len(encoded))
        except QueueEmpty:
            pass
        except Exception as e:  # noqa: BLE001 - as in _read
            logger.debug("a websocket ended: %r", e)
        finally:
            socket.sio_pg_wire = None  # upstream's pings hold the socket for some time yet
        await ws.close()


Below = tuple[asyncio.Transport, Callable[[], bool], bool]
"""A transport; whether it is open for data; whether the server may compress what goes there."""


def _below(ws: Any) -> Below | None:
    """What is below a websocket, if that is known."""
    try:
        return _below_aiohttp(ws) if hasattr(ws, "_sock") else _below_uvicorn(ws)
    except (AttributeError, KeyError):  # a server of another version: the longer way
        return None


def _below_aiohttp(ws: Any) -> Below | None:
    response = ws._sock  # upstream's, set before its handler is called
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
    opened = type(connection.state)["OPEN"]
    compresses = bool(protocol.config.ws_per_message_deflate)
    return protocol.transport, lambda: connection.state is opened, compresses


def _send_at_once(transport: asyncio.Transport) -> None:
    """TCP_NODELAY: asyncio leaves it off where the listening socket was made without a protocol number, and a packet
    that follows another one then waits for the client's delayed acknowledgement, 40 ms."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (sockets.AF_INET, sockets.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
