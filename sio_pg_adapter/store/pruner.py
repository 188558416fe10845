"""Ends sessions whose time is up, and deletes records that no session can need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sio_pg_adapter.errors import SioPgError

from .database import Connection, Database, translated

INTERVAL = 60.0
"""Seconds between two looks. A look writes nothing where there is nothing to do."""

SECOND_LOOK = 11.0
"""Seconds until the look that finds a missing node dead."""

BATCH = 2_000
"""Rows of one transaction: short, so that nobody waits long for its locks."""

TOLD = 50
"""Expired sessions that are taken at once to call handlers for."""

logger = logging.getLogger("sio_pg_adapter")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pass did: sessions that expired, records of the log that were deleted."""

    sessions: int = 0
    packets: int = 0


class ExpiryHandlers:
    """Who is to be told that a session's time is up: at least once, and normally once, in the cluster.

    :param tell: calls the handlers of the application with sid, namespace and session data; its exceptions are
                 logged, and count as called.
    """

    def __init__(self, node: str, namespaces: list[str], tell: Callable[[str, str, Any], Awaitable[None]]) -> None:
        self.node = uuid.UUID(node)
        self.namespaces = namespaces
        self.tell = tell


class Pruner:
    """Looks about once a minute; several nodes may, since each batch belongs to whoever locks it first.

    :param handlers: of this node; without any, sessions that somebody else is to be told of are left alone.
    """

    def __init__(self, database: Database, handlers: ExpiryHandlers | None = None) -> None:
        self._database = database
        self._handlers = handlers
        self._task: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sio_pg pruner")

    async def close(self) -> None:
        """Safe to call twice."""
        for timer in self._timers:
            timer.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def look_in(self, seconds: float) -> None:
        """A session's time is up then: handlers shall not wait for the next regular look."""
        if self._handlers is None or self._task is None:
            return

        def look() -> None:
            self._timers.discard(timer)
            self._soon.set()

        timer = asyncio.get_running_loop().call_later(seconds + 0.1, look)
        self._timers.add(timer)

    async def _run(self) -> None:
        pause = INTERVAL
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), pause * random.uniform(0.8, 1.2))  # noqa: S311
            self._soon.clear()
            pause = INTERVAL
            try:
                due = await self._due()
                if due["missing"]:
                    if await self._look():
                        pause = SECOND_LOOK / 0.8
                    due = await self._due()
                await self._prune(due)
            except SioPgError as e:
                logger.warning("pruning: %s", e)

    async def _due(self) -> Any:
        """What there is to do. All that a quiet cluster runs: one statement, on the connection that is kept, since
        one of the pool's costs three more transactions, to be opened, and set back when it is returned."""
        return (await self._database.fetch("due_to_prune"))[0]

    async def _look(self) -> bool:
        """Are nodes missing that have not been found dead yet?"""
        async with self._use() as connection:
            return bool(await connection.fetchval(self._database.queries["look"]) > 0)

    async def prune(self, tell: Callable[[Pruned], None] | None = None) -> Pruned:
        """One pass.

        :param tell: called after each batch with what is done so far.
        :raises StoreUnavailable: if the database did not answer; what was done before that is done.
        """
        return await self._prune(await self._due(), tell)

    async def _prune(self, due: Any, tell: Callable[[Pruned], None] | None = None) -> Pruned:
        queries = self._database.queries
        sessions = packets = 0
        if due["sessions"] or due["packets"] or due["attachments"]:
            async with self._use() as connection:
                while due["sessions"] and (count := await connection.fetchval(queries["expire"], BATCH)):
                    sessions += count
                    if tell is not None:
                        tell(Pruned(sessions, packets))
                if due["packets"]:
                    count = 1
                    while count:
                        await connection.execute(queries["turn"], due["keep"])
                        count = await connection.fetchval(queries["trim"], due["keep"], BATCH)
                        packets += count
                        if tell is not None:
                            tell(Pruned(sessions, packets))
                    await connection.execute(queries["drop_room_floors"])
                    await connection.execute(queries["drop_nodes"])
                if due["attachments"]:
                    await connection.execute(queries["drop_attachments"], BATCH)
        while due["sessions"] and self._handlers is not None and (count := await self._tell(self._handlers)):
            sessions += count
        if sessions or packets:
            logger.info("pruned %s sessions and %s records", sessions, packets)
        return Pruned(sessions, packets)

    async def _tell(self, handlers: ExpiryHandlers) -> int:
        """Take expired sessions, call their handlers with no transaction open, then delete them."""
        queries = self._database.queries
        async with self._use() as connection:
            rows = await connection.fetch(queries["expire_told"], handlers.namespaces, handlers.node, TOLD)
        for row in rows:
            await handlers.tell(row["sid"], row["namespace"], json.loads(row["data"]))
        if rows:
            async with self._use() as connection:
                await connection.execute(queries["expire_done"], [row["id"] for row in rows], handlers.node)
        return len(rows)

    @contextlib.asynccontextmanager
    async def _use(self) -> AsyncIterator[Connection]:
        with translated("pruning"):
            async with self._database.connection() as connection:
                yield connection


async def prune_once(dsn: str | None = None, *, schema: str = "public") -> Pruned:
    """One pass on a database; sessions with an expiry handler are left to it.

    :raises StoreUnavailable: if it cannot be reached.
    :raises SchemaMismatch: if it is not migrated.
    """
    database = Database(dsn, pool=None, listen_dsn=None, schema=schema)
    await database.open()
    try:
        return await prune_opened(database)
    finally:
        await database.close()


async def prune_opened(database: Database, tell: Callable[[Pruned], None] | None = None) -> Pruned:
    """One pass on a database, as ``sio-pg prune`` does it.

    :param tell: called after each batch with what is done so far.
    :raises StoreUnavailable: if it did not answer; what was done before that is done.
    """
    pruner = Pruner(database)
    if (await pruner._due())["missing"]:  # noqa: SLF001 - its own module
        await pruner._look()  # noqa: SLF001
    return await pruner.prune(tell)
