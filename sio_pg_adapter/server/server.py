"""``AsyncServer``: python-socketio's server, with connection state recovery."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import socketio

from sio_pg_adapter.errors import ConfigurationError, SioPgError
from sio_pg_adapter.handler_types import Event, On
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.handling import handled
from sio_pg_adapter.local.rooms import Rooms
from sio_pg_adapter.log.names import first_named, namespace_name, text_name
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import ConnectionStateRecovery, is_async, is_seconds, recovery_options
from sio_pg_adapter.store.pruner import Pruner
from sio_pg_adapter.store.sessions import Sessions, encode_session
from sio_pg_adapter.tasks import Tasks
from sio_pg_adapter.wire import upstream
from sio_pg_adapter.wire.incoming import ACKS, Incoming

from .admin import Instrumented
from .cluster_api import ClusterMethods
from .endings import Endings
from .host import Host, Middleware
from .intake import Intake

ExpiryHandler = Callable[[str, str, Any], Any]

M = TypeVar("M", bound=Middleware)
E = TypeVar("E", bound=ExpiryHandler)

logger = logging.getLogger("sio_pg_adapter")


class AsyncServer(ClusterMethods, socketio.AsyncServer):
    """A ``socketio.AsyncServer`` whose clients recover their connections.

    All of python-socketio's options, methods and decorators work unchanged.

    :param client_manager: an :class:`AsyncPostgresManager`.
    :param connection_state_recovery: a :class:`ConnectionStateRecovery`, ``True`` for its defaults, or a dict of its
                                      keys. ``None`` or ``False``: off.
    :raises ConfigurationError: naming the option that is wrong.
    """

    event: Event
    on: On
    manager: AsyncPostgresManager

    def __init__(
        self,
        client_manager: Any = None,
        *args: Any,
        connection_state_recovery: ConnectionStateRecovery | Mapping[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> None:
        for name in kwargs:  # python-socketio takes any keyword: without this check, recovery would just stay off
            if difflib.get_close_matches(name, ["connection_state_recovery"]):
                raise ConfigurationError(
                    f"AsyncServer has no option {name!r}. Did you mean connection_state_recovery?"
                )
        recovery = recovery_options(connection_state_recovery)
        if not isinstance(client_manager, AsyncPostgresManager):
            raise ConfigurationError(  # only the type is shown: it may be a DSN
                f"client_manager takes AsyncPostgresManager(...), not a {type(client_manager).__name__}. With "
                "another manager use socketio.AsyncServer."
            )
        self.middlewares: dict[str, list[Middleware]] = {}
        self._expiry_handlers: dict[str, ExpiryHandler] = {}
        self._instrumented: list[Instrumented] = []
        super().__init__(client_manager, *args, **kwargs)
        self._host = Host(self, client_manager, self.middlewares)
        self._intake = Intake(
            self._host,
            client_manager.clients,
            self._host.frames,
            Incoming(self.packet_class, upstream.pending_packets(self), self.eio),
            client_manager.traffic,
            client_manager.json,
        )
        client_manager.serve(recovery, self._make_endings, self._expired)
        if recovery is not None and hasattr(self.eio.logger, "addFilter"):
            self.eio.logger.addFilter(_without_pid)

    def _make_endings(self, *, rooms: Rooms, sessions: Sessions, pruner: Pruner, tasks: Tasks) -> Endings:
        return Endings(
            self._host,
            self._host.frames,
            self.manager.recovery,
            self.manager.counters,
            rooms=rooms,
            sessions=sessions,
            pruner=pruner,
            tasks=tasks,
        )

    # -- registration ------------------------------------------------------------------------------------
    @overload
    def use(self, middleware: M, namespace: str = "/") -> M: ...

    @overload
    def use(self, middleware: str | None = None, namespace: str = "/") -> Callable[[M], M]: ...

    def use(self, middleware: Middleware | str | None = None, namespace: str = "/") -> Any:
        """Register a function that runs before the ``connect`` handler. It works as a decorator, too.

        :param middleware: ``async def middleware(sid, environ, auth)``. It raises
                           ``socketio.exceptions.ConnectionRefusedError`` to refuse. As a decorator it may be the
                           namespace instead: ``@sio.use("/chat")``.
        """
        where = _registered(middleware if isinstance(middleware, str) else namespace)
        if middleware is None or isinstance(middleware, str):

            def register(function: Middleware) -> Middleware:
                self.use(function, where)
                return function

            return register
        if not is_async(middleware):
            raise ConfigurationError(f"use() takes an async function(sid, environ, auth), not {middleware!r}")
        self.middlewares.setdefault(where, []).append(middleware)
        return middleware

    @overload
    def on_session_expired(self, handler: E, *, namespace: str = "*") -> E: ...

    @overload
    def on_session_expired(self, handler: None = None, *, namespace: str = "*") -> Callable[[E], E]: ...

    def on_session_expired(self, handler: ExpiryHandler | None = None, *, namespace: str = "*") -> Any:
        """Register a handler for sessions whose time is up without a recovery. It works as a decorator, too.

        It is called in one process of the cluster, at least once and normally once, with no transaction open. Once a
        node with a handler has started, only nodes with one delete the expired sessions of its namespaces.

        :param handler: ``async def handler(sid, namespace, session)``. An exception is logged, and counts as a call.
        :param namespace: the namespace whose sessions it is for. Without it, those of all namespaces.
        """
        where = _registered(namespace)
        if handler is None:
            return lambda function: self.on_session_expired(function, namespace=where)
        if not callable(handler):
            raise ConfigurationError(f"on_session_expired takes a function(sid, namespace, session), not {handler!r}")
        if self.manager.recovery is None:
            raise ConfigurationError("on_session_expired needs connection_state_recovery, which is off")
        self._expiry_handlers[where] = handler
        self.manager.expiry_namespaces = sorted(self._expiry_handlers)
        return handler

    async def _expired(self, sid: str, namespace: str, session: Any) -> None:
        handler = self._expiry_handlers.get(namespace) or self._expiry_handlers.get("*")
        try:
            result = handler(sid, namespace, session) if handler is not None else None
            if inspect.isawaitable(result):
                await result
        except Exception:  # the application's handler failed, which counts as a call
            logger.exception("the handler of expired sessions failed")

    def instrument(
        self,
        auth: Any = None,
        mode: str = "development",
        read_only: bool = False,
        server_id: str | None = None,
        namespace: str = "/admin",
        server_stats_interval: int = 2,
    ) -> Any:
        """Connect the Socket.IO Admin UI, as python-socketio does. Events in its namespace are not stored.

        This is best effort: no event or handler of the application fails because it could not be reported.
        """
        self.manager.unstored.add(namespace)
        instrumented = Instrumented(
            self,
            auth=auth,
            mode=mode,
            read_only=read_only,
            server_id=server_id,
            namespace=namespace,
            server_stats_interval=server_stats_interval,
        )
        self._instrumented.append(instrumented)
        return instrumented

    # -- events ------------------------------------------------------------------------------------------
    async def emit(
        self,
        event: str,
        data: Any = None,
        to: Any = None,
        room: Any = None,
        skip_sid: Any = None,
        namespace: str | None = None,
        callback: Callable[..., Any] | None = None,
        ignore_queue: bool = False,
        *,
        connection: Any = None,
        volatile: bool = False,
    ) -> None:
        """Send an event. The parameters of ``socketio.AsyncServer.emit`` mean the same here.

        :param connection: an asyncpg connection, an SQLAlchemy ``AsyncConnection`` or ``AsyncSession``, or a psycopg
                           ``AsyncConnection``. The event is sent if and when its transaction commits. Errors of the
                           connection pass through.
        :param volatile: ``True``: the event is not stored, and so never replayed.
        :raises NotSerializable: before anything is stored or sent. It names the key or the argument.
        :raises StoreUnavailable: if the database does not answer. It says whether the event may be stored.
        """
        namespace, room = namespace_name(namespace), first_named(to, room)
        self.logger.info('emitting event "%s" to %s [%s]', event, room or "all", namespace)
        more = {"connection": connection} if connection is not None else {}
        if volatile:
            more["volatile"] = True
        try:
            await self.manager.emit(
                event,
                data,
                namespace,
                room=room,
                skip_sid=skip_sid,
                callback=callback,
                ignore_queue=ignore_queue,
                **more,
            )
        except SioPgError as e:
            if namespace not in self.manager.unstored:
                raise
            logger.debug("not reported to the Admin UI: %s", e)

    async def call(
        self,
        event: str,
        data: Any = None,
        to: str | None = None,
        sid: str | None = None,
        namespace: str | None = None,
        timeout: float | None = 60,
        ignore_queue: bool = False,
    ) -> Any:
        """Send an event to a client of any node, and wait for its acknowledgement. Nothing is stored.

        :raises socketio.exceptions.TimeoutError: if none came in time.
        """
        if to is None and sid is None:
            raise ValueError("Cannot use call() to broadcast.")
        if not self.async_handlers:
            raise RuntimeError("Cannot use call() when async_handlers is False.")
        if timeout is not None and not is_seconds(timeout):
            raise ConfigurationError(f"timeout takes seconds, or None to wait for ever, not {timeout!r}")
        answered: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()

        def callback(*args: Any) -> None:
            if not answered.done():
                answered.set_result(args)

        try:
            await self.emit(
                event,
                data,
                room=first_named(to, sid),
                namespace=namespace,
                callback=callback,
                ignore_queue=ignore_queue,
            )
            args = await asyncio.wait_for(answered, timeout)
        except TimeoutError:
            raise socketio.exceptions.TimeoutError from None
        finally:
            if self.manager.node is not None:
                self.manager.node.callbacks.forget(callback)
        return args if len(args) > 1 else args[0] if args else None

    # -- rooms: python-socketio's take a namespace that is 0 for the default one ---------------------------
    async def enter_room(self, sid: str, room: str, namespace: str | None = None) -> None:
        """Add a client of any node, or a session that is away, to a room. It has taken effect on return."""
        await super().enter_room(sid, room, namespace_name(namespace))

    async def leave_room(self, sid: str, room: str, namespace: str | None = None) -> None:
        """Remove a client of any node, or a session that is away, from a room. It has taken effect on return."""
        await super().leave_room(sid, room, namespace_name(namespace))

    async def close_room(self, room: str, namespace: str | None = None) -> None:
        """Remove everybody from a room, on all nodes, and sessions that are away. It has taken effect on return."""
        await super().close_room(room, namespace_name(namespace))

    def rooms(self, sid: str, namespace: str | None = None) -> list[str]:
        """Return the rooms of a client of this node. :meth:`fetch_rooms` knows those of any node."""
        rooms: list[str] = super().rooms(sid, namespace_name(namespace))
        return rooms

    async def fetch_rooms(self, sid: str, namespace: str = "/") -> list[str]:
        """Return the rooms of a client of any node, or of a session that is away, its own first.

        :raises KeyError: if there is no such client.
        """
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client = self.manager.clients.addressed(sid, namespace)
        if client is not None and client.held is None:
            return list(self.manager.get_rooms(sid, namespace))
        rooms = await (await self._host.node()).sessions.rooms(namespace, sid)
        if rooms is None:
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")
        return [sid, *rooms]

    # -- sessions ----------------------------------------------------------------------------------------
    def recovered(self, sid: str, namespace: str = "/") -> bool:
        """Whether the connection of a client of this node has recovered an earlier session."""
        client = self.manager.clients.addressed(text_name(sid, "sid"), namespace_name(namespace))
        return client is not None and client.recovered

    async def get_session(self, sid: str, namespace: str | None = None) -> Any:
        """Return the user session of a client of any node, or of one that is away.

        :raises KeyError: if there is none.
        """
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client = self.manager.clients.addressed(sid, namespace)
        if client is not None and (client.held is None or client.ended):
            return client.data
        data = await (await self._host.node()).sessions.data(namespace, sid)
        if data is None:
            if client is not None:
                return client.data
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")
        return data

    async def save_session(self, sid: str, session: Any, namespace: str | None = None) -> None:
        """Store the user session of a client of any node, or of one that is away. It is stored on return.

        :raises NotSerializable: if it has no JSON form, naming the key. Then nothing has changed. Clients without a
                                 recoverable session take any object, as in python-socketio.
        :raises KeyError: if there is no such client.
        """
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client = self.manager.clients.addressed(sid, namespace)
        if client is not None:
            await client.opened_or_failed()
            if not client.recoverable:
                client.save(session)
                return
        data = encode_session(session)
        if client is not None and (client.held is None or client.ended):
            client.save(session)
            return
        node = await self._host.node()
        saved = await node.sessions.save(namespace, sid, data, None if client is None else client.held)
        if client is not None:
            client.save(session)
        elif not saved:
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")

    async def disconnect(self, sid: str, namespace: str | None = None, ignore_queue: bool = False) -> None:
        """Disconnect a client of any node, and end its session for good, also while it is away."""
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client = self.manager.clients.addressed(sid, namespace)
        node = await self._host.node()
        if client is not None and client.held is None:
            if not client.recoverable:
                self._end_unstored(node.endings, client)
                await _gone(client)
                return
            if client.state is State.CONNECTING and not client.is_opening:
                client.end_session()  # in its own connect handler: nothing is stored yet
                return
            await client.opened_or_failed()
        await self.manager.kick(sid, namespace)
        if client is not None:
            await _gone(client)

    @staticmethod
    def _end_unstored(endings: Any, client: Client) -> None:
        if client.connected:
            endings.kicked(client, None)
        elif client.state is State.CONNECTING:
            client.end_session()

    async def shutdown(self) -> None:
        """Stop background work, and the manager. Safe to call twice."""
        for instrumented in self._instrumented:
            await instrumented.shutdown()
        if self.eio.service_task_handle is not None:  # python-engineio awaits it even if it has ended
            await super().shutdown()
        await self.manager.aclose()

    # -- python-socketio's private hooks -------------------------------------------------------------------
    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> Any:
        self._intake.opened(self.eio.sockets[eio_sid])
        return await super()._handle_eio_connect(eio_sid, environ)

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        await self._intake.message(eio_sid, data)

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        await self._intake.closed(eio_sid, reason)

    async def _send_packet(self, eio_sid: str, pkt: socketio.packet.Packet) -> None:
        if pkt.packet_type not in ACKS or not self._intake.acknowledge(eio_sid, pkt):
            await super()._send_packet(eio_sid, pkt)


async def _gone(client: Client) -> None:
    """Wait until a client that was disconnected has left, but not in its own handler."""
    if handled() is not client and client.state is State.LEFT:
        await client.gone.wait()


def _registered(namespace: object) -> str:
    """Return the namespace that something is registered for."""
    try:
        return namespace_name(namespace)
    except SioPgError as e:
        raise ConfigurationError(str(e)) from e


_PID = re.compile(r'("pid"\s*:\s*")[^"]*')


def _without_pid(record: logging.LogRecord) -> bool:
    """Hide pids in Engine.IO's log, which shows packets at level INFO. A pid is a secret."""
    if record.args and isinstance(record.args, tuple):
        record.args = tuple(_PID.sub(r"\1...", a) if isinstance(a, str) else a for a in record.args)
    return True
