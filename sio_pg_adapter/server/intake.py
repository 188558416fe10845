"""The side of the server on which its clients are heard: upstream's private ways in, and what goes back on them."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from typing import Any

import socketio
from engineio.exceptions import EngineIOError
from socketio import packet

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.log.records import text_name
from sio_pg_adapter.wire.frames import ack_frames
from sio_pg_adapter.wire.incoming import ACKS, EVENTS, Incoming, NoPacket, take_post

from .connect import Connect
from .endings import Endings, hang_up

logger = logging.getLogger("sio_pg_adapter")


class HearingServer(socketio.AsyncServer):
    """Takes what the clients of :class:`sio_pg_adapter.AsyncServer` send.

    :ivar endings: ends their connections.
    """

    _ours: bool
    endings: Endings

    @functools.cached_property
    def _incoming(self) -> Incoming:
        return Incoming(self.packet_class, self._binary_packet, self.eio)

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> Any:
        if self._ours:
            socket = self.eio.sockets[eio_sid]
            socket.handle_post_request = functools.partial(self._handle_post, socket)
        return await super()._handle_eio_connect(eio_sid, environ)

    async def _handle_post(self, socket: Any, environ: dict[str, Any]) -> None:
        try:
            await take_post(socket, environ)
        except EngineIOError as e:
            logger.warning("a connection is closed, so that the client tries again: %s", e)
            await hang_up(self, socket.sid)
            raise

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        if not self._ours:
            await super()._handle_eio_message(eio_sid, data)
            return
        try:
            pkt = self._incoming.take(eio_sid, data)
        except NoPacket as e:
            logger.warning("a connection is closed, so that the client tries again: %s", e)
            await hang_up(self, eio_sid)
            return
        if pkt is None:
            return
        if pkt.packet_type in EVENTS:
            await self._handle_event(eio_sid, pkt.namespace, pkt.id, pkt.data)
        elif pkt.packet_type in ACKS:
            await self._handle_ack(eio_sid, pkt.namespace, pkt.id, pkt.data)
        elif pkt.packet_type == packet.CONNECT:
            await self._handle_connect(eio_sid, pkt.namespace, pkt.data)
        else:
            await self._handle_disconnect(eio_sid, pkt.namespace, self.reason.CLIENT_DISCONNECT)

    async def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        if not self._ours:
            await super()._handle_connect(eio_sid, namespace, data)
            return
        asked = namespace = namespace or "/"
        try:
            text_name(namespace, "namespace")
        except SioPgError as e:
            logger.warning("refused: %s", e)
            namespace = ""  # of nobody's
        known = (*self.handlers, *self.namespace_handlers)
        served = namespace in known or self.namespaces == "*" or namespace in self.namespaces
        if not namespace or not served:
            refusal = self.packet_class(packet.CONNECT_ERROR, data="Unable to connect", namespace=asked)
            await self._send_packet(eio_sid, refusal)
            return
        await Connect(self, eio_sid, namespace, data).run()

    async def _handle_disconnect(self, eio_sid: str, namespace: str | None, reason: str | None = None) -> None:
        """A DISCONNECT packet: the client leaves for good."""
        if not self._ours:
            await super()._handle_disconnect(eio_sid, namespace, reason)
            return
        client = self.manager.clients.of_socket(eio_sid, namespace or "/")
        if client is None:
            return
        self._binary_packet.pop(eio_sid, None)
        client.ended = True
        client.closed = reason or self.reason.CLIENT_DISCONNECT  # it needs no answer
        if client.connected:
            await self.endings.leave(client, client.closed)

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        """The Engine.IO connection ended, in whatever way: its sessions can be recovered."""
        if not self._ours:
            await super()._handle_eio_disconnect(eio_sid, reason)
            return
        self._binary_packet.pop(eio_sid, None)
        clients = list(self.manager.clients.by_socket.get(eio_sid, {}).values())
        if reason == self.reason.TRANSPORT_CLOSE and any(_timed_out(client.socket) for client in clients):
            reason = self.reason.PING_TIMEOUT
        for client in clients:
            client.closed = reason
        for client in clients:
            if client.connected:
                # On its own: the web server may cancel what handles the request.
                await asyncio.shield(self.manager.spawn(self.endings.leave(client, reason), "sio_pg leave"))
        self.environ.pop(eio_sid, None)

    async def _send_packet(self, eio_sid: str, pkt: packet.Packet) -> None:
        client = None
        if self._ours and pkt.packet_type in ACKS:
            client = self.manager.clients.of_socket(eio_sid, pkt.namespace or "/")
        if client is None:
            await super()._send_packet(eio_sid, pkt)
            return
        try:
            frames = ack_frames(pkt, self.manager.json)
        except SioPgError as e:
            logger.error("an event is not acknowledged: %s", e)  # noqa: TRY400 - not of this code
            return
        client.put_behind_replay(frames)


def _timed_out(socket: Any) -> bool:
    """Did a ping stay unanswered? Upstream's reader gives up at the same time as who looks for that, and calls it a
    closed transport; its clock began with the last packet, so the last fifth may be missing."""
    pinged: float | None = socket.last_ping
    return pinged is not None and time.time() - pinged > 0.8 * socket.server.ping_timeout
