"""Room changes and disconnects from any process, as part of the transaction of the caller's connection.

A change takes effect when that transaction commits, at its place among the events of the transaction. An event that
was emitted before ``leave_room`` reaches the client, and one that is emitted after it does not. A rollback removes
both. The change applies to clients of every node, to sessions that are away, and to replays::

    with psycopg.connect(dsn) as connection:
        connection.execute("DELETE FROM readers WHERE doc = 7 AND name = 'ada'")
        leave_room(connection, room="doc:7", members_of="user:ada")

The transaction must be READ COMMITTED. A stricter one is refused at the call, because the members of a room are those
at the commit, and an older snapshot does not show them. The connections are those of :mod:`sio_pg_adapter.emitter`.
"""

from __future__ import annotations

import json
from typing import Any

from sio_pg_adapter.drivers import Values, run, run_async
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.log.names import EVERYBODY, namespace_name, room_name, text_name, text_names
from sio_pg_adapter.log.records import Kind, MemberMove

CALLS = {
    Kind.ENTER: "enter_room",
    Kind.LEAVE: "leave_room",
    Kind.CLOSE: "close_room",
    Kind.KICK: "disconnect",
}
"""The functions of this module by the kind of change. The SQL function sio_change takes these names."""


def enter_room(
    connection: Any,
    sid: str | None = None,
    room: str | None = None,
    *,
    members_of: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    schema: str = "public",
) -> None:
    """Add a client, or all members of a room, to a room if and when the connection's transaction commits.

    :param connection: as for :func:`sio_pg_adapter.emit`.
    :param sid: the client. The session may be away, and the client at any node.
    :param room: the room to enter.
    :param members_of: instead of ``sid``, a room, or several in a list. All their members enter, as of the commit.
    :param skip_sid: with ``members_of``: members that do not enter. The sid, or several in a list.
    :param skip_room: with ``members_of``: a room, or several in a list, whose members do not enter.
    :param schema: the schema of the tables.
    :raises ConfigurationError: naming the argument, or the kind of the connection. Nothing is stored.
    :raises NotSerializable: if a name is not text. Nothing is stored.
    """
    _run(connection, schema, Kind.ENTER, sid, room, members_of, namespace, skip_sid, skip_room)


async def enter_room_async(
    connection: Any,
    sid: str | None = None,
    room: str | None = None,
    *,
    members_of: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    schema: str = "public",
) -> None:
    """Add to a room as :func:`enter_room` does, on a connection that :func:`sio_pg_adapter.emit_async` takes."""
    await _run_async(connection, schema, Kind.ENTER, sid, room, members_of, namespace, skip_sid, skip_room)


def leave_room(
    connection: Any,
    sid: str | None = None,
    room: str | None = None,
    *,
    members_of: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    schema: str = "public",
) -> None:
    """Remove a client, or all members of a room, from a room if and when the connection's transaction commits.

    No event that is emitted to the room later reaches them, in this transaction and in those that commit later.

    :param connection: as for :func:`sio_pg_adapter.emit`.
    :param sid: the client. The session may be away, and the client at any node.
    :param room: the room to leave.
    :param members_of: instead of ``sid``, a room, or several in a list. All their members leave, as of the commit.
    :param skip_sid: with ``members_of``: members that do not leave. The sid, or several in a list.
    :param skip_room: with ``members_of``: a room, or several in a list, whose members do not leave.
    :param schema: the schema of the tables.
    :raises ConfigurationError: naming the argument, or the kind of the connection. Nothing is stored.
    :raises NotSerializable: if a name is not text. Nothing is stored.
    """
    _run(connection, schema, Kind.LEAVE, sid, room, members_of, namespace, skip_sid, skip_room)


async def leave_room_async(
    connection: Any,
    sid: str | None = None,
    room: str | None = None,
    *,
    members_of: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    schema: str = "public",
) -> None:
    """Remove from a room as :func:`leave_room` does, on a connection that :func:`sio_pg_adapter.emit_async` takes."""
    await _run_async(connection, schema, Kind.LEAVE, sid, room, members_of, namespace, skip_sid, skip_room)


def close_room(
    connection: Any, room: str | None = None, *, namespace: str | None = None, schema: str = "public"
) -> None:
    """Remove everybody from a room if and when the connection's transaction commits.

    :param connection: as for :func:`sio_pg_adapter.emit`.
    :param schema: the schema of the tables.
    :raises ConfigurationError: naming the argument, or the kind of the connection. Nothing is stored.
    :raises NotSerializable: if a name is not text. Nothing is stored.
    """
    _run(connection, schema, Kind.CLOSE, None, room, None, namespace)


