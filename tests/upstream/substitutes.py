"""A plugin of pytest that runs the tests of python-socketio and Flask-SocketIO on the classes of this package.

The names in the imported test modules are replaced, and nothing else. A test that ``differences.toml`` lists must
fail, and all others must pass.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import engines
import psycopg
import pytest
import pytest_asyncio
import socketio

import sio_pg_adapter
from sio_pg_adapter import sync_client

HERE = Path(__file__).parent
SUITE = os.environ["SUITE"]
CLASSES = {
    "server": {"Server": engines.Server},
    "async_server": {"AsyncServer": engines.AsyncServer},
    "manager": {"Manager": engines.Manager},
    "async_manager": {"AsyncManager": engines.AsyncManager},
    "client": {"Client": engines.Client},
    "async_client": {"AsyncClient": sio_pg_adapter.AsyncClient},
    "namespace": {"Namespace": sio_pg_adapter.Namespace},
    "async_namespace": {"AsyncNamespace": sio_pg_adapter.AsyncNamespace},
    "socketio": {
        "Server": engines.Server,
        "AsyncServer": engines.AsyncServer,
        "SimpleClient": sio_pg_adapter.SimpleClient,
        "AsyncSimpleClient": sio_pg_adapter.AsyncSimpleClient,
    },
}
"""What takes the place of classes, by the modules of python-socketio that tests name them in."""


def substitute(module: Any) -> None:
    """Replace the classes of python-socketio in a test module."""
    for name, value in list(vars(module).items()):
        if isinstance(value, ModuleType) and value.__name__.split(".")[0] == "socketio":
            replaced = CLASSES.get(value.__name__.rpartition(".")[2])
            if replaced:
                setattr(module, name, SimpleNamespace(**{**vars(value), **replaced}))
        elif value is getattr(socketio, name, None) and name in CLASSES["socketio"]:
            setattr(module, name, CLASSES["socketio"][name])


def pytest_configure(config: pytest.Config) -> None:
    sync_client._loop.run(asyncio.to_thread(int))  # its threads live as long as the process, and tests count threads
    if SUITE == "flask":  # it makes its SocketIO when it is imported
        import flask_socketio  # noqa: PLC0415 - the others do not need it

        import sio_pg_adapter.flask as ours  # noqa: PLC0415

        sys.modules["flask_socketio"] = SimpleNamespace(**{**vars(flask_socketio), **vars(ours)})  # type: ignore[assignment]


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    listed = expected()
    for item in items:
        substitute(item.module)  # type: ignore[attr-defined]
        if (reason := listed.pop(named(item), None)) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
            item.add_marker(pytest.mark.timeout(5))  # some wait for a call of a mock that never comes
    if listed and not config.getoption("keyword"):
        raise pytest.UsageError(f"differences.toml lists tests that do not exist: {', '.join(listed)}")


def named(item: pytest.Item) -> str:
    return f"{SUITE}/{item.path.stem}::{item.name}"


def expected() -> dict[str, str]:
    """Return the reason of each listed test of this suite."""
    reasons = {}
    for difference in tomllib.loads((HERE / "differences.toml").read_text())["difference"]:
        page, _, heading = difference["document"].partition("#")
        text = (HERE.parent.parent / "docs" / page).read_text()
        anchors = {line.strip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
        if heading not in anchors:
            raise pytest.UsageError(f"{page} has no heading #{heading}")
        for name in difference["tests"]:
            if name in reasons:
                raise pytest.UsageError(f"differences.toml lists {name} twice")
            reasons[name] = difference["reason"]
    return {name: reason for name, reason in reasons.items() if name.startswith(f"{SUITE}/")}


@pytest.fixture(autouse=True)
def clean() -> Any:
    """Close what a test has made, and forget its sessions: the next test has the same sids."""
    yield
    for used in engines.USED:
        if isinstance(used, engines.PostgresManager | engines.Manager):
            used.close()
    if engines.USED:
        engines.USED.clear()
        with psycopg.connect(os.environ["SIO_PG_DSN"]) as connection:
            connection.execute("TRUNCATE sio_sessions, sio_rooms")


if SUITE == "async":

    @pytest_asyncio.fixture(autouse=True, loop_scope="function")
    async def closed() -> Any:
        """Close what a test has made in its event loop."""
        yield
        for used in engines.USED:
            if isinstance(used, engines.AsyncServer):
                await sio_pg_adapter.AsyncServer.shutdown(used)
            else:
                await used.aclose()
