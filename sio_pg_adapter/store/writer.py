"""Appending to the log, in batches.

Everything that a node writes goes through one connection, in the order of the calls. What waits while a commit is
under way is the next batch (group commit). So all who append at the same time share the cost of a commit.

An entry that comes alone is sent at once, and not in the next turn of the event loop. The writer's task then awaits
the answer. So a caller that is cancelled does not cancel the commit.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable

import asyncpg

from sio_pg_adapter.counters import Counters
from sio_pg_adapter.errors import PayloadTooLarge, SioPgError, StoreUnavailable
from sio_pg_adapter.log.records import Entry, MemberMove, Record, Written
from sio_pg_adapter.tasks import Begun

from .commits import Commits
from .database import Database
from .failures import is_about_value, refusal

BATCH_ENTRIES = 500
"""The largest batch, in entries."""

BATCH_BYTES = 4 * 1024 * 1024
"""The largest batch, in bytes. Commits are kept short, because the appends of all nodes wait for each other."""

BACKLOG = 20_000
"""How many events may wait to be written. Further emits wait, so that memory does not fill while the database is
slow."""

logger = logging.getLogger("sio_pg_adapter")


class Backlog:
    """Places in a queue, given out in the order in which they were asked for.

    A semaphore does the same, but each release searches all waiters that it has woken. For a batch of 500 that is 500
    searches.

    :param places: how many may be taken at once.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._line: deque[asyncio.Future[None]] = deque()
        self._called = 0  # waiters that have a place and have not gone on yet: nobody may overtake them

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def take(self) -> None:
        """Wait for a place, in turn."""
        if self._free > 0 and not self._line and not self._called:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # called and cancelled in the same tick
                self._called -= 1
                self.leave(1)
            raise
        self._called -= 1
        self._call()  # waiters that came while this one was being resumed

    def leave(self, count: int) -> None:
        """Give places back."""
        self._free += count
        self._call()

    def _call(self) -> None:
        while self._free > 0 and self._line:
            turn = self._line.popleft()
            if not turn.done():
                self._free -= 1
                self._called += 1
                turn.set_result(None)


