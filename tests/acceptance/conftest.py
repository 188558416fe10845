from __future__ import annotations

import contextlib
import functools
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sio_pg_adapter import AsyncClient
from support import nodejs
from support.cluster import Cluster
from support.js_driver import JSDriver
from support.kinds import ASYNC_ONLY
from support.python_client import quick_client
from support.roles import node_dsn


@pytest.fixture(scope="session")
def js_modules() -> Path:
    return nodejs.install()


@pytest.fixture
async def js(js_modules: Path) -> AsyncIterator[JSDriver]:
    async with JSDriver(js_modules, nodejs.executable("node")) as driver:
        yield driver


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    """A Python client that reconnects at once."""
    client = quick_client()
    yield client
    await client.shutdown()


@pytest.fixture(scope="module")
def module_dsn(pg_template: Any, pg_create: Any) -> Iterator[str]:
    """A migrated database for the tests of one module, whose nodes live as long."""
    with pg_create(pg_template.template_dbname) as dsn:
        yield dsn


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module with the kinds of nodes that --kinds or its KINDS names."""
    if "kind" in metafunc.fixturenames:
        asked = metafunc.config.getoption("kinds")
        kinds = asked.split(",") if asked else getattr(metafunc.module, "KINDS", ("async",))
        metafunc.parametrize("kind", kinds, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not run with synchronous nodes."""
    own = [item for item in items if item.path.parent == Path(__file__).parent]
    left_out = [item for item in own if _name(item) in ASYNC_ONLY and item.callspec.params["kind"] != "async"]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _name(item: pytest.Item) -> str:
    return f"{item.path.stem}::{getattr(item, 'originalname', item.name)}"


@pytest.fixture(scope="module")
def standing_cluster(module_dsn: str, kind: str, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes, with the options that the module names in CLUSTER."""
    cluster = Cluster(node_dsn(module_dsn))
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.kill)
        yield cluster.start(kind=kind, **getattr(request.module, "CLUSTER", {}))


@pytest.fixture
async def cluster(standing_cluster: Cluster) -> AsyncIterator[Cluster]:
    """Two nodes, shared by the tests of a module: keep to `room` and `user`."""
    standing_cluster.errors_expected = False
    await standing_cluster.control_all("errors")
    yield standing_cluster
    await standing_cluster.control_all("stop_all")
    await standing_cluster.check()


@pytest.fixture
async def make_cluster(pg_dsn: str, kind: str) -> AsyncIterator[Callable[..., Cluster]]:
    """Nodes with other options, or that a test kills, on a database of the test's own."""
    cluster = Cluster(pg_dsn)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.kill)
        yield functools.partial(cluster.start, kind=kind)
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
