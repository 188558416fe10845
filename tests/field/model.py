"""The events that each client is due, by the logs of all servers that served clients.

A failover that loses commits, a restored copy and two primaries leave several logs. A life is what one client saw in
one session. The judgement checks each life:

- Its events are in one of the logs, under the same offsets, and were due to its session there.
- No event came twice or out of order, and none is missing up to the last one that came.
- The last life of a client is of the log that is used in the end, and has everything up to the end.

So the judgement finds a client that saw a lost event and recovered all the same. No log has both what it saw before
and what it saw afterwards. The model knows the outcome of each emit, and checks its event:

- If the emit returned, the event is in the log that is used in the end, or in a log that was lost.
- If it raised without ``may_be_stored``, or its transaction was rolled back, the event is in no log.
- No event is twice in a log.
"""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass, field
from enum import Enum

import asyncpg

from sio_pg_adapter.log.payload import unpack

Span = tuple[str, int, int | None]
"""A room, and the offsets between which a session was in it."""


class Outcome(Enum):
    """The outcome of an emit for its caller."""

    STORED = "returned"
    OPEN = "may be stored"
    NOT_STORED = "not stored"


@dataclass(frozen=True)
class Seen:
    """An event as a client got it."""

    offset: int
    number: int


@dataclass
class Life:
    """What a client saw in one session.

    :ivar recovered: how many events it had seen at each of its recoveries.
    """

    sid: str
    pid: str
    seen: list[Seen] = field(default_factory=list)
    recovered: list[int] = field(default_factory=list)
    ended: bool = False  # by the server's disconnect, so that a new session follows
    lossy: bool = False  # commits may have been lost while it lasted, so that a new session may follow


@dataclass(frozen=True)
class Event:
    offset: int
    number: int
    rooms: list[str]
    skips: list[str]

    def due(self, sid: str, start: int, spans: list[Span]) -> bool:
        if self.offset <= start or sid in self.skips:
            return False
        return (
            "" in self.rooms
            or sid in self.rooms
            or any(
                room in self.rooms and joined < self.offset and (left is None or self.offset < left)
                for room, joined, left in spans
            )
        )


@dataclass
class Log:
    """The log of a server, and all sessions that it ever had."""

    name: str
    events: list[Event]
    starts: dict[str, int]
    spans: dict[str, list[Span]]

    @classmethod
    async def read(cls, name: str, dsn: str) -> Log:
        """Read the log of a server on which nothing is going on. It needs the triggers of ``support.chaos.KEEP``."""
        connection = await asyncpg.connect(dsn)
        try:
            rows = await connection.fetch(
                'SELECT "offset", body, attachment, coalesce(rooms, ARRAY[room]) AS rooms,'
                " coalesce(skip_sids, '{}') AS skips"
                ' FROM public.sio_packets WHERE kind = 0 ORDER BY "offset"'
            )
            events = [Event(r["offset"], await _number(connection, r), r["rooms"], r["skips"]) for r in rows]
            sessions = "(SELECT * FROM public.sio_sessions UNION ALL SELECT * FROM public.chaos_sessions)"
            starts = {
                r["sid"]: r["start_offset"]
                for r in await connection.fetch(f"SELECT sid, start_offset FROM {sessions} s")
            }
            spans = collections.defaultdict(list)
            for r in await connection.fetch(
                "SELECT s.sid, r.room, r.joined_at, r.left_at"
                " FROM (SELECT * FROM public.sio_rooms UNION ALL SELECT * FROM public.chaos_rooms) r"
                f" JOIN {sessions} s ON s.id = r.session"
            ):
                spans[r["sid"]].append((r["room"], r["joined_at"], r["left_at"]))
            return cls(name, events, starts, spans)
        finally:
            await connection.close()

    def faults(self, life: Life, *, whole: bool) -> list[str]:
        """Return the faults of a life if it was served from this log."""
        if life.sid not in self.starts:
            return ["the log has no such session"]
        start, spans = self.starts[life.sid], self.spans.get(life.sid, [])
        due = [Seen(event.offset, event.number) for event in self.events if event.due(life.sid, start, spans)]
        due_set, seen = set(due), set(life.seen)
        last = max((event.offset for event in life.seen), default=0)
        faults = [f"{event} was not due" for event in life.seen if event not in due_set]
        missing = [event for event in due if event not in seen and (whole or event.offset < last)]
        return faults + [f"{event} is missing, of {len(missing)} in all" for event in missing[:5]]


