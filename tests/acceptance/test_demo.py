"""`sio-pg demo` as a user has it: the walk's exit code, the page in a real browser, and nothing left behind."""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.async_api import async_playwright

from sio_pg_adapter.demo.walk import Absence, Tally

from .browser import CHROMIUM_OPTIONS

TIMEOUT = 60.0  # seconds, for what takes five on an idle machine


class Demo:
    """The demo as a process; `lines` is what it printed so far."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "sio_pg_adapter", "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put(None)

    def wait_for(self, pattern: str) -> str:
        """Wait for a line and return the pattern's first group in it."""
        end = time.monotonic() + TIMEOUT
        while True:
            line = self._queue.get(timeout=max(0, end - time.monotonic()))
            assert line is not None, "the demo ended:\n" + "".join(self.lines)
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found[1]

    def wait(self) -> int:
        """Wait for its end; then `lines` is complete."""
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def demo() -> Iterator[Callable[..., Demo]]:
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Demo:
            demo = Demo(*options)
            stack.callback(demo.close)
            return demo

        yield start


def children(of: int) -> set[int]:
    found = set()
    for line in subprocess.check_output(["ps", "-e", "-o", "pid=,ppid="], text=True).splitlines():
        pid, parent = map(int, line.split())
        if parent == of:
            found.add(pid)
    return found


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip() not in {"", "Z", "Zs"}  # a container's init may reap nobody


def accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as s:
        return s.connect_ex((host, int(port))) == 0


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- the walk ---------------------------------------------------------------------------------------------


def test_check_walks_through_everything_and_ends_with_0(demo):
    check = demo("--check")
    assert check.wait() == 0, "".join(check.lines)
    printed = "".join(check.lines)
    for what in ("the connection is cut", "it moves to the other node", "its node is killed"):
        step = next(line for line in check.lines if line.startswith(what))
        missed, replayed = re.search(r"missed (\d+)  replayed (\d+)  lost 0  doubled 0", step).groups()
        assert int(missed) == int(replayed) > 0, printed
        assert "recovered yes" in step, printed
    assert re.search(r"^ok: recovered 3 of 3, received \d+, lost 0, doubled 0", printed, re.MULTILINE), printed


def test_nothing_outlives_a_demo_that_is_killed(demo):
    running = demo("--check")
    urls = [running.wait_for(rf"node {name}: (\S+)") for name in "AB"]
    left = children(running.process.pid)
    assert len(left) == 3  # two nodes and the database's
    assert all(accepts(url) for url in urls)
    running.process.kill()
    eventually(lambda: not any(alive(pid) for pid in left))
    assert not any(accepts(url) for url in urls)


def test_a_taken_port_is_told_before_anything_is_walked(demo):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        failing = demo("--port", port)
        assert failing.wait() == 1
    assert f"port {port} " in "".join(failing.lines)
    assert "--port" in "".join(failing.lines)


def test_a_missing_client_library_is_told(demo, tmp_path):
    failing = demo("--client-js", str(tmp_path / "none.js"))
    assert failing.wait() == 1
    assert "none.js" in "".join(failing.lines)


# -- the page ---------------------------------------------------------------------------------------------


async def test_each_button_of_the_page_recovers(demo, chromium, js_modules):
    serving = demo("--port", "0")
    url = serving.wait_for(r"by hand: (\S+)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        page = await browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(url)
        no_offset = await page.text_content("#offset")
        await page.wait_for_selector("#cut:enabled", timeout=TIMEOUT * 1000)
        sid, before = await page.text_content("#sid"), await page.text_content("#node")
        for button, moves in (("cut", False), ("move", True), ("kill", True), ("move", True), ("cut", False)):
            if (button, moves) == ("move", True):  # the other one may have been killed just now
                await page.wait_for_function(
                    "document.getElementById('nodes').textContent === 'A up, B up'", timeout=TIMEOUT * 1000
                )
            await page.click(f"#{button}")
            await page.wait_for_selector(f"#{button}:disabled", timeout=TIMEOUT * 1000)
            await page.wait_for_selector(f"#{button}:enabled", timeout=TIMEOUT * 1000)
            story = await page.text_content("#story")
            now = await page.text_content("#node")
            assert (now != before) is moves, story
            told = re.search(
                rf"; back on node {now} with the same sid after .* s; (\d+) packets? missed, (\d+) ", story
            )
            assert told, story
            assert int(told[1]) == int(told[2]) > 0, story
            assert await page.text_content("#recovered") == "true"
            assert await page.text_content("#sid") == sid
            assert await page.text_content("#lost") == "0"
            assert await page.text_content("#doubled") == "0"
            assert await page.text_content("#offset") != no_offset
            before = now
        assert int(await page.text_content("#received")) > 20
        assert errors == []
        # from the checkout: no network is needed
        assert await page.get_attribute("script[src]", "src") == "/socket.io.js"
        await browser.close()
    left = children(serving.process.pid)
    serving.process.send_signal(signal.SIGINT)
    # 0 where this run was started with SIGINT ignored, as a shell's background job is
    assert serving.wait() in {130, 0}, "".join(serving.lines)
    assert "Traceback" not in "".join(serving.lines)
    assert not any(alive(pid) for pid in left)


# -- what both count --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "absences", "lost", "doubled"),
    [
        (["hello", 5, 6, "drop", "hello", 7], [(0, 0)], 0, 0),
        (["hello", 5, 6, "drop", 7, 8, "hello", 9, 10], [(2, 2)], 0, 0),
        (["hello", 5, 6, "drop", "hello", 9], [(2, 0)], 2, 0),
        (["hello", 5, 6, "drop", 7, "hello", 9], [(2, 1)], 1, 0),
        (["hello", 5, 6, "drop", 6, 7, "hello", 8], [(1, 1)], 0, 1),
        (["hello", 5, 6, "drop", 7, "drop", 8, "hello", 9], [(2, 2)], 0, 0),
        (["hello", 5, 6, "drop", 7, "hello", "drop", 8, "hello", 9], [(2, 2)], 0, 0),
        (["hello", 5, 7, 6], [], 1, 1),
    ],
)
def test_tally(events, absences, lost, doubled):
    tally, found = Tally(), []
    for event in events:
        match event:
            case "hello":
                tally.welcomed()
            case "drop":
                tally.dropped()
            case n:
                if absence := tally.tick(n):
                    found.append(absence)
    assert found == [Absence(0, 0), *(Absence(*each) for each in absences)]
    assert (tally.lost, tally.doubled) == (lost, doubled)
