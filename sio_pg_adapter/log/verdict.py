"""What a reconnecting client presents (its ``pid`` and the offset of its last event), and the verdict on that."""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .memberships import Memberships, spans_of
from .offsets import EPOCH_BITS, OffsetCodec
from .records import Kind, Record

_PID = re.compile(r"[A-Za-z0-9_-]{32}")
_OFFSET = re.compile(r"[A-Za-z0-9_-]{22}")


class Reason(enum.StrEnum):
    """Why a client that presented a pid gets a new session: in words for the log, by name for metrics."""

    MALFORMED_PID = "malformed pid"
    FOREIGN_OFFSET = "malformed or foreign offset"
    UNKNOWN_SESSION = "unknown or expired session"
    FUTURE_OFFSET = "offset in the future"
    DELETED_EVENTS = "missed events no longer stored"
    STALE_OFFSET = "offset of an earlier session"
    TOO_MANY_MISSED = "too many missed events"
    STUCK = "it does not get past an event"


PROVES = frozenset((Reason.UNKNOWN_SESSION, Reason.DELETED_EVENTS, Reason.TOO_MANY_MISSED))
"""The reasons with which the offset still says what the client has received."""


def new_pid() -> str:
    """Return a private session id: 192 random bits, unrelated to the sid, which only the client knows."""
    return secrets.token_urlsafe(24)


def pid_hash(pid: str) -> str:
    """Return the stored form of a pid, in hexadecimal. SHA-256 needs no salt: 192 random bits cannot be guessed."""
    return hashlib.sha256(pid.encode()).hexdigest()


def session_id(pid: str) -> int:
    """Return the id of the session that a pid identifies, as ``sio_open`` makes it."""
    return int(pid_hash(pid)[:15], 16)


@dataclass(frozen=True, slots=True)
class Claim:
    """A pid and an offset that have the form of issued ones.

    :ivar after: the offset of the last event the client got, exclusive. ``None`` if it got none.
    :ivar key: the key of the epoch the offset was checked with, in hexadecimal. The store knows whether it still
               holds.
    """

    pid: str = field(repr=False)
    after: int | None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Presented:
    """The auth of a CONNECT packet, taken apart.

    :ivar auth: what the application's handlers get: without our pid and offset, ``None`` if nothing is left.
    :ivar claim: what to look up.
    :ivar rejected: why a pid or an offset was presented that makes no claim.
    """

    auth: Any
    claim: Claim | None = None
    rejected: Reason | None = None


def read_auth(auth: object, namespace: str, codec: OffsetCodec) -> Presented:
    """Take pid and offset out of the data of a CONNECT packet, whatever that is.

    A value of another form is the application's own, and stays.
    """
    if not isinstance(auth, Mapping):
        return Presented(auth or None)
    if "pid" not in auth and "offset" not in auth:
        return Presented(auth or None)
    pid, offset = auth.get("pid"), auth.get("offset")
    ours = {"pid": _has_form(pid, _PID), "offset": _has_form(offset, _OFFSET)}
    rest = {key: value for key, value in auth.items() if key not in ours or not (ours[key] or value is None)} or None
    if pid is None:
        return Presented(rest)
    if not ours["pid"]:
        return Presented(rest, rejected=Reason.MALFORMED_PID)
    if offset is None:
        return Presented(rest, Claim(pid, None))
    after = codec.decode(offset, namespace) if isinstance(offset, str) else None
    if after is None:
        return Presented(rest, rejected=Reason.FOREIGN_OFFSET)
    return Presented(rest, Claim(pid, after, codec.epochs[after >> EPOCH_BITS].key.hex()))


def _has_form(value: object, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A session as the store had it when it was claimed, as of the offset of the claim.

    :ivar former: the generation of the connection that still holds it. ``None`` if the client was away.
    :ivar missed: how many events it is due. It may be too high, but only if it does not exceed the cap.
    :ivar lost: whether retention deleted something that it may be due.
    :ivar stale: whether the client may have kept the offset from an earlier session.
    :ivar page: the first events it is due, in order, up to ``upto``. ``upto`` is ``None`` if no page was read.
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
    stale: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any], namespace: str = "/") -> Claimed:
        return cls(
            id=value["id"],
            sid=value["sid"],
            generation=value["generation"],
            data=value["data"],
            former=value["former"],
            offset=value["offset"],
            missed=value["missed"],
            lost=value["lost"],
            memberships=Memberships(value["sid"], value["start"], spans_of(value["rooms"]), value.get("joined", 0)),
            page=tuple(
                Record(offset, Kind.EVENT, namespace, tuple(to), tuple(skips or ()), body=body)
                for offset, to, skips, body in value.get("page", ())
            ),
            upto=value.get("upto"),
            stale=value.get("stale", False),
        )


@dataclass(frozen=True, slots=True)
class Recovered:
    """The session continues, and the client is sent the events that it is due above ``after``."""

    after: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """The client gets a new session."""

    reason: Reason


def verdict(claim: Claim, session: Claimed | None, limit: int) -> Recovered | Fresh:
    """Decide whether everything a client missed can be sent. It never gets a partial replay.

    :param limit: ``max_missed_packets``.
    """
    if session is None:
        return Fresh(Reason.UNKNOWN_SESSION)
    if claim.after is not None and claim.after >= session.offset:
        return Fresh(Reason.FUTURE_OFFSET)
    if session.stale:
        # A client keeps the offset of an earlier session until its next event. This one lies above the session's
        # start, so the client has received nothing yet, or all up to there.
        return Fresh(Reason.STALE_OFFSET)
    if session.lost:
        return Fresh(Reason.DELETED_EVENTS)
    if session.missed > limit:
        return Fresh(Reason.TOO_MANY_MISSED)
    # The client may present an offset of an earlier session, if it has received no event since.
    return Recovered(max(claim.after or 0, session.memberships.start))
