"""The pruner: it ends sessions whose time is up, and deletes records that no session can need."""

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
from sio_pg_adapter.tasks import cancelled

from .backends import QUERY_TIMEOUT
from .database import Database
from .failures import translated
from .kept import Connection

INTERVAL = 60.0
"""Seconds between two looks. A look writes nothing if there is nothing to do."""

SECOND_LOOK = 11.0
"""Seconds until the look that finds a missing node dead."""

BATCH = 2_000
"""Rows of one transaction. It is short, so that nobody waits long for its locks."""

EXPIRED_AT_ONCE = 50
"""How many expired sessions are taken at once to call handlers for."""

logger = logging.getLogger("sio_pg_adapter")


@dataclass(frozen=True, slots=True)
class Pruned:
    """The work of a pass: how many sessions expired, and how many records were deleted."""

    sessions: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True)
class ExpiryHandlers:
    """The handlers that are called when a session's time is up.

    They are called at least once, and normally once, in the cluster.

    :ivar namespaces: the namespaces that this node has handlers for. ``*`` is all of them.
    :ivar call: calls the application's handler with sid, namespace and session data. It logs its exceptions, which
                count as a call.
    """

    node: uuid.UUID
    namespaces: list[str]
    call: Callable[[str, str, Any], Awaitable[None]]


class Pruner:
    """Looks once a minute whether there is anything to do. Nodes may do so at the same time: rows are locked.

    :param handlers: this node's expiry handlers. Without any, sessions that have a handler elsewhere are left alone.
    """

    def __init__(self, database: Database, handlers: ExpiryHandlers | None = None) -> None:
        self._database = database
        self._handlers = handlers
        self._task: asyncio.Task[None] | None = None
        self._calling: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._expired = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()

    async def announce_handlers(self) -> None:
        """Note in the store that expired sessions of these namespaces are for nodes with a handler."""
        if self._handlers is not None:
            await self._database.fetch("expiry_handlers", self._handlers.namespaces)

    @property
    def running(self) -> bool:
        """Whether it prunes."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sio_pg pruner")
        self._calling = asyncio.create_task(self._call_when_expired(), name="sio_pg expiry handlers")

    async def close(self) -> None:
        """Stop. Safe to call twice."""
        for timer in self._timers:
            timer.cancel()
        task, self._task = self._task, None
        await cancelled(task)
        calling, self._calling = self._calling, None
        await cancelled(calling)

    def look_in(self, seconds: float) -> None:
        """Look when a session's time is up. Its expiry handler then does not wait for the next regular look."""
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
                async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):
                    await self._soon.wait()
            self._soon.clear()
            pause = INTERVAL
            try:
                due = await self._due()
                if due["missing"]:
                    if await self._check_nodes():
                        pause = SECOND_LOOK / 0.8
                    due = await self._due()
                await self._prune(due)
                if due["sessions"]:
                    self._expired.set()
            except SioPgError as e:
                logger.warning("pruning: %s", e)
            except Exception:  # the loop goes on: on a cluster of one node nothing else would ever prune
                logger.exception("pruning failed")

    async def _call_when_expired(self) -> None:
        """Call handlers next to the passes. A handler may take long, and records expire meanwhile."""
        while True:
            await self._expired.wait()
            self._expired.clear()
            try:
                await self._call_handlers()
            except SioPgError as e:
                logger.warning("pruning: %s", e)
            except Exception:  # the loop goes on. A node takes these sessions again after some minutes
                logger.exception("calling the handlers of expired sessions failed")

    async def _due(self) -> Any:
        """Return what there is to do.

        This is all that a quiet cluster runs: one statement, on the kept connection. A connection of the pool would
        cost three more transactions, to be opened and to be reset.
        """
        return (await self._database.fetch("due_to_prune"))[0]

    async def _check_nodes(self) -> bool:
        """Look for the nodes' locks. Return whether nodes are missing that have not been found dead yet."""
        async with self._connection() as connection:
            return bool(await self._run_query(connection, "look") > 0)

    async def check_nodes_if_missing(self) -> None:
        """Look for the nodes' locks if a node is missing."""
        if (await self._due())["missing"]:
            await self._check_nodes()

    async def prune(self, progress: Callable[[Pruned], None] | None = None) -> Pruned:
        """Do one pass.

        :param progress: called after each batch with what is done so far.
        :raises StoreUnavailable: if the database did not answer. What was done before that is done.
        """
        due = await self._due()
        pruned = await self._prune(due, progress)
        called = await self._call_handlers() if due["sessions"] else 0
        return Pruned(pruned.sessions + called, pruned.records)

    async def _prune(self, due: Any, progress: Callable[[Pruned], None] | None = None) -> Pruned:
        sessions = records = 0

        def report() -> None:
            if progress is not None:
                progress(Pruned(sessions, records))

        if due["sessions"] or due["records"] or due["attachments"]:
            async with self._connection() as connection:
                count = BATCH if due["sessions"] else 0
                while count == BATCH:
                    count = await self._run_query(connection, "expire", BATCH)
                    sessions += count
                    report()
                count = BATCH if due["attachments"] else 0
                while count == BATCH:
                    count = await self._run_query(connection, "drop_attachments", BATCH, due["keep"])
                await self._run_query(connection, "drop_nodes")
                if due["records"]:  # at last, because it goes on while records age as fast as they are deleted
                    count = 1
                    while count:
                        await self._run_query(connection, "switch_segment", due["keep"])
                        count = await self._run_query(connection, "trim", due["keep"], BATCH)
                        records += count
                        report()
                    await self._run_query(connection, "drop_room_floors")
                    await self._run_query(connection, "drop_session_floors")
        if sessions or records:
            logger.info("pruned %s sessions and %s records", sessions, records)
        return Pruned(sessions, records)

    async def _call_handlers(self) -> int:
        """Call the handlers of all sessions that have expired. Return how many there were."""
        sessions = 0
        while self._handlers is not None:
            count = await self._call(self._handlers)
            sessions += count
            if count < EXPIRED_AT_ONCE:
                break
        if sessions:
            logger.info("called the handlers of %s expired sessions", sessions)
        return sessions

    async def _call(self, handlers: ExpiryHandlers) -> int:
        """Take expired sessions, call their handlers with no transaction open, then delete them."""
        async with self._connection() as connection:
            rows = await connection.fetch(
                self._database.queries["take_expired"],
                handlers.namespaces,
                str(handlers.node),
                EXPIRED_AT_ONCE,
                timeout=QUERY_TIMEOUT,
            )
        for row in rows:
            await handlers.call(row["sid"], row["namespace"], json.loads(row["data"]))
        if rows:
            async with self._connection() as connection:
                ids = [row["id"] for row in rows]
                await self._run_query(connection, "delete_expired", ids, str(handlers.node))
        return len(rows)

    async def _run_query(self, connection: Connection, query: str, *args: object) -> Any:
        return await connection.fetchval(self._database.queries[query], *args, timeout=QUERY_TIMEOUT)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool. On a kept one, appends or the cursor would wait for a delete."""
        with translated("pruning", may_be_stored=None):
            async with self._database.connection() as connection:
                yield connection


async def prune(database: Database, progress: Callable[[Pruned], None] | None = None) -> Pruned:
    """Do one pass on an open database, as ``sio-pg prune`` does it. Sessions with an expiry handler are left alone.

    :param progress: called after each batch with what is done so far.
    :raises StoreUnavailable: if the database did not answer. What was done before that is done.
    """
    pruner = Pruner(database)
    await pruner.check_nodes_if_missing()
    return await pruner.prune(progress)
