"""The server in the event loop: ``AsyncServer`` whose handlers run in threads, and whose requests come from WSGI."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import engineio

from sio_pg_adapter.server.server import AsyncServer
from sio_pg_adapter.wire import upstream

from .wsgi import DRIVER

RunInThread = Callable[..., Coroutine[Any, Any, Any]]


class _Engine(engineio.AsyncServer):
    """An Engine.IO server for asyncio that is driven by WSGI requests."""

    def __init__(self, **options: Any) -> None:
        super().__init__(async_mode="asgi", **options)
        upstream.replace_driver(self, DRIVER)


class LoopServer(AsyncServer):
    """An ``AsyncServer`` for handlers that block.

    :param run_in_thread: calls a function in a thread, and returns what it returns.
    """

    def __init__(self, *args: Any, run_in_thread: RunInThread, **options: Any) -> None:
        self._run_in_thread = run_in_thread
        super().__init__(*args, **options)

    async def _call_function(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._run_in_thread(function, *args)

    def _engineio_server_class(self) -> type[_Engine]:
        return _Engine

    async def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        handler, _ = self._get_event_handler(event, namespace, args)
        if inspect.iscoroutinefunction(handler):  # the Admin UI's
            return await super()._trigger_event(event, namespace, *args)
        if handler is None and self._get_namespace_handler(namespace, args)[0] is None:
            return self.not_handled
        return await self._run_in_thread(upstream.trigger_blocking, self, event, namespace, *args)
