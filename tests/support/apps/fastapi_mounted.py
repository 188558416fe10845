"""The other way round: Socket.IO mounted in FastAPI, with a lifespan of the application's own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import socketio
from fastapi import FastAPI

from sio_pg_adapter import lifespan

from .handlers import make_server

sio = make_server("asgi")
state = {"own": False}


@contextlib.asynccontextmanager
async def own(_app: FastAPI) -> AsyncIterator[None]:
    async with lifespan(sio):
        state["own"] = True
        yield


app = FastAPI(lifespan=own)
app.mount("/socket.io", socketio.ASGIApp(sio, socketio_path=""))


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": (await sio.manager.health()).ok and state["own"]}


@app.post("/shout")
async def shout() -> None:
    await sio.emit("shouted", "by HTTP", room="all")
