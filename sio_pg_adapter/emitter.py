"""``emit`` and ``emit_async``: events from any process, as part of the transaction of the caller's connection.

The event waits in ``sio_outbox`` and enters the log when that transaction commits, in the order of the commits; a
rollback leaves nothing of it. On a connection in autocommit that is at once. No manager and no listener are
needed::

    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE orders SET paid = true WHERE id = %s", [7])
        emit(connection, "order_paid", {"id": 7}, room="user:7")

What the caller's connection raises passes through as it is: it belongs to the caller's transaction, which the
caller rolls back, and tries again where the error says so. Drivers are recognised by what has been imported.
"""

from __future__ import annotations

import enum
import functools
import json as stdlib_json
import re
import sys
from types import ModuleType
from typing import Any

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.log.names import EVERYBODY, first_named, namespace_name, text_names
from sio_pg_adapter.log.payload import encode_event, pack
from sio_pg_adapter.store.queries import Queries

SYNC = "a psycopg Connection, an SQLAlchemy Connection or Session, Django's connection, or another of DB-API 2"
ASYNC = "an asyncpg Connection, a psycopg AsyncConnection, or an SQLAlchemy AsyncConnection or AsyncSession"

Values = tuple[str, str, str | None, str | None, str, bytes | None]
"""What the statement "emit" takes."""


def emit(
    connection: Any,
    event: str,
    data: Any = None,
    *,
    room: Any = None,
    to: Any = None,
    skip_sid: Any = None,
    namespace: str | None = None,
    schema: str = "public",
    json: ModuleType | Any = stdlib_json,
) -> None:
    """Send an event if and when the connection's transaction commits.

    :param connection: a psycopg ``Connection``, an SQLAlchemy ``Connection`` or ``Session`` (also a
                       ``scoped_session``), ``django.db.connection``, or another DB-API 2 connection.
    :param event: its name.
    :param data: one argument, a tuple of several, or ``None``; as python-socketio's ``emit`` takes it.
    :param room: a room, several in a list, or ``None``: everybody in the namespace. ``to`` is the same.
    :param skip_sid: a client or several that shall not get it.
    :param schema: where the tables are.
    :param json: a module to encode with.
    :raises NotSerializable: before anything is sent; names the key or the argument.
    :raises PayloadTooLarge: before anything is sent.
    :raises ConfigurationError: the connection is none of these.
    """
    values = _encoded(event, data, namespace, first_named(to, room), skip_sid, json)
    driver = _driver(connection)
    if driver is Driver.SQLALCHEMY:
        connection.execute(_clause(schema), _parameters(values, "named"))
        return
    if driver is Driver.PSYCOPG:  # its own cursor class: the connection's may take other placeholders
        cursor, style = sys.modules["psycopg"].Cursor(connection), "format"
    elif driver is None and (found := _dbapi(connection)):
        cursor, style = found[0].cursor(), found[1]
    else:
        raise ConfigurationError(
            f"emit() takes {SYNC}: not {_type(connection)}{'; see emit_async()' if driver else ''}"
        )
    try:
        cursor.execute(_statement(schema, style), _parameters(values, style))
    finally:
        cursor.close()


async def emit_async(
    connection: Any,
    event: str,
    data: Any = None,
    *,
    room: Any = None,
    to: Any = None,
    skip_sid: Any = None,
    namespace: str | None = None,
    schema: str = "public",
    json: ModuleType | Any = stdlib_json,
) -> None:
    """As :func:`emit`, for asynchronous connections.

    :param connection: an asyncpg ``Connection``, also one of a pool, a psycopg ``AsyncConnection``, or an
                       SQLAlchemy ``AsyncConnection`` or ``AsyncSession``.
    """
    values = _encoded(event, data, namespace, first_named(to, room), skip_sid, json)
    driver = _driver(connection)
    if driver is Driver.ASYNCPG:
        await connection.execute(_statement(schema, "numeric_dollar"), *values)
    elif driver is Driver.PSYCOPG_ASYNC:
        async with sys.modules["psycopg"].AsyncCursor(connection) as cursor:
            await cursor.execute(_statement(schema, "format"), values)
    elif driver is Driver.SQLALCHEMY_ASYNC:
        await connection.execute(_clause(schema), _parameters(values, "named"))
    else:
        other = "; see emit()" if driver or _dbapi(connection) else ""
        raise ConfigurationError(f"emit_async() and connection= take {ASYNC}: not {_type(connection)}{other}")


