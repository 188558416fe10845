"""The relay: one node moves what transactions have committed to ``sio_relay`` to the log.

``migrations/sql/0001/relay.sql`` says in which order, and why no row waits unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import asyncpg

from sio_pg_adapter.counters import Counters
from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.tasks import cancelled

from .backends import QUERY_TIMEOUT
from .database import Database
from .failures import translated
from .fitness import Probe

INTERVAL = 0.005
"""Seconds between two looks while transactions emit."""

BATCH = 500
"""How many rows are moved at once. All appends wait for that."""

MOST = 200_000
"""How many rows are looked for at once. Each look sorts all rows that wait."""

LOOK_TIMEOUT = 120.0
"""Seconds that a look may take. It holds no lock."""

IDLE = 1.0
"""Seconds without a row after which the node falls asleep."""

DROWSY = (0.02, 0.25)
"""Seconds between two looks, at first and at most, while transactions are open that will not ring."""

FLOOR_INTERVAL = 1.0
"""Seconds until the floor may rise again. That is a write."""

TAKEOVER = 1.0
"""Seconds between two looks whether the node that moves still lives, and until a failed move is tried again."""

LATE = 5.0
"""Seconds after which a row that waits is overdue. Any node then moves it."""

logger = logging.getLogger("sio_pg_adapter")


class Floor:
    """The floor of the relay, which rises when all transactions have ended that may have a lower id.

    A server that takes over may give such ids again. Another epoch runs there, and the floor does not rise.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last = 0
        self._epoch: int | None = None
        self._open: set[str] = set()
        self._due = 0.0

    async def rise(self) -> None:
        """Look at the open transactions. The caller has just moved everything that is committed."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + FLOOR_INTERVAL
        if not self._last:
            # Each id up to this one was taken under a lock of the table. Its transaction is open now, or has ended.
            self._last, self._epoch = (await self._database.fetch("relay_last_id"))[0]
            self._open = await open_transactions(self._database)
        elif self._open:
            self._open &= await open_transactions(self._database)
        else:  # they had all ended before the caller moved
            await self._database.fetch("relay_floor", self._last, self._epoch)
            self._last = 0


async def open_transactions(database: Database) -> set[str]:
    """Return the open transactions that have inserted into the relay."""
    return {row["virtualtransaction"] for row in await database.fetch("relay_open")}


class Relay:
    """Moves rows of the relay to the log while this is the node that does so.

    :param node: the id of this node.
    :ivar fault: why rows cannot be moved. Empty if they can.
    :ivar waiting: how many rows waited when this node last looked.
    :ivar faults: how many rows cannot be moved, because of what is in them.
    """

    def __init__(self, database: Database, node: str, counters: Counters) -> None:
        self._database = database
        self._node = node
        self._counters = counters
        self._ring = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._overdue = False
        self.fault = ""
        self.waiting = 0
        self.faults = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sio_pg relay")

    async def close(self) -> None:
        """Stop. Safe to call twice."""
        task, self._task = self._task, None
        await cancelled(task)

    def ring(self) -> None:
        """There may be rows, or the relay was switched on or off."""
        self._ring.set()

    async def drain(self) -> None:
        """Move everything that is committed now. It ends however fast transactions go on.

        :raises StoreUnavailable: if the database did not answer.
        """
        newest = await self._fetch_value("relay_newest")
        while newest and await self._move(upto=newest):
            pass

    def look(self, probe: Probe) -> None:
        """Look after rows that no node moves. That does not happen, unless the one that should is stuck."""
        if probe.relay_faults > self.faults:
            logger.error("%s rows of sio_relay cannot be moved to the log", probe.relay_faults)
        self.waiting, self.faults = probe.relay_waiting, probe.relay_faults
        self._overdue = (probe.relay_seconds or 0) >= LATE
        if probe.relay_seconds is not None or probe.relay_state == 2:
            self.ring()

    async def _run(self) -> None:
        while True:
            await self._ring.wait()
            self._ring.clear()
            try:
                await self._attend()
                self.fault = ""
                continue
            except SioPgError as e:
                self._failed(str(e))
            except Exception as e:  # the loop goes on, because the other nodes wait for this one
                logger.exception("moving the events of transactions failed")
                self._failed(f"{type(e).__name__}: {e}")
            await asyncio.sleep(TAKEOVER)  # nothing announces that the database is back
            self._ring.set()

    def _failed(self, reason: str) -> None:
        if not self.fault:
            logger.warning("moving the events of transactions: %s", reason)
        self.fault = reason

    async def _attend(self) -> None:
        """Do what this node has to do, until nothing is left."""
        while True:
            duty = await self._fetch_value("relay_attend", self._node)
            if duty == "asleep":
                return
            if duty == "off":
                await self.drain()  # a dump may have been restored
                return
            if duty == "ending":
                await self._end()
                return
            if duty == "other":
                if self._overdue:
                    self._overdue = False
                    await self.drain()
                self.fault = ""
                await asyncio.sleep(TAKEOVER)  # nothing announces that the other node has died
            elif await self._move_until_asleep():
                return

    async def _move_until_asleep(self) -> bool:
        """Move rows as they come. Return whether the relay is asleep. Else there is more to do."""
        floor = Floor(self._database)
        await self.drain()
        last = time.monotonic()
        while time.monotonic() - last < IDLE:
            moved = await self._move()
            if moved:
                last = time.monotonic()
            if moved < MOST:
                await floor.rise()
                await asyncio.sleep(INTERVAL)  # commits ring only while the relay is asleep
        self._ring.clear()
        if not await self._change("moving", "drowsy"):
            return False
        pause, longest = DROWSY
        still_open = await open_transactions(self._database)
        while still_open:
            await asyncio.sleep(pause)  # nothing announces the end of a transaction
            pause = min(longest, pause * 1.5)
            await self._move()
            if self._ring.is_set():
                return False
            still_open &= await open_transactions(self._database)
        await self.drain()
        return not self._ring.is_set() and await self._change("drowsy", "asleep")

    async def _end(self) -> None:
        """Move the rows that are left after the relay was switched off."""
        still_open = await open_transactions(self._database)
        while still_open:
            await self.drain()
            await asyncio.sleep(DROWSY[0])  # as above
            still_open &= await open_transactions(self._database)
        await self.drain()
        await self._change("ending", "off")

    async def _change(self, before: str, after: str) -> bool:
        return bool(await self._fetch_value("relay_change", self._node, before, after))

    async def _move(self, *, upto: int | None = None) -> int:
        """Move what is committed, in batches. Return how many rows that were, or `MOST` if there may be more.

        :param upto: only transactions up to this id, wherever the floor is.
        """
        batches = await self._fetch("relay_waiting", BATCH, MOST, upto, timeout=LOOK_TIMEOUT)
        self.waiting = found = sum(len(batch["ids"]) for batch in batches)
        for batch in batches:
            moved = await self._fetch_value("relay_move", batch["ids"], batch["epoch"])
            if moved is None:
                return MOST
            self._counters.relayed += moved
            self.waiting -= len(batch["ids"])
        self.fault = ""
        return found

    async def _fetch(
        self,
        query: str,
        *args: object,
        timeout: float | None = None,
    ) -> list[asyncpg.Record]:
        with translated(query, may_be_stored=None):
            async with self._database.writer as connection:
                rows: list[asyncpg.Record] = await connection.fetch(
                    self._database.queries[query], *args, timeout=timeout or QUERY_TIMEOUT
                )
                return rows

    async def _fetch_value(self, query: str, *args: object) -> Any:
        return (await self._fetch(query, *args))[0][0]
