"""Flask-SocketIO's functions for handlers, with the options of this package."""

from __future__ import annotations

from typing import Any

import flask


def _socketio() -> Any:
    return flask.current_app.extensions["socketio"]


def _where(sid: str | None, namespace: str | None) -> tuple[str, str]:
    request: Any = flask.request
    return sid or request.sid, namespace or request.namespace


def emit(event: str, *args: Any, broadcast: bool = False, **kwargs: Any) -> None:
    """Send an event in a handler, see ``flask_socketio.emit``.

    :param session: the event is sent if and when the transaction of this SQLAlchemy ``Session`` commits.
    :param volatile: ``True``: the event is not stored, and so never replayed.
    :param key: an idempotency key, see :meth:`sio_pg_adapter.Server.emit`.
    """
    _socketio().emit(event, *args, **_to(broadcast, kwargs))


def send(message: Any, broadcast: bool = False, **kwargs: Any) -> None:
    """Send a message in a handler, see ``flask_socketio.send``. It takes the options of :func:`emit`."""
    _socketio().send(message, **_to(broadcast, kwargs))


def _to(broadcast: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a handler's emit, which is for its client if it names nobody else."""
    request: Any = flask.request
    to = kwargs.pop("to", None) or kwargs.pop("room", None)
    kwargs.pop("room", None)
    kwargs.setdefault("namespace", request.namespace)
    return {**kwargs, "to": request.sid if to is None and not broadcast else to}


def join_room(
    room: str, sid: str | None = None, namespace: str | None = None, *, session: Any = None, since: str | None = None
) -> Any:
    """Add a client to a room, see ``flask_socketio.join_room`` and :meth:`sio_pg_adapter.Server.enter_room`.

    :param session: in effect if and when the transaction of this SQLAlchemy ``Session`` commits.
    :param since: a position. The client first receives what was sent to the room after it.
    :returns: the position from which on the client is a member.
    """
    sid, namespace = _where(sid, namespace)
    return _socketio().server.enter_room(sid, room, namespace, connection=session, since=since)


def leave_room(room: str, sid: str | None = None, namespace: str | None = None, *, session: Any = None) -> None:
    """Remove a client from a room, see ``flask_socketio.leave_room`` and :func:`join_room`."""
    sid, namespace = _where(sid, namespace)
    _socketio().server.leave_room(sid, room, namespace, connection=session)


def close_room(room: str, namespace: str | None = None, *, session: Any = None) -> None:
    """Remove all clients from a room, see ``flask_socketio.close_room`` and :func:`join_room`."""
    _, namespace = _where("", namespace)
    _socketio().close_room(room, namespace, session=session)


def disconnect(
    sid: str | None = None,
    namespace: str | None = None,
    silent: bool = False,  # noqa: ARG001 - Flask-SocketIO has it, and does nothing with it
    *,
    session: Any = None,
) -> None:
    """Disconnect a client, and end its session, see ``flask_socketio.disconnect`` and :func:`join_room`."""
    sid, namespace = _where(sid, namespace)
    _socketio().server.disconnect(sid, namespace, connection=session)


def recovered() -> bool:
    """Return whether the connection of the handler's client continues its previous session."""
    return bool(_socketio().server.recovered(*_where(None, None)))
