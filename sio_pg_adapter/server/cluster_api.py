"""What the server can do on all nodes at once, beyond emits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, overload

from sio_pg_adapter.cluster.sockets import RemoteSocket
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.log.records import EVERYBODY, Kind, encode_event, namespace_name, text_names
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import is_seconds

H = TypeVar("H", bound=Callable[..., Any])

FETCH_TIMEOUT = 5.0
"""Seconds that nodes have to tell their clients."""


class ClusterMethods:
    """The methods of :class:`sio_pg_adapter.AsyncServer` that ask or change all nodes.

    Who the other nodes are is read from the locks that show that they live: one that was killed is neither counted
    nor waited for, also if it is killed while it is waited for.
    """

    manager: Any
    async_handlers: bool

    def _cluster(self) -> AsyncPostgresManager:
        if not isinstance(self.manager, AsyncPostgresManager):
            raise ConfigurationError(
                "this needs client_manager=AsyncPostgresManager(...), which knows the other nodes"
            )
        return self.manager

    # -- who is there --------------------------------------------------------------------------------------
    async def server_count(self) -> int:
        """How many nodes are there, this one included.

        :raises StoreUnavailable: if the database cannot tell.
        """
        manager = self._cluster()
        await manager.ready()
        return len(await manager.peers.others()) + 1

    async def fetch_sockets(
        self, room: Any = None, namespace: str | None = None, *, timeout: float = FETCH_TIMEOUT
    ) -> list[RemoteSocket]:
        """The clients that are connected now, of all nodes.

        Sessions that are away are not among them; a client that comes back is from when it has got what it missed.

        :param room: only those in a room, or in any of several in a list; a client's sid is a room, too.
        :param timeout: seconds for the other nodes to answer.
        :raises NoAnswer: if one did not; its ``answers`` has those of the others.
        :raises StoreUnavailable: if the database cannot be reached.
        """
        manager = self._cluster()
        rooms = text_names(room, "room") or (EVERYBODY,)
        return await manager.census.sockets(namespace_name(namespace), rooms, _seconds(timeout))

    # -- from server to server -------------------------------------------------------------------------------
    @overload
    def on_server_event(self, event: H) -> H: ...

    @overload
    def on_server_event(self, event: str) -> Callable[[H], H]: ...

    @overload
    def on_server_event(self, event: str, handler: H) -> H: ...

    def on_server_event(self, event: Any, handler: Any = None) -> Any:
        """Register a handler of what other nodes send by :meth:`server_side_emit` and :meth:`server_side_call`.

        As a decorator: ``@sio.on_server_event("name")``, or ``@sio.on_server_event`` on a function of that name.
        One handler an event: a later one takes its place. What it raises is logged; :meth:`server_side_call` is
        told.

        :param handler: ``def handler(*args)``, or an ``async`` one; what it returns is this node's answer.
        """
        manager = self._cluster()
        if callable(event) and handler is None:
            event, handler = getattr(event, "__name__", None), event
        if not isinstance(event, str) or not event or not (handler is None or callable(handler)):
            raise ConfigurationError(
                f"on_server_event takes an event's name and a function: not {event!r}, {handler!r}"
            )
        if handler is None:
            return lambda function: self.on_server_event(event, function)
        manager.server_events.handlers[event] = handler
        return handler

    async def server_side_emit(self, event: str, *args: Any) -> None:
        """Send an event to all other nodes, not to this one. It is not kept: who is not there now never gets it.

        :raises NotSerializable: before it is sent; names the place of what has no JSON form.
        :raises StoreUnavailable: if it could not be sent.
        """
        await self._cluster().server_events.emit(event, args)

    async def server_side_call(self, event: str, *args: Any, timeout: float = 60) -> dict[str, Any]:
        """Send an event to all other nodes, and wait for what their handlers return.

        :param timeout: seconds.
        :returns: the answers by node id. This node is not asked: it can call its own function. Nodes without a
                  handler of the event are left out, and so are those that are gone before they answer.
        :raises NoAnswer: if a node that is there did not answer in time; its ``answers`` has the others'.
        :raises HandlerFailed: if a handler raised; its ``answers`` has the others'.
        """
        return await self._cluster().server_events.call(event, args, _seconds(timeout))

    # -- many clients ----------------------------------------------------------------------------------------
    async def broadcast_call(
        self,
        event: str,
        data: Any = None,
        room: Any = None,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        timeout: float = 60,
    ) -> dict[str, Any]:
        """Send an event to clients of all nodes and wait for all their acknowledgements. It is not stored.

        :param room: to those in a room, or in any of several in a list; ``None``: to everybody in the namespace.
        :param timeout: seconds.
        :returns: the answers by sid, each as :meth:`call` returns it; empty if nobody is there.
        :raises NoAnswer: if not all who were asked answered, with their sids in ``missing`` and the answers that
                          came in ``answers``. At once, where those who are missing are gone, or their node is.
        :raises NotSerializable: before anything is sent.
        """
        manager = self._cluster()
        if not self.async_handlers:
            raise RuntimeError("Cannot use broadcast_call() when async_handlers is False.")
        name, rooms = namespace_name(namespace), text_names(room, "room") or (EVERYBODY,)
        skip_sids, seconds = text_names(skip_sid, "skip_sid"), _seconds(timeout)
        body, parts = encode_event(event, data, manager.json)
        await manager.ready()
        return await manager.polls.poll((name, rooms, skip_sids, body, parts), event, seconds)

    async def sockets_join(
        self, room: Any, rooms: Any, namespace: str | None = None, *, skip_sid: Any = None
    ) -> None:
        """Let all who are in a room enter others: clients of any node, and sessions that are away and recoverable.

        It counts from one place in the log and has taken effect on return: events emitted after it go to the members
        that it made, replayed ones too, and none emitted before it. It is one transaction that holds the log's lock:
        5,000 members took 0.8 s on a busy machine, for which all emits wait.

        :param room: whose members, of several in a list; ``None``: everybody in the namespace.
        :param rooms: the room, or several in a list, that they enter.
        :param skip_sid: who stays as they are.
        :raises ValueError: if one of ``rooms`` is a client's own; nobody has moved then.
        :raises NoAnswer: if a node did not tell in time which clients it has that are in no table, being without
                          recovery or just connecting. All others have moved.
        """
        await self._cluster().moves.members(Kind.ENTER, room, namespace, rooms, skip_sid)

    async def sockets_leave(
        self, room: Any, rooms: Any, namespace: str | None = None, *, skip_sid: Any = None
    ) -> None:
        """Let all who are in a room leave others, or that one; as :meth:`sockets_join`."""
        await self._cluster().moves.members(Kind.LEAVE, room, namespace, rooms, skip_sid)

    async def disconnect_sockets(self, room: Any, namespace: str | None = None, *, skip_sid: Any = None) -> None:
        """Disconnect all who are in a room, and end their sessions for good: clients of any node, and sessions that
        are away. Counted as :meth:`sockets_join`; disconnect handlers run after it.

        :param room: or several in a list; ``None``: everybody in the namespace.
        :param skip_sid: who stays.
        :raises NoAnswer: as :meth:`sockets_join`.
        """
        await self._cluster().moves.members(Kind.KICK, room, namespace, skip_sid=skip_sid)


def _seconds(timeout: float) -> float:
    if not is_seconds(timeout) or not 0 < timeout < math.inf:
        raise ConfigurationError(f"timeout takes seconds, more than 0: not {timeout!r}")
    return float(timeout)
