"""The methods of the synchronous server that register functions. The functions run in threads."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar, overload

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.options import is_async

from .admin import Instrumented
from .background import Background
from .loop_server import LoopServer

F = TypeVar("F", bound=Callable[..., Any])


class EventMethods:
    """The methods of :class:`sio_pg_adapter.Server` that register functions of the application.

    A registration is kept, because a forked process makes a server of its own.
    """

    _server: LoopServer

    def __init__(self) -> None:
        self._registrations: list[Callable[[LoopServer], Any]] = []

    @abstractmethod
    def _ready(self) -> tuple[Background, LoopServer]:
        """Return the event loop of this process, and the server on it."""

    async def _run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        background, _ = self._ready()
        return await background.handlers.run(function, *args)

    def _register_again(self) -> None:
        """Register all functions with a server that takes the place of another one."""
        for registration in self._registrations:
            registration(self._server)

    def _register(self, registration: Callable[[LoopServer], Any]) -> None:
        registration(self._server)
        self._registrations.append(registration)

    def _in_thread(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def called(*args: Any) -> Any:
            return await self._run_in_thread(function, *args)

        return called

    @overload
    def use(self, middleware: F, namespace: str = "/") -> F: ...

    @overload
    def use(self, middleware: str | None = None, namespace: str = "/") -> Callable[[F], F]: ...

    def use(self, middleware: Any = None, namespace: str = "/") -> Any:
        """Register a function that runs before the ``connect`` handler. It works as a decorator, too.

        :param middleware: ``def middleware(sid, environ, auth)``. It raises
                           ``socketio.exceptions.ConnectionRefusedError`` to refuse. As a decorator it may be the
                           namespace instead: ``@sio.use("/chat")``.
        :param namespace: ``"*"``: all namespaces, see :meth:`AsyncServer.use`.
        """
        return self._listen("use", middleware, namespace)

    @overload
    def use_event(self, middleware: F, namespace: str = "/") -> F: ...

    @overload
    def use_event(self, middleware: str | None = None, namespace: str = "/") -> Callable[[F], F]: ...

    def use_event(self, middleware: Any = None, namespace: str = "/") -> Any:
        """Register a function that runs before the handler of each event. See :meth:`AsyncServer.use_event`.

        :param middleware: ``def middleware(sid, event, args)``. It is a plain function, which runs in a thread.
        """
        return self._listen("use_event", middleware, namespace)

    @overload
    def on_any(self, handler: F, namespace: str = "/") -> F: ...

    @overload
    def on_any(self, handler: str | None = None, namespace: str = "/") -> Callable[[F], F]: ...

    def on_any(self, handler: Any = None, namespace: str = "/") -> Any:
        """Register a listener for all events that clients send. See :meth:`AsyncServer.on_any`.

        :param handler: ``def handler(event, sid, *args)``. It is a plain function, which runs in a thread.
        """
        return self._listen("on_any", handler, namespace)

    @overload
    def on_any_outgoing(self, handler: F, namespace: str = "/") -> F: ...

    @overload
    def on_any_outgoing(self, handler: str | None = None, namespace: str = "/") -> Callable[[F], F]: ...

    def on_any_outgoing(self, handler: Any = None, namespace: str = "/") -> Any:
        """Register a listener for all events that this node sends. See :meth:`AsyncServer.on_any_outgoing`.

        :param handler: ``def handler(event, sid, *args)``. It is a plain function, which runs in a thread.
        """
        return self._listen("on_any_outgoing", handler, namespace)

    def _listen(self, name: str, function: Any, namespace: str) -> Any:
        if function is None or isinstance(function, str):
            where = namespace if function is None else function
            return lambda listener: self._listen(name, listener, where)
        called = self._in_thread(_function(name, function))
        self._register(lambda server: getattr(server, name)(called, namespace))
        return function

    @overload
    def on_session_expired(self, handler: F, *, namespace: str = "*") -> F: ...

    @overload
    def on_session_expired(self, handler: None = None, *, namespace: str = "*") -> Callable[[F], F]: ...

    def on_session_expired(self, handler: Any = None, *, namespace: str = "*") -> Any:
        """Register a handler for sessions whose time is up without a recovery. It works as a decorator, too.

        See :meth:`AsyncServer.on_session_expired`.

        :param handler: ``def handler(sid, namespace, session)``. An exception is logged, and counts as a call.
        :param namespace: the namespace whose sessions it is for. Without it, those of all namespaces.
        """
        if handler is None:
            return lambda function: self.on_session_expired(function, namespace=namespace)
        called = self._in_thread(_function("on_session_expired", handler))
        self._register(lambda server: server.on_session_expired(called, namespace=namespace))
        return handler

    @overload
    def on_server_event(self, event: F, *, namespace: str | None = None) -> F: ...

    @overload
    def on_server_event(self, event: str, *, namespace: str | None = None) -> Callable[[F], F]: ...

    @overload
    def on_server_event(self, event: str, handler: F, *, namespace: str | None = None) -> F: ...

    def on_server_event(self, event: Any, handler: Any = None, *, namespace: str | None = None) -> Any:
        """Register a handler for what other nodes send. See :meth:`AsyncServer.on_server_event`.

        :param handler: ``def handler(*args)``. It returns this node's answer.
        :param namespace: only events that are sent in this namespace.
        """
        if callable(event) and handler is None:
            event, handler = getattr(event, "__name__", None), event
        if handler is None:
            return lambda function: self.on_server_event(event, function, namespace=namespace)
        called = self._in_thread(_function("on_server_event", handler))
        self._register(lambda server: server.on_server_event(event, called, namespace=namespace))
        return handler

    def instrument(self, auth: Any = None, *args: Any, **options: Any) -> Any:
        """Connect the Socket.IO Admin UI. See :meth:`AsyncServer.instrument`.

        :param auth: if it is a function, it runs in a thread.
        """
        checked = self._in_thread(auth) if callable(auth) else auth
        instrumented = Instrumented(self)
        self._register(lambda server: instrumented.adopt(server.instrument(checked, *args, **options)))
        return instrumented


def _function(name: str, function: object) -> Callable[..., Any]:
    if not callable(function) or is_async(function):
        raise ConfigurationError(f"{name}() takes a function that is not async, not {function!r}")
    return function
