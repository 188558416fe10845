"""The methods of the server that see all events: middlewares of incoming events, and listeners."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

import socketio

from sio_pg_adapter.errors import ConfigurationError, SioPgError
from sio_pg_adapter.log.names import namespace_name
from sio_pg_adapter.manager import AsyncPostgresManager

H = TypeVar("H", bound=Callable[..., Any])

Registry = dict[str, list[Callable[..., Any]]]
"""Functions of the application, by namespace."""


class EventMethods(socketio.AsyncServer):
    """The methods of :class:`sio_pg_adapter.AsyncServer` about all events of a namespace."""

    manager: AsyncPostgresManager
    _event_middlewares: Registry
    _listeners: Registry

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
        """
        return _register(self._listeners, "on_any", handler, namespace)

    @overload
    def on_any_outgoing(self, handler: H, namespace: str = "/") -> H: ...

    @overload
    def on_any_outgoing(self, handler: str | None = None, namespace: str = "/") -> Callable[[H], H]: ...

    def on_any_outgoing(self, handler: Any = None, namespace: str = "/") -> Any:
        """Register a listener for all events that this node sends to its clients, whichever node emitted them.

        It works as a decorator, too. It is called once for each client, in the order of sending, in a task that
        holds up no event. Events of a replay are among them. Acknowledgements are not. An exception is logged.

        :param handler: ``def handler(event, sid, *args)``, or an ``async`` one. As a decorator it may be the
                        namespace instead: ``@sio.on_any_outgoing("/chat")``.
        """
        return _register(self.manager.watch.handlers, "on_any_outgoing", handler, namespace)

    async def _handle_event_internal(
        self,
        server: Any,
        sid: str,
        eio_sid: str,
        data: Any,
        namespace: str,
        id: int | None,  # noqa: A002
    ) -> None:
        event, args = data[0], list(data[1:])
        for listener in self._listeners.get(namespace, ()):
            await _result(listener(event, sid, *args))
        for middleware in self._event_middlewares.get(namespace, ()):
            if await _result(middleware(sid, event, args)) is False:
                return
        await super()._handle_event_internal(server, sid, eio_sid, [event, *args], namespace, id)


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _register(registry: Registry, call: str, function: Any, namespace: str) -> Any:
    try:
        where = namespace_name(function if isinstance(function, str) else namespace)
    except SioPgError as e:
        raise ConfigurationError(str(e)) from e
    if function is None or isinstance(function, str):
        return lambda decorated: _register(registry, call, decorated, where)
    if not callable(function):
        raise ConfigurationError(f"{call}() takes a function, not {function!r}")
    registry.setdefault(where, []).append(function)
    return function
