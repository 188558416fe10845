"""The cursor: every record of the log is applied once, in order, in one synchronous step.

A ring tells that there is something above the cursor; it may carry the records. If they follow the cursor
without a gap they are applied at once; else the range from the cursor is read. A lost, late or double ring, a
reconnect and a start all end in the same range query, so none of them is a special case.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.log.records import EPOCH_BITS, Kind, Record
from sio_pg_adapter.store.writer import LogReader

PAGE = 500
"""Records of one range read."""

RECENT_RECORDS = 4_000
RECENT_BYTES = 16 * 1024 * 1024
RECENT_OTHERS = 20_000
"""What the buffer of the last applied records holds at the most, for replays to end in: events, and what is small.
Apart, since a storm of 5,000 clients writes as many claims: they shall not push out what the clients missed."""

HEARD_BYTES = 4 * 1024 * 1024
"""Of what is told of appends while a range of the log is being read. What is beyond that is read, too."""

RETRY = 0.5
"""Seconds between range reads that fail: the database is away."""

NOTHING: AbstractContextManager[object] = contextlib.nullcontext()

logger = logging.getLogger("sio_pg_adapter")

Offer = tuple[int, int, list[Record] | None]
"""What is told of an append: the offset before it, its last one, and its records where they came along."""


class Recent:
    """The last applied records: all of those above ``base``, up to the cursor.

    Each is asked for by those it may concern, so what a storm of claims costs does not grow with its square:
    events by namespace, what moves a sid by that sid, closed rooms by namespace.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self._events: deque[Record] = deque()
        self._others: deque[Record] = deque()
        self._size = 0
        self._index: dict[tuple[str, str | None, bool], deque[Record]] = {}

    def add(self, record: Record) -> None:
        key = _about(record)
        same = self._index.get(key)
        if same is None:
            same = self._index[key] = deque()
        same.append(record)
        if record.kind is not Kind.EVENT:
            self._others.append(record)
            if len(self._others) > RECENT_OTHERS:
                self._forget(self._others)
            return
        self._events.append(record)
        self._size += record.size
        while len(self._events) > RECENT_RECORDS or self._size > RECENT_BYTES:
            self._size -= self._forget(self._events).size

    def _forget(self, records: deque[Record]) -> Record:
        """The oldest of them is gone, and so nothing at or below it can be answered for."""
        oldest = records.popleft()
        key = _about(oldest)
        same = self._index[key]
        same.popleft()  # in order of the log: it is the first here, too
        if not same:
            del self._index[key]
        self.base = max(self.base, oldest.offset)
        return oldest

    def cover(self, position: int) -> bool:
        """Is every applied record above the position in here?"""
        return position >= self.base

    def events(self, namespace: str, position: int) -> list[Record]:
        """The events of a namespace above the position, in order."""
        return _above(self._index.get((namespace, None, True), ()), position)

    def moves(self, namespace: str, sid: str, position: int) -> list[Record]:
        """What is about a sid, and which rooms were closed, above the position, in order."""
        of_sid = _above(self._index.get((namespace, sid, False), ()), position)
        closed = _above(self._index.get((namespace, None, False), ()), position)
        return list(heapq.merge(of_sid, closed, key=lambda r: r.offset)) if closed else of_sid


def _about(record: Record) -> tuple[str, str | None, bool]:
    return record.namespace, record.sid, record.kind is Kind.EVENT


def _above(records: Sequence[Record], position: int) -> list[Record]:
    newest_first = list(itertools.takewhile(lambda r: r.offset > position, reversed(records)))
    newest_first.reverse()
    return newest_first


class Heard:
    """What was told of appends while a range of the log is being read: for after that."""

    def __init__(self) -> None:
        self._offers: list[Offer] = []
        self._size = 0

    def keep(self, prev: int, last: int, records: list[Record] | None) -> None:
        self._size += 100 + sum(record.size for record in records or ())
        if self._size > HEARD_BYTES:
            self._offers.clear()
        else:
            self._offers.append((prev, last, records))

    def take(self) -> tuple[list[Offer], bool]:
        """All of it, in order, and whether it was too much to be kept; nothing is left."""
        found = self._offers, self._size > HEARD_BYTES
        self._offers, self._size = [], 0
        return found