def _encoded(
    event: object, data: object, namespace: object, room: object, skip_sid: object, json: ModuleType | Any
) -> Values:
    rooms = text_names(room, "room") or (EVERYBODY,)
    skip_sids = text_names(skip_sid, "skip_sid")
    body, parts = encode_event(event, data, json)
    return (
        namespace_name(namespace),
        rooms[0],
        stdlib_json.dumps(rooms) if len(rooms) > 1 else None,
        stdlib_json.dumps(skip_sids) if skip_sids else None,
        body,
        pack(parts) if parts else None,
    )


# -- which connection is it? ---------------------------------------------------------------------------
class Driver(enum.Enum):
    """Connections that are known by their classes."""

    ASYNCPG = ("asyncpg.Connection",)  # also the proxy of a pool's
    PSYCOPG_ASYNC = ("psycopg.AsyncConnection",)
    SQLALCHEMY_ASYNC = tuple(
        f"sqlalchemy.ext.asyncio.{name}" for name in ("AsyncConnection", "AsyncSession", "async_scoped_session")
    )
    PSYCOPG = ("psycopg.Connection",)
    SQLALCHEMY = ("sqlalchemy.Connection", "sqlalchemy.orm.Session", "sqlalchemy.orm.scoped_session")


def _type(connection: object) -> str:
    return f"{type(connection).__module__}.{type(connection).__qualname__}"  # a DSN, say, is not for logs


def _driver(connection: object) -> Driver | None:
    for driver in Driver:
        for path in driver.value:
            module, _, name = path.rpartition(".")
            if isinstance(connection, getattr(sys.modules.get(module), name, ())):
                return driver
    return None


def _dbapi(connection: Any) -> tuple[Any, str] | None:
    """A DB-API 2 connection, out of SQLAlchemy's wrapping where it is in one, and its style of parameters."""
    if not callable(getattr(connection, "cursor", None)):
        return None
    if "django" in sys.modules and getattr(connection, "vendor", None) == "postgresql":
        return connection, "format"  # whatever its driver is
    connection = getattr(connection, "driver_connection", connection)
    for cls in connection.__class__.__mro__:
        module = cls.__module__
        while module:
            style = getattr(sys.modules.get(module), "paramstyle", None)
            if style in _MARKS:
                return connection, style
            module = module.rpartition(".")[0]
    return None


# -- the statement, as each of them takes it --------------------------------------------------------------
_MARKS = {
    "numeric_dollar": "${}",
    "format": "%s",
    "pyformat": "%(p{})s",
    "named": ":p{}",
    "numeric": ":{}",
    "qmark": "?",
}


@functools.lru_cache(maxsize=64)
def _statement(schema: str, style: str) -> str:
    # The schema's name comes first and is data: it may hold what looks like a parameter
    name, function, arguments = Queries(schema)["emit"].rpartition(".sio_emit_encoded(")
    if style in ("format", "pyformat"):
        name = name.replace("%", "%%")
    return name + function + re.sub(r"\$(\d)", lambda m: _MARKS[style].format(m[1]), arguments)


def _parameters(values: Values, style: str) -> Any:
    return {f"p{i}": value for i, value in enumerate(values, 1)} if style in ("pyformat", "named") else values


@functools.lru_cache(maxsize=64)
def _clause(schema: str) -> Any:
    name, function, arguments = _statement(schema, "named").rpartition(".sio_emit_encoded(")
    return sys.modules["sqlalchemy"].text(name.replace(":", "\\:") + function + arguments)
