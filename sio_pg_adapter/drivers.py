"""A statement of ``queries.sql`` on a connection of the application, whatever its driver.

Drivers are recognized by their classes, without an import of the driver.
"""

from __future__ import annotations

import enum
import functools
import re
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.schema_names import checked_schema
from sio_pg_adapter.store.queries import Queries

SYNC = (
    "a psycopg Connection, an SQLAlchemy Connection or Session, Django's connection, or another DB-API 2 connection"
)
"""The connections that :func:`emit` takes, for messages."""

ASYNC = "an asyncpg Connection, a psycopg AsyncConnection, or an SQLAlchemy AsyncConnection or AsyncSession"
"""The connections that :func:`emit_async` takes, for messages."""

Values = tuple[str | bytes | None, ...]
"""The parameters of a statement."""

UNMIGRATED = ("42883", "3F000")
"""The SQLSTATEs undefined_function and invalid_schema_name: the errors of a database that is not migrated."""


def run(connection: Any, query: str, values: Values, schema: str, caller: str, *, answers: bool = False) -> Any:
    """Run a statement of ``queries.sql`` on a synchronous connection of the application.

    :param caller: the public function that is called, for messages. Its asynchronous form has the suffix "_async".
    :param answers: whether to return the only value of the statement.
    :raises ConfigurationError: the connection is of another kind, or the schema has no name.
    """
    checked_schema(schema)
    driver = _driver(connection)
    if driver is Driver.SQLALCHEMY:
        with _hint(schema):
            result = connection.execute(_clause(schema, query), _parameters(values, "named"))
        return result.scalar_one() if answers else None
    if driver is Driver.PSYCOPG:  # psycopg's plain cursor: the connection's own class may take other placeholders
        psycopg = sys.modules["psycopg"]
        cursor, style = psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row), "format"
    elif driver is None and (generic := _dbapi(connection)):
        cursor, style = generic[0].cursor(), generic[1]
    else:
        hint = f". Use {caller}_async() for an asynchronous connection" if driver else ""
        raise ConfigurationError(f"{caller}() takes {SYNC}, not {_type(connection)}{hint}")
    try:
        with _hint(schema):
            cursor.execute(_statement(schema, style, query), _parameters(values, style))
        return _only(cursor.fetchone()) if answers else None
    finally:
        cursor.close()


def _only(row: Any) -> Any:
    """Return the only value of a row, which may be a dict if the application has configured the driver so."""
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]


class LentConnection:
    """A synchronous connection, as the thread that uses it lends it to the event loop.

    Its statements run in that thread, which waits for the end of its call.

    :param run_there: runs a function in the thread of the connection.
    """

    def __init__(self, connection: Any, run_there: Callable[..., Awaitable[Any]]) -> None:
        self._connection = connection
        self._run_there = run_there

    async def run(self, query: str, values: Values, schema: str, caller: str) -> Any:
        """Run a statement as :func:`run` does, and return its only value."""
        return await self._run_there(run, self._connection, query, values, schema, caller, answers=True)


async def run_async(connection: Any, query: str, values: Values, schema: str, caller: str | None) -> Any:
    """Run a statement as :func:`run` does, on an asynchronous connection, and return its only value.

    :param caller: the synchronous function of the same name, for messages. ``None`` if there is none.
    """
    checked_schema(schema)
    if isinstance(connection, LentConnection):
        return await connection.run(query, values, schema, caller or query)
    driver = _driver(connection)
    with _hint(schema):
        if driver is Driver.ASYNCPG:
            return await connection.fetchval(_statement(schema, "numeric_dollar", query), *values)
        if driver is Driver.PSYCOPG_ASYNC:
            psycopg = sys.modules["psycopg"]
            async with psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
                await cursor.execute(_statement(schema, "format", query), values)
                return _only(await cursor.fetchone())
        if driver is Driver.SQLALCHEMY_ASYNC:
            return (await connection.execute(_clause(schema, query), _parameters(values, "named"))).scalar_one()
    if caller is None:
        raise ConfigurationError(f"connection= takes {ASYNC}, not {_type(connection)}")
    hint = f". Use {caller}() for a synchronous connection" if driver or _dbapi(connection) else ""
    raise ConfigurationError(f"{caller}_async() and connection= take {ASYNC}, not {_type(connection)}{hint}")


