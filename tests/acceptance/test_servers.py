"""SIGTERM to each web server, as started by its documentation: clients recover elsewhere, and nothing holds it up."""

from __future__ import annotations

import asyncio
import signal

import psycopg
import pytest
from werkzeug.serving import make_ssl_devcert

from support.js_driver import stored_args
from support.served_app import Served, free_port, uvicorn

APP = "support.apps.fastapi_app:app"
DJANGO = "support.apps.django_app:app"
THREADS = "support.apps.threads_app:app"
GTHREAD = ("gunicorn", THREADS, "--bind", "127.0.0.1:{port}", "-k", "gthread", "--threads", "8")
COMMANDS = {
    "uvicorn": ("uvicorn", APP, "--port", "{port}", "--loop", "asyncio"),
    "uvicorn, websockets-sansio": ("uvicorn", APP, "--port", "{port}", "--ws", "websockets-sansio"),
    "uvicorn, uvloop": ("uvicorn", APP, "--port", "{port}", "--loop", "uvloop"),
    "uvicorn, workers": ("uvicorn", APP, "--port", "{port}", "--workers", "2"),
    "hypercorn": ("hypercorn", APP, "--bind", "127.0.0.1:{port}"),
    "hypercorn, no workers": ("hypercorn", APP, "--bind", "127.0.0.1:{port}", "--workers", "0"),
    "hypercorn, uvloop": ("hypercorn", APP, "--bind", "127.0.0.1:{port}", "--worker-class", "uvloop"),
    "granian": ("granian", APP, "--port", "{port}", "--interface", "asgi"),
    "gunicorn, asgi": ("gunicorn", APP, "--bind", "127.0.0.1:{port}", "-k", "asgi"),
    "gunicorn, asgi, preloaded": ("gunicorn", APP, "--bind", "127.0.0.1:{port}", "-k", "asgi", "--preload"),
    "gunicorn, uvicorn": ("gunicorn", APP, "--bind", "127.0.0.1:{port}", "-k", "uvicorn_worker.UvicornWorker"),
    "gunicorn, uvicorn, preloaded": (
        *("gunicorn", APP, "--bind", "127.0.0.1:{port}"),
        *("-k", "uvicorn_worker.UvicornWorker", "--preload"),
    ),
    "uvicorn, Django": ("uvicorn", DJANGO, "--port", "{port}"),
    "aiohttp": ("support.apps.aiohttp_app", "{port}"),
    "gunicorn, threads": GTHREAD,
    "gunicorn, threads, preloaded": (*GTHREAD, "--preload", "-c", "support/apps/preloaded.py"),
    "gunicorn, threads over TLS": (*GTHREAD, "--certfile", "{certificate}.crt", "--keyfile", "{certificate}.key"),
    "werkzeug": ("support.apps.threads_app", "{port}", "werkzeug"),
    "werkzeug over TLS": ("support.apps.threads_app", "{port}", "werkzeug over TLS"),
    "waitress": ("support.apps.threads_app", "{port}", "waitress"),
}
PING_INTERVAL = "300"  # seconds: an open poll would hold a server for longer than the test waits for its end


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("certificate") / "of_a_test"
    make_ssl_devcert(str(path), host="127.0.0.1")
    return path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_clients_of_a_server_that_is_stopped_recover_elsewhere(pg_dsn, js, certificate, command):
    port = free_port()
    words = [word.format(port=port, certificate=certificate) for word in command]
    env = {"PING_INTERVAL": PING_INTERVAL, **({"PRELOADED": "1"} if "support/apps/preloaded.py" in words else {})}
    tls = "--certfile" in words or words[-1] == "werkzeug over TLS"
    stopped = Served(pg_dsn, *words, port=port, tls=tls, **env)
    transports = [["websocket"], ["polling"]]
    if words[-2:] == ["--workers", "2"]:  # they share a port, and the requests of one polling client would reach both
        transports = [["websocket"], ["websocket"]]
    elif words[-1] == "waitress":  # the client tries the upgrade, and goes on without it
        transports = [["polling", "websocket"], ["polling"]]
    async with stopped, uvicorn(pg_dsn, "fastapi_app") as other:
        options = {"rejectUnauthorized": not tls}
        clients = [await js.connect(stopped.url, options={"transports": kinds, **options}) for kinds in transports]
        sids = [(await client.state())["sid"] for client in clients]
        await other.post("/shout")
        for client in clients:
            assert stored_args(await client.event("shouted")) == ["by HTTP"]
            await client.move_to(other.url)
        stopping = asyncio.create_task(stopped.stop())
        for client, sid in zip(clients, sids, strict=True):
            back = await client.connected()
            assert back["recovered"] and back["sid"] == sid and back["url"].startswith(other.url)
        await other.post("/shout")
        for client in clients:
            assert stored_args(await client.event("shouted")) == ["by HTTP"]
        assert await stopping in {0, -signal.SIGTERM}  # uvicorn ends by the signal, once it has cleaned up
        log = stopped.output()
        for sid in sids:
            assert f"the disconnect handler ran for {sid}" in log
        if words[0] == "hypercorn" and "0" not in words:
            # Its workers get no signal. It cancels what is still connected, which asyncio of Python 3.11 logs.
            assert "sio_pg_adapter" not in log, log
        else:
            assert "Traceback" not in log, log
        with psycopg.connect(pg_dsn) as db:
            assert db.execute("SELECT count(*) FROM sio_nodes WHERE stopped_at IS NULL").fetchone() == (1,)
            assert db.execute("SELECT count(*) FROM sio_sessions WHERE node IS NOT NULL").fetchone() == (2,)


async def test_daphne_has_no_lifespan_and_its_clients_recover_as_after_a_kill(pg_dsn, js):
    port = free_port()
    stopped = Served(pg_dsn, "daphne", "-p", str(port), DJANGO, port=port)
    async with stopped, uvicorn(pg_dsn, "fastapi_app") as other:
        client = await js.connect(stopped.url)
        sid = (await client.state())["sid"]
        await client.move_to(other.url)
        await stopped.stop()
        back = await client.connected()
        assert back["recovered"] and back["sid"] == sid
