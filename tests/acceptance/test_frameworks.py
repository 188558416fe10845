"""FastAPI, Starlette and aiohttp, as their documentation says; class-based namespaces; `namespaces="*"`."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psycopg
import pytest

from support.js_driver import stored_args
from support.served_app import Served, aiohttp, free_port, uvicorn

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


# -- docs/integrations.md, as written ------------------------------------------------------------------------------
DOCS = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["fastapi_app", "starlette_app", "aiohttp_app"])
async def test_the_programs_of_the_documentation(pg_dsn, js, tmp_path, name):
    programs = re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    [program] = [one for one in programs if f"# {name}.py\n" in one]
    (tmp_path / f"{name}.py").write_text(program, encoding="utf-8")
    port = str(free_port())
    served = f"{name}:app", "--app-dir", str(tmp_path), "--port", port, "--timeout-graceful-shutdown", "1"
    command = ("uvicorn", *served) if "uvicorn" in program or "Starlette" in program else (name, port)
    async with Served(pg_dsn, *command, port=int(port), path=tmp_path) as app:
        client = await js.connect(app.url)
        for missed in (False, True):
            if missed:
                await client.away()
            await app.post("/shout")
            if missed:
                assert (await client.back())["recovered"]
            assert stored_args(await client.event("shouted")) == ["by HTTP"]
        assert await app.stop() in {0, -signal.SIGTERM}
