"""A node of the kind "sync": ``sio_pg_adapter.Server`` under werkzeug, with the handlers of ``ControlledNode``.

Those are coroutines, which run in an event loop of the test program. Each of their calls to the server is a blocking
call in a thread. The server itself sees plain handlers, which block their threads until the coroutine has ended.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import socketio
from werkzeug.serving import WSGIRequestHandler, make_server

from sio_pg_adapter import PostgresManager, Server
from support.json_values import pack
from support.node_operations import ControlledNode

if TYPE_CHECKING:
    from support.node_program import Config

CALLS_AT_ONCE = 64
NOT_BLOCKING = ("rooms", "recovered", "last_position", "transport", "get_environ")
"""Methods of ``AsyncServer`` that are no coroutines."""


class Awaited:
    """A synchronous server with the methods of an asynchronous one."""

    def __init__(self, sio: Server) -> None:
        self._sio = sio
        self._loop = asyncio.get_running_loop()
        self.manager = self

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._sio, name)
        if name in NOT_BLOCKING:
            return method

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            if (callback := kwargs.get("callback")) is not None:
                kwargs["callback"] = self._blocking(callback)
            return await asyncio.to_thread(method, *args, **kwargs)

        return awaited

    async def health(self) -> Any:
        return await asyncio.to_thread(self._sio.manager.health)

    def _blocking(self, handler: Callable[..., Any], namespace: Any = None) -> Callable[..., Any]:
        @functools.wraps(handler)
        def blocking(*args: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(handler(*args), self._loop).result()

        return blocking

    def on(self, event: str, handler: Callable[..., Any], namespace: str) -> None:
        self._sio.on(event, self._blocking(handler), namespace=namespace)

    def use(self, middleware: Callable[..., Any], namespace: str) -> None:
        self._sio.use(self._blocking(middleware), namespace=namespace)

    def use_event(self, middleware: Callable[..., Any], namespace: str) -> None:
        self._sio.use_event(self._blocking(middleware), namespace=namespace)

    def on_any(self, handler: Callable[..., Any], namespace: str) -> None:
        self._sio.on_any(self._blocking(handler), namespace=namespace)

    def on_any_outgoing(self, handler: Callable[..., Any], namespace: str) -> None:
        self._sio.on_any_outgoing(self._blocking(handler), namespace=namespace)

    def on_server_event(self, event: str, handler: Callable[..., Any], namespace: str) -> None:
        self._sio.on_server_event(event, self._blocking(handler), namespace=namespace)


class SyncNode(ControlledNode):
    """The operations that look inside of the server do so in its event loop."""

    def __init__(self, server: Server, config: Config) -> None:
        self._server = server
        super().__init__(Awaited(server), config)  # type: ignore[arg-type]

    async def _inside(self, function: Callable[[Any], Any]) -> Any:
        background, server = self._server._ready()
        return await asyncio.to_thread(background.call, function, server)

    def _awaitable(self, method: Any) -> Any:
        return functools.partial(asyncio.to_thread, method)


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Requests are no news."""


def control_app(node: ControlledNode, loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            answer = {"value": pack(asyncio.run_coroutine_threadsafe(node.run(json.loads(body)), loop).result())}
        except Exception as error:  # noqa: BLE001 - the test decides what it expected
            answer = {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
        content = json.dumps(answer).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
        return [content]

    return app


async def serve(config: Config) -> None:
    from support.node_program import ADMIN_AUTH, LogErrors, server_options  # noqa: PLC0415 - it imports this module

    if config.log_level:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("sio_pg_adapter").setLevel(config.log_level)
    loop = asyncio.get_running_loop()
    # the calls that wait in threads, such as call() and server_side_call(), at once
    loop.set_default_executor(ThreadPoolExecutor(CALLS_AT_ONCE))

    def report(error: Exception | None) -> None:
        asyncio.run_coroutine_threadsafe(node.on_store(error), loop)

    manager = PostgresManager(config.dsn, schema=config.schema, error_handler=report)
    sio = Server(client_manager=manager, **server_options(config))
    node = SyncNode(sio, config)
    if config.admin:
        sio.instrument(auth=ADMIN_AUTH, mode=config.admin, server_stats_interval=0.2)
    for name in ("", "engineio.server", "socketio.server"):
        logging.getLogger(name).addHandler(LogErrors(node.errors))
    await asyncio.to_thread(sio.start)
    files = {"/ui": config.static} if config.static else None
    app = socketio.WSGIApp(sio, control_app(node, loop), static_files=files)
    server = make_server("127.0.0.1", config.port, app, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    ended = asyncio.Event()
    loop.add_signal_handler(15, ended.set)
    threading.Thread(target=server.serve_forever, daemon=True, name="werkzeug").start()
    print(json.dumps({"port": server.server_port}), flush=True)
    await ended.wait()
    await node.op_stop_all()
    await asyncio.to_thread(sio.shutdown)
    server.shutdown()
