"""`python -m support.apps.aiohttp_app PORT`"""

from __future__ import annotations

import sys

from aiohttp import web

from .handlers import make_server

sio = make_server("aiohttp")


async def start(_app: web.Application) -> None:
    await sio.manager.start()


async def stop(_app: web.Application) -> None:
    await sio.shutdown()


async def health(_: web.Request) -> web.Response:
    return web.json_response({"ok": (await sio.manager.health()).ok})


async def shout(_: web.Request) -> web.Response:
    await sio.emit("shouted", "by HTTP", room="all")
    return web.json_response(None)


def make_app() -> web.Application:
    app = web.Application()
    app.on_startup.append(start)
    app.on_shutdown.append(stop)  # not on_cleanup: aiohttp waits up to a minute for WebSockets before that
    app.add_routes([web.get("/health", health), web.post("/shout", shout)])
    sio.attach(app)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]))
