"""`uvicorn support.apps.starlette_app:app`"""

from __future__ import annotations

import socketio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sio_pg_adapter import lifespan

from .handlers import make_server

sio = make_server("asgi")


async def health(_: Request) -> JSONResponse:
    return JSONResponse({"ok": (await sio.manager.health()).ok})


async def shout(_: Request) -> JSONResponse:
    await sio.emit("shouted", "by HTTP", room="all")
    return JSONResponse(None)


app = Starlette(
    lifespan=lifespan(sio),
    routes=[
        Route("/health", health),
        Route("/shout", shout, methods=["POST"]),
        Mount("/socket.io", socketio.ASGIApp(sio, socketio_path="")),
    ],
)
