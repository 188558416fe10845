"""PostgreSQL backends: which one serves a connection, and how to end it for certain."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, NamedTuple

import asyncpg

from sio_pg_adapter.servers import keepalives_sql

from .queries import Queries

QUERY_TIMEOUT = 10.0
"""How long a statement may take before the database counts as unavailable, in seconds."""


class Backend(NamedTuple):
    """A backend. A process id alone may be another backend's by now.

    :ivar started: microseconds of the Unix epoch.
    """

    pid: int
    started: int


async def keep_alive(connection: Any) -> None:
    """Have the server notice in seconds that the client of this connection has vanished."""
    with contextlib.suppress(asyncpg.PostgresError):  # a proxy may not allow it
        await connection.execute(keepalives_sql(local=False), timeout=QUERY_TIMEOUT)


async def backend_of(connection: Any, queries: Queries) -> Backend | None:
    """Return the backend that serves a connection."""
    row = await connection.fetchrow(queries["backend"], timeout=QUERY_TIMEOUT)
    return None if row is None else Backend(row["pid"], row["started"])


async def end_backend(connection: Any, queries: Queries, backend: Backend) -> None:
    """End a former connection's backend, and wait until it is gone.

    :raises TimeoutError: if it does not end, as a process that the system has stopped.
    """
    until = time.monotonic() + QUERY_TIMEOUT
    while await connection.fetch(queries["end_backend"], *backend, timeout=QUERY_TIMEOUT):
        if time.monotonic() > until:
            raise TimeoutError(f"process {backend.pid} of the server does not end")
        await asyncio.sleep(0.02)  # PostgreSQL has nothing to wait on
