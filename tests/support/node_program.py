"""The program of ``NodeProcess``: `python -m support.node_program '{"dsn": ...}'` runs one node.

It prints `{"port": ...}` when it serves, and ends when its standard input does. Besides Socket.IO
it answers POST /control. The body is a JSON object {"op": ..., ...}, an operation of node_operations.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import sys
import threading
from dataclasses import dataclass, field, fields
from typing import Any

import socketio
import uvicorn

from sio_pg_adapter import AsyncPostgresManager, AsyncServer, ConnectionStateRecovery, StoreUnavailable
from support.json_values import pack
from support.node_operations import ControlledNode

ADMIN_AUTH = {"username": "operator", "password": "secret"}


@dataclass
class Config:
    dsn: str
    port: int = 0
    schema: str = "public"
    recovery: bool = True
    window: float | None = 120.0  # seconds; None: for ever
    skip_middlewares: bool = False
    middleware: bool = False
    accepts: bool = False  # True: only those whose auth does not say {"plain": true}
    identity: bool = False  # True: auth's token says whose session it is
    max_missed_packets: int = 10_000
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    connect_delay: float = 0.0
    always_connect: bool = False
    two_argument_connect: bool = False
    serializer: str = "default"
    namespaces: list[str] = field(default_factory=lambda: ["/", "/ns", "/admin"])
    admin: str = ""  # the Admin UI's mode; empty: none
    static: str = ""  # a directory served at /ui
    kind: str = "async"  # or "sync": sio_pg_adapter.Server, see sync_node.py
    listens: bool = False  # True: middlewares and listeners of events note them
    any_namespace: bool = False  # True: clients may join namespaces that have no handlers
    connect_timeout: float | None = 45.0
    log_level: str = ""  # of the package, on stderr; empty: warnings and worse

    @classmethod
    def read(cls, text: str) -> Config:
        given = json.loads(text)
        if unknown := given.keys() - {f.name for f in fields(cls)}:
            raise SystemExit(f"unknown configuration: {unknown}")
        return cls(**given)


def token(environ: dict[str, Any], auth: Any) -> str | None:
    return auth.get("token") if isinstance(auth, dict) else None


def recovery_of(config: Config) -> ConnectionStateRecovery | None:
    recovery = None
    if config.recovery:
        accepts = None
        if config.accepts:

            def accepts(environ: dict[str, Any], auth: Any) -> bool:
                return not (isinstance(auth, dict) and auth.get("plain"))

        recovery = ConnectionStateRecovery(
            max_disconnection_duration=math.inf if config.window is None else config.window,
            skip_middlewares=config.skip_middlewares,
            max_missed_packets=config.max_missed_packets,
            accepts=accepts,
            identity=token if config.identity else None,
        )
    return recovery


def server_options(config: Config) -> dict[str, Any]:
    return {
        "connection_state_recovery": recovery_of(config),
        "serializer": config.serializer,
        "always_connect": config.always_connect,
        "ping_interval": config.ping_interval,
        "ping_timeout": config.ping_timeout,
        "namespaces": "*" if config.any_namespace else config.namespaces,
        "connect_timeout": config.connect_timeout,
    }


def build_node(config: Config) -> tuple[AsyncServer, ControlledNode]:
    async def report(error: StoreUnavailable | None) -> None:
        await node.on_store(error)

    manager = AsyncPostgresManager(config.dsn, schema=config.schema, error_handler=report)
    sio = AsyncServer(async_mode="asgi", client_manager=manager, **server_options(config))
    node = ControlledNode(sio, config)
    return sio, node


def control_app(node: ControlledNode) -> Any:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            answer = {"value": pack(await node.run(json.loads(body)))}
        except Exception as error:  # noqa: BLE001 - the test decides what it expected
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answer = {"error": kinds, "message": str(error)}
        content = json.dumps(answer).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": content})

    return app


class LogErrors(logging.Handler):
    """Application code and libraries report here what a user would find in the log."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(self.format(record))


async def serve(config: Config) -> None:
    if config.log_level:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("sio_pg_adapter").setLevel(config.log_level)
    sio, node = build_node(config)
    if config.admin:
        sio.instrument(auth=ADMIN_AUTH, mode=config.admin, server_stats_interval=0.2)
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: (node.errors.append(str(context)), loop.default_exception_handler(context))
    )
    for name in ("", "engineio.server", "socketio.server"):
        logging.getLogger(name).addHandler(LogErrors(node.errors))

    async def stop() -> None:
        await node.op_stop_all()
        await sio.shutdown()
        await sio.manager.aclose()

    files = {"/ui": config.static} if config.static else None
    app = socketio.ASGIApp(sio, control_app(node), on_startup=sio.manager.start, on_shutdown=stop, static_files=files)
    # By its protocol's number: for a socket of protocol 0 asyncio leaves TCP_NODELAY off, and answers wait 40 ms.
    taken = socket.create_server(("127.0.0.1", config.port), reuse_port=False)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, taken.detach())
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            ws="websockets-sansio",
            timeout_graceful_shutdown=5,
            ws_ping_interval=None,
            lifespan="on",
        )
    )

    async def announce() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        print(json.dumps({"port": listening.getsockname()[1]}), flush=True)

    announcing = asyncio.create_task(announce(), name="announce")
    try:
        await server.serve(sockets=[listening])
    finally:
        announcing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await announcing


def end_with_parent() -> None:
    sys.stdin.buffer.read()  # end of file: the tests are gone, even by SIGKILL
    os._exit(3)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True, name="end_with_parent").start()
    configured = Config.read(sys.argv[1])
    if configured.kind == "sync":
        from support.sync_node import serve
    asyncio.run(serve(configured))