class Dispatcher:
    """Walks the log with one cursor.

    :param reader: where ranges are read.
    :param apply: called with each record, in order, once; synchronous: no application code, no await.
    :param on_hole: called when retention deleted records that this node had not seen, with the new cursor.
    :param together: entered around several records that are applied in one go.
    """

    def __init__(
        self,
        reader: LogReader,
        apply: Callable[[Record], None],
        on_hole: Callable[[int], None],
        together: AbstractContextManager[object] = NOTHING,
    ) -> None:
        self._reader = reader
        self._apply = apply
        self._on_hole = on_hole
        self._together = together
        self.cursor = 0
        self.head = 0
        self.recent = Recent(0)
        self._reading = False
        self._heard = Heard()
        self._ring = asyncio.Event()
        self._passed: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._task: asyncio.Task[None] | None = None

    @property
    def lag(self) -> int:
        """Offsets that it knows of and has yet to pass; of a new epoch, those in that: between two there are 2^40."""
        first = self.head >> EPOCH_BITS << EPOCH_BITS
        return max(0, self.head - max(self.cursor, first))

    async def start(self) -> None:
        """Begin at the head of the log."""
        self.cursor = self.head = await self._reader.head()
        self.recent = Recent(self.cursor)
        self._tell()  # messages that came since the listener listens
        self._task = asyncio.create_task(self._run(), name="sio_pg dispatcher")

    async def close(self) -> None:
        """Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- rings -----------------------------------------------------------------------------------------
    def ring(self) -> None:
        """There may be something above the cursor."""
        self._ring.set()

    def offer(self, prev: int, last: int, records: list[Record] | None) -> None:
        """An append of the log: the offset before it, its last one, and its records where they came along."""
        self.head = max(self.head, last)
        if last <= self.cursor:
            return
        if self._reading:  # what that returns is applied from the cursor that it began at
            self._heard.keep(prev, last, records)
        elif records and prev <= self.cursor and self._reader.knows(last):
            self._sweep(records)
        else:
            self._ring.set()

    def when(self, offset: int, then: Callable[[], None]) -> None:
        """Call back, synchronously, when the cursor has reached the offset; at once if it has."""
        if offset <= self.cursor:
            then()
        else:
            heapq.heappush(self._passed, (offset, next(self._order), then))

    async def passed(self, offset: int, timeout: float) -> bool:
        """Wait until the cursor has reached the offset; ``False`` after ``timeout`` seconds."""
        if offset <= self.cursor:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when(offset, lambda: None if future.done() else future.set_result(None))
        if offset > self.head:  # nobody has told of it: what was told is applied, being read, or kept until then
            self._ring.set()
        done, _ = await asyncio.wait((future,), timeout=timeout)
        future.cancel()
        return bool(done)

    def jump(self, head: int) -> None:
        """What was applied is not of this history: go on from its head."""
        self.cursor = self.head = head
        self.recent = Recent(head)
        self._heard.take()
        self._tell()

    # -- the walk --------------------------------------------------------------------------------------
    def _sweep(self, records: Sequence[Record]) -> None:
        """Apply what is above the cursor; synchronous."""
        with self._together if len(records) > 1 else NOTHING:
            for record in records:
                if record.offset > self.cursor:
                    self._advance(record)
        self._tell()

    def _advance(self, record: Record) -> None:
        try:
            self._apply(record)
        except Exception:  # one record that cannot be applied must not stop all that follow it
            logger.exception("record %s of the log could not be applied", record.offset)
        self.recent.add(record)
        self.cursor = record.offset
        self.head = max(self.head, record.offset)

    def _tell(self) -> None:
        while self._passed and self._passed[0][0] <= self.cursor:
            then = heapq.heappop(self._passed)[2]
            try:
                then()
            except Exception:  # one waiter must not keep the others waiting
                logger.exception("a message that waited for offset %s could not be handled", self.cursor)

    async def _run(self) -> None:
        while True:
            await self._ring.wait()
            self._ring.clear()
            self._reading = True
            try:
                while await self._read_page():
                    pass
            except SioPgError as e:
                logger.warning("the log cannot be read at offset %s, trying again: %s", self.cursor, e)
                await asyncio.sleep(RETRY)  # the database is away: it has nothing that could be awaited
                self._ring.set()
            self._reading = False
            heard, too_much = self._heard.take()
            for offer in heard:  # else who reads would go on reading, while others append
                self.offer(*offer)
            if too_much:
                self._ring.set()

    async def _read_page(self) -> bool:
        """Read and apply a page; is there more?"""
        floor, records = await self._reader.range(self.cursor, PAGE)
        if floor > self.cursor:
            self.cursor = floor
            self.recent = Recent(floor)
            self._on_hole(floor)
        if records and not self._reader.knows(records[-1].offset):
            await self._reader.learn()  # a new epoch has begun: its key is needed for the offsets on the wire
        begun = 0
        for i, record in enumerate(records):
            if record.attachment is not None:
                self._sweep(records[begun:i])
                self._sweep([await self._reader.whole(record)])
                begun = i + 1
        self._sweep(records[begun:])
        return len(records) == PAGE
