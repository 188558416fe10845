"""``AsyncServer``: python-socketio's, with connection state recovery."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, overload

import socketio

from sio_pg_adapter.errors import ConfigurationError, SioPgError
from sio_pg_adapter.handler_types import Event, On
from sio_pg_adapter.local.clients import Client, State, handling
from sio_pg_adapter.log.records import first_named, namespace_name, text_name
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import ConnectionStateRecovery, is_async, is_seconds, recovery_options

from .admin import Instrumented
from .cluster_api import ClusterMethods
from .endings import Endings
from .intake import HearingServer
from .rate_limit import Pace

Middleware = Callable[[str, dict[str, Any], Any], Awaitable[None]]

ExpiryHandler = Callable[[str, str, Any], Any]

M = TypeVar("M", bound=Middleware)
E = TypeVar("E", bound=ExpiryHandler)

logger = logging.getLogger("sio_pg_adapter")


class AsyncServer(ClusterMethods, HearingServer):
    """A ``socketio.AsyncServer`` whose clients come back.

    All of upstream's options, methods and decorators work unchanged.

    :param client_manager: an :class:`AsyncPostgresManager`.
    :param connection_state_recovery: a :class:`ConnectionStateRecovery`, ``True`` for its defaults, a dict of
                                      its keys; ``None`` or ``False``: off.
    :raises ConfigurationError: naming the option that is wrong.
    """

    event: Event
    on: On

    def __init__(
        self,
        client_manager: Any = None,
        *args: Any,
        connection_state_recovery: ConnectionStateRecovery | Mapping[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> None:
        for name in kwargs:  # upstream takes any keyword: without this, recovery would just stay off
            if difflib.get_close_matches(name, ["connection_state_recovery"]):
                raise ConfigurationError(
                    f"AsyncServer has no option {name!r}: did you mean connection_state_recovery?"
                )
        recovery = recovery_options(connection_state_recovery)
        if client_manager is not None and not callable(getattr(client_manager, "set_server", None)):
            raise ConfigurationError(  # of which only the type is told: it may be a DSN
                "client_manager takes AsyncPostgresManager(...) or another manager: not "
                f"a {type(client_manager).__name__}"
            )
        self._ours = isinstance(client_manager, AsyncPostgresManager)
        if recovery is not None and not self._ours:
            raise ConfigurationError(
                "connection_state_recovery needs client_manager=AsyncPostgresManager(...), which keeps the sessions"
            )
        self.middlewares: dict[str, list[Middleware]] = {}
        self.endings = Endings(self)
        self.pace = Pace()
        self._expiry_handlers: dict[str, ExpiryHandler] = {}
        self._instrumented: list[Instrumented] = []
        super().__init__(client_manager, *args, **kwargs)
        if self._ours:
            self.manager.recovery = recovery
            self.manager.on_taken = self.endings.taken
            self.manager.on_kicked = self.endings.kicked
            self.manager.on_slow = self.endings.slow
            self.manager.on_expired = self._expired
            self.manager.on_closing = self.endings.say_goodbye
        if recovery is not None and hasattr(self.eio.logger, "addFilter"):
            self.eio.logger.addFilter(_without_pid)

    # -- registration ------------------------------------------------------------------------------------
    @overload
    def use(self, middleware: M, namespace: str = "/") -> M: ...

    @overload
    def use(self, middleware: str | None = None, namespace: str = "/") -> Callable[[M], M]: ...

    def use(self, middleware: Middleware | str | None = None, namespace: str = "/") -> Any:
        """Register a function that runs before the ``connect`` handler; also as a decorator.

        :param middleware: ``async def middleware(sid, environ, auth)``; it raises
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
            raise ConfigurationError(f"use() takes an async function(sid, environ, auth): not {middleware!r}")
        self.middlewares.setdefault(where, []).append(middleware)
        return middleware

    @overload
    def on_session_expired(self, handler: E, *, namespace: str = "*") -> E: ...

    @overload
    def on_session_expired(self, handler: None = None, *, namespace: str = "*") -> Callable[[E], E]: ...

    def on_session_expired(self, handler: ExpiryHandler | None = None, *, namespace: str = "*") -> Any:
        """Register what is called when a disconnected session's time is up and nobody came back; a decorator.

        In one process of the cluster, at least once and normally once, with no transaction open. From the first
        start of a node with a handler on, only nodes with one delete expired sessions of its namespaces.

        :param handler: ``async def handler(sid, namespace, session)``. An exception is logged and counts as
                        called.
        :param namespace: whose sessions; without it, those of all namespaces.
        """
        where = _registered(namespace)
        if handler is None:
            return lambda function: self.on_session_expired(function, namespace=where)
        if not callable(handler):
            raise ConfigurationError(f"on_session_expired takes a function(sid, namespace, session): not {handler!r}")
        if not self._ours or self.manager.recovery is None:
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
        except Exception:  # of the application's: it counts as called
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
        """As upstream's, for the Socket.IO Admin UI. What goes to its namespace is not stored.

        It is best effort, too: no event or handler of the application's fails because it could not be shown.
        """
        if not self._ours:
            return super().instrument(auth, mode, read_only, server_id, namespace, server_stats_interval)
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

    # -- what applications call --------------------------------------------------------------------------
    def recovered(self, sid: str, namespace: str = "/") -> bool:
        """Has this client's connection recovered an earlier session?"""
        if not self._ours:
            return False
        client: Client | None = self.manager.clients.get(text_name(sid, "sid"), namespace_name(namespace))
        return client is not None and client.recovered

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
        """Send an event: upstream's, and

        :param connection: an asyncpg connection, an SQLAlchemy ``AsyncConnection`` or ``AsyncSession``, or a psycopg
                           ``AsyncConnection``: the event is sent if and when its transaction commits. What it
                           raises passes through.
        :param volatile: ``True``: not stored, and so never replayed.
        :raises NotSerializable: before anything is stored or sent; names the key or the argument.
        :raises StoreUnavailable: the database is away; says whether the event may be stored.
        """
        if not self._ours:
            if volatile or connection is not None:
                raise ConfigurationError("volatile= and connection= need client_manager=AsyncPostgresManager(...)")
            await super().emit(event, data, to, room, skip_sid, namespace, callback, ignore_queue)
            return
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
            logger.debug("not told to the Admin UI: %s", e)

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
        """Send an event to a client of any node and wait for its acknowledgement; as upstream's.

        :raises socketio.exceptions.TimeoutError: if none came in time. Nothing is stored in any case.
        """
        if not self._ours:
            return await super().call(event, data, to, sid, namespace, timeout, ignore_queue)
        if to is None and sid is None:
            raise ValueError("Cannot use call() to broadcast.")
        if not self.async_handlers:
            raise RuntimeError("Cannot use call() when async_handlers is False.")
        if timeout is not None and not is_seconds(timeout):
            raise ConfigurationError(f"timeout takes seconds, or None to wait for ever: not {timeout!r}")
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
            self.manager.callbacks.forget(callback)
        return args if len(args) > 1 else args[0] if args else None

    # Upstream's take a namespace that is 0, say, for the default one
    async def enter_room(self, sid: str, room: str, namespace: str | None = None) -> None:
        """Add a client of any node, or a session that is away, to a room; in effect on return."""
        await super().enter_room(sid, room, self._checked(namespace))

    async def leave_room(self, sid: str, room: str, namespace: str | None = None) -> None:
        """Remove a client of any node, or a session that is away, from a room; in effect on return."""
        await super().leave_room(sid, room, self._checked(namespace))

    async def close_room(self, room: str, namespace: str | None = None) -> None:
        """Remove everybody from a room, on all nodes, and sessions that are away; in effect on return."""
        await super().close_room(room, self._checked(namespace))

    def rooms(self, sid: str, namespace: str | None = None) -> list[str]:
        """The rooms of a client of this node; :meth:`fetch_rooms` knows those of any."""
        rooms: list[str] = super().rooms(sid, self._checked(namespace))
        return rooms

    def _checked(self, namespace: str | None) -> str | None:
        return namespace_name(namespace) if self._ours else namespace

    async def fetch_rooms(self, sid: str, namespace: str = "/") -> list[str]:
        """The rooms of a client of any node, or of a session that is away; its own among them.

        :raises KeyError: if there is no such client.
        """
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client = self.manager.clients.get(sid, namespace)
        if client is not None and client.held is None:
            return list(self.manager.get_rooms(sid, namespace))
        await self.manager.ready()
        rooms = await self.manager.sessions.rooms(namespace, sid)
        if rooms is None:
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")
        return [sid, *rooms]

    async def get_session(self, sid: str, namespace: str | None = None) -> Any:
        """The user session of a client of any node, or of one that is away.

        :raises KeyError: if there is none.
        """
        if not self._ours:
            return await super().get_session(sid, namespace)
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client: Client | None = self.manager.clients.get(sid, namespace)
        if client is not None and (client.held is None or client.ended):
            return client.data
        await self.manager.ready()
        data = await self.manager.sessions.data(namespace, sid)
        if data is None:
            if client is not None:
                return client.data
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")
        return data

    async def save_session(self, sid: str, session: Any, namespace: str | None = None) -> None:
        """Store the user session of a client of any node, or of one that is away. Stored on return.

        :raises NotSerializable: if it has no JSON form, naming the key; nothing is changed then. Clients without
                                 a recoverable session take any object, as upstream.
        :raises KeyError: if there is no such client.
        """
        if not self._ours:
            await super().save_session(sid, session, namespace)
            return
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client: Client | None = self.manager.clients.get(sid, namespace)
        if client is not None and client.opening is not None:
            await asyncio.wait((client.opening,))
        if client is not None and not client.recoverable:
            client.data = session
            return
        data = self.manager.encode_session(session)
        if client is not None and (client.held is None or client.ended):
            client.data = session
            return
        await self.manager.ready()
        saved = await self.manager.sessions.save(namespace, sid, data, client and client.held)
        if client is not None:
            client.data = session
        elif not saved:
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")

    async def disconnect(self, sid: str, namespace: str | None = None, ignore_queue: bool = False) -> None:
        """Disconnect a client of any node and end its session for good, also while it is away."""
        if not self._ours:
            await super().disconnect(sid, namespace, ignore_queue)
            return
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client: Client | None = self.manager.clients.get(sid, namespace)
        if client is not None and client.held is None and not client.recoverable:
            if client.connected:
                self.endings.kicked(client, None)
                await self._gone(client)
            elif client.state is State.CONNECTING:
                client.ended = True
            return
        if client is not None and client.held is None and client.state is State.CONNECTING:
            if client.opening is not None:
                await asyncio.wait((client.opening,))
            else:
                client.ended = True  # in its own connect handler: it has no session yet
                return
        await self.manager.ready()
        await self.manager.kick(sid, namespace)
        if client is not None:
            await self._gone(client)

    async def _gone(self, client: Client) -> None:
        if handling.get() is not client and client.state is State.LEFT:
            await client.gone.wait()

    async def shutdown(self) -> None:
        """Stop background work, and the manager. Safe to call twice."""
        for instrumented in self._instrumented:
            await instrumented.shutdown()
        if self.eio.service_task_handle is not None:  # upstream awaits it even where it has ended
            await super().shutdown()
        if self._ours:
            await self.manager.aclose()


def _registered(namespace: object) -> str:
    """The namespace that something is registered for."""
    try:
        return namespace_name(namespace)
    except SioPgError as e:
        raise ConfigurationError(str(e)) from e


_PID = re.compile(r'("pid"\s*:\s*")[^"]*')


def _without_pid(record: logging.LogRecord) -> bool:
    """Engine.IO's log shows packets when its level is INFO: a pid is a secret between client and server."""
    if record.args and isinstance(record.args, tuple):
        record.args = tuple(_PID.sub(r"\1...", a) if isinstance(a, str) else a for a in record.args)
    return True
