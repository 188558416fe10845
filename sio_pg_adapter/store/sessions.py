"""Sessions in the store: opened, claimed, settled, released, ended, and the events that they are due.

Every change takes the log's lock before it locks a row. All but :meth:`Sessions.end_all` go through the log's writer.
What a node writes for a client that it holds names the generation of its claim. If there is a newer claim, it does
nothing, except that session data still counts until the newer claim is settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from sio_pg_adapter.errors import PositionLost, StoreUnavailable
from sio_pg_adapter.log.memberships import Memberships, spans_of
from sio_pg_adapter.log.payload import check_depth, encode_json
from sio_pg_adapter.log.records import Entry, Held, Kind, Record
from sio_pg_adapter.log.verdict import Claim, Claimed, pid_hash, session_id

from .backends import QUERY_TIMEOUT
from .batches import columns
from .database import Database
from .failures import translated
from .reader import readable
from .writer import LogWriter

PAGES_AT_ONCE = 2
"""How many pages are read at a time. The pool has four connections."""

ENDS_AT_ONCE = 50
"""How many sessions are released or ended at a time. When a proxy or a network drops thousands of connections, emits
wait for one batch of their ends and not for all of them."""

TRIES, RETRY = 100, 0.05
"""How often a session is stored while retention deletes records that it may be due, and how many seconds apart."""

CARRIED_EVENTS = 100
"""How many missed events a claim brings along."""

CARRIED_BYTES = 32 * 1024
"""How large they may be together, in bytes. They are read under the log's lock. The rest is read in pages."""


