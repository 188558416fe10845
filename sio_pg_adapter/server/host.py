"""The server, as the intake, a CONNECT and the endings see it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from sio_pg_adapter.local.client import Client
from sio_pg_adapter.local.registry import Registry
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.node import Node
from sio_pg_adapter.wire import upstream
from sio_pg_adapter.wire.frames import FrameMaker
from sio_pg_adapter.wire.transport import close_transport

Middleware = Callable[..., Awaitable[None]]


class Host:
    """A Socket.IO server, as the intake, a CONNECT and the endings see it.

    :param sio: the server. It has no type here, because its module imports this one.
    :param middlewares: the functions that run before the connect handler.
    """

    def __init__(self, sio: Any, manager: AsyncPostgresManager, middlewares: Registry) -> None:
        self._sio = sio
        self._manager = manager
        self.middlewares = middlewares
        self.eio = sio.eio
        self.environ: dict[str, dict[str, Any]] = sio.environ
        self.always_connect: bool = sio.always_connect
        self.reason = sio.reason
        self.frames = FrameMaker(sio.packet_class)
        self.counters = manager.counters
        self._last_handler: tuple[Any, int] = (None, 0)
        self._last_takes_auth = True

    async def node(self) -> Node:
        """Return the node, started at the first use.

        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated.
        """
        return await self._manager.started()

    @property
    def running_node(self) -> Node | None:
        """The node, if it is started."""
        return self._manager.node

    def admit(self, node: Node, eio_sid: str, namespace: str, presented: Any) -> Client | None:
        """Return a new client. ``None`` if its connection is closed, or has one in the namespace already."""
        return self._manager.admit(eio_sid, namespace, presented, start=node.cursor.offset)

    def forget(self, client: Client) -> None:
        """Take a client out of this process after its node has stopped."""
        self._manager.basic_disconnect(client.sid, client.namespace)

    def serves(self, namespace: str) -> bool:
        """Whether clients may connect to a namespace."""
        sio = self._sio
        known = (*sio.handlers, *sio.namespace_handlers)
        return bool(namespace in known or sio.namespaces == "*" or namespace in sio.namespaces)

    def stores(self, namespace: str) -> bool:
        """Whether the events of a namespace are stored, and its sessions recovered."""
        return namespace not in self._manager.unstored

    @property
    def handles_in_tasks(self) -> bool:
        """Whether each event is handled in a task of its own."""
        return bool(self._sio.async_handlers)

    def handle_event(
        self, eio_sid: str, namespace: str | None, ack_id: int | None, data: Any
    ) -> Coroutine[Any, Any, None]:
        """Have the application handle an event of a client."""
        return upstream.handle_event(self._sio, eio_sid, namespace, ack_id, data)

    async def trigger(self, event: str, namespace: str, *args: Any) -> Any:
        """Call the application's handler of an event."""
        return await upstream.trigger(self._sio, event, namespace, *args)

    def handles(self, event: str, namespace: str) -> bool:
        """Whether the application has a handler of an event in a namespace."""
        handler, _ = upstream.handler_of(self._sio, event, namespace)
        return handler is not None

    async def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the application that is not async, such as an option, and return its result."""
        return await self._sio._call_function(function, *args)  # noqa: SLF001 - the server of this package

    def takes_auth(self, namespace: str) -> bool:
        """Whether the application's connect handler takes a third argument, the client's auth."""
        handler, leading = upstream.handler_of(self._sio, "connect", namespace)
        if handler is None:
            return True
        if self._last_handler != (handler, leading):  # most servers have one, and reading a signature takes long
            self._last_handler, self._last_takes_auth = (handler, leading), _takes(handler, leading + 3)
        return self._last_takes_auth


def _takes(handler: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(handler).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a callable without a signature
        return True
    return True


async def hang_up(host: Host, eio_sid: str) -> None:
    """Close an Engine.IO connection, if it is open, in a way after which clients come back by themselves."""
    socket = host.eio.sockets.get(eio_sid)
    if socket is not None:
        await close_transport(socket)
