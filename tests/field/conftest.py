"""The options of the field kit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from field.times import hurry
from field.walk import LONG
from support.replicas import client_programs


@pytest.fixture
def seconds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return how long a walk goes on. In a short run, make nodes notice faults sooner."""
    seconds: float = request.config.getoption("--field-seconds")
    if seconds < LONG:
        hurry(monkeypatch)
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
