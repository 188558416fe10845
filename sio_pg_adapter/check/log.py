"""What the log says: which session was due which events."""

from __future__ import annotations

import bisect
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

EventId = str | int
"""The name of an event in a history. It is unique in the run."""


class Record(NamedTuple):
    """An event as the log has it. ``rooms`` is empty if it is for everybody."""

    event: EventId
    namespace: str
    rooms: list[str]
    skip_sids: list[str]
    skip_rooms: list[str]
    line: int


class Membership(NamedTuple):
    """A room, and the offsets between which a session was in it."""

    room: str
    joined: int
    left: int | None

    def covers(self, offset: int) -> bool:
        """Whether the session was a member as of this offset."""
        return self.joined < offset and (self.left is None or offset < self.left)


@dataclass
class Log:
    """A log that the run left. There are several if a failover or a restored copy lost commits."""

    name: str
    records: dict[int, Record] = field(default_factory=dict)
    starts: dict[str, tuple[str, int]] = field(default_factory=dict)
    memberships: dict[str, list[Membership]] = field(default_factory=lambda: defaultdict(list))
    kicks: dict[str, int] = field(default_factory=dict)
    by_room: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, offset: int, record: Record) -> None:
        """Add an event. Events come in the order of their offsets."""
        self.records[offset] = record
        for room in set(record.rooms or [""]):
            self.by_room[record.namespace, room].append(offset)

    def due(self, sid: str) -> list[int]:
        """Return the offsets of the events that a session was due, in order."""
        namespace, start = self.starts[sid]
        memberships = self.memberships.get(sid, [])
        end = self.kicks.get(sid)
        whole = [Membership("", start, end), Membership(sid, start, end)]
        offsets: set[int] = set()
        for room, joined, left in whole + memberships:
            of_room = self.by_room.get((namespace, room), [])
            upto = min((x for x in (left, end) if x is not None), default=None)
            last = len(of_room) if upto is None else bisect.bisect_left(of_room, upto)
            offsets.update(of_room[bisect.bisect_right(of_room, max(joined, start)) : last])
        return sorted(offset for offset in offsets if not self._skipped(offset, sid, memberships))

    def _skipped(self, offset: int, sid: str, memberships: list[Membership]) -> bool:
        record = self.records[offset]
        return (
            sid in record.skip_sids
            or sid in record.skip_rooms
            or any(m.room in record.skip_rooms and m.covers(offset) for m in memberships)
        )
