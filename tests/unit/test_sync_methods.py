"""The synchronous classes have the methods of the asynchronous ones, with the same parameters."""

from __future__ import annotations

import inspect

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

CONCERNS_THE_LOOP = {
    "aclose": "close",
    "admit": None,  # these are for the server, in the event loop
    "initialize": "initialize",
    "kick": None,
    "plain_endings": None,
    "say_goodbye": None,
    "serve": None,
    "start_early": None,
    "started": None,
}
"""Methods of the asynchronous classes that the synchronous ones name otherwise, or do not have."""


def added(cls: type, python_socketio: type) -> list[str]:
    """Return the public methods that a class has beyond those of python-socketio."""
    return [
        name
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and member is not getattr(python_socketio, name, None)
    ]


@pytest.mark.parametrize(
    ("synchronous", "asynchronous", "name"),
    [
        (synchronous, asynchronous, name)
        for synchronous, asynchronous, python_socketio in (
            (Server, AsyncServer, socketio.AsyncServer),
            (Namespace, AsyncNamespace, socketio.AsyncNamespace),
            (PostgresManager, AsyncPostgresManager, socketio.AsyncManager),
        )
        for name in added(asynchronous, python_socketio)
        if CONCERNS_THE_LOOP.get(name, name) is not None
    ],
)
def test_a_method_has_its_synchronous_form(synchronous, asynchronous, name):
    method = getattr(synchronous, CONCERNS_THE_LOOP.get(name, name))
    if name not in ("aclose", "initialize", "instrument", "set_server", "shutdown"):
        assert list(inspect.signature(method).parameters) == list(
            inspect.signature(getattr(asynchronous, name)).parameters
        )