async def close_room_async(
    connection: Any, room: str | None = None, *, namespace: str | None = None, schema: str = "public"
) -> None:
    """Close a room as :func:`close_room` does, on a connection that :func:`sio_pg_adapter.emit_async` takes."""
    await _run_async(connection, schema, Kind.CLOSE, None, room, None, namespace)


def disconnect(
    connection: Any,
    sid: str | None = None,
    *,
    room: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    schema: str = "public",
) -> None:
    """Disconnect a client, or all members of a room, and end their sessions for good, at the transaction's commit.

    Sessions that are away end, too. They cannot be recovered afterwards.

    :param connection: as for :func:`sio_pg_adapter.emit`.
    :param sid: the client.
    :param room: instead of ``sid``, a room, or several in a list. All their members are disconnected.
    :param skip_sid: with ``room``: members that stay. The sid, or several in a list.
    :param skip_room: with ``room``: a room, or several in a list, whose members stay.
    :param schema: the schema of the tables.
    :raises ConfigurationError: naming the argument, or the kind of the connection. Nothing is stored.
    :raises NotSerializable: if a name is not text. Nothing is stored.
    """
    _run(connection, schema, Kind.KICK, sid, None, room, namespace, skip_sid, skip_room)


async def disconnect_async(
    connection: Any,
    sid: str | None = None,
    *,
    room: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    schema: str = "public",
) -> None:
    """Disconnect as :func:`disconnect` does, on a connection that :func:`sio_pg_adapter.emit_async` takes."""
    await _run_async(connection, schema, Kind.KICK, sid, None, room, namespace, skip_sid, skip_room)


def _run(connection: Any, schema: str, kind: Kind, *values: Any) -> None:
    run(connection, "change", _values(kind, *values), schema, CALLS[kind])


async def _run_async(connection: Any, schema: str, kind: Kind, *values: Any) -> None:
    await run_async(connection, "change", _values(kind, *values), schema, CALLS[kind])


async def change_members(connection: Any, move: MemberMove, schema: str) -> None:
    """Make a move of all members of some rooms a part of the connection's transaction."""
    await run_async(connection, "change", move_values(move), schema, CALLS[move.kind])


def move_values(move: MemberMove) -> Values:
    """Return the parameters of the statement "change" for a move of all members of some rooms."""
    return (
        CALLS[move.kind],
        move.namespace,
        None if move.kind is Kind.KICK else json.dumps(move.targets),
        None,
        json.dumps(move.rooms),
        json.dumps(move.skip_sids) if move.skip_sids else None,
        json.dumps(move.skip_rooms) if move.skip_rooms else None,
    )


def _values(
    kind: Kind,
    sid: object,
    room: object,
    members_of: object,
    namespace: object,
    skip_sid: object = None,
    skip_room: object = None,
) -> Values:
    """Return the parameters of the statement "change".

    :raises ConfigurationError: if an argument is missing, or given twice.
    """
    call, named = CALLS[kind], "room" if kind is Kind.KICK else "members_of"
    if kind is not Kind.KICK and room is None:
        raise ConfigurationError(f"{call}() takes the name of a room as room=.")
    if kind is not Kind.CLOSE and (sid is None) is (members_of is None):
        raise ConfigurationError(f"{call}() takes one client as sid=, or all members of a room as {named}=.")
    if sid is not None and text_name(sid, "sid") == EVERYBODY:
        raise ConfigurationError(f"{call}() takes a sid that is not empty.")
    members = text_names(members_of, named, needed=True) if members_of is not None else ()
    skip_sids, skip_rooms = text_names(skip_sid, "skip_sid"), text_names(skip_room, "skip_room")
    if (skip_sids or skip_rooms) and not members:
        raise ConfigurationError(f"{call}() takes skip_sid and skip_room together with {named}=.")
    return (
        call,
        namespace_name(namespace),
        None if room is None else json.dumps([room_name(room)]),
        None if sid is None else text_name(sid, "sid"),
        json.dumps(members) if members else None,
        json.dumps(skip_sids) if skip_sids else None,
        json.dumps(skip_rooms) if skip_rooms else None,
    )
