"""Several uvicorn workers behind a proxy: sticky with polling, and not sticky with WebSocket alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from support.js_driver import stored_args
from support.reverse_proxy import Proxy
from support.served_app import Served, free_port, uvicorn


async def worker_of(client):
    """The process that serves it."""
    return await client.call("where")


async def hears(clients, text):
    for one in clients:
        assert stored_args(await one.event("said")) == [text]


async def exchange(clients):
    """Each of the clients reaches all others, on whatever worker they are."""
    for i, one in enumerate(clients):
        await one.emit("say", f"from {i}")
        await hears([other for other in clients if other is not one], f"from {i}")


async def survive_the_end_of_a_worker(clients, end):
    """Those on the worker of the first client come back on others, with all that they missed."""
    workers = {one: await worker_of(one) for one in clients}
    ended = workers[clients[0]]
    gone = [one for one in clients if workers[one] == ended]
    left = [one for one in clients if workers[one] != ended]
    sids = [(await one.state())["sid"] for one in gone]
    for one in gone:
        await one.do("reconnection", on=False)
    await end(ended)
    for one in gone:
        await one.wait_for("disconnect")
    await left[0].emit("say", "while away")
    await hears(left[1:], "while away")
    for one, sid in zip(gone, sids, strict=True):
        back = await one.back()
        assert back["recovered"] and back["sid"] == sid
        assert await worker_of(one) != ended
    await hears(gone, "while away")
    await exchange(clients)


async def test_workers_of_one_command_behind_a_proxy_that_is_not_sticky(pg_dsn, js):
    async with contextlib.AsyncExitStack() as stack:
        app = await stack.enter_async_context(uvicorn(pg_dsn, "fastapi_app", "--workers", "4"))
        url = await stack.enter_async_context(Proxy([app.port], sticky=False).running())
        clients = [await js.connect(url) for _ in range(3)]  # websocket alone
        while len({await worker_of(one) for one in clients}) < 2:  # the kernel deals the connections out
            clients.append(await js.connect(url))
        await exchange(clients)

        async def kill(worker):
            os.kill(worker, signal.SIGKILL)

        await survive_the_end_of_a_worker(clients, kill)


async def test_servers_behind_a_sticky_proxy_take_polling_and_upgrades(pg_dsn, js):
    async with contextlib.AsyncExitStack() as stack:
        apps = [uvicorn(pg_dsn, "fastapi_app") for _ in range(2)]
        await asyncio.gather(*(stack.enter_async_context(app) for app in apps))
        url = await stack.enter_async_context(Proxy([app.port for app in apps], sticky=True).running())
        sticky = {"withCredentials": True}  # cookies, which a browser sends to its page's own server by itself
        clients = [await js.connect(url, options={"transports": ["polling"], **sticky}) for _ in range(3)]
        upgraded = await js.connect(url, options={"transports": ["polling", "websocket"], **sticky})
        await upgraded.wait_for("upgrade", transport="websocket")
        clients.append(upgraded)
        assert len({await worker_of(one) for one in clients}) == 2
        await exchange(clients)

        async def terminate(worker):
            [app] = [app for app in apps if app.pid == worker]
            await app.stop()

        await survive_the_end_of_a_worker(clients, terminate)


async def test_workers_that_were_forked_after_the_import_draw_their_own_numbers(pg_dsn, js):
    port = free_port()
    command = ("gunicorn", "support.apps.forked_app:app", "--bind", f"127.0.0.1:{port}", "-k", "asgi", "-w", "2")
    async with Served(pg_dsn, *command, "--preload", port=port) as app:
        clients = {}
        while len(clients) < 2:
            client = await js.connect(app.url)
            clients[await worker_of(client)] = client
        one, other = [await client.call("drawn") for client in clients.values()]
        assert [name for name in one if one[name] == other[name]] == []
        assert all(one.values())