async def _number(connection: asyncpg.Connection, row: asyncpg.Record) -> int:
    body = row["body"]
    if row["attachment"] is not None:
        data = await connection.fetchval("SELECT data FROM public.sio_attachments WHERE id = $1", row["attachment"])
        body = next(iter(unpack(data)))
    return int(json.loads(body)[1])


@dataclass
class Verdict:
    """The result of a walk. ``wrong`` has its faults, and must be empty."""

    deliveries: int = 0
    recoveries: int = 0
    new_sessions: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    lost_emits: int = 0
    wrong: list[str] = field(default_factory=list)


def judge(lives: dict[str, list[Life]], emits: dict[int, Outcome], logs: list[Log], *, lossy: bool) -> Verdict:
    """Judge a walk.

    :param lives: the lives of each client, in order.
    :param emits: the outcome of each emit, by its number.
    :param logs: the logs of all servers. The last one is that of the server that is used in the end.
    :param lossy: whether commits may have been lost.
    """
    verdict = Verdict()
    for name, of_client in lives.items():
        for i, life in enumerate(of_client):
            _judge_life(verdict, f"{name} {life.sid}", life, logs, current=life is of_client[-1])
            if i:
                verdict.new_sessions += 1
                former = of_client[i - 1]
                if i > 1 and not former.seen:  # the offset that it presented was still that of the life before
                    former.lossy = former.lossy or of_client[i - 2].lossy
                if not (former.ended or former.lossy):
                    verdict.wrong.append(f"{name} {former.sid}: a new session for no reason")
    _judge_emits(verdict, emits, logs, lossy=lossy)
    return verdict


def _judge_life(verdict: Verdict, name: str, life: Life, logs: list[Log], *, current: bool) -> None:
    verdict.deliveries += len(life.seen)
    verdict.recoveries += len(life.recovered)
    offsets, numbers = [e.offset for e in life.seen], [e.number for e in life.seen]
    if len(set(numbers)) < len(numbers):
        twice = [n for n, count in collections.Counter(numbers).items() if count > 1]
        verdict.wrong.append(f"{name}: events {twice[:5]} came twice")
    if offsets != sorted(offsets):
        verdict.wrong.append(f"{name}: events came out of order")
    candidates = logs[-1:] if current and not life.ended else logs
    faults = {log.name: log.faults(life, whole=current and not life.ended) for log in candidates}
    if all(faults.values()):
        verdict.wrong.append(f"{name}, {len(life.seen)} events, recovered at {life.recovered}: {faults}")


def _judge_emits(verdict: Verdict, emits: dict[int, Outcome], logs: list[Log], *, lossy: bool) -> None:
    for log in logs:
        times = collections.Counter(event.number for event in log.events)
        verdict.wrong += [
            f"emit {n} is {count} times in the log {log.name}" for n, count in times.items() if count > 1
        ]
    stored = [{event.number for event in log.events} for log in logs]
    anywhere = set().union(*stored)
    for n, outcome in emits.items():
        verdict.outcomes[outcome.value] += 1
        if outcome is Outcome.NOT_STORED and n in anywhere:
            verdict.wrong.append(f"emit {n} was said not to be stored, and it is")
        if outcome is Outcome.STORED and n not in stored[-1]:
            verdict.lost_emits += 1
            if not lossy or n not in anywhere:
                verdict.wrong.append(f"emit {n} returned, and it is not in the log")
