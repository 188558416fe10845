"""The methods of the server that register functions: middlewares, listeners, and handlers of expired sessions."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeVar, overload

import socketio

from sio_pg_adapter.errors import ConfigurationError, SioPgError
from sio_pg_adapter.local.registry import Registry
from sio_pg_adapter.log.names import namespace_name
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import is_async

from .host import Middleware

ExpiryHandler = Callable[[str, str, Any], Any]

M = TypeVar("M", bound=Middleware)
E = TypeVar("E", bound=ExpiryHandler)
H = TypeVar("H", bound=Callable[..., Any])

logger = logging.getLogger("sio_pg_adapter")


class EventMethods(socketio.AsyncServer):
    """The methods of :class:`sio_pg_adapter.AsyncServer` that register functions of the application."""

    manager: AsyncPostgresManager
    _event_middlewares: Registry
    _listeners: Registry
    middlewares: Registry
    _expiry_handlers: dict[str, ExpiryHandler]

    @overload
    def use(self, middleware: M, namespace: str = "/") -> M: ...

    @overload
    def use(self, middleware: str | None = None, namespace: str = "/") -> Callable[[M], M]: ...

    def use(self, middleware: Middleware | str | None = None, namespace: str = "/") -> Any:
        """Register a function that runs before the ``connect`` handler. It works as a decorator, too.

        :param middleware: ``async def middleware(sid, environ, auth)``. It raises
                           ``socketio.exceptions.ConnectionRefusedError`` to refuse. As a decorator it may be the
                           namespace instead: ``@sio.use("/chat")``.
        :param namespace: ``"*"``: all namespaces, except the Admin UI's. The function then takes
                          ``(namespace, sid, environ, auth)``.
        """
        where = _registered(middleware if isinstance(middleware, str) else namespace)
        if middleware is None or isinstance(middleware, str):
            return lambda function: self.use(function, where)
        if not is_async(middleware):
            raise ConfigurationError(f"use() takes an async function(sid, environ, auth), not {middleware!r}")
        self.middlewares.add(where, middleware)
        return middleware

    @overload
    def on_session_expired(self, handler: E, *, namespace: str = "*") -> E: ...

    @overload
    def on_session_expired(self, handler: None = None, *, namespace: str = "*") -> Callable[[E], E]: ...

    def on_session_expired(self, handler: ExpiryHandler | None = None, *, namespace: str = "*") -> Any:
        """Register a handler for sessions whose time is up without a recovery. It works as a decorator, too.

        It is called in one process of the cluster, at least once and normally once, with no transaction open. Once a
        node with a handler has started, only such nodes delete the expired sessions of the handler's namespaces.

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
            logger.exception("the handler of expired sessions failed: %s [%s]", sid, namespace)

    @overload
    def use_event(self, middleware: H, namespace: str = "/") -> H: ...

    @overload
    def use_event(self, middleware: str | None = None, namespace: str = "/") -> Callable[[H], H]: ...

    def use_event(self, middleware: Any = None, namespace: str = "/") -> Any:
        """Register a function that runs before the handler of each event that a client sends.

        It works as a decorator, too. Functions run in the order of their registration. If one returns ``False``, or
        raises, the event is dropped: no later one runs, no handler does, and the client gets no acknowledgement. What
        it raises goes where the exceptions of handlers go.

        :param middleware: ``def middleware(sid, event, args)``, or an ``async`` one. ``args`` is a list, which it may
                           change. As a decorator it may be the namespace instead: ``@sio.use_event("/chat")``.
        :param namespace: ``"*"``: all namespaces, except the Admin UI's. The function then takes
                          ``(namespace, sid, event, args)``.
        """
        return _register(self._event_middlewares, "use_event", middleware, namespace)

    @overload
    def on_any(self, handler: H, namespace: str = "/") -> H: ...

    @overload
    def on_any(self, handler: str | None = None, namespace: str = "/") -> Callable[[H], H]: ...

    def on_any(self, handler: Any = None, namespace: str = "/") -> Any:
        """Register a listener for all events that clients send, which runs before middlewares and handlers.

        It works as a decorator, too. Its exceptions go where those of handlers go, and the event is dropped.

        :param handler: ``def handler(event, sid, *args)``, or an ``async`` one. As a decorator it may be the
                        namespace instead: ``@sio.on_any("/chat")``.
        :param namespace: ``"*"``: all namespaces, except the Admin UI's. The function then takes
                          ``(event, namespace, sid, *args)``.
        """
        return _register(self._listeners, "on_any", handler, namespace)

    @overload
    def on_any_outgoing(self, handler: H, namespace: str = "/") -> H: ...

    @overload
    def on_any_outgoing(self, handler: str | None = None, namespace: str = "/") -> Callable[[H], H]: ...

    def on_any_outgoing(self, handler: Any = None, namespace: str = "/") -> Any:
        """Register a listener for all events that this node sends to its clients, whichever node emitted them.

        It works as a decorator, too. It is called once for each client, in the order of sending, in a task that
        holds up no event. While a listener is slower than the events, up to 32 MiB of them wait in memory. Beyond
        that it misses events until it has caught up, which is logged. Events of a replay are among them.
        Acknowledgements are not. An exception is logged.

        :param handler: ``def handler(event, sid, *args)``, or an ``async`` one. As a decorator it may be the
                        namespace instead: ``@sio.on_any_outgoing("/chat")``.
        :param namespace: ``"*"``: all namespaces, except the Admin UI's. The function then takes
                          ``(event, namespace, sid, *args)``.
        """
        return _register(self.manager.watch.listeners, "on_any_outgoing", handler, namespace)

    async def _handle_event_internal(
        self,
        server: Any,
        sid: str,
        eio_sid: str,
        data: Any,
        namespace: str,
        id: int | None,
    ) -> None:
        event, args = data[0], list(data[1:])
        for listener, leading in self._listeners.of(namespace):
            await _result(listener(event, *leading, sid, *args))
        for middleware, leading in self._event_middlewares.of(namespace):
            if await _result(middleware(*leading, sid, event, args)) is False:
                return
        await super()._handle_event_internal(server, sid, eio_sid, [event, *args], namespace, id)


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _register(registry: Registry, call: str, function: Any, namespace: str) -> Any:
    where = _registered(function if isinstance(function, str) else namespace)
    if function is None or isinstance(function, str):
        return lambda decorated: _register(registry, call, decorated, where)
    if not callable(function):
        raise ConfigurationError(f"{call}() takes a function, not {function!r}")
    registry.add(where, function)
    return function


def _registered(namespace: object) -> str:
    """Return the namespace that something is registered for."""
    try:
        return namespace_name(namespace)
    except SioPgError as e:
        raise ConfigurationError(str(e)) from e
