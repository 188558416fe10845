"""Ends sessions whose time is up and deletes records that no session can need."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass

from .database import Database, translated
from .errors import SioPgError

INTERVAL = 60.0
"""Seconds between two looks. A look writes nothing where there is nothing to do."""

BATCH = 2_000
"""Rows of one transaction: short, so that nobody waits long for its locks."""

logger = logging.getLogger("sio_pg_adapter")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pass did: sessions that expired, records of the log that were deleted."""

    sessions: int = 0
    packets: int = 0


class Pruner:
    """Looks about once a minute; several nodes may, since each batch belongs to whoever locks it first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sio_pg pruner")

    async def close(self) -> None:
        """Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL * random.uniform(0.8, 1.2))  # noqa: S311 - so that nodes do not meet
            try:
                await self.prune()
            except SioPgError as e:
                logger.warning("pruning: %s", e)

    async def prune(self) -> Pruned:
        """One pass.

        :raises StoreUnavailable: if the database did not answer; what was done before that is done.
        """
        queries = self._database.queries
        sessions = packets = 0
        with translated("pruning"):
            async with self._database.connection() as connection:
                due = await connection.fetchrow(queries["due_to_prune"])
                while due["sessions"] and (count := await connection.fetchval(queries["expire"], BATCH)):
                    sessions += count
                if due["packets"]:
                    while count := await connection.fetchval(queries["trim"], due["keep"], BATCH):
                        packets += count
                    await connection.execute(queries["drop_room_floors"])
                    await connection.execute(queries["drop_nodes"])
                if due["attachments"]:
                    await connection.execute(queries["drop_attachments"], BATCH)
        if sessions or packets:
            logger.info("pruned %s sessions and %s records", sessions, packets)
        return Pruned(sessions, packets)


async def prune_once(dsn: str | None = None, *, schema: str = "public") -> Pruned:
    """One pass on a database, as ``sio-pg prune`` does it.

    :raises StoreUnavailable: if it cannot be reached.
    :raises SchemaMismatch: if it is not migrated.
    """
    database = Database(dsn, pool=None, listen_dsn=None, schema=schema)
    await database.open()
    try:
        return await Pruner(database).prune()
    finally:
        await database.close()
