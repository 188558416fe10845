"""docs/tutorial.md, step by step: its files, its commands, and its page in a real browser. The README's page, too."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from pathlib import Path

from playwright.async_api import Page, async_playwright

from support.browser import CHROMIUM_OPTIONS
from support.documents import ROOT, block, document
from support.newcomer import Newcomer

TUTORIAL = "docs/tutorial.md"
CDN = r"https://cdn\.socket\.io/4\.8\.\d+/socket\.io\.min\.js"


def command(part: str) -> list[str]:
    return shlex.split(block("sh", part, TUTORIAL))


async def says(page: Page, *lines: str) -> None:
    """Wait until the page has these lines, in this order, as its last ones."""
    await page.wait_for_function(
        "text => document.getElementById('log').textContent.endsWith(text)", arg="".join(lines)
    )


async def test_the_tutorial(tmp_path: Path, chromium: str, js_modules: Path):
    newcomer = Newcomer(tmp_path, "")
    for name in ("database.py", "app.py", "page.html", "send.py", "client.py"):
        newcomer.write(name, TUTORIAL)
    with newcomer.running(sys.executable, "database.py") as database:
        database.says("export SIO_PG_DSN=")
        newcomer.env["SIO_PG_DSN"] = database.says("\n")
        await follow(newcomer, chromium, js_modules)


async def follow(newcomer: Newcomer, chromium: str, js_modules: Path) -> None:
    answer = "the tables in schema public are up to date"
    assert f"`{answer}`" in (ROOT / TUTORIAL).read_text(encoding="utf-8")
    assert answer in newcomer.run(*command("migrate"))
    serve = [*command("uvicorn"), "--port", str(newcomer.port)]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        page = await browser.new_page()
        library = js_modules / "node_modules" / "sio-4-8" / "dist" / "socket.io.min.js"
        await page.route(re.compile(CDN), lambda route: route.fulfill(path=library))
        with newcomer.running(*serve) as server:
            server.says("startup complete")
            await page.goto(f"http://127.0.0.1:{newcomer.port}")
            await page.wait_for_function("document.getElementById('log').textContent.startsWith('new session')")
            sid = (await page.text_content("#log")).split()[-1]
            newcomer.run(*command("you are here"))
            await says(page, "said: you are here\n")

            await page.click("#cut")
            await says(page, "said: you are here\n", "cut\n")
            newcomer.run(*command("you were away"))
            await page.click("#back")
            await says(page, "cut\n", f"recovered, as {sid}\n", "said: you were away\n")

            with newcomer.running(sys.executable, "client.py") as client:
                client.says("new session")
                server.process.send_signal(signal.SIGINT)
                assert server.process.wait(60) in (0, -signal.SIGINT)
                await says(page, "said: you were away\n", "cut\n")
                newcomer.run(*command("nobody was there"))
                with newcomer.running(*serve) as again:
                    again.says("startup complete")
                    client.says("recovered\nsaid: nobody was there\n")
                    await page.click("#back")
                    await says(page, "cut\n", f"recovered, as {sid}\n", "said: nobody was there\n")
        await browser.close()


async def test_the_page_of_the_readme(tmp_path: Path, pg_dsn: str, chromium: str, js_modules: Path):
    newcomer = Newcomer(tmp_path, pg_dsn)
    for name in ("app.py", "page.html"):
        newcomer.write(name)
    serve = ["uvicorn", "app:app", "--timeout-graceful-shutdown", "5", "--port", str(newcomer.port)]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        page = await browser.new_page()
        library = js_modules / "node_modules" / "sio-4-8" / "dist" / "socket.io.min.js"
        await page.route(re.compile(CDN), lambda route: route.fulfill(path=library))
        with newcomer.running(*serve) as server:
            server.says("startup complete")
            await page.goto(f"http://127.0.0.1:{newcomer.port}")
            await says(page, "new: fetch the state\n")
            await page.fill("#text", "hello")
            await page.click("button")
            await says(page, "new: fetch the state\n", "said hello\n")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) in (0, -signal.SIGTERM)
            with newcomer.running(*serve):
                await says(page, "said hello\n", "back, nothing was missed\n")
        await browser.close()


def test_each_file_and_command_of_it_is_in_the_test_above():
    steps = [one for one in document(TUTORIAL) if not (one.note or "").startswith("not run: ")]
    assert len([one for one in steps if one.language in ("html", "python")]) == 5
    assert len([one for one in steps if one.language == "sh"]) == 5
