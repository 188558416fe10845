"""docs/history.md: its handlers on a server, and its script in a page of a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from playwright.async_api import Page, async_playwright

from acceptance.test_tutorial import CDN
from support.browser import CHROMIUM_OPTIONS
from support.documents import block
from support.newcomer import Newcomer

DOCUMENT = "docs/history.md"
APP = """
import contextlib

import socketio
from sio_pg_adapter import AsyncPostgresManager, AsyncServer, PositionLost

manager = AsyncPostgresManager(retention=3600.0)
sio = AsyncServer(async_mode="asgi", client_manager=manager, connection_state_recovery=True)

{}

page = {{"/": {{"content_type": "text/html", "filename": "page.html"}}}}
app = socketio.ASGIApp(sio, static_files=page, on_startup=manager.start, on_shutdown=sio.shutdown)
"""
PAGE = """<!doctype html>
<pre id="log"></pre>
<script src="https://cdn.socket.io/4.8.1/socket.io.min.js"></script>
<script>
  const socket = io();
  const show = (lines) => (document.getElementById("log").textContent = lines.join(" "));
  {}
</script>
"""


@asynccontextmanager
async def pages(newcomer: Newcomer, chromium: str, js_modules: Path) -> AsyncIterator[list[Page]]:
    """Two pages of a browser, which find the client of the CDN here."""
    library = js_modules / "node_modules" / "sio-4-8" / "dist" / "socket.io.min.js"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        both = [await browser.new_page() for _ in range(2)]
        for page in both:
            await page.route(re.compile(CDN), lambda route: route.fulfill(path=library))
        yield both
        await browser.close()


async def shows(page: Page, text: str) -> None:
    await page.wait_for_function("text => document.getElementById('log').textContent === text", arg=text)


async def cut(page: Page) -> None:
    """Have the page lose its connection, and wait until it is back."""
    await page.evaluate("""() => new Promise((resolve) => {
        socket.once("connect", resolve);
        socket.io.engine.close();
    })""")


async def test_a_page_that_comes_late(tmp_path: Path, pg_dsn: str, chromium: str, js_modules: Path):
    newcomer = Newcomer(tmp_path, pg_dsn)
    (tmp_path / "app.py").write_text(APP.format(block("python", "async def join(sid, room)", DOCUMENT)))
    (tmp_path / "page.html").write_text(PAGE.format(block("js", '"join", "general"', DOCUMENT)))
    url = f"http://127.0.0.1:{newcomer.port}"
    serve = ["uvicorn", "app:app", "--timeout-graceful-shutdown", "5", "--port", str(newcomer.port)]
    async with pages(newcomer, chromium, js_modules) as (early, late):
        with newcomer.running(*serve) as server:
            server.says("startup complete")
            await early.goto(url)
            for word in ("one", "two"):
                await early.evaluate("word => socket.emitWithAck('say', 'general', word)", word)
            await shows(early, "one two")
            await late.goto(url)
            await shows(late, "one two")
            await early.evaluate("socket.emitWithAck('say', 'general', 'three')")
            await shows(late, "one two three")

            await cut(late)
            assert await late.evaluate("socket.recovered")
            await early.evaluate("socket.emitWithAck('say', 'general', 'four')")
            await shows(late, "one two three four")

            database = await asyncpg.connect(pg_dsn)
            await database.execute("DELETE FROM sio_sessions")  # as if their time were up
            await database.close()
            await cut(late)
            assert not await late.evaluate("socket.recovered")
            await cut(early)
            await early.evaluate("socket.emitWithAck('say', 'general', 'five')")
            for page in (early, late):
                await shows(page, "one two three four five")


SAY = "([word, id]) => socket.emitWithAck('chat message', word, id)"


async def test_a_page_that_goes_on_without_its_session(tmp_path: Path, pg_dsn: str, chromium: str, js_modules: Path):
    newcomer = Newcomer(tmp_path, pg_dsn)
    (tmp_path / "app.py").write_text(APP.format(block("python", "sio.last_position(sid)", DOCUMENT)))
    (tmp_path / "page.html").write_text(PAGE.format(block("js", "let begin = 0", DOCUMENT)))
    url = f"http://127.0.0.1:{newcomer.port}"
    serve = ["uvicorn", "app:app", "--timeout-graceful-shutdown", "5", "--port", str(newcomer.port)]
    async with pages(newcomer, chromium, js_modules) as (early, late):
        with newcomer.running(*serve) as server:
            server.says("startup complete")
            await early.goto(url)
            for word in ("one", "two", "two"):
                await early.evaluate(SAY, [word, word])
            await shows(early, "one two")
            await late.goto(url)
            await shows(late, "one two")
            await early.evaluate(SAY, ["three", "three"])
            for page in (early, late):
                await shows(page, "one two three")

            database = await asyncpg.connect(pg_dsn)
            await late.evaluate("socket.io.reconnection(false); socket.io.engine.close()")
            await early.evaluate(SAY, ["four", "four"])
            await database.execute("DELETE FROM sio_sessions")  # as if their time were up
            await late.evaluate("socket.connect()")
            await shows(late, "one two three four")
            assert not await late.evaluate("socket.recovered")
            assert await late.evaluate("[history.length, live.length]") == [2, 2]  # it went on from "three"

            await late.evaluate("socket.io.engine.close()")
            await database.execute("DELETE FROM sio_sessions")
            await database.execute('UPDATE sio_log SET floor = (SELECT max("offset") FROM sio_packets)')
            await early.evaluate(SAY, ["five", "five"])
            await database.execute('UPDATE sio_log SET floor = (SELECT max("offset") FROM sio_packets)')
            await late.evaluate("socket.connect()")
            await late.wait_for_function("live.length === 0")  # the log does not go back so far: all of it again
            await shows(late, "one two three four five")
            await database.close()
