"""Commits: one batch of entries, one transaction, one notification.

If the connection is lost during a commit, the batch may be stored or not. :class:`Commits` finds out, and sends it
again only if it is certainly not stored. The module is longer than others because sending and finding out share what
is known of the connection and its backend.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.log.payload import pack
from sio_pg_adapter.log.records import Entry, Kind, MemberMove, Record, Written
from sio_pg_adapter.options import Durability

from .backends import QUERY_TIMEOUT, Backend, backend_of, end_backend
from .batches import INLINE_BYTES, carried, columns, lone_event, outcomes, outcomes_by_key
from .database import Database
from .failures import LOST, OutcomeUnknown, unknown_outcome
from .kept import Connection
from .reader import ATTACHMENT_TIMEOUT

GIVE_UP_AFTER = 5.0
"""For how many seconds a batch is tried again while connections are lost and nothing is stored. If the answer to a
statement is lost, as many seconds remain from then on to find out whether it is stored."""

RETRY = 0.1
"""Seconds between these tries: the database starts, or another server becomes the primary."""


class Commits:
    """Stores batches on the connection that writes.

    :param on_appended: called as soon as a batch is committed. It takes the offset before the batch, its last one,
                        and its records if they are known without a read.
    :param node: the node that claims.
    :param cursor: returns an offset that all later appends are above.
    """

    def __init__(
        self,
        database: Database,
        on_appended: Callable[[int, int, list[Record] | None], None],
        node: str,
        cursor: Callable[[], int],
    ) -> None:
        self._database = database
        self._on_appended = on_appended
        self._node = node
        self._cursor = cursor
        self._backend: Backend | None = None
        self._backend_of: Connection | None = None
        self._sending = False

    @property
    def backend(self) -> int | None:
        """The process id of the backend that is storing a batch of this node.

        ``None`` between batches: the backend may be gone by then, and another node's backend may have its process id.
        ``None`` behind a pooler as well, where the backend serves others, too.
        """
        if not self._sending or self._backend is None or self._database.pooled:
            return None
        return self._backend.pid

    @property
    def is_ready(self) -> bool:
        """Whether a batch can be sent without a wait."""
        return self._backend_of is not None and self._database.writer.at_hand is self._backend_of

    async def batch(self, entries: list[Entry]) -> list[Written]:
        """Store a batch.

        :raises StoreUnavailable: says whether it may be stored.
        """
        attachments = [str(uuid.uuid4()) if e.kind is Kind.EVENT and e.size > INLINE_BYTES else None for e in entries]
        batch_id = secrets.randbits(62)
        return await self._store(
            batch_id,
            lambda connection: self._send(connection, entries, attachments, batch_id),
            lambda rows: self._after_loss(entries, rows),
        )

    async def move(self, move: MemberMove) -> Written:
        """Move all members of some rooms.

        :raises StoreUnavailable: says whether it may be stored.
        """
        batch_id = secrets.randbits(62)
        [written] = await self._store(
            batch_id,
            lambda connection: self._send_move(connection, move, batch_id),
            self._after_lost_move,
        )
        return written

    async def _store(
        self,
        batch_id: int,
        send: Callable[[Connection], Awaitable[list[Written]]],
        after_loss: Callable[[list[asyncpg.Record]], Awaitable[list[Written]]],
    ) -> list[Written]:
        """Send a batch through lost connections, as long as it is certain that nothing is stored yet.

        :param send: stores it on a connection, or raises :class:`OutcomeUnknown`.
        :param after_loss: called with the rows in the log if it is stored and its answer was lost.
        """
        end = time.monotonic() + GIVE_UP_AFTER
        after = 0
        unknown = False
        lost: Backend | None = None
        while True:
            try:
                async with self._database.writer as connection:
                    await self._name_backend(connection)
                    rows = await self._stored_rows(connection, lost, after, batch_id) if unknown else None
                    if rows is None:
                        unknown = False
                        after = self._cursor()  # before each try: the cursor may pass what this one stores
                        return await send(connection)
                return await after_loss(rows)
            except OutcomeUnknown as e:
                if lost is None:  # its statement may have taken all the time
                    end = max(end, time.monotonic() + GIVE_UP_AFTER)
                unknown, lost = True, self._backend
                await self._database.writer.drop()
                # Behind a pooler the backend cannot be named, and so not be ended: it may commit at any time.
                if self._database.pooled or time.monotonic() > end:
                    raise StoreUnavailable(f"appending to the log: {e}", may_be_stored=True) from e.__cause__
            except asyncpg.InsufficientPrivilegeError as e:
                if not unknown:
                    raise
                message = f"appending to the log: the backend of a lost connection cannot be ended: {e}"
                raise StoreUnavailable(message, may_be_stored=True) from e
            except (*LOST, asyncpg.TransactionRollbackError, StoreUnavailable) as e:
                if time.monotonic() > end:
                    message = f"appending to the log: {e}"
                    raise StoreUnavailable(message, may_be_stored=unknown) from e
                await self._database.writer.drop()
            await asyncio.sleep(RETRY)  # nothing announces that the database is back

    async def _name_backend(self, connection: Connection) -> None:
        if self._backend_of is not connection:
            self._backend = await backend_of(connection, self._database.queries)
            self._backend_of = connection

    # -- a batch of entries ------------------------------------------------------------------------------
    async def _send(
        self, connection: Connection, entries: list[Entry], attachments: Sequence[str | None], batch_id: int
    ) -> list[Written]:
        large = [(key, entry) for key, entry in zip(attachments, entries, strict=True) if key is not None]
        if large:
            await connection.execute(
                self._database.queries["attach"],
                [key for key, _ in large],
                [pack([(entry.body or "").encode(), *entry.parts]) for _, entry in large],
                [False] * len(large),
                timeout=ATTACHMENT_TIMEOUT,
            )
        arguments = () if large else lone_event(entries)
        lone = bool(arguments)
        query = "write_event" if lone else "write"
        if not lone:
            arguments = columns(entries, attachments)
        if self._database.durability is Durability.MEMORY and all(e.kind is Kind.EVENT for e in entries):
            # All else is flushed, and with it the events before it. So a crash loses nothing but the last events. If
            # the end of a session or of a membership were lost, the session or the membership would come back.
            query = "write_event_unflushed" if lone else "write_unflushed"
        carry = carried(entries)
        self._sending = self._backend_of is connection
        try:
            row = await connection.fetchrow(
                self._database.queries[query], batch_id, *arguments, carry, timeout=QUERY_TIMEOUT
            )
        except Exception as e:
            if unknown := unknown_outcome(e):
                raise unknown from e
            raise
        finally:
            self._sending = False
        self._confirm(row)
        if lone:
            offset = row["at"]
            if offset < 0:
                return [Written(-offset, duplicate=True)]
            self._on_appended(offset - 1, offset, [self._record(entries[0], offset, None)])
            return [Written(offset)]
        return self._committed(entries, row["prev"], row["offsets"], row["results"])

    def _confirm(self, row: asyncpg.Record) -> None:
        """Check that an append was made on the server that this node follows. Otherwise nobody here would get it.

        :raises OutcomeUnknown: if it was not.
        """
        if not self._database.gave(row["server"]):
            raise OutcomeUnknown("the append was made on another server than the one that this node follows")

    def _committed(
        self, entries: list[Entry], prev: int, offsets: list[int | None], results: list[str | None] | None
    ) -> list[Written]:
        written = outcomes(entries, offsets, results)
        records: list[Record] | None = None
        if not any(entry.kind is Kind.KICK for entry in entries):  # only the log has the session data of a kick
            records = [
                self._record(entry, offset, outcome.result)
                for entry, offset, outcome in zip(entries, offsets, written, strict=True)
                if offset is not None and offset > 0
            ]
        last = max((offset for offset in offsets if offset is not None), default=0)
        if last > prev:
            self._on_appended(prev, last, records)
        return written

    def _record(self, entry: Entry, offset: int, result: Any) -> Record:
        claim = entry.kind is Kind.CLAIM
        return Record(
            offset=offset,
            kind=entry.kind,
            namespace=entry.namespace,
            rooms=entry.rooms,
            skip_sids=entry.skip_sids,
            skip_rooms=entry.skip_rooms,
            sid=result["sid"] if claim else entry.sid,
            generation=result["generation"] if claim else None,
            node=self._node if claim else None,
            body=entry.body,
            parts=entry.parts,
            as_of=entry.args.get("as_of"),
        )

    # -- all members of some rooms -----------------------------------------------------------------------
    async def _send_move(self, connection: Connection, move: MemberMove, batch_id: int) -> list[Written]:
        try:
            row = await connection.fetchrow(
                self._database.queries["move_members"],
                batch_id,
                int(move.kind),
                move.namespace,
                move.rooms,
                move.unstored,
                move.skip_sids,
                move.skip_rooms,
                move.targets,
                timeout=QUERY_TIMEOUT,
            )
        except Exception as e:
            if unknown := unknown_outcome(e):
                raise unknown from e
            raise
        offsets = row["offsets"]
        if offsets is None:
            return [Written(0, refused=True)]
        self._confirm(row)
        last = max(offsets, default=0)
        if last > 0:
            self._on_appended(row["prev"], last, None)
        return [Written(max(map(abs, offsets), default=0))]  # a record that had already done the same counts, too

    async def _after_lost_move(self, rows: list[asyncpg.Record]) -> list[Written]:
        last = rows[-1]["offset"]
        self._on_appended(rows[0]["offset"] - 1, last, None)
        return [Written(last)]

    # -- a connection lost during a commit -----------------------------------------------------------------
    async def _stored_rows(
        self, connection: Connection, backend: Backend | None, after: int, batch_id: int
    ) -> list[asyncpg.Record] | None:
        """Return the rows of a batch whose answer was lost. ``None``: there are none, and never will be.

        :param after: they are above this offset. Without it the whole log would be read, under its lock.

        It ends the old backend, waits until it is gone, then waits for the log's lock.
        """
        queries = self._database.queries
        if backend is not None:
            await end_backend(connection, queries, backend)
        rows: list[asyncpg.Record] = await connection.fetch(queries["batch"], after, batch_id, timeout=QUERY_TIMEOUT)
        return rows or None

    async def _after_loss(self, entries: list[Entry], rows: list[asyncpg.Record]) -> list[Written]:
        """Return the outcomes of a batch that was committed and whose answer was lost.

        Events have their offsets. The other entries are sent again, because their answers are needed. That does no
        harm: a second claim only raises the generation once more.
        """
        self._on_appended(rows[0]["offset"] - 1, rows[-1]["offset"], None)
        events = [row["offset"] for row in rows if row["kind"] == Kind.EVENT]
        keyed = iter(await self._keyed([entry for entry in entries if entry.key is not None], events))
        unkeyed = iter(events)
        written: list[Written] = []
        for entry in entries:
            if entry.kind is not Kind.EVENT:
                async with self._database.writer as connection:
                    written += await self._send(connection, [entry], [None], secrets.randbits(62))
            elif entry.key is not None:
                written.append(next(keyed))
            else:
                written.append(Written(next(unkeyed)))
        return written

    async def _keyed(self, entries: list[Entry], events: list[int]) -> list[Written]:
        """Return the outcomes of the events with a key. Their offsets are taken out of those of the batch."""
        if not entries:
            return []
        names = [entry.namespace for entry in entries], [entry.key for entry in entries]
        async with self._database.writer as connection:
            rows = await connection.fetch(self._database.queries["keyed_events"], *names, timeout=QUERY_TIMEOUT)
        return outcomes_by_key([row["offset"] for row in rows], events)
