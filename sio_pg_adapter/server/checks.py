"""The checks of a connect after an await: its connection may be closed by then, and its client kicked."""

from __future__ import annotations

from sio_pg_adapter.local.client import Client
from sio_pg_adapter.log.records import Held


class ConnectAborted(Exception):
    """The connect cannot go on: closed, kicked, or its session claimed by another connection."""


def require_lasting(client: Client) -> None:
    """Check that the connect of a client may go on.

    :raises ConnectAborted: if its connection is closed, or its session is over.
    """
    if not client.lasts:
        raise ConnectAborted


def session_of(client: Client) -> Held:
    """Return the session that a client holds.

    :raises ConnectAborted: if it was kicked meanwhile.
    """
    if client.held is None:
        raise ConnectAborted
    return client.held
