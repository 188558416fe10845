"""How a test waits: ``until`` something in memory is so, or ``until_answer`` of somebody else is the wanted one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def until(true: Callable[[], Any], what: str = "it") -> None:
    """Give the loop turns until something in memory is so. Where there is an event to await, await that."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0)


async def until_answer(ask: Callable[[], Awaitable[Any]], wanted: Callable[[Any], object] = bool) -> Any:
    """Ask until an answer is the wanted one, and return that. PostgreSQL and other processes announce nothing.

    :param wanted: whether an answer is the wanted one. Without it, whether it is true.
    """
    async with asyncio.timeout(20):
        while not wanted(answer := await ask()):
            await asyncio.sleep(0.01)
    return answer


async def until_waiting(db: Any) -> int:
    """Wait until a backend waits for the log's lock, and return its process id.

    :param db: a connection to the database of the log.
    """
    return await until_answer(
        lambda: db.fetchval(
            "SELECT pid FROM pg_locks WHERE relation = 'sio_lock'::regclass AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    )
