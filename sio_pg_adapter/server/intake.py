"""Where the packets of clients come in, and what goes back to them."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from typing import Any

from engineio.exceptions import EngineIOError
from engineio.packet import NOOP, Packet
from socketio import packet

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.local.client import Client
from sio_pg_adapter.local.clients import Clients
from sio_pg_adapter.log.names import text_name
from sio_pg_adapter.wire.frames import FrameMaker
from sio_pg_adapter.wire.incoming import ACKS, EVENTS, Incoming, NotAPacket, take_post
from sio_pg_adapter.wire.transport import TrafficCounter

from .connect import Connect
from .endings import Endings
from .host import Host, hang_up
from .rate_limit import RateLimit

logger = logging.getLogger("sio_pg_adapter")


class Intake:
    """Takes the messages of the clients of a server.

    :param incoming: puts packets together.
    :param json: the server's module to encode acknowledgements with.
    :param connect_timeout: seconds until a connection without a client is closed. ``None``: it stays.
    """

    def __init__(
        self,
        host: Host,
        clients: Clients,
        frames: FrameMaker,
        incoming: Incoming,
        traffic: TrafficCounter,
        json: Any,
        connect_timeout: float | None,
    ) -> None:
        self._host = host
        self._clients = clients
        self._frames = frames
        self._incoming = incoming
        self._traffic = traffic
        self._json = json
        self._limit = RateLimit()
        self._connect_timeout = connect_timeout
        self._joining: dict[str, float] = {}  # connections, and when they must have a client, in order
        self._timing: asyncio.AbstractEventLoop | None = None  # where the timer runs

    def opened(self, eio_sid: str) -> None:
        """An Engine.IO connection was opened."""
        if self._connect_timeout is not None:
            loop = asyncio.get_running_loop()
            if self._timing is not loop:  # one timer for all, because each takes memory
                self._timing = loop
                self._joining.clear()  # a former loop has closed them
                loop.call_later(self._connect_timeout, self._close_unused, loop)
            self._joining[eio_sid] = loop.time() + self._connect_timeout

    def _close_unused(self, loop: asyncio.AbstractEventLoop) -> None:
        """The time is up in which the oldest connection may be without a client."""
        for eio_sid, until in list(self._joining.items()):
            if until > loop.time():
                loop.call_at(until, self._close_unused, loop)
                return
            del self._joining[eio_sid]
            if not self._clients.by_socket.get(eio_sid):
                logger.info("a connection is closed: nobody joined a namespace within connect_timeout: %s", eio_sid)
                self._host.eio.start_background_task(hang_up, self._host, eio_sid)
        self._timing = None

    def event_at_once(self, eio_sid: str, text: str, context: Context) -> bool:
        """A client sent an event in one message. Return whether a task handles it.

        If not, :meth:`message` is called.

        :param context: of the task that reads from the client. The handler runs in a copy of it.
        """
        if not self._host.handles_in_tasks or self._incoming.is_pending(eio_sid):
            return False
        try:
            pkt = self._incoming.take(eio_sid, text)
        except NotAPacket:
            return False
        started = self._host.handle_event(eio_sid, pkt.namespace, pkt.id, pkt.data)
        try:
            context.run(started.send, None)
        except StopIteration:
            return True
        started.close()
        raise RuntimeError("python-socketio waits before it makes the task of a handler")

    async def post(self, socket: Any, environ: dict[str, Any]) -> None:
        try:
            await take_post(socket, environ, self._traffic)
        except EngineIOError as e:
            logger.warning("a connection is closed, and its client comes back: %s: %s", self._names(socket.sid), e)
            await hang_up(self._host, socket.sid)
            self._host.eio.sockets[socket.sid] = socket  # Engine.IO answers this request only if it finds it there
            raise

    async def message(self, eio_sid: str, data: Any) -> None:
        """A client sent a message."""
        try:
            pkt = self._incoming.take(eio_sid, data)
        except NotAPacket as e:
            logger.warning("a connection is closed, and its client comes back: %s: %s", self._names(eio_sid), e)
            await hang_up(self._host, eio_sid)
            return
        if pkt is None:
            return  # binary parts are still to come
        if pkt.packet_type in EVENTS:
            await self._host.handle_event(eio_sid, pkt.namespace, pkt.id, pkt.data)
        elif pkt.packet_type in ACKS:
            self._acknowledged(eio_sid, pkt.namespace or "/", pkt.id, pkt.data)
        elif pkt.packet_type == packet.CONNECT:
            await self._connect(eio_sid, pkt.namespace or "/", pkt.data)
        else:
            await self._disconnect(eio_sid, pkt.namespace or "/")

    def _names(self, eio_sid: str) -> str:
        """Return the names of the clients of a connection, for log lines."""
        return ", ".join(client.label for client in self._clients.by_socket.get(eio_sid, {}).values()) or eio_sid

    async def _connect(self, eio_sid: str, namespace: str, presented: Any) -> None:
        try:
            text_name(namespace, "namespace")
            served = self._host.serves(namespace)
        except SioPgError as e:
            logger.warning("a CONNECT is refused: %s: %s", eio_sid, e)
            served = False
        connect = Connect(self._host, self._limit, eio_sid, namespace, presented)
        if served:
            await connect.run()
        else:
            await connect.refuse()

    def _acknowledged(self, eio_sid: str, namespace: str, ack_id: int, data: Any) -> None:
        node = self._host.running_node
        client = self._clients.of_socket(eio_sid, namespace)
        if node is None or not node.callbacks.acknowledged(client, ack_id, data):
            who = f"{eio_sid} [{namespace}]" if client is None else client.label
            logger.warning("a client acknowledged an event that nobody waits for: %s", who)

    async def _disconnect(self, eio_sid: str, namespace: str) -> None:
        """A DISCONNECT packet: the client leaves for good."""
        client = self._clients.of_socket(eio_sid, namespace)
        if client is None:
            return
        self._incoming.forget(eio_sid)
        client.end_session()
        client.close(self._host.reason.CLIENT_DISCONNECT)  # it needs no answer
        if client.connected:
            await self._leave([client], self._host.reason.CLIENT_DISCONNECT)

    async def closed(self, eio_sid: str, reason: str) -> None:
        """The Engine.IO connection ended, for whatever reason. Its sessions can be recovered."""
        self._incoming.forget(eio_sid)
        self._joining.pop(eio_sid, None)
        clients = list(self._clients.by_socket.get(eio_sid, {}).values())
        if reason == self._host.reason.TRANSPORT_CLOSE and any(_timed_out(c.connection.socket) for c in clients):
            reason = self._host.reason.PING_TIMEOUT
        node = self._host.running_node
        for client in clients:
            if node is not None and client.held is not None and client.breaks_off:
                node.returns.broke_off(client.held.id, client.after)
            client.close(reason)
        try:
            await self._leave([client for client in clients if client.connected], reason)
        finally:
            self._host.environ.pop(eio_sid, None)
        self._end_poll(eio_sid)

    def _end_poll(self, eio_sid: str) -> None:
        """Answer a poll of a connection that has ended. Otherwise it stays open for a ping interval and timeout."""
        socket = self._host.eio.sockets.get(eio_sid)
        if socket is not None and not socket.upgraded:
            socket.queue.put_nowait(Packet(NOOP))

    async def _leave(self, clients: list[Client], reason: str) -> None:
        node = self._host.running_node
        if node is None:
            for client in clients:
                self._host.forget(client)
            return
        assert isinstance(node.endings, Endings)
        # In tasks of their own: the web server may cancel the one that handles the request.
        ends = [node.tasks.spawn(node.endings.leave(client, reason), "leave") for client in clients]
        await asyncio.shield(asyncio.gather(*ends))

    def acknowledge(self, eio_sid: str, pkt: packet.Packet) -> bool:
        """Send what a handler returned, behind the client's replay. ``False`` if there is no such client."""
        client, node = self._clients.of_socket(eio_sid, pkt.namespace or "/"), self._host.running_node
        if client is None or node is None:
            return False
        try:
            node.delivery.send_behind_replay(client, self._frames.ack(pkt, self._json))
        except SioPgError as e:
            logger.error("an event is not acknowledged: %s (%s)", e, client.label)  # noqa: TRY400 - not this code's error
        return True


def _timed_out(socket: Any) -> bool:
    """Whether the connection ended because a ping went unanswered.

    Engine.IO's reader and its ping loop time out at about the same time. If the reader is first, it reports
    "transport close". Its timeout runs from the last packet and may end a little earlier, so 80% of ``ping_timeout``
    are enough.
    """
    pinged: float | None = socket.last_ping
    return pinged is not None and time.time() - pinged > 0.8 * socket.server.ping_timeout
