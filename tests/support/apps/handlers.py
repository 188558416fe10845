"""What the applications have in common: a class-based namespace for all names, and handlers on `/`."""

from __future__ import annotations

import os
from typing import Any

from sio_pg_adapter import AsyncNamespace, AsyncPostgresManager, AsyncServer


class Everywhere(AsyncNamespace):
    """Of any namespace that has no handler of its own; the first argument of each handler is its name."""

    async def on_connect(self, namespace: str, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        await self.server.enter_room(sid, "all", namespace=namespace)

    async def on_say(self, namespace: str, sid: str, text: str) -> str:
        await self.emit("said", text, room="all", skip_sid=sid, namespace=namespace)
        await self.emit("typing", text, room="all", namespace=namespace, volatile=True)
        return namespace


def make_server(async_mode: str) -> AsyncServer:
    sio = AsyncServer(
        async_mode=async_mode,
        client_manager=AsyncPostgresManager(),
        connection_state_recovery=True,
        namespaces="*",
        ping_interval=float(os.environ.get("PING_INTERVAL", "25")),
    )

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.enter_room(sid, "all")

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        print(f"the disconnect handler ran for {sid}")

    @sio.event
    async def where(sid: str) -> int:
        return os.getpid()

    @sio.event
    async def say(sid: str, text: str) -> None:
        await sio.emit("said", text, room="all", skip_sid=sid)

    sio.register_namespace(Everywhere("*"))
    return sio
