"""The clients of this node, by namespace and sid, and by connection."""

from __future__ import annotations

from collections.abc import Iterator

from .client import Client
from .handling import handled


class Clients:
    """The clients of this node.

    :ivar by_sid: the clients of each namespace.
    :ivar by_socket: the clients of each Engine.IO connection, by namespace.
    """

    def __init__(self) -> None:
        self.by_sid: dict[str, dict[str, Client]] = {}
        self.by_socket: dict[str, dict[str, Client]] = {}
        self._unsettled: dict[str, set[Client]] = {}

    def __iter__(self) -> Iterator[Client]:
        # Copies: metrics are read in another thread.
        return (client for of_namespace in list(self.by_sid.values()) for client in list(of_namespace.values()))

    def on_connections(self) -> Iterator[Client]:
        """Return the clients of all connections. Some resume a session and do not have its sid in ``by_sid`` yet."""
        return (client for of_socket in self.by_socket.values() for client in of_socket.values())

    def add(self, client: Client) -> None:
        self.by_sid.setdefault(client.namespace, {})[client.sid] = client
        self.by_socket.setdefault(client.eio_sid, {})[client.namespace] = client
        self._unsettled.setdefault(client.namespace, set()).add(client)

    def settle(self, client: Client) -> None:
        """Note that a client is live or has left. It no longer needs the rooms it was in earlier."""
        if client.namespace in self._unsettled:
            self._unsettled[client.namespace].discard(client)
            if not self._unsettled[client.namespace]:
                del self._unsettled[client.namespace]

    def unsettled(self, namespace: str) -> set[Client]:
        """Return the clients that are neither live nor gone."""
        return self._unsettled.get(namespace, set())

    def rename(self, client: Client, sid: str) -> None:
        """Give a client the sid of the session it resumes. :meth:`add` enters it under that."""
        if self.current(client.sid, client.namespace) is client:
            _drop(self.by_sid, client.namespace, client.sid)
        client.sid = sid

    def remove(self, client: Client) -> None:
        """Forget a client, unless another one has taken its place."""
        if self.current(client.sid, client.namespace) is client:
            _drop(self.by_sid, client.namespace, client.sid)
        if self.of_socket(client.eio_sid, client.namespace) is client:
            _drop(self.by_socket, client.eio_sid, client.namespace)
        self.settle(client)

    def current(self, sid: str, namespace: str) -> Client | None:
        """Return the client that has the sid."""
        return self.by_sid.get(namespace, {}).get(sid)

    def addressed(self, sid: str, namespace: str) -> Client | None:
        """Return the client that the application means by a sid.

        In a connect or disconnect handler that is the client which the handler is about.
        """
        client = handled()
        if client is not None and client.sid == sid and client.namespace == namespace:
            return client
        return self.current(sid, namespace)

    def any_connected(self, eio_sid: str) -> bool:
        """Whether a connection has a client that is connected, in any namespace."""
        return any(client.connected for client in self.by_socket.get(eio_sid, {}).values())

    def of_socket(self, eio_sid: str, namespace: str) -> Client | None:
        return self.by_socket.get(eio_sid, {}).get(namespace)


def _drop(index: dict[str, dict[str, Client]], key: str, name: str) -> None:
    del index[key][name]
    if not index[key]:
        del index[key]
