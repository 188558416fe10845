"""Flask-SocketIO with connection state recovery.

Import everything from here instead of ``flask_socketio``::

    from sio_pg_adapter.flask import SocketIO, emit, join_room

    socketio = SocketIO(app, connection_state_recovery=True)  # on the database of SQLALCHEMY_DATABASE_URI

The names are those of Flask-SocketIO. ``emit``, ``send`` and the functions of rooms take ``session=db.session``,
which makes them part of its transaction.
"""

from __future__ import annotations

from flask_socketio import ConnectionRefusedError, Namespace, call, rooms  # noqa: A004 - Flask-SocketIO's name

from .events import close_room, disconnect, emit, join_room, leave_room, recovered, send
from .extension import SocketIO
from .test_client import SocketIOTestClient

__all__ = [
    "ConnectionRefusedError",
    "Namespace",
    "SocketIO",
    "SocketIOTestClient",
    "call",
    "close_room",
    "disconnect",
    "emit",
    "join_room",
    "leave_room",
    "recovered",
    "rooms",
    "send",
]
