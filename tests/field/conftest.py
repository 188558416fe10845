"""The options of the field kit, and the times of a short run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from field.walk import LONG
from support.replicas import client_programs

STATEMENT = 1.0
"""For how long a node waits for a statement in a short run, in seconds."""

QUICK = {
    "store.listener.PROBE_INTERVAL": 0.5,
    "store.listener.PROBE_TIMEOUT": 1.0,
    "store.database.CHECK_WAIT": 1.0,
    "store.database.CONNECT_TIMEOUT": 1.0,
    "cluster.messages.QUERY_TIMEOUT": STATEMENT,
    "store.commits.GIVE_UP_AFTER": 1.5,
    "local.appender.EFFECT_WAIT": 1.0,
    "cluster.members.UNSTORED_WAIT": 1.0,
    "server.claiming.CURSOR_WAIT": 1.0,
    **{
        f"store.{name}.QUERY_TIMEOUT": STATEMENT
        for name in (
            "backends",
            "commits",
            "database",
            "fitness",
            "listener",
            "pooler",
            "presence",
            "pruner",
            "reader",
            "relay",
            "sessions",
            "version",
        )
    },
    **{f"store.{name}.ATTACHMENT_TIMEOUT": STATEMENT for name in ("commits", "reader")},
}
"""Times of the nodes in a short run, in seconds."""


@pytest.fixture
def seconds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return how long a walk goes on. In a short run, make nodes notice faults sooner."""
    seconds: float = request.config.getoption("--field-seconds")
    if seconds < LONG:
        for name, value in QUICK.items():
            monkeypatch.setattr(f"sio_pg_adapter.{name}", value)
    return seconds


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    seed = request.config.getoption("--field-seed")
    return random.randrange(1 << 32) if seed is None else seed


@pytest.fixture
def recoveries(request: pytest.FixtureRequest) -> int:
    """How many recoveries there are under each setting."""
    return int(request.config.getoption("--field-recoveries"))


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    with client_programs() as path:
        yield path
