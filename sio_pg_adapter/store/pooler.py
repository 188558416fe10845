"""Connections through a pooler, such as PgBouncer, and how to recognise them.

In its transaction mode a pooler gives each transaction any backend that is free. So nothing of a session holds from
one statement to the next: no prepared statement, no LISTEN, no advisory lock. The backend of a lost connection cannot
be named either.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from sio_pg_adapter.errors import ConfigurationError

from .backends import QUERY_TIMEOUT

LISTENS_WITHIN = 3.0
"""How long a notification may take where LISTEN works, in seconds."""


class PoolerBetween(ConfigurationError):
    """LISTEN does not work on the connection that was given for it."""


async def hides_backend(connection: Any) -> bool:
    """Whether a pooler answers for the server.

    A pooler makes up the process id that a connection gets at its start, since the cancel key must lead back to the
    pooler. So it is not the backend's. This also holds in session mode, and for some cloud proxies.

    :param connection: an ``asyncpg.Connection``.
    """
    pid = await connection.fetchval("SELECT pg_backend_pid()", timeout=QUERY_TIMEOUT)
    return bool(pid != connection.get_server_pid())


async def check_listens(connection: Any, notify: Callable[[str], Awaitable[Any]]) -> None:
    """Check that LISTEN works on a connection.

    :param notify: notifies a channel, on another connection.
    :raises PoolerBetween: if it does not.
    """
    if await hides_backend(connection) and not await _can_listen(connection, notify):
        raise PoolerBetween(
            "LISTEN does not work through a pooler in transaction mode (PgBouncer). Give listen_dsn=, the URL of a "
            "direct connection to PostgreSQL."
        )


async def _can_listen(connection: Any, notify: Callable[[str], Awaitable[Any]]) -> bool:
    """Whether LISTEN works through a proxy. It does if the proxy keeps one backend for each connection.

    :param notify: notifies a channel, on another connection. On this one the notification would come back within the
                   statement's own answer, which a pooler passes on in any mode.
    """
    notified = asyncio.Event()
    channel = "sio_" + secrets.token_hex(20)

    def on_notify(*_: object) -> None:
        notified.set()

    async with asyncio.timeout(QUERY_TIMEOUT):
        await connection.add_listener(channel, on_notify)
    try:
        await notify(channel)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTENS_WITHIN):
                await notified.wait()
    finally:
        async with asyncio.timeout(QUERY_TIMEOUT):
            await connection.remove_listener(channel, on_notify)
    return notified.is_set()
