"""The version of the tables that this package works with."""

from __future__ import annotations

import shlex

from sio_pg_adapter.errors import SchemaMismatch

from .backends import QUERY_TIMEOUT
from .failures import UNMIGRATED
from .kept import Connection
from .queries import Queries

SCHEMA_VERSION = 1
"""The version of the tables that this package is made for.

It works with tables for which ``sio_log.compatible <= SCHEMA_VERSION <= sio_log.version``.
"""


async def check_version(connection: Connection, queries: Queries, schema: str) -> str:
    """Check that the tables are there, of this version, and return the channel that announces appends.

    :raises SchemaMismatch: if they are not.
    """
    where, command = f"the tables of schema {schema!r}", _command(schema)
    try:
        row = await connection.fetchrow(queries["version"], timeout=QUERY_TIMEOUT)
    except UNMIGRATED as e:
        raise SchemaMismatch(
            f"{where} are missing. Run `{command}`, or your own migrations if these create them."
        ) from e
    if row is None:
        raise SchemaMismatch(
            f"{where} are empty, as after a TRUNCATE of all tables. Run `{command}`, which repairs them. Leave "
            "tables named sio_* out of what empties tables."
        )
    check_range(row["version"], row["compatible"], schema)
    channel: str = row["channel"]
    return channel


def check_range(version: int, compatible: int, schema: str) -> None:
    """Check that this package works with tables of a version.

    :param compatible: the oldest version of the package that they serve.
    :raises SchemaMismatch: if it does not.
    """
    if compatible <= SCHEMA_VERSION <= version:
        return
    action = "upgrade the package sio-pg-adapter" if compatible > SCHEMA_VERSION else f"run `{_command(schema)}`"
    raise SchemaMismatch(
        f"the tables of schema {schema!r} are of version {version}, this package needs {SCHEMA_VERSION}: {action}"
    )


def _command(schema: str) -> str:
    return "sio-pg migrate" + ("" if schema == "public" else f" --schema {shlex.quote(schema)}")
