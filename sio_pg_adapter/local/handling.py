"""Whose connect or disconnect handler is running.

In such a handler the sid means the connection that the handler is about, even after another connection has taken the
sid over. Tasks inherit context variables, so the mark itself records that its handler has ended. From then on, in a
task that the handler started, the sid means the connection that has it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass

from sio_pg_adapter.errors import ConfigurationError

from .client import Client


@dataclass(slots=True)
class _Handler:
    client: Client
    running: bool = True


_current: contextvars.ContextVar[_Handler | None] = contextvars.ContextVar("sio_pg_handler", default=None)


@contextlib.contextmanager
def handling(client: Client) -> Iterator[None]:
    """Mark that a connect or disconnect handler of a client runs."""
    handler = _Handler(client)
    token = _current.set(handler)
    try:
        yield
    finally:
        handler.running = False
        _current.reset(token)


def handled() -> Client | None:
    """Return the client whose connect or disconnect handler is calling."""
    handler = _current.get()
    return handler.client if handler is not None and handler.running else None


def refuse_in_connect(call: str, sid: str, namespace: str) -> None:
    """Refuse a change with ``connection=`` in the connect handler of the client that it is about.

    Without ``connection=`` a room that is left there counts as left from the offset that the client presented. A
    commit comes behind that, and the client would be sent what it missed in the room.

    :raises ConfigurationError: naming the call.
    """
    client = handled()
    if client is not None and (client.sid, client.namespace) == (sid, namespace) and not client.is_answered:
        raise ConfigurationError(
            f"{call}() takes no connection= for the client whose connect is being decided. Leave connection= out,"
            " or refuse the client."
        )
