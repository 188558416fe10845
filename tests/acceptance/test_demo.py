"""`sio-pg demo` in the terminal: the exit code of the walk, its errors, and no process left behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from sio_pg_adapter.check import check_file
from sio_pg_adapter.demo.processes import Cluster, NodeFailed
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


def test_check_walks_through_everything_and_ends_with_0(demo, tmp_path):
    check = demo("--check", "--history", str(tmp_path / "walk.jsonl"))
    assert check.wait() == 0, "".join(check.lines)
    printed = "".join(check.lines)
    history = check_file(tmp_path / "walk.jsonl")
    assert not history.findings, history.report()
    assert history.recoveries == 3 and history.deliveries > 20
    for title in ("the connection is cut", "it moves to the other node", "its node is killed"):
        step = next(line for line in check.lines if line.startswith(f"  {title}"))
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


@pytest.mark.parametrize("moment", ["database", "nodes", "walk"])
def test_ctrl_c_while_it_starts_ends_it_without_a_traceback(demo, moment):
    starting = demo("--port", "0")
    starting.wait_for("(Starting)")
    if moment == "nodes":
        eventually(lambda: len(children(starting.process.pid)) == 3)
    if moment == "walk":
        starting.wait_for(r"node A: (\S+)")
    left = children(starting.process.pid)
    starting.process.send_signal(signal.SIGINT)
    assert starting.wait() == 130
    printed = "".join(starting.lines)
    assert "Traceback" not in printed and "exception" not in printed.lower(), printed
    eventually(lambda: not any(alive(pid) for pid in left))


async def test_the_error_of_a_node_that_cannot_start_has_its_output():
    with pytest.raises(NodeFailed, match=r"^node [AB] did not start\. Its output is above$") as failed:
        async with Cluster(*["postgresql://app@127.0.0.1:1/none"] * 2):
            pass
    assert "StoreUnavailable" in failed.value.output


def test_a_taken_port_is_an_error_before_the_start(demo):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        failing = demo("--port", port)
        assert failing.wait() == 1
    (line,) = failing.lines
    assert line.startswith(f"sio-pg: port {port} is not available (")
    assert "Choose another with --port" in line


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


# -- the count of the walk, which the page shares ---------------------------------------------------


@pytest.mark.parametrize(("events", "absences", "lost", "doubled"), TALLIES)
def test_tally(events, absences, lost, doubled):
    tally, ended = Tally(), []
    for event in events:
        match event:
            case "hello":
                tally.welcomed()
            case "drop":
                tally.dropped()
            case n:
                if absence := tally.tick(n):
                    ended.append(absence)
    # The first connection ends an absence, unless it drops before.
    first = [] if events[:2] == [5, "drop"] else [Absence(0, 0)]
    assert ended == [*first, *(Absence(*each) for each in absences)]
    assert (tally.lost, tally.doubled) == (lost, doubled)
