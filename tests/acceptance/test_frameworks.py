"""FastAPI, Starlette and aiohttp, as their documentation says; class-based namespaces; `namespaces="*"`."""

from __future__ import annotations

import signal

import psycopg
import pytest

from .driver import stored_args
from .served import aiohttp, uvicorn

START = {
    "fastapi": lambda dsn: uvicorn(dsn, "fastapi_app"),
    "fastapi, mounted": lambda dsn: uvicorn(dsn, "fastapi_mounted"),
    "starlette": lambda dsn: uvicorn(dsn, "starlette_app"),
    "aiohttp": aiohttp,
}


@pytest.mark.parametrize("framework", START)
async def test_framework(pg_dsn, js, framework):
    async with START[framework](pg_dsn) as app:
        client = await js.connect(app.url)
        chat = {"namespace": "/chat/7"}
        mine, other = await js.connect(app.url, **chat), await js.connect(app.url, **chat)
        sids = [(await one.state())["sid"] for one in (client, mine)]
        assert await other.call("say", "hello") == "/chat/7"
        said = await mine.event("said")
        assert stored_args(said) == ["hello"]
        assert (await mine.event("typing"))["offset"] == said["offset"]  # volatile=True, by `self.emit`
        await app.post("/shout")
        assert stored_args(await client.event("shouted")) == ["by HTTP"]
        for one in (client, mine):
            await one.away()
        await app.post("/shout")
        await other.call("say", "missed")
        for one, sid, missed in zip((client, mine), sids, (("shouted", "by HTTP"), ("said", "missed")), strict=True):
            back = await one.back()
            assert back["recovered"] and back["sid"] == sid
            assert stored_args(await one.event(missed[0])) == [missed[1]]
        assert await app.stop() in {0, -signal.SIGTERM}  # uvicorn ends by the signal, once it has cleaned up
        assert "Traceback" not in app.output()
    with psycopg.connect(pg_dsn) as db:  # its manager was closed: it keeps no session
        assert db.execute("SELECT count(*) FROM sio_sessions").fetchone() == (3,)
        assert db.execute("SELECT count(*) FROM sio_sessions WHERE expires_at IS NULL").fetchone() == (0,)


async def test_without_a_migrated_database_the_application_does_not_start(pg_empty_dsn):
    app = uvicorn(pg_empty_dsn, "fastapi_app")
    with pytest.raises(AssertionError, match="sio-pg migrate"):
        await app.__aenter__()
    await app.__aexit__()
