"""``emit`` and ``emit_async``: events from any process, as part of the transaction of the caller's connection.

The event waits in ``sio_outbox`` and enters the log when that transaction commits, in the order of the commits. A
rollback removes it. On a connection in autocommit mode it enters the log at once. No manager and no listener are
needed::

    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE orders SET paid = true WHERE id = %s", [7])
        emit(connection, "order_paid", {"id": 7}, room="user:7")

Errors of the caller's connection pass through unchanged. They belong to the caller's transaction, which the caller
rolls back, and repeats if the error allows it. If the database is not migrated, the error gets a note that names
``sio-pg migrate``.
"""

from __future__ import annotations

import json as stdlib_json
from types import ModuleType
from typing import Any

from sio_pg_adapter.drivers import Values, run, run_async
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.log.names import namespace_name
from sio_pg_adapter.log.payload import pack
from sio_pg_adapter.log.records import Outgoing


def emit(
    connection: Any,
    event: str,
    data: Any = None,
    *,
    room: Any = None,
    to: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    key: str | None = None,
    schema: str = "public",
    json: ModuleType | Any = stdlib_json,
) -> bool | None:
    """Send an event if and when the connection's transaction commits.

    :param connection: a psycopg ``Connection``, an SQLAlchemy ``Connection`` or ``Session`` (also a
                       ``scoped_session``), ``django.db.connection``, or another DB-API 2 connection.
    :param event: the name of the event.
    :param data: one argument, a tuple of several, or ``None``, as in python-socketio's ``emit``.
    :param room: a room, a list of rooms, or ``None`` for everybody in the namespace. ``to`` is an alias.
    :param skip_sid: the sid, or a list of the sids, of clients that do not get the event.
    :param skip_room: a room, or a list of rooms, whose members do not get the event. They are the members at the
                      commit, also in a replay.
    :param key: an idempotency key, up to 512 bytes. If the log has an event with this key in the namespace, this
                one is not sent. That is no error.
    :param schema: the schema of the tables.
    :param json: the module to encode with.
    :returns: ``None`` without a key. With one, ``False`` if the log has an event with this key. ``True`` means that
              the event will be stored at the commit, unless another event with the key is committed first.
    :raises NotSerializable: before anything is sent. The message names the key or the argument.
    :raises PayloadTooLarge: before anything is sent.
    :raises ConfigurationError: the connection is of another kind, the key is empty, or another option is wrong.
    """
    outgoing = _outgoing(
        event, data, namespace=namespace, room=room, to=to, skip_sid=skip_sid, skip_room=skip_room, key=key, json=json
    )
    stored = run(connection, "emit", _values(outgoing), schema, "emit", answers=key is not None)
    return None if key is None else bool(stored)


async def emit_async(
    connection: Any,
    event: str,
    data: Any = None,
    *,
    room: Any = None,
    to: Any = None,
    skip_sid: Any = None,
    skip_room: Any = None,
    namespace: str | None = None,
    key: str | None = None,
    schema: str = "public",
    json: ModuleType | Any = stdlib_json,
) -> bool | None:
    """Send an event as :func:`emit` does, on an asynchronous connection.

    :param connection: an asyncpg ``Connection``, also one of a pool, a psycopg ``AsyncConnection``, or an
                       SQLAlchemy ``AsyncConnection`` or ``AsyncSession``.
    """
    outgoing = _outgoing(
        event, data, namespace=namespace, room=room, to=to, skip_sid=skip_sid, skip_room=skip_room, key=key, json=json
    )
    return await emit_outgoing(connection, outgoing, schema)


def _outgoing(event: str, data: Any, *, json: Any, **options: Any) -> Outgoing:
    if not callable(getattr(json, "dumps", None)):
        raise ConfigurationError(f"json takes a module with dumps, not {json!r}")
    return Outgoing.encoded(event, data, json=json, **options)


async def emit_outgoing(connection: Any, outgoing: Outgoing, schema: str) -> bool | None:
    """Send an event whose names are checked and whose data is encoded, as :func:`emit_async` does."""
    stored = await run_async(connection, "emit", _values(outgoing), schema, "emit")
    return None if outgoing.key is None else bool(stored)


async def read_position(connection: Any, namespace: object, schema: str) -> str:
    """Return the position of the snapshot of a connection, see :meth:`AsyncPostgresManager.position`.

    :param connection: as for :func:`emit_async`.
    """
    return str(await run_async(connection, "position", (namespace_name(namespace),), schema, None))


def _values(outgoing: Outgoing) -> Values:
    rooms, skip_sids = outgoing.rooms, outgoing.skip_sids
    return (
        outgoing.namespace,
        rooms[0],
        stdlib_json.dumps(rooms) if len(rooms) > 1 else None,
        stdlib_json.dumps(skip_sids) if skip_sids else None,
        outgoing.body,
        pack(outgoing.parts) if outgoing.parts else None,
        outgoing.key,
        stdlib_json.dumps(outgoing.skip_rooms) if outgoing.skip_rooms else None,
    )
