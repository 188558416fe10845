"""The version of the tables that this package works with."""

from __future__ import annotations

import shlex

from sio_pg_adapter.errors import SchemaMismatch

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
    where = f"the tables of schema {schema!r}"
    command = "sio-pg migrate" + ("" if schema == "public" else f" --schema {shlex.quote(schema)}")
    try:
        row = await connection.fetchrow(queries["version"])
    except UNMIGRATED as e:
        raise SchemaMismatch(f"{where} are not there: run `{command}`") from e
    if row is None:
        raise SchemaMismatch(
            f"{where} are empty, as after a TRUNCATE of all tables: run `{command}`, which repairs them. Leave "
            "tables named sio_* out of what empties tables."
        )
    if not row["compatible"] <= SCHEMA_VERSION <= row["version"]:
        version = row["version"]
        newer = row["compatible"] > SCHEMA_VERSION
        action = "upgrade the package sio-pg-adapter" if newer else f"run `{command}`"
        raise SchemaMismatch(f"{where} are of version {version}, this package needs {SCHEMA_VERSION}: {action}")
    channel: str = row["channel"]
    return channel
