"""The cursor: it passes every record of the log once, in order, in one synchronous step each.

:meth:`Cursor.offer` announces an append, often with its records. If they follow the cursor without a gap, they are
applied at once. Otherwise, or after :meth:`Cursor.ring`, the range above the cursor is read. A lost, late or repeated
announcement, a reconnect and a start all end in that range query. So none of them is a special case.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Record
from sio_pg_adapter.store.reader import LogReader
from sio_pg_adapter.tasks import cancelled

from .recent import Recent

PAGE = 500
"""How many records a range read returns."""

NOTICE_BYTES = 4 * 1024 * 1024
"""How many bytes of announced appends are kept while a range is being read. If there are more, all are read."""

RETRY = 0.5
"""Seconds until a range read that failed is tried again."""

CURSOR_WAIT = 5.0
"""How long a client that connects waits for the cursor to reach an offset, in seconds."""

NOTHING: AbstractContextManager[object] = contextlib.nullcontext()

logger = logging.getLogger("sio_pg_adapter")

Notice = tuple[int, int, list[Record] | None]
"""The announcement of an append: the offset before it, its last one, and its records if they came along."""


class Watcher(Protocol):
    """Looks after this node's clients where the log is not as the cursor left it."""

    async def check(self) -> None:
        """There are records of an epoch that this node does not know."""

    def skipped(self, floor: int) -> None:
        """Retention deleted records that this node had not read, up to an offset."""

    def missed(self, namespace: str) -> None:
        """A record of the namespace could not be applied."""


class Notices:
    """The appends that are announced while a range of the log is being read."""

    def __init__(self) -> None:
        self._kept: list[Notice] = []
        self._size = 0

    def keep(self, prev: int, last: int, records: list[Record] | None) -> None:
        self._size += 100 + sum(record.size for record in records or ())
        if self._size > NOTICE_BYTES:
            self._kept.clear()
        else:
            self._kept.append((prev, last, records))

    def take(self) -> tuple[list[Notice], bool]:
        """Return all of them in order, and whether they were too large to be kept. None are left."""
        taken = self._kept, self._size > NOTICE_BYTES
        self._kept, self._size = [], 0
        return taken


