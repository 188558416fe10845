"""The methods of the server that ask or change all nodes at once, beyond emits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from sio_pg_adapter.cluster.sockets import RemoteSocket
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.local.registry import ALL
from sio_pg_adapter.log.names import EVERYBODY, namespace_name, text_names
from sio_pg_adapter.log.records import Outgoing
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import TIMEOUT

H = TypeVar("H", bound=Callable[..., Any])

FETCH_TIMEOUT = 5.0
"""How long nodes may take to name their clients, in seconds."""


class ClusterMethods:
    """The methods of :class:`sio_pg_adapter.AsyncServer` that ask or change all nodes.

    The other nodes are known by the locks that show that they live. A node that was killed is neither counted nor
    waited for, even if it is killed while it is waited for.
    """

    manager: AsyncPostgresManager
    async_handlers: bool

    # -- which nodes and clients there are -----------------------------------------------------------------
    async def server_count(self) -> int:
        """Return how many nodes live, including this one.

        :raises StoreUnavailable: if the database does not answer.
        """
        node = await self.manager.started()
        return len(await node.requests.others()) + 1

    async def fetch_sockets(
        self,
        room: Any = None,
        namespace: str | None = None,
        *,
        local: bool = False,
        timeout: float = FETCH_TIMEOUT,
    ) -> list[RemoteSocket]:
        """Return the clients of all nodes that are connected now.

        Sessions that are away are not among them. A client that comes back is among them once it has got what it
        missed.

        :param room: only clients in this room, or in any of several in a list. A client's sid is a room, too.
        :param local: only clients of this node. No other node is asked.
        :param timeout: seconds for the other nodes to answer.
        :raises NoAnswer: if a node did not answer. Its ``answers`` has those of the others.
        :raises StoreUnavailable: if the database cannot be reached.
        """
        name, rooms = namespace_name(namespace), text_names(room, "room") or (EVERYBODY,)
        seconds = _seconds(timeout)
        return await (await self.manager.started()).sockets.fetch(name, rooms, seconds, self, local=local)

    # -- from server to server -------------------------------------------------------------------------------
    @overload
    def on_server_event(self, event: H, *, namespace: str | None = None) -> H: ...

    @overload
    def on_server_event(self, event: str, *, namespace: str | None = None) -> Callable[[H], H]: ...

    @overload
    def on_server_event(self, event: str, handler: H, *, namespace: str | None = None) -> H: ...

    def on_server_event(self, event: Any, handler: Any = None, *, namespace: str | None = None) -> Any:
        """Register a handler for what other nodes send by :meth:`server_side_emit` and :meth:`server_side_call`.

        As a decorator: ``@sio.on_server_event("name")``, or ``@sio.on_server_event`` on a function of that name. An
        event of a namespace has one handler, and a later one takes its place. Its exceptions are logged, and reported
        to :meth:`server_side_call`.

        :param handler: ``def handler(*args)``, or an ``async`` one. It returns this node's answer.
        :param namespace: only events that are sent in this namespace.
        """
        if callable(event) and handler is None:
            event, handler = getattr(event, "__name__", None), event
        if not isinstance(event, str) or not event or not (handler is None or callable(handler)):
            raise ConfigurationError(
                f"on_server_event takes an event's name and a function, not {event!r} and {handler!r}"
            )
        if handler is None:
            return lambda function: self.on_server_event(event, function, namespace=namespace)
        if (name := namespace_name(namespace)) == ALL:
            raise ConfigurationError('on_server_event takes the name of one namespace, not "*"')
        self.manager.server_event_handlers[name, event] = handler
        return handler

    async def server_side_call(
        self, event: str, *args: Any, namespace: str | None = None, timeout: float = 60
    ) -> dict[str, Any]:
        """Send an event to all other nodes, and wait for what their handlers return.

        :param namespace: the namespace whose handlers are called.
        :param timeout: seconds.
        :returns: the answers by node id. This node is not asked: it can call its own function. Nodes without a
                  handler of the event are left out, and so are those that are gone before they answer.
        :raises NoAnswer: if a node that lives did not answer in time. Its ``answers`` has the others'.
        :raises HandlerFailed: if a handler raised. Its ``answers`` has the others'.
        """
        name, seconds = namespace_name(namespace), _seconds(timeout)
        return await (await self.manager.started()).server_events.call(name, event, args, seconds)

    # -- many clients ----------------------------------------------------------------------------------------
    async def broadcast_call(
        self,
        event: str,
        data: Any = None,
        room: Any = None,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        skip_room: Any = None,
        timeout: float = 60,
    ) -> dict[str, Any]:
        """Send an event to clients of all nodes, and wait for all their acknowledgements. It is not stored.

        :param room: clients in this room, or in any of several in a list. ``None``: everybody in the namespace.
        :param skip_room: a room, or several in a list, whose members are not asked.
        :param timeout: seconds.
        :returns: the answers by sid, each as :meth:`call` returns it. Empty if no client is connected.
        :raises NoAnswer: if not all who were asked answered, with their sids in ``missing`` and the answers that came
                          in ``answers``. At once if those who are missing are gone, or their node is.
        :raises NotSerializable: before anything is sent.
        """
        if not self.async_handlers:
            raise RuntimeError("Cannot use broadcast_call() when async_handlers is False.")
        seconds = _seconds(timeout)
        outgoing = Outgoing.encoded(
            event,
            data,
            namespace=namespace,
            room=room,
            skip_sid=skip_sid,
            skip_room=skip_room,
            json=self.manager.json,
        )
        return await (await self.manager.started()).broadcast_calls.call(outgoing, event, seconds)


def _seconds(timeout: float) -> float:
    TIMEOUT.check("timeout", timeout)
    return float(timeout)
