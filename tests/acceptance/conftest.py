from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from . import nodejs
from .driver import JSClient, JSDriver
from .nodes import NodeProcess


@pytest.fixture(scope="session")
def js_modules() -> Path:
    return nodejs.install()


@pytest.fixture
async def js(js_modules: Path) -> AsyncIterator[JSDriver]:
    async with JSDriver(js_modules, nodejs.executable("node")) as driver:
        yield driver


@pytest.fixture(scope="module")
def module_dsn(pg_template: Any, pg_create: Any) -> Iterator[str]:
    """A migrated database for the tests of one module, whose nodes live as long."""
    with pg_create(pg_template.template_dbname) as dsn:
        yield dsn


@dataclass
class Cluster:
    """Nodes on one database. What a node logs as an error fails the test, unless it is expected."""

    dsn: str
    nodes: list[NodeProcess] = field(default_factory=list)
    errors_expected: bool = False

    @property
    def a(self) -> NodeProcess:
        return self.nodes[0]

    @property
    def b(self) -> NodeProcess:
        return self.nodes[1]

    def start(self, count: int = 2, **config: Any) -> Cluster:
        started = [NodeProcess(self.dsn, **config).spawn() for _ in range(count)]
        self.nodes += started
        for node in started:
            node.wait_ready()
        return self

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    async def control_all(self, op: str, **options: Any) -> list[Any]:
        return [await node.control(op, **options) for node in self.nodes if node.running]

    async def check(self) -> None:
        found = [error for errors in await self.control_all("errors") for error in errors]
        assert self.errors_expected or not found, "\n".join(found)

    async def mark(self, room: str, event: str = "end", namespace: str = "/") -> None:
        """Emit a stored event from node a: log order is delivery order, so when a client has it,
        it has had all that was emitted before."""
        await self.a.emit(event, room=room, namespace=namespace)


@pytest.fixture(scope="module")
def standing_cluster(module_dsn: str, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes, with the options that the module names in CLUSTER."""
    cluster = Cluster(module_dsn)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.kill)
        yield cluster.start(**getattr(request.module, "CLUSTER", {}))


@pytest.fixture
async def cluster(standing_cluster: Cluster) -> AsyncIterator[Cluster]:
    """Two nodes, shared by the tests of a module: keep to `room` and `user`."""
    standing_cluster.errors_expected = False
    await standing_cluster.control_all("errors")
    yield standing_cluster
    await standing_cluster.control_all("stop_all")
    await standing_cluster.check()


@pytest.fixture
async def make_cluster(pg_dsn: str) -> AsyncIterator[Callable[..., Cluster]]:
    """Nodes with other options, or that a test kills, on a database of the test's own."""
    cluster = Cluster(pg_dsn)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.kill)
        yield cluster.start
        if cluster.nodes:
            await cluster.check()


@pytest.fixture(scope="session")
def chromium() -> str:
    path = shutil.which("chromium")
    if path is None:
        message = "chromium is not on the path: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture
def room() -> str:
    return f"room-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def session_rows(module_dsn: str) -> Iterator[Callable[[str], int]]:
    """How many rows of sio_sessions a sid has."""
    with psycopg.connect(module_dsn, autocommit=True) as connection:

        def count(sid: str) -> int:
            found = connection.execute("SELECT count(*) FROM sio_sessions WHERE sid = %s", [sid])
            return int(found.fetchone()[0])  # type: ignore[index]

        yield count


async def in_room(js: JSDriver, url: str, room: str, **options: Any) -> JSClient:
    """A connected client whose auth names a room that its `connect` handler enters."""
    auth = {**options.pop("auth", {}), "rooms": [room]}
    return await js.connect(url, auth=auth, **options)
