"""The options of the field kit, and the times of a short run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.replicas import client_programs

LONG = 60.0
"""From this many seconds on the nodes keep their own times."""

QUICK = {
    "listener.PROBE_INTERVAL": 0.5,
    "listener.PROBE_TIMEOUT": 1.0,
    "database.CHECK_WAIT": 1.0,
    "database.QUERY_TIMEOUT": 1.5,
    "commits.QUERY_TIMEOUT": 1.5,
    "commits.GIVE_UP_AFTER": 1.5,
    "fitness.QUERY_TIMEOUT": 1.5,
    "presence.QUERY_TIMEOUT": 1.5,
    "backends.QUERY_TIMEOUT": 1.5,
}
"""Times of the store in a short run, in seconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.field)
            item.add_marker(pytest.mark.timeout(0))  # each of its waits has an end of its own


@pytest.fixture
def seconds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How long a walk goes on. In a short run nodes notice faults sooner than they do otherwise."""
    seconds: float = request.config.getoption("--field-seconds")
    if seconds < LONG:
        for name, value in QUICK.items():
            monkeypatch.setattr(f"sio_pg_adapter.store.{name}", value)
    return seconds


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    seed = request.config.getoption("--field-seed")
    return random.randrange(1 << 32) if seed is None else seed


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    with client_programs() as path:
        yield path
