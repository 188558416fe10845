"""The last applied records, in memory. Every replay ends with them."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Sequence

from sio_pg_adapter.log.records import Kind, Record

RECENT_RECORDS = 4_000
"""How many events are kept."""

RECENT_BYTES = 16 * 1024 * 1024
"""How large the kept events may be together, in bytes."""

RECENT_OTHERS = 20_000
"""How many records of other kinds are kept. They are counted apart: a storm of 5,000 clients writes as many claims,
which must not push out the events that the clients missed."""


class Recent:
    """All applied records above ``base``.

    The records are indexed: events by room, records about a sid by that sid, and other changes by namespace. So each
    of many clients that come back at once finds its own records without a look at the others.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self._events: deque[Record] = deque()
        self._others: deque[Record] = deque()
        self._size = 0
        self._index: dict[tuple[str, str | None, bool], deque[Record]] = {}

    def add(self, record: Record) -> None:
        for key in _keys(record):
            indexed = self._index.get(key)
            if indexed is None:
                indexed = self._index[key] = deque()
            indexed.append(record)
        if record.kind is not Kind.EVENT:
            self._others.append(record)
            if len(self._others) > RECENT_OTHERS:
                self._forget_oldest(self._others)
            return
        self._events.append(record)
        self._size += record.size
        while len(self._events) > RECENT_RECORDS or self._size > RECENT_BYTES:
            self._size -= self._forget_oldest(self._events).size

    def _forget_oldest(self, records: deque[Record]) -> Record:
        """Drop the oldest record. From then on no position below it is covered."""
        oldest = records.popleft()
        for key in _keys(oldest):
            indexed = self._index[key]
            indexed.popleft()  # records are added in the order of the log, so it is the first one here, too
            if not indexed:
                del self._index[key]
        self.base = max(self.base, oldest.offset)
        return oldest

    def covers(self, position: int) -> bool:
        """Whether every applied record above the position is still here."""
        return position >= self.base

    def events(self, namespace: str, rooms: Iterable[str], position: int) -> list[Record]:
        """Return the events for any of the rooms above the position, each once, in order."""
        above = {
            record.offset: record
            for room in rooms
            for record in _above(self._index.get((namespace, room, True), ()), position)
        }
        return [above[offset] for offset in sorted(above)]

    def moves(self, namespace: str, sid: str, position: int) -> list[Record]:
        """Return the records above the position that may concern a sid, in order.

        They are its own, and those that close a room or move the members of rooms.
        """
        of_sid = _above(self._index.get((namespace, sid, False), ()), position)
        closed = _above(self._index.get((namespace, None, False), ()), position)
        return list(heapq.merge(of_sid, closed, key=lambda record: record.offset)) if closed else of_sid


def _keys(record: Record) -> list[tuple[str, str | None, bool]]:
    if record.kind is Kind.EVENT:  # a room that it names twice is indexed and forgotten twice
        return [(record.namespace, room, True) for room in record.rooms]
    return [(record.namespace, record.sid, False)]


def _above(records: Sequence[Record], position: int) -> list[Record]:
    newest_first = list(itertools.takewhile(lambda record: record.offset > position, reversed(records)))
    newest_first.reverse()
    return newest_first
