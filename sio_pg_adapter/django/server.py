"""The servers for Django: handlers use the ORM, and their connections are closed as those of a view."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, iscoroutinefunction, sync_to_async
from django.db import close_old_connections

from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.server.server import AsyncServer as PlainServer
from sio_pg_adapter.sync.manager import PostgresManager
from sio_pg_adapter.sync.server import Server as SyncServer

from .settings import database_url, read_settings


class AsyncServer(PlainServer):
    """An :class:`sio_pg_adapter.AsyncServer` for Django under ASGI.

    - A handler that is a plain function runs in a thread, so it may use the ORM and block.
    - Everything that one call of a handler does with the ORM happens in one thread, by plain functions,
      ``sync_to_async`` and the asynchronous ORM alike. Afterwards Django closes the connections that it closes after
      a request: all of them, unless ``CONN_MAX_AGE`` says otherwise.

    The same is true of middlewares and of handlers of expired sessions.

    :param client_manager: without it, an ``AsyncPostgresManager`` on the database that the setting ``SIO_PG`` names.
    """

    def __init__(self, client_manager: Any = None, *args: Any, **kwargs: Any) -> None:
        if client_manager is None:
            client_manager = AsyncPostgresManager(database_url(), schema=read_settings().schema)
        super().__init__(client_manager, *args, **{"async_mode": "asgi", **kwargs})

    def use(self, middleware: Any = None, namespace: str = "/") -> Any:
        """Register a middleware, see :meth:`sio_pg_adapter.AsyncServer.use`."""
        if middleware is None or isinstance(middleware, str) or not iscoroutinefunction(middleware):
            return super().use(middleware, namespace)

        @functools.wraps(middleware)
        async def run(*args: Any) -> None:
            await _as_a_view(middleware, *args)

        super().use(run, namespace)
        return middleware

    async def _expired(self, sid: str, namespace: str, session: Any) -> None:
        await _as_a_view(super()._expired, sid, namespace, session)

    async def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        return await _as_a_view(super()._trigger_event, event, namespace, *args)

    def _get_event_handler(self, event: str, namespace: str, args: Any) -> Any:
        handler, args = super()._get_event_handler(event, namespace, args)
        return (handler if handler is None or iscoroutinefunction(handler) else _in_thread(handler)), args


class Server(SyncServer):
    """An :class:`sio_pg_adapter.Server` for Django under WSGI.

    After each call of a handler, Django closes the connections that it closes after a request: all of them, unless
    ``CONN_MAX_AGE`` says otherwise. The same is true of middlewares, listeners and callbacks.

    :param client_manager: without it, a ``PostgresManager`` on the database that the setting ``SIO_PG`` names.
    """

    def __init__(self, client_manager: Any = None, *args: Any, **kwargs: Any) -> None:
        if client_manager is None:
            client_manager = PostgresManager(database_url(), schema=read_settings().schema)
        super().__init__(client_manager, *args, **kwargs)

    async def _run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await super()._run_in_thread(_closing, function, *args)


def _closing(function: Callable[..., Any], *args: Any) -> Any:
    close_old_connections()
    try:
        return function(*args)
    finally:
        close_old_connections()


def _in_thread(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def run(*args: Any) -> Any:
        return await sync_to_async(handler)(*args)

    return run


async def _as_a_view(function: Callable[..., Any], *args: Any) -> Any:
    """Call a coroutine function with a thread of its own for the ORM, and let Django close its connections.

    This is not ``async with ThreadSensitiveContext()``, which changes nothing inside of another one. The task of a
    handler may come from a request that has ended, and with it that request's context.
    """
    context = ThreadSensitiveContext()
    token = SyncToAsync.thread_sensitive_context.set(context)
    try:
        return await function(*args)
    finally:
        if context in SyncToAsync.context_to_thread_executor:  # the function has used the thread
            await sync_to_async(close_old_connections)()
            SyncToAsync.context_to_thread_executor.pop(context).shutdown(wait=False)
        SyncToAsync.thread_sensitive_context.reset(token)