class LogWriter:
    """Writes entries in batches.

    :param on_appended: called as soon as a batch is committed, before any of its waiters goes on. It takes the offset
                        before the batch, its last one, and its records if they are known without a read.
    :param on_failed: called when a batch failed. Some of it may be stored all the same.
    :param cursor: returns an offset that all later appends are above.
    """

    def __init__(
        self,
        database: Database,
        on_appended: Callable[[int, int, list[Record] | None], None],
        on_failed: Callable[[], None],
        node: str,
        counters: Counters,
        cursor: Callable[[], int],
    ) -> None:
        self._on_failed = on_failed
        self._counters = counters
        self._commits = Commits(database, on_appended, node, cursor)
        self._waiting: deque[tuple[Entry | MemberMove, asyncio.Future[Written], int]] = deque()
        self._backlog = Backlog(BACKLOG)
        self._wake = asyncio.Event()  # not set while the task waits for an entry
        self._task: asyncio.Task[None] | None = None
        self._context = contextvars.Context()
        self._begun: Begun | None = None  # a batch that the task has not taken over yet
        self._came_alone = True  # the last entry after a pause, in its turn of the event loop
        self._closing = False

    @property
    def waiting(self) -> int:
        """How many entries wait to be written, and emits for a place in the line."""
        return len(self._waiting) + self._backlog.waiting

    @property
    def running(self) -> bool:
        """Whether it writes."""
        return self._task is not None and not self._task.done()

    @property
    def backend(self) -> int | None:
        """See :attr:`.commits.Commits.backend`."""
        return self._commits.backend

    def start(self) -> None:
        self._context = contextvars.copy_context()
        self._task = asyncio.create_task(self._run(), name="sio_pg log writer", context=self._context)
        self._task.add_done_callback(lambda _: self._give_up("the writer's task has ended"))

    async def close(self) -> None:
        """Write the waiting entries, then end. If the database is away, they fail. Safe to call twice."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,))
            self._task = None

    def append(self, entry: Entry | MemberMove) -> asyncio.Future[Written]:
        """Queue an entry at once. The order of the calls is the order in the log.

        :raises StoreUnavailable: from the future, if it is not stored, or that cannot be known.
        """
        return self._enqueue(entry, places=0)

    async def append_event(self, entry: Entry) -> Written:
        """Append an event in the order of the calls. While :data:`BACKLOG` events wait to be written, wait.

        :raises StoreUnavailable: as :meth:`append`. If the call is cancelled while it waits, nothing is stored.
        """
        await self._backlog.take()
        return await self._enqueue(entry, places=1)

    def _enqueue(self, entry: Entry | MemberMove, *, places: int) -> asyncio.Future[Written]:
        future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        if self._closing or not self.running:
            future.set_exception(StoreUnavailable("appending to the log: closed"))
            self._backlog.leave(places)
        else:
            self._waiting.append((entry, future, places))
            if not self._wake.is_set():
                # If several entries came together the last time, they will do so again. They share a commit.
                if self._came_alone and not isinstance(entry, MemberMove) and self._commits.is_ready:
                    self._begun = Begun(self._write_next(), self._context)
                self._wake.set()
        return future

    async def _run(self) -> None:
        while True:
            if self._begun is None and not self._waiting:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                self._came_alone = len(self._waiting) <= (self._begun is None)
            begun, self._begun = self._begun, None
            await (begun or self._write_next())

    async def _write_next(self) -> None:
        """Write the next batch of the waiting entries, if there are any."""
        batch: list[tuple[Entry, asyncio.Future[Written]]] = []
        size = places = 0
        while self._waiting and len(batch) < BATCH_ENTRIES and (not batch or size < BATCH_BYTES):
            entry, future, taken = self._waiting[0]
            if isinstance(entry, MemberMove):
                break
            self._waiting.popleft()
            batch.append((entry, future))
            places += taken
            size += entry.size + entry.answer
        if batch:
            await self._write(batch)
            self._backlog.leave(places)
        elif self._waiting:
            entry, future, _ = self._waiting.popleft()
            assert isinstance(entry, MemberMove)
            await self._move(entry, future)

    async def _move(self, move: MemberMove, future: asyncio.Future[Written]) -> None:
        try:
            written = await self._commits.move(move)
        except Exception as e:  # noqa: BLE001 - for the waiter to handle
            self._fail([future], refusal("appending to the log", e) if isinstance(e, asyncpg.PostgresError) else e)
        except BaseException:
            self._fail([future], _interrupted())
            raise
        else:
            if not future.done():
                future.set_result(written)

    async def _write(self, batch: list[tuple[Entry, asyncio.Future[Written]]]) -> None:
        try:
            entries = [entry for entry, _ in batch]
            with self._counters.spans.append(entries):
                written = await self._commits.batch(entries)
            self._counters.wrote(entries, duplicates=sum(result.duplicate for result in written))
        except Exception as e:
            if is_about_value(e) and len(batch) > 1:
                for entry_alone in batch:  # the others must not fail with it
                    await self._write([entry_alone])
                return
            if is_about_value(e):
                self._fail([future for _, future in batch], PayloadTooLarge(f"PostgreSQL refuses the value: {e}"))
                return
            if not isinstance(e, SioPgError | asyncpg.PostgresError):
                logger.exception("appending to the log failed")
            error = refusal("appending to the log", e) if isinstance(e, asyncpg.PostgresError) else e
            self._fail([future for _, future in batch], error)
        except BaseException:
            self._fail([future for _, future in batch], _interrupted())
            raise
        else:
            for (_, future), result in zip(batch, written, strict=True):
                if not future.done():
                    future.set_result(result)

    def _fail(self, futures: list[asyncio.Future[Written]], error: BaseException) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # the waiter may be gone: then the error is not reported
        self._on_failed()
        if self._closing and isinstance(error, StoreUnavailable):
            # Each batch would be tried for seconds before the end.
            self._give_up("closed while the database was away")

    def _give_up(self, reason: str) -> None:
        """Fail the waiting entries."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.close()
        while self._waiting:
            _, future, places = self._waiting.popleft()
            self._backlog.leave(places)
            if not future.done():
                future.set_exception(StoreUnavailable(f"appending to the log: {reason}"))
                future.exception()


def _interrupted() -> StoreUnavailable:
    """Return the error for entries that were being written when the writer's task was cancelled.

    With ``CancelledError`` their callers would seem to have been cancelled themselves.
    """
    return StoreUnavailable("appending to the log: the writer's task has ended", may_be_stored=True)
