"""Connections through a pooler, such as PgBouncer: how they are told from direct ones.

In its transaction mode a pooler gives each transaction whichever backend is free. So nothing of a session holds
from one statement to the next: no prepared statement, no LISTEN, no advisory lock, and the backend of a
connection that was lost cannot be named.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from sio_pg_adapter.errors import ConfigurationError

HEARS_WITHIN = 3.0
"""Seconds in which a notification must have come where LISTEN works."""


class PoolerInBetween(ConfigurationError):  # noqa: N818 - as its relatives
    """LISTEN does not work on the connection that was given for it."""


async def hides_backend(connection: Any) -> bool:
    """Is something in between that answers for the server?

    A pooler makes up the process id that a connection is told at its start (the cancel key must lead back to the
    pooler), so it is not that of the backend. True of session mode and of some cloud proxies, too.

    :param connection: an ``asyncpg.Connection``.
    """
    return bool(await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid())


async def hears(connection: Any, notify: Callable[[str], Awaitable[Any]]) -> bool:
    """Does LISTEN work on this connection? It does through a proxy that keeps one backend for a connection.

    :param notify: notifies a channel, on another connection: on this one the notification would come back
                   within the statement's own answer, which a pooler passes on in any mode.
    """
    heard = asyncio.Event()
    channel = "sio_" + secrets.token_hex(20)

    def on_notify(*_: object) -> None:
        heard.set()

    await connection.add_listener(channel, on_notify)
    try:
        await notify(channel)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(heard.wait(), HEARS_WITHIN)
    finally:
        await connection.remove_listener(channel, on_notify)
    return heard.is_set()
