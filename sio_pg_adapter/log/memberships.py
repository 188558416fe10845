"""Which rooms a client was in, at which offsets.

A room that a session entered at offset 2 and left at 4 was its own for the offsets between. So the events that it is
due are the same whether it was connected then or is sent them later::

    log        1:news "a"   2:enter x   3:x "b"   4:leave x   5:x "c"   6:news "d"
    client     got 1, dropped, presents offset 1
    due        3 (a member of x at 3), 6                     at 5 it had left x
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .names import EVERYBODY
from .records import Kind, Record

Span = tuple[int, int | None]
"""In the room at the offsets above the first and below the second number. ``None``: still in it."""


def spans_of(rows: Iterable[tuple[str, int, int | None]]) -> dict[str, list[Span]]:
    """Return the spans of each room, in order, from rows of room, entered at, left at."""
    rooms: dict[str, list[Span]] = {}
    for room, entered, left in sorted(rows, key=lambda row: row[1]):
        rooms.setdefault(room, []).append((entered, left))
    return rooms


@dataclass(slots=True)
class Memberships:
    """The rooms of a sid over the log.

    :ivar start: the start of the session: nothing at or below it is due.
    :ivar joined: events for everybody and for its own room are due above this offset, if that is above the start.
                  Only rooms that were entered from an earlier position begin below it.
    """

    sid: str
    start: int
    rooms: dict[str, list[Span]] = field(default_factory=dict)
    joined: int = 0

    def current(self) -> list[str]:
        """Return the rooms it is in now, without its own."""
        return [room for room, spans in self.rooms.items() if spans and spans[-1][1] is None]

    def is_in(self, rooms: Iterable[str]) -> bool:
        """Whether it is in any of the rooms now, its own room and everybody's included."""
        return not {EVERYBODY, self.sid, *self.current()}.isdisjoint(rooms)

    def enter(self, room: str, at: int) -> None:
        spans = self.rooms.setdefault(room, [])
        if not spans or spans[-1][1] is not None:
            spans.append((at, None))

    def enter_since(self, room: str, at: int) -> None:
        """Enter a room from an offset on that may be below the start. No event has been sent yet."""
        self.joined = max(self.joined, self.start)
        self.start = min(self.start, at)
        spans = self.rooms.get(room, ())  # entered and left already. The spans may not overlap
        earlier: list[Span] = [(a, at + 1 if b is None or b > at else b) for a, b in spans if a < at]
        self.rooms[room] = [*earlier, (at, None)]

    def leave(self, room: str, at: int) -> None:
        """Take it out of the room from ``at`` on, also if it entered again later."""
        ended = [(a, at if b is None or b > at else b) for a, b in self.rooms.get(room, ())]
        spans: list[Span] = [(a, b) for a, b in ended if b > a + 1]  # the others hold no offset
        if spans:
            self.rooms[room] = spans
        else:
            self.rooms.pop(room, None)

    def entered(self, room: str) -> int | None:
        """Return the offset above which it is in a room now. ``None`` if it is not."""
        if room == self.sid:
            return max(self.joined, self.start)
        spans = self.rooms.get(room)
        return spans[-1][0] if spans and spans[-1][1] is None else None

    def forget(self, room: str) -> None:
        """Take it out of the room, and drop the spans."""
        self.rooms.pop(room, None)

    def forget_past(self) -> list[str]:
        """Drop all spans that have ended. Return the rooms it is in now."""
        rooms = self.current()
        self.rooms = {room: self.rooms[room][-1:] for room in rooms}
        return rooms

    def apply(self, record: Record) -> None:
        """Follow a record that moves this sid or the members of a room, or closes a room."""
        if record.kind is Kind.ENTER and record.sid == self.sid:
            self.enter(record.rooms[0], record.offset)
        elif record.kind is Kind.LEAVE and record.sid == self.sid:
            self.leave(record.rooms[0], record.offset if record.as_of is None else record.as_of)
        elif record.kind is Kind.CLOSE and record.rooms[0] in self.current():
            self.leave(record.rooms[0], record.offset)
        elif record.kind in (Kind.MEMBERS_ENTER, Kind.MEMBERS_LEAVE) and self.concerns(record):
            move = self.enter if record.kind is Kind.MEMBERS_ENTER else self.leave
            for room in record.rooms:
                if room != self.sid:  # it is in its own room as long as it lives
                    move(room, record.offset)

    def concerns(self, record: Record) -> bool:
        """Whether a record about the members of rooms is about this sid."""
        return (
            self.sid not in record.skip_sids
            and self.is_in(record.members)
            and not (record.skip_rooms and self.is_in(record.skip_rooms))
        )

    def due(self, record: Record) -> bool:
        """Whether an event is for this sid, by the rooms it was in when the event was appended."""
        if record.kind is not Kind.EVENT or self.sid in record.skip_sids or record.offset <= self.start:
            return False
        if any(room == self.sid or self.was_in(room, record.offset) for room in record.skip_rooms):
            return False
        return any(
            (room in (EVERYBODY, self.sid) and record.offset > self.joined) or self.was_in(room, record.offset)
            for room in record.rooms
        )

    def was_in(self, room: str, at: int) -> bool:
        """Whether it was in a room at an offset. Its own room and everybody's do not count."""
        return any(a < at and (b is None or at < b) for a, b in self.rooms.get(room, ()))

    def rows(self) -> list[list[str | int | None]]:
        return [[room, a, b] for room, spans in self.rooms.items() for a, b in spans]
