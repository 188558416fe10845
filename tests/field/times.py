"""The times of nodes in a short run of the field kit, so that they notice faults sooner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

STATEMENT = 1.0
"""For how long a node waits for a statement in a short run, in seconds."""

QUICK = {
    "store.listener.PROBE_INTERVAL": 0.5,
    "store.listener.PROBE_TIMEOUT": 1.0,
    "store.database.ACQUIRE_TIMEOUT": 1.0,
    "store.endpoints.CONNECT_TIMEOUT": 1.0,
    "store.followed.CHECK_WAIT": 1.0,
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
            "endpoints",
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


def _values() -> dict[str, Any]:
    names = {name: name.rpartition(".") for name in QUICK}
    return {
        name: getattr(import_module(f"sio_pg_adapter.{module}"), last) for name, (module, _, last) in names.items()
    }


NORMAL = _values()


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Use the times of a short run."""
    for name, value in QUICK.items():
        patch.setattr(f"sio_pg_adapter.{name}", value)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Use the normal times. Nothing is broken when a node starts, and a busy machine may take its time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NORMAL.items():
            patch.setattr(f"sio_pg_adapter.{name}", value)
        yield
