"""The client manager under a plain ``socketio.AsyncServer``, whose clients have no sessions.

python-socketio decides the connects, and ends the connections. ``server/`` does both for ``AsyncServer``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .lifecycle import Lifecycle
from .local.client import Client, State
from .local.client_manager import ClientManager
from .node import Node
from .tasks import Tasks


class PlainEndings:
    """Ends the connections of a plain server.

    :param server: the server.
    """

    def __init__(self, server: Any, tasks: Tasks) -> None:
        self._server = server
        self._tasks = tasks

    def taken(self, client: Client) -> None:
        pass

    def kicked(self, client: Client, data: str | None) -> None:
        disconnecting = self._server.disconnect(client.sid, namespace=client.namespace, ignore_queue=True)
        self._tasks.spawn(disconnecting, "disconnect")

    def broken(self, client: Client) -> None:
        self.slow(client)

    def slow(self, client: Client) -> None:
        self._tasks.spawn(client.connection.cut(), "cut")

    async def say_goodbye(self) -> None:
        pass


class PlainServerManager(Lifecycle, ClientManager):
    """The hooks that a plain server calls, and that need the node."""

    def __init__(self, make_node: Callable[[], Node]) -> None:
        ClientManager.__init__(self)
        Lifecycle.__init__(self, make_node)

    def plain_endings(self, *, tasks: Tasks, **_: object) -> PlainEndings:
        """Return what ends the connections of a plain server."""
        return PlainEndings(self.server, tasks)

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """Admit a client of a server without recovery. ``None`` if its connection has one in the namespace."""
        node = await self.started()
        client = self.admit(eio_sid, namespace, None, start=node.cursor.offset)
        return None if client is None else client.sid

    async def connect(self, sid: str, namespace: str) -> str:
        """The connect of a client without recovery was accepted: it goes live."""
        node = await self.started()
        client = self.clients.addressed(sid, namespace)
        if client is not None and client.state is State.CONNECTING:
            node.delivery.catch_up(client, node.cursor.recent, node.cursor.offset)
        return sid

    async def trigger_callback(self, sid: str, id: int, data: Any) -> None:
        """Call the callback of an event that a client acknowledged. The server does not say in which namespace."""
        node = await self.started()
        clients = [
            client for namespace in list(self.clients.by_sid) if (client := self.clients.current(sid, namespace))
        ]
        if not any(node.callbacks.acknowledged(client, id, data) for client in clients):
            self._get_logger().warning("Unknown callback received, ignoring.")
