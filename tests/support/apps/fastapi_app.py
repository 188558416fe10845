"""`uvicorn support.apps.fastapi_app:app`"""

from __future__ import annotations

import socketio
from fastapi import FastAPI

from sio_pg_adapter import lifespan

from .handlers import make_server

sio = make_server("asgi")
api = FastAPI(lifespan=lifespan(sio))
app = socketio.ASGIApp(sio, api)


@api.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": (await sio.manager.health()).ok}  # the manager was started by the lifespan, by nothing else


@api.post("/shout")
async def shout() -> None:
    await sio.emit("shouted", "by HTTP", room="all")
