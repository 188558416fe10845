"""How connections end: dropped, kicked, taken over, too slow, or by the server's own stop; and what each leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from engineio.packet import CLOSE
from engineio.packet import Packet as Frame
from socketio import packet

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.local.clients import Client, handling
from sio_pg_adapter.wire.frames import framed

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

    from .server import AsyncServer

GOODBYE_WAIT = 10.0
"""Seconds that a stop waits for disconnect handlers."""

LET_GO_RETRY = 1.0
"""Seconds between tries to store the end of a connection while the database is away."""

logger = logging.getLogger("sio_pg_adapter")


class Endings:
    """Ends the connections of one server.

    :ivar leaving: clients whose end is under way, by namespace and sid.
    """

    def __init__(self, server: AsyncServer) -> None:
        self._server = server
        self.leaving: dict[tuple[str, str], Client] = {}

    @property
    def _manager(self) -> AsyncPostgresManager:
        manager: AsyncPostgresManager = self._server.manager
        return manager

    def kicked(self, client: Client, data: str | None) -> None:
        """The cursor met a kick of a client of this node; synchronous."""
        client.ended = True
        client.held = None
        if data is not None:
            client.data = self._manager.json.loads(data)
        if not client.connected:
            return  # its connect is being decided: that will see it
        pkt = self._server.packet_class(packet.DISCONNECT, namespace=client.namespace)
        client.put([framed(pkt.encode())])
        self._manager.depart(client)
        self._manager.spawn(self.leave(client, self._server.reason.SERVER_DISCONNECT), "sio_pg disconnect")

    def taken(self, client: Client) -> None:
        """The cursor met a claim of the session of a client of this node: it has come back elsewhere."""
        connected = client.connected
        client.closed = client.closed or self._server.reason.TRANSPORT_CLOSE
        self._manager.depart(client)
        self._manager.spawn(hang_up(self._server, client.eio_sid), "sio_pg takeover")
        if connected:
            self.leaving[client.namespace, client.sid] = client
            self._manager.spawn(self.leave(client, self._server.reason.TRANSPORT_CLOSE), "sio_pg leave")

    def slow(self, client: Client) -> None:
        """A client takes less than it is sent: cut, it comes back to the log, which keeps it for nothing."""
        if client.cut or client.socket.closing or client.socket.closed:
            return
        client.cut = True  # each further record of this tick finds it over the limit, too
        self._manager.counters.cut += 1
        logger.warning("a client was cut: more waited for it than max_queued_packets or max_queued_bytes")
        self._manager.spawn(hang_up(self._server, client.eio_sid, drop_queue=True), "sio_pg cut")

    async def leave(self, client: Client, reason: str) -> None:
        """All that the end of a client's connection takes.

        Its rooms are taken down now; then its disconnect handler runs; then the session is let go. One that was
        ended for good is deleted first: the pid is dead at once.
        """
        if client.gone.is_set():
            return
        at = time.monotonic()
        self._manager.depart(client)
        key = (client.namespace, client.sid)
        self.leaving[key] = client
        try:
            if client.ended and client.held is not None:
                data = await self._manager.sessions.end(client.held)
                if data is not None:
                    client.data = self._manager.json.loads(data)
            if client.accepted:
                await self._run_disconnect_handler(client, reason)
            if not client.ended and client.held is not None and self._manager.recovery is not None:
                window = self._manager.recovery.window
                await self._manager.sessions.release(client.held, seconds=window, since=away_since(at))
                if window is not None:
                    self._manager.pruner.look_in(window)
        except SioPgError as e:
            logger.warning("the end of a connection could not be stored, trying again: %s", e)
            self._manager.spawn(self._let_go_later(client, at), "sio_pg let go later")
        finally:
            client.gone.set()
            if self.leaving.get(key) is client:
                del self.leaving[key]

    async def _let_go_later(self, client: Client, at: float) -> None:
        """The database was away when a connection ended: until that is stored its session would never run out."""
        while client.held is not None and self._manager.recovery is not None:
            await asyncio.sleep(LET_GO_RETRY)  # the database has nothing that tells when it is back
            try:
                if client.ended:
                    await self._manager.sessions.end(client.held)
                else:
                    window = self._manager.recovery.window
                    await self._manager.sessions.release(client.held, seconds=window, since=away_since(at))
                return
            except SioPgError as e:
                logger.debug("the end of a connection could not be stored yet: %s", e)

    async def _run_disconnect_handler(self, client: Client, reason: str) -> None:
        token = handling.set(client)
        try:
            await self._server._trigger_event("disconnect", client.namespace, client.sid, reason)
        except Exception:  # of the application's: the session is to be let go all the same
            logger.exception("the disconnect handler failed")
        finally:
            handling.reset(token)

    async def say_goodbye(self) -> None:
        """Close all connections in the way after which clients come back, elsewhere, to their sessions."""
        closing: list[asyncio.Task[Any]]
        closing = [asyncio.create_task(hang_up(self._server, eio_sid)) for eio_sid in list(self._server.eio.sockets)]
        closing += [asyncio.create_task(client.gone.wait()) for client in self.leaving.values()]
        if closing:
            _, late = await asyncio.wait(closing, timeout=GOODBYE_WAIT)
            for task in late:
                task.cancel()


async def hang_up(server: AsyncServer, eio_sid: str, *, drop_queue: bool = False) -> None:
    """Close an Engine.IO connection in the way after which clients come back by themselves.

    :param drop_queue: do not send what is queued, which may be more than the client ever takes.
    """
    socket = server.eio.sockets.get(eio_sid)
    if socket is None or socket.closed or socket.closing:
        return
    while drop_queue and not socket.queue.empty():
        socket.queue.get_nowait()
        socket.queue.task_done()
    socket.queue.put_nowait(Frame(CLOSE))  # ends a poll
    socket.queue.put_nowait(None)  # ends the websocket's writer, which closes it
    await socket.close(wait=False, abort=True, reason=server.reason.TRANSPORT_CLOSE)


def away_since(at: float) -> float:
    """Seconds since a moment of the monotonic clock."""
    return max(0.0, time.monotonic() - at)
