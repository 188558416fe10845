"""The ends of connections, and the work that they need.

A client may drop, be kicked, be too slow, have its session taken over, or be sent away because the server stops.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from typing import Any

from socketio import packet

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.local.client import Client
from sio_pg_adapter.local.clients import Clients
from sio_pg_adapter.local.handling import handling
from sio_pg_adapter.local.rooms import Rooms
from sio_pg_adapter.options import ConnectionStateRecovery
from sio_pg_adapter.store.pruner import Pruner
from sio_pg_adapter.store.sessions import Sessions
from sio_pg_adapter.tasks import Tasks
from sio_pg_adapter.wire.frames import FrameMaker

from .host import Host, hang_up
from .strays import Strays

GOODBYE_WAIT = 10.0
"""How long a stop waits for disconnect handlers, in seconds."""

RELEASE_RETRY = 1.0
"""Seconds between tries to store the end of a connection while the database is away."""

logger = logging.getLogger("sio_pg_adapter")


class Endings:
    """Ends the connections of a node.

    :ivar leaving: clients whose end is under way, by namespace and sid.
    """

    def __init__(
        self,
        host: Host,
        frames: FrameMaker,
        recovery: ConnectionStateRecovery | None,
        *,
        clients: Clients,
        rooms: Rooms,
        sessions: Sessions,
        pruner: Pruner,
        tasks: Tasks,
    ) -> None:
        self._host = host
        self._frames = frames
        self._recovery = recovery
        self._rooms = rooms
        self._sessions = sessions
        self._pruner = pruner
        self._tasks = tasks
        self.leaving: dict[tuple[str, str], Client] = {}
        if recovery is not None:
            strays = Strays(
                lambda: [*clients.on_connections(), *self.leaving.values()], sessions, recovery.window, tasks
            )
            sessions.on_unknown = strays.suspect

    # -- what calls for an end ---------------------------------------------------------------------------
    def kicked(self, client: Client, data: str | None) -> None:
        """The cursor met a kick of a client of this node.

        :param data: the session data of the session that ended, as JSON.
        """
        client.end_session(data=None if data is None else json.loads(data), deleted=True)
        if not client.connected:
            return  # its connect is being decided, and notices
        client.put(self._frames.packet(packet.DISCONNECT, client.namespace))
        self._rooms.depart(client)
        self._tasks.spawn(self.leave(client, self._host.reason.SERVER_DISCONNECT), "disconnect")

    def taken(self, client: Client) -> None:
        """The cursor met a claim of the session of a client of this node: the client has come back elsewhere."""
        connected = client.connected
        if client.closed is None:
            client.close(self._host.reason.TRANSPORT_CLOSE)
        self._rooms.depart(client)
        self._tasks.spawn(hang_up(self._host, client.eio_sid), "takeover")
        if connected:
            self.leaving[client.namespace, client.sid] = client
            self._tasks.spawn(self.leave(client, self._host.reason.TRANSPORT_CLOSE), "leave")

    def broken(self, client: Client) -> None:
        """An event could not be sent. The client leaves in this tick, and recovers from the log."""
        self.taken(client)

    def slow(self, client: Client) -> None:
        """A client reads more slowly than it is sent. It is disconnected, and recovers from the log."""
        self._tasks.spawn(client.connection.cut(), "cut")

    async def say_goodbye(self) -> None:
        """Close all connections in a way that makes clients recover on another node."""
        closing: list[asyncio.Task[Any]]
        closing = [asyncio.create_task(hang_up(self._host, eio_sid)) for eio_sid in list(self._host.eio.sockets)]
        closing += [asyncio.create_task(client.gone.wait()) for client in self.leaving.values()]
        if closing:
            _, late = await asyncio.wait(closing, timeout=GOODBYE_WAIT)
            for task in late:
                task.cancel()

    # -- an end ------------------------------------------------------------------------------------------
    async def leave(self, client: Client, reason: str) -> None:
        """Do the work of the end of a client's connection.

        The client leaves the node's rooms now. Then its disconnect handler runs. Then its session is released. A
        session that is over for good is deleted before the handler runs, so that its pid is dead at once.
        """
        if not client.begin_end():
            await client.gone.wait()
            return
        ended_at = time.monotonic()
        self._rooms.depart(client)  # its own list of rooms stays
        key = (client.namespace, client.sid)
        self.leaving[key] = client
        stored = True
        try:
            if client.ended:
                stored = await _stores(client, self._delete_session(client))
            if client.accepted:
                await self._run_handlers(client, reason)
            if stored:
                stored = await _stores(client, self._release(client, ended_at))
            if not stored:
                self._tasks.spawn(self._store_later(client, ended_at), "release later")
        finally:
            client.finish()
            if self.leaving.get(key) is client:
                del self.leaving[key]

    async def _delete_session(self, client: Client) -> None:
        if client.held is not None:
            data = await self._sessions.end(client.held)
            if data is not None:
                client.end_session(data=json.loads(data), deleted=True)

    async def _release(self, client: Client, ended_at: float) -> None:
        """Let the session go, unless it is deleted. If it was claimed elsewhere, this ends the wait of that claim."""
        if client.held is None or self._recovery is None:
            return
        window = 0.0 if client.ended else self._recovery.window
        await self._sessions.release(client.held, seconds=window, since=max(0.0, time.monotonic() - ended_at))
        if window is not None:
            self._pruner.look_in(window)

    async def _store_later(self, client: Client, ended_at: float) -> None:
        """Store the end of a connection that ended while the database was away. Until then its session does not
        expire."""
        while client.held is not None:
            await asyncio.sleep(RELEASE_RETRY)  # nothing announces that the database is back
            if client.ended and not await _stores(client, self._delete_session(client)):
                continue
            if await _stores(client, self._release(client, ended_at)):
                return

    async def _run_handlers(self, client: Client, reason: str) -> None:
        events = ["disconnect"]
        if self._host.handles("disconnecting", client.namespace):
            events.insert(0, "disconnecting")
        with handling(client):
            for event in events:
                try:
                    await self._host.trigger(event, client.namespace, client.sid, reason)
                except Exception:  # the application's handler failed. The session is released all the same
                    logger.exception("the %s handler of %s failed", event, client.label)


async def _stores(client: Client, work: Coroutine[Any, Any, None]) -> bool:
    """Store the end of a connection. Return whether that worked."""
    try:
        await work
    except SioPgError as e:
        logger.warning("the end of a connection could not be stored, trying again: %s: %s", client.label, e)
        return False
    return True
