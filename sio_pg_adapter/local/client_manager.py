"""python-socketio's client manager for the clients of this node: the questions that it answers from memory.

It needs neither a node nor a database. ``AsyncPostgresManager`` adds both.
"""

from __future__ import annotations

from typing import Any

from socketio import AsyncManager

from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.wire.transport import Connections

from .client import Client, State
from .clients import Clients
from .rooms import Rooms


class ClientManager(AsyncManager):
    """The clients of this process, as python-socketio asks about them.

    :ivar clients: the clients.
    :ivar connections: their connections.
    :ivar live_rooms: the rooms of the live ones. python-socketio's own table, ``rooms``, is behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clients = Clients()
        self.connections = Connections()
        self.live_rooms = Rooms(self.clients, self)

    def admit(self, eio_sid: str, namespace: str, presented: Any, *, start: int) -> Client | None:
        """Return a new client whose connect is being decided.

        ``None`` if its connection is closed, or has a client in the namespace already.

        :param presented: the data of its CONNECT packet.
        :param start: the offset up to which it is due nothing.
        """
        socket = self.server.eio.sockets.get(eio_sid)
        if socket is None or self.clients.of_socket(eio_sid, namespace) is not None:
            return None
        sid = self.server.eio.generate_id()
        connection = self.connections.of(socket)
        client = Client(namespace, sid, connection, Memberships(sid, start), sent=start, presented=presented)
        self.clients.add(client)
        return client

    def is_connected(self, sid: str, namespace: str) -> bool:
        client = self.clients.current(sid, namespace)
        pending = self.pending_disconnect.get(namespace, ())
        return client is not None and client.connected and sid not in pending

    def is_pre_connected(self, sid: str, namespace: str) -> bool:
        client = self.clients.current(sid, namespace)
        return client is not None and client.state is State.CONNECTING

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        client = self.clients.addressed(sid, namespace)
        return None if client is None else client.eio_sid

    def sid_from_eio_sid(self, eio_sid: str, namespace: str) -> str | None:
        client = self.clients.of_socket(eio_sid, namespace)
        return None if client is None else client.sid

    def get_namespaces(self) -> Any:
        return list(self.clients.by_sid)  # python-socketio awaits while it goes through them

    def get_rooms(self, sid: str, namespace: str) -> list[str]:
        """Return the rooms of a client of this node, its own first."""
        client = self.clients.addressed(sid, namespace)
        return [] if client is None else [client.sid, *client.memberships.current()]

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        self.pending_disconnect.setdefault(namespace, []).append(sid)
        return self.eio_sid_from_sid(sid, namespace)

    def basic_disconnect(self, sid: str, namespace: str, **_: object) -> None:
        client = self.clients.current(sid, namespace)
        if client is not None:
            self.live_rooms.depart(client)  # the node may have stopped before its connections end
        pending = self.pending_disconnect.get(namespace, [])
        if sid in pending:
            pending.remove(sid)
            if not pending:
                del self.pending_disconnect[namespace]