@contextmanager
def _hint(schema: str) -> Iterator[None]:
    """Add a note to the error of a database that is not migrated: PostgreSQL's own hint is to add type casts."""
    try:
        yield
    except Exception as e:
        if _sqlstate(e) in UNMIGRATED:
            option = "" if schema == "public" else f" --schema {shlex.quote(schema)}"
            e.add_note(
                f"The functions of sio-pg-adapter are missing in schema {schema!r}. Run `sio-pg migrate{option}`."
            )
        raise


def _sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error, out of the wrapping of SQLAlchemy or Django if need be."""
    while error is not None:
        for name in ("sqlstate", "pgcode"):  # psycopg and asyncpg; psycopg2
            if isinstance(state := getattr(error, name, None), str):
                return state
        error = getattr(error, "orig", None) or error.__cause__
    return None


# -- kinds of connections --------------------------------------------------------------------------------
class Driver(enum.Enum):
    """The kinds of connections that are recognized by their classes."""

    ASYNCPG = ("asyncpg.Connection",)  # also the proxy of a pooled connection
    PSYCOPG_ASYNC = ("psycopg.AsyncConnection",)
    SQLALCHEMY_ASYNC = tuple(
        f"sqlalchemy.ext.asyncio.{name}" for name in ("AsyncConnection", "AsyncSession", "async_scoped_session")
    )
    PSYCOPG = ("psycopg.Connection",)
    SQLALCHEMY = ("sqlalchemy.Connection", "sqlalchemy.orm.Session", "sqlalchemy.orm.scoped_session")


def _type(connection: object) -> str:
    # Never its value, which may be a DSN with a password.
    return f"{type(connection).__module__}.{type(connection).__qualname__}"


def _driver(connection: object) -> Driver | None:
    for driver in Driver:
        for path in driver.value:
            module, _, name = path.rpartition(".")
            if isinstance(connection, getattr(sys.modules.get(module), name, ())):
                return driver
    return None


def _dbapi(connection: Any) -> tuple[Any, str] | None:
    """Return the DB-API 2 connection, out of SQLAlchemy's wrapping if need be, and its style of parameters."""
    if not callable(getattr(connection, "cursor", None)):
        return None
    if "django" in sys.modules and getattr(connection, "vendor", None) == "postgresql":
        return connection, "format"  # Django's own style with any driver
    connection = getattr(connection, "driver_connection", connection)
    for cls in connection.__class__.__mro__:
        module = cls.__module__
        while module:
            style = getattr(sys.modules.get(module), "paramstyle", None)
            if style in _MARKS:
                return connection, style
            module = module.rpartition(".")[0]
    return None


# -- the statement in the style of each driver --------------------------------------------------------------
_MARKS = {
    "numeric_dollar": "${}",
    "format": "%s",
    "pyformat": "%(p{})s",
    "named": ":p{}",
    "numeric": ":{}",
    "qmark": "?",
}


@functools.lru_cache(maxsize=64)
def _statement(schema: str, style: str, query: str) -> str:
    # The schema's name comes first and is data. It may contain text that looks like a parameter.
    name, function, arguments = Queries(schema)[query].rpartition(".sio_")
    if style in ("format", "pyformat"):
        name = name.replace("%", "%%")
    return name + function + re.sub(r"\$(\d)", lambda m: _MARKS[style].format(m[1]), arguments)


def _parameters(values: Values, style: str) -> Any:
    return {f"p{i}": value for i, value in enumerate(values, 1)} if style in ("pyformat", "named") else values


@functools.lru_cache(maxsize=64)
def _clause(schema: str, query: str) -> Any:
    name, function, arguments = _statement(schema, "named", query).rpartition(".sio_")
    return sys.modules["sqlalchemy"].text(name.replace(":", "\\:") + function + arguments)