def encode_session(data: object) -> str:
    """Encode session data.

    :raises NotSerializable: naming the key. Also if it is nested too deeply to be read back.
    """
    encoded = encode_json(data, "session")
    check_depth(data, "session")
    return encoded


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the events that a session missed, in order.

    :ivar head: the last offset of the log when it was read. A page that is not full reaches up to there.
    :ivar lost: whether retention deleted something that the session is due.
    """

    head: int
    lost: bool
    records: list[Record]


class Sessions:
    """The sessions of all nodes, as this node reads and changes them.

    :ivar on_unknown: called when a session may have become this node's, and nobody here knows of it.
    """

    def __init__(self, database: Database, writer: LogWriter, node: str) -> None:
        self._database = database
        self._writer = writer
        self._node = node
        self._paging = asyncio.Semaphore(PAGES_AT_ONCE)
        self._ending = asyncio.Semaphore(ENDS_AT_ONCE)
        self._ends: dict[int, Held] = {}  # sessions whose end is not stored yet, by id
        self.on_unknown: Callable[[], None] = lambda: None

    async def open(
        self,
        namespace: str,
        memberships: Memberships,
        *,
        pid: str,
        cursor: int,
        data: str,
        identity: str | None = None,
        since: Collection[tuple[int, str]] = (),
        stale: int | None = None,
    ) -> Held | None:
        """Store a new session. ``None`` if its sid was kicked meanwhile.

        :param memberships: the rooms as this node knew them at ``cursor``. Later changes are added from the log.
        :param identity: whose session it is.
        :param since: the positions from which rooms were entered: offset, and key of the epoch.
        :param stale: the offset of an earlier session, above this one's start, that the client may present again.
        :raises PositionLost: if the log has lost such a position or a record above it.
        :raises StoreUnavailable: also if this node has read further than the log goes.
        """
        args = {
            "pid_hash": pid_hash(pid),
            "identity": identity,
            "node": self._node,
            "start": memberships.start,
            "joined": max(memberships.start, memberships.joined),
            "stale": stale,
            "since": sorted(since) or None,
            "cursor": cursor,
            "rooms": memberships.rows(),
        }
        entry = Entry(Kind.OPEN, namespace, sid=memberships.sid, body=data, args=args)
        for _ in range(TRIES):
            with self._noticed():
                result = (await self._writer.append(entry)).result
            if result is None:
                raise StoreUnavailable("opening a session: the log ends below what this node has read of it")
            if (lost := result.get("lost")) is None:
                return None if result["id"] is None else Held(result["id"], 1)
            if lost:
                raise PositionLost(f"a position of {memberships.sid} was lost before its session was stored")
            await asyncio.sleep(RETRY)  # retention announces nothing when it is done
        raise StoreUnavailable("retention does not come to an end, so no session can be stored")

    async def claim(
        self, namespace: str, claim: Claim, cap: int, page: int = 0, *, identity: str | None = None
    ) -> Claimed | None:
        """Take a session over. The newest claim wins.

        ``None`` if there is no session, its time is up, or it is another identity's.

        :param cap: missed events beyond this number are not counted.
        :param page: how many missed events may come along, up to :data:`CARRIED_EVENTS`. Fewer do if they are large.
        :param identity: whose client it is.
        """
        args = {
            "pid_hash": pid_hash(claim.pid),
            "identity": identity,
            "node": self._node,
            "after": claim.after,
            "key": claim.key,
            "missed": cap,
            "page": min(page, CARRIED_EVENTS),
            "page_bytes": CARRIED_BYTES,
        }
        entry = Entry(Kind.CLAIM, namespace, args=args, answer=CARRIED_BYTES if page else 0)
        if (ended := self._ends.get(session_id(claim.pid))) is not None:  # its end must not come behind the claim
            await self.end(ended)
        with self._noticed():
            written = await self._writer.append(entry)
        if (result := written.result) is None:
            return None
        if result["missed"] is None:  # the count would have held up all appends
            after = max(claim.after or 0, result["start"])
            try:
                [row] = await self._database.fetch("missed", result["id"], after, result["offset"], cap + 1)
            except BaseException:  # cancelled, too: the claim was granted, and nobody holds it
                self.on_unknown()
                raise
            result |= dict(row)
        return Claimed.from_json(result, namespace)

    @contextlib.contextmanager
    def _noticed(self) -> Iterator[None]:
        """Notice if nobody learns the outcome of an open or a claim."""
        try:
            yield
        except StoreUnavailable as e:
            if e.may_be_stored:
                self.on_unknown()
            raise
        except asyncio.CancelledError:
            self.on_unknown()
            raise

    async def held_here(self) -> set[Held]:
        """Return the sessions that are this node's by the tables."""
        return {Held(row["id"], row["generation"]) for row in await self._database.fetch("held_by", self._node)}

    async def settle(self, held: Held) -> str | None:
        """End the former holder's right to write. Return the session's data.

        ``None`` if the session has ended, or a newer claim holds it.
        """
        written = await self._writer.append(Entry(Kind.SETTLE, args=held.args()))
        return None if written.result is None else str(written.result["data"])

    async def release(self, held: Held, *, seconds: float | None, since: float = 0.0) -> None:
        """Let a session go, whose client has been away for ``since`` seconds.

        :param seconds: how long the session lasts from then on. ``None``: for ever.
        """
        called_at = time.monotonic()
        async with self._ending:
            args = {**held.args(), "seconds": seconds, "since": since + time.monotonic() - called_at}
            await self._writer.append(Entry(Kind.RELEASE, args=args))

    async def give_up(self, held: Held, *, seconds: float | None) -> None:
        """Release a session that no client of this node holds. If that fails, it is let go later."""
        try:
            await self.release(held, seconds=seconds)
        except BaseException:  # cancelled, too
            self.on_unknown()
            raise

    async def end(self, held: Held) -> str | None:
        """End a session for good. Return its data, ``None`` if it is no longer this node's.

        If that fails, a claim of the session on this node does it first.
        """
        self._ends[held.id] = held
        async with self._ending:
            written = await self._writer.append(Entry(Kind.END, args=held.args()))
        self._ends.pop(held.id, None)
        return None if written.result is None else str(written.result["data"])

    async def end_all(self, held: list[Held]) -> None:
        """End sessions for good, on the connection that reads: the writer may not be used until this is done.

        :raises StoreUnavailable: if the database did not answer.
        """
        if held:
            entries = [Entry(Kind.END, args=session.args()) for session in held]
            await self._database.fetch("write", 0, *columns(entries, [None] * len(entries)), None)

    async def save(
        self, namespace: str, sid: str, data: str, held: Held | None, *, expected: str | None = None
    ) -> bool:
        """Store session data, of a client that is held here or of any sid.

        ``False`` if there is no session, or if its data is not the expected one.

        :param expected: the data that is to be replaced. ``None``: any.
        """
        args: dict[str, Any] = {} if held is None else held.args()
        if expected is not None:
            args["expected"] = hashlib.sha256(expected.encode()).hexdigest()
        written = await self._writer.append(Entry(Kind.SAVE, namespace, sid=sid, body=data, args=args))
        return written.result is not None

    # -- reads ---------------------------------------------------------------------------------------
    async def text(self, namespace: str, sid: str) -> str | None:
        """Return the session data of a sid as it is stored, ``None`` if it has no session."""
        rows = await self._database.fetch("session_data", namespace, sid)
        return str(rows[0]["data"]) if rows else None

    async def data_of(self, namespace: str, sids: list[str]) -> dict[str, Any]:
        """Return the session data of several sids. Those without a session are left out."""
        rows = await self._database.fetch("sessions_data", namespace, sids) if sids else []
        return {row["sid"]: json.loads(row["data"]) for row in rows}

    async def rooms(self, namespace: str, sid: str) -> list[str] | None:
        """Return the rooms of a sid without its own, ``None`` if it has no session."""
        rows = await self._database.fetch("session_rooms", namespace, sid)
        return list(rows[0]["rooms"]) if rows else None

    async def memberships(self, held: Held, known: Memberships) -> tuple[int, Memberships] | None:
        """Return the rooms, and the offset as of which they hold. ``None`` if a newer claim holds the session.

        :param known: the rooms as of an earlier offset.
        """
        rows = await self._database.fetch("memberships", held.id, held.generation)
        if not rows:
            return None
        return rows[0]["head"], replace(known, rooms=spans_of(json.loads(rows[0]["rooms"])))

    async def count_since(self, namespace: str, rooms: Mapping[str, int], limit: int) -> tuple[int, int]:
        """Return how many events there are for rooms above an offset of each, up to a limit, and the floor."""
        [row] = await self._fetch("since", namespace, list(rooms), list(rooms.values()), limit)
        return row["missed"], row["floor"]

    async def page(self, held: Held, after: int, limit: int) -> Page | None:
        """Return the events that the session is due above ``after`` (exclusive).

        ``None`` if a newer claim holds it, or it has ended.
        """
        rows = await self._fetch("page", held.id, held.generation, after, limit)
        if not rows:
            return None
        records = [readable(row) for row in rows if row["offset"] is not None]
        return Page(rows[0]["head"], rows[0]["lost"], records)

    async def _fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        async with self._paging:  # in turn: nobody waits at the pool for so long that its time is up
            with translated("reading what a client missed", may_be_stored=None):
                async with self._database.page_connection() as connection:
                    statement = self._database.queries[query]
                    rows: list[asyncpg.Record] = await connection.fetch(statement, *args, timeout=QUERY_TIMEOUT)
                    return rows
