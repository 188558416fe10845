"""`sio-pg demo` in the terminal, as a user has it: the walk's exit code, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from sio_pg_adapter.demo.walk import Absence, Tally
from sio_pg_adapter.demo.web import listen
from support.demo_process import TIMEOUT, Demo, alive, children
from support.tallies import TALLIES


@pytest.fixture
def demo() -> Iterator[Callable[..., Demo]]:
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Demo:
            demo = Demo(*options)
            stack.callback(demo.close)
            return demo

        yield start


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
        step = next(line for line in check.lines if line.startswith(f"  {what}"))
        missed, replayed = re.search(r" (\d+) +(\d+) +0 +0   recovered$", step).groups()
        assert int(missed) == int(replayed) > 0, printed
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


async def test_the_page_s_connections_do_not_wait_for_acknowledgements():
    """TCP_NODELAY: asyncio sets it only where the socket says that its protocol is TCP."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listening = listen(0)
    async with await asyncio.start_server(serve, sock=listening):
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        assert await accepted
        await reader.read()
        writer.close()


# -- what the walk counts, and the page in the same way ---------------------------------------------------


@pytest.mark.parametrize(("events", "absences", "lost", "doubled"), TALLIES)
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
    first = [] if events[:2] == [5, "drop"] else [Absence(0, 0)]  # the first connection ends one, if it gets so far
    assert found == [*first, *(Absence(*each) for each in absences)]
    assert (tally.lost, tally.doubled) == (lost, doubled)
