"""What a reconnecting client claims, what it is due, and the verdict: pure, without a loop or a socket.

A client was given ``pid`` with its CONNECT and an offset with each stored event. It comes back with both::

    log        1:news "a"   2:enter x   3:x "b"   4:leave x   5:x "c"   6:news "d"
    client     got 1, dropped; presents offset 1
    due        3 (a member of x at 3), 6                     5 was sent when it had left x

A room that a session entered at offset 2 and left at 4 was its own for the offsets between, so what it is due
is the same whether it was connected then or is told later.
"""

from __future__ import annotations

import enum
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .records import EPOCH_BITS, EVERYBODY, Kind, OffsetCodec, Record

MAX_PID_LENGTH = 128


class Reason(enum.StrEnum):
    """Why a client that presented a pid has a new session: in words for the log, by name for metrics."""

    MALFORMED_PID = "malformed pid"
    FOREIGN_OFFSET = "malformed or foreign offset"
    UNKNOWN_SESSION = "unknown or expired session"
    FUTURE_OFFSET = "offset in the future"
    DELETED_PACKETS = "missed packets no longer stored"
    TOO_MANY_MISSED = "too many missed packets"


FOREIGN = Reason.FOREIGN_OFFSET
"""Why no claim: the offset was not issued for this namespace, in a history that is known here."""


def new_pid() -> str:
    """A private session id: 192 random bits, unrelated to the sid, and known to the client alone."""
    return secrets.token_urlsafe(24)


