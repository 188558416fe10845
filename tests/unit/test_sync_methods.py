"""The synchronous classes have the methods of the asynchronous ones, with the same parameters."""

from __future__ import annotations

import inspect
from itertools import starmap

import pytest
import socketio

from sio_pg_adapter import (
    AsyncNamespace,
    AsyncPostgresManager,
    AsyncServer,
    Namespace,
    PostgresManager,
    Server,
)

PAIRS = [
    (Server, AsyncServer, socketio.AsyncServer),
    (Namespace, AsyncNamespace, socketio.AsyncNamespace),
    (PostgresManager, AsyncPostgresManager, socketio.AsyncManager),
]

OF_THE_LOOP = {"aclose", "admit", "kick", "plain_endings", "say_goodbye", "serve", "start_early", "started"}
"""Methods of the asynchronous manager that are called in the event loop. The synchronous ``aclose`` is ``close``."""

OTHER_PARAMETERS = {"handle_request", "instrument", "set_server"}
"""Methods that take what the web server, the Admin UI or python-socketio gives to a synchronous one."""


def methods(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def beyond_python_socketio(synchronous: type, asynchronous: type, theirs: type) -> list[tuple[type, type, str]]:
    """Return the methods that this package adds, and those of python-socketio that both classes replace."""
    replaced = vars(synchronous).keys() & methods(theirs)
    added = methods(asynchronous) - methods(theirs) - OF_THE_LOOP
    return [(synchronous, asynchronous, name) for name in sorted(added | replaced)]


@pytest.mark.parametrize(
    ("synchronous", "asynchronous", "name"),
    [case for cases in starmap(beyond_python_socketio, PAIRS) for case in cases],
)
def test_a_method_has_its_synchronous_form(synchronous, asynchronous, name):
    ours, original = (inspect.signature(getattr(cls, name)).parameters for cls in (synchronous, asynchronous))
    assert list(ours) == list(original) or name in OTHER_PARAMETERS
