"""The program of a server node of the demo: ``python -m sio_pg_adapter.demo.node NAME PORT [ORIGIN...]``.

It prints "ready" when it serves, and ends when its standard input closes. SIO_PG_DSN names the database.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

import socketio
import uvicorn

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import ConnectionStateRecovery
from sio_pg_adapter.server.server import AsyncServer


def application(name: str, origins: list[str]) -> socketio.ASGIApp:
    """Return the application of a node. It adds each client to the room of the ticks and sends it the node's name."""
    manager = AsyncPostgresManager()
    sio = AsyncServer(
        async_mode="asgi",
        client_manager=manager,
        cors_allowed_origins=origins,
        connection_state_recovery=ConnectionStateRecovery(max_disconnection_duration=120),
    )

    @sio.event
    async def connect(sid: str, _: dict[str, Any], auth: Any) -> None:
        visit, since = (auth.get("visit"), auth.get("since")) if isinstance(auth, dict) else (None, None)
        if not sio.recovered(sid):  # a recovered session is still in its rooms
            await sio.enter_room(sid, "ticker", since=sio.last_position(sid) or since)
        # The client gets this after the replay, so it marks the end of the missed events. `visit` is the client's
        # count of its connections. The missed events may include the welcome to an earlier connection.
        await sio.emit("welcome", {"node": name, "visit": visit}, to=sid)

    async def start() -> None:
        try:
            await manager.start()
        except SioPgError as e:  # python-engineio drops it
            print(f"{type(e).__name__}: {e}", flush=True)
            raise

    return socketio.ASGIApp(sio, on_startup=start, on_shutdown=sio.shutdown)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print("ready", flush=True)


def _end_with_parent(server: uvicorn.Server) -> None:
    while os.read(0, 1024):  # not sys.stdin: a thread that reads it holds a lock that the interpreter's exit needs
        pass
    server.should_exit = True
    time.sleep(2)  # for an orderly exit. No parent is left to wait for it
    os._exit(1)


def main() -> None:
    """Serve until standard input closes."""
    name, port, *origins = sys.argv[1:]
    config = uvicorn.Config(
        application(name, origins),
        host="127.0.0.1",
        port=int(port),
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    threading.Thread(target=_end_with_parent, args=[server], daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