def pid_hash(pid: str) -> str:
    """What is stored of a pid, in hexadecimal. SHA-256 without salt: 192 random bits are not guessed."""
    return hashlib.sha256(pid.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client presented.

    :ivar after: the offset of the last event it got, exclusive; ``None``: none yet.
    :ivar key: of the epoch that it was checked with, in hexadecimal: the store knows whether that still holds.
    """

    pid: str = field(repr=False)
    after: int | None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Presented:
    """A CONNECT's auth, taken apart.

    :ivar auth: what the application's handlers see: without pid and offset, ``None`` if nothing is left.
    :ivar claim: what to look up, if pid and offset have a form that was issued here.
    :ivar rejected: why something was presented that is no claim.
    """

    auth: Any
    claim: Claim | None = None
    rejected: Reason | None = None


def read_auth(auth: object, namespace: str, codec: OffsetCodec) -> Presented:
    """Take pid and offset out of what came with a CONNECT packet, whatever that is."""
    if not isinstance(auth, Mapping):
        return Presented(auth or None)
    if "pid" not in auth and "offset" not in auth:
        return Presented(auth or None)
    pid, offset = auth.get("pid"), auth.get("offset")
    rest = {key: value for key, value in auth.items() if key not in ("pid", "offset")} or None
    if pid is None:
        return Presented(rest)
    if not isinstance(pid, str) or not pid or len(pid) > MAX_PID_LENGTH or not pid.isascii():
        return Presented(rest, rejected=Reason.MALFORMED_PID)
    if offset is None:
        return Presented(rest, Claim(pid, None))
    after = codec.decode(offset, namespace) if isinstance(offset, str) else None
    if after is None:
        return Presented(rest, rejected=FOREIGN)
    return Presented(rest, Claim(pid, after, codec.epochs[after >> EPOCH_BITS].key.hex()))


# -- rooms over the log ------------------------------------------------------------------------------
@dataclass(slots=True)
class Memberships:
    """Which rooms a sid was in, at which offsets: above the first number of a pair and below the second.

    :ivar start: of the session. To everybody and to its own room it belongs from there on.
    """

    sid: str
    start: int
    rooms: dict[str, list[tuple[int, int | None]]] = field(default_factory=dict)

    def current(self) -> list[str]:
        """The rooms it is in, its own not among them."""
        return [room for room, spans in self.rooms.items() if spans and spans[-1][1] is None]

    def enter(self, room: str, at: int) -> None:
        spans = self.rooms.setdefault(room, [])
        if not spans or spans[-1][1] is not None:
            spans.append((at, None))

    def leave(self, room: str, at: int) -> None:
        """It is in the room no more from ``at`` on, whatever came later."""
        cut = [(a, at if b is None or b > at else b) for a, b in self.rooms.get(room, ())]
        spans: list[tuple[int, int | None]] = [(a, b) for a, b in cut if b > a + 1]  # those that hold an offset
        if spans:
            self.rooms[room] = spans
        else:
            self.rooms.pop(room, None)

    def apply(self, record: Record) -> None:
        """Follow a record of the log that moves this sid, or closes a room."""
        if record.kind is Kind.ENTER and record.sid == self.sid:
            self.enter(record.rooms[0], record.offset)
        elif record.kind is Kind.LEAVE and record.sid == self.sid:
            self.leave(record.rooms[0], record.offset if record.generation is None else record.generation)
        elif record.kind is Kind.CLOSE and record.rooms[0] in self.current():
            self.leave(record.rooms[0], record.offset)

    def due(self, record: Record) -> bool:
        """Is this event for the sid, by the rooms it was in when it was sent?"""
        if record.kind is not Kind.EVENT or self.sid in record.skip_sids or record.offset <= self.start:
            return False
        return any(
            room in (EVERYBODY, self.sid)
            or any(a < record.offset and (b is None or record.offset < b) for a, b in self.rooms.get(room, ()))
            for room in record.rooms
        )

    def rows(self) -> list[list[Any]]:
        return [[room, a, b] for room, spans in self.rooms.items() for a, b in spans]


# -- the verdict -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Claimed:
    """A session as the store had it when it was claimed, as of the claim's own offset.

    :ivar former: the generation of the connection that still holds it; ``None`` where the client was away.
    :ivar missed: how many packets it is due; exact where that could be over the cap.
    :ivar lost: retention deleted something that it may be due.
    :ivar page: the first of what it is due, in order, if that came along; up to ``upto``, ``None`` if it did not.
    """

    id: int
    sid: str
    generation: int
    data: str
    former: int | None
    offset: int
    missed: int
    lost: bool
    memberships: Memberships
    page: tuple[Record, ...] = ()
    upto: int | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any], namespace: str = "/") -> Claimed:
        rooms: dict[str, list[tuple[int, int | None]]] = {}
        for room, joined, left in sorted(value["rooms"], key=lambda row: row[1]):
            rooms.setdefault(room, []).append((joined, left))
        return cls(
            id=value["id"],
            sid=value["sid"],
            generation=value["generation"],
            data=value["data"],
            former=value["former"],
            offset=value["offset"],
            missed=value["missed"],
            lost=value["lost"],
            memberships=Memberships(value["sid"], value["start"], rooms),
            page=tuple(
                Record(offset, Kind.EVENT, namespace, tuple(to), tuple(skips or ()), body=body)
                for offset, to, skips, body in value.get("page", ())
            ),
            upto=value.get("upto"),
        )


@dataclass(frozen=True, slots=True)
class Recovered:
    """It comes back, and is sent what it is due above ``after``."""

    after: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """It does not: a new session, and why."""

    reason: Reason


def verdict(claim: Claim, session: Claimed | None, limit: int) -> Recovered | Fresh:
    """Whether the whole of what a client missed can be sent; never a part.

    :param limit: ``max_missed_packets``.
    """
    if session is None:
        return Fresh(Reason.UNKNOWN_SESSION)
    if claim.after is not None and claim.after >= session.offset:
        return Fresh(Reason.FUTURE_OFFSET)
    if session.lost:
        return Fresh(Reason.DELETED_PACKETS)
    if session.missed > limit:
        return Fresh(Reason.TOO_MANY_MISSED)
    # An offset from before the session's start is of a session that the client had earlier.
    return Recovered(max(claim.after or 0, session.memberships.start))