class Cursor:
    """Walks the log.

    :param reader: reads ranges of the log.
    :param together: entered around several records that are applied in one tick.
    :ivar offset: the offset of the last record that was applied.
    :ivar head: the highest offset that this node knows of.
    :ivar recent: the last applied records.
    """

    def __init__(self, reader: LogReader, together: AbstractContextManager[object] = NOTHING) -> None:
        self._reader = reader
        self._together = together
        self.offset = 0
        self.head = 0
        self.recent = Recent(0)
        self._reading = False
        self._notices = Notices()
        self._ring = asyncio.Event()
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._task: asyncio.Task[None] | None = None

    @property
    def lag(self) -> int:
        """The offsets it knows of and has not passed. Only those of the head's epoch count: epochs are 2^40 apart."""
        first = self.head >> EPOCH_BITS << EPOCH_BITS
        return max(0, self.head - max(self.offset, first))

    @property
    def reached(self) -> int:
        """The offset up to which this process knows the log. In one that only emits, no cursor walks."""
        return self.offset if self.running else self.head

    @property
    def running(self) -> bool:
        """Whether it walks."""
        return self._task is not None and not self._task.done()

    async def start(self, apply: Callable[[Record], None], watcher: Watcher) -> None:
        """Begin at the head of the log.

        :param apply: called with each record, in order. It never awaits, and runs no code of the application.
        """
        self._apply, self._watcher = apply, watcher
        self.offset = self.head = await self._reader.head()
        self.recent = Recent(self.offset)
        self._wake_waiting()  # the node listens already, and messages may wait for this offset
        self._task = asyncio.create_task(self._run(), name="sio_pg cursor")

    async def close(self) -> None:
        """End the walk. Safe to call twice."""
        task, self._task = self._task, None
        await cancelled(task)

    # -- rings -----------------------------------------------------------------------------------------
    def ring(self) -> None:
        """There may be something above the cursor."""
        self._ring.set()

    def offer(self, prev: int, last: int, records: list[Record] | None) -> None:
        """Take the announcement of an append: the offset before it, its last one, and its records if they came along.

        Offsets have gaps where a transaction was rolled back. Only ``prev`` shows whether a record is missing.
        """
        self.head = max(self.head, last)
        if last <= self.offset:
            return
        if self._reading:  # the read may return these records, too, so they wait for its end
            self._notices.keep(prev, last, records)
        elif records and self._task is not None and prev <= self.offset and self._reader.epochs.knows(last):
            self._sweep(records)
        else:
            self._ring.set()

    def when(self, offset: int, then: Callable[[], None]) -> None:
        """Call ``then``, synchronously, when the cursor has reached the offset. At once if it has."""
        if offset <= self.offset:
            then()
        else:
            heapq.heappush(self._waiting, (offset, next(self._order), then))

    async def passed(self, offset: int, timeout: float) -> bool:
        """Wait until the cursor has reached the offset. ``False`` after ``timeout`` seconds."""
        if offset <= self.offset:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when(offset, lambda: None if future.done() else future.set_result(None))
        if offset > self.head:  # not announced yet. What is announced gets applied without this
            self._ring.set()
        done, _ = await asyncio.wait((future,), timeout=timeout)
        future.cancel()
        return bool(done)

    def jump(self, head: int) -> None:
        """Go on from another head: the applied records are not of this log, or no records are applied at all."""
        self.offset = self.head = head
        self.recent = Recent(head)
        self._notices.take()
        self._wake_waiting()

    # -- the walk --------------------------------------------------------------------------------------
    def _sweep(self, records: Sequence[Record]) -> None:
        """Apply the records above the cursor, without an await in between."""
        with self._together if len(records) > 1 else NOTHING:
            for record in records:
                if record.offset > self.offset:
                    self._advance(record)
        self._wake_waiting()

    def _advance(self, record: Record) -> None:
        try:
            self._apply(record)
        except Exception:  # a record that cannot be applied must not stop those that follow it
            logger.exception(
                "record %s of the log could not be applied: the clients of the namespace %s are disconnected",
                record.offset,
                record.namespace,
            )
            self._watcher.missed(record.namespace)
            self.recent = Recent(record.offset)  # so that replays read the record from the log
        else:
            self.recent.add(record)
        self.offset = record.offset
        self.head = max(self.head, record.offset)

    def _wake_waiting(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.offset:
            then = heapq.heappop(self._waiting)[2]
            try:
                then()
            except Exception:  # a waiter that fails must not keep the others waiting
                logger.exception("a message that waited for offset %s could not be handled", self.offset)

    async def _run(self) -> None:
        while True:
            await self._ring.wait()
            self._ring.clear()
            self._reading = True
            try:
                while await self._read_page():
                    pass
            except SioPgError as e:
                logger.warning("the log cannot be read above offset %s, trying again: %s", self.offset, e)
                await asyncio.sleep(RETRY)  # nothing announces that the database is back
                self._ring.set()
            except Exception:  # the walk goes on: nothing else would ever be delivered on this node
                logger.exception("the log cannot be read above offset %s, trying again", self.offset)
                await asyncio.sleep(RETRY)  # as above
                self._ring.set()
            self._reading = False
            notices, too_large = self._notices.take()
            for notice in notices:  # without them this would read on and on while other nodes append
                self.offer(*notice)
            if too_large:
                self._ring.set()

    async def _read_page(self) -> bool:
        """Read and apply a page. Return whether there may be more."""
        floor, records = await self._reader.range(self.offset, PAGE)
        if floor > self.offset:
            self.offset = floor
            self.recent = Recent(floor)
            self._watcher.skipped(floor)
        if records and not self._reader.epochs.knows(records[-1].offset):
            await self._watcher.check()  # a new epoch has begun. Its key signs the offsets on the wire
        begun = 0
        for i, record in enumerate(records):
            if record.attachment is not None:
                self._sweep(records[begun:i])
                self.head = max(self.head, record.offset)  # the body may take long, and health shows the lag
                self._sweep([await self._reader.whole(record)])
                begun = i + 1
        self._sweep(records[begun:])
        return len(records) == PAGE
