"""Commits: one batch of entries, one transaction, one notification.

A connection that is lost on the way leaves it open whether the batch is stored. That is found out, and only what
certainly is not stored is sent again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.log.entries import Entry, Members, Written
from sio_pg_adapter.log.records import Kind, Record, compact, pack

from .database import LOST, QUERY_TIMEOUT, Connection, Database

CARRY_BYTES = 7_600
"""What a notification may carry beside its offsets: PostgreSQL takes 7,999 bytes in all."""

INLINE_BYTES = 64 * 1024
"""A larger body is written apart, before the log's lock is taken: 50 MB under it would hold up everybody."""

GIVE_UP_AFTER = 5.0
"""Seconds that an append is tried again after its connection was lost before anything was stored."""


class Unsure(Exception):  # noqa: N818 - not an error of the caller's
    """The connection was lost before the answer came."""


class Commits:
    """Stores batches on the connection that writes.

    :param on_appended: called as soon as a batch is committed, with the offset before it, its last one, and
                        its records if they are known without a read.
    :param node: who claims.
    """

    def __init__(
        self, database: Database, on_appended: Callable[[int, int, list[Record] | None], None], node: str
    ) -> None:
        self._database = database
        self._on_appended = on_appended
        self._node = node
        self._last = 0  # the highest offset known here
        self._backend: tuple[int, Any] | None = None  # pid and start time: which it is for certain
        self._backend_of: Connection = None
        self._sending = False

    @property
    def backend(self) -> int | None:
        """The pid of the backend that is storing a batch of this node.

        Not between batches: it may be lost by then, and its pid be another's, of another node perhaps. Nor behind a
        pooler, where it serves others, too.
        """
        if not self._sending or self._backend is None or self._database.pooled:
            return None
        return self._backend[0]

    async def batch(self, entries: list[Entry]) -> list[Written]:
        """Store a batch, through lost connections where it is certain that nothing was stored yet."""
        batch_id = secrets.randbits(62)
        attachments = [uuid.uuid4() if e.kind is Kind.EVENT and e.size > INLINE_BYTES else None for e in entries]
        end = time.monotonic() + GIVE_UP_AFTER
        unsure = False
        lost: tuple[int, Any] | None = None
        while True:
            try:
                async with self._database.writer as connection:
                    await self._name_backend(connection)
                    found = await self._find_out(connection, lost, batch_id) if unsure else None
                    unsure = False
                    if found is None:
                        return await self._send(connection, entries, attachments, batch_id)
                return await self._after_loss(entries, found)
            except Unsure as e:
                unsure, lost = True, self._backend
                await self._database.writer.drop()
                # Behind a pooler the backend cannot be named, and so not be ended: it may commit at any time.
                if self._database.pooled or time.monotonic() > end:
                    raise StoreUnavailable(f"appending to the log: {e}", may_be_stored=True) from e.__cause__
            except (*LOST, asyncpg.TransactionRollbackError, StoreUnavailable) as e:
                if time.monotonic() > end:
                    message = f"appending to the log: {e}"
                    raise StoreUnavailable(message, may_be_stored=unsure) from e
                await self._database.writer.drop()
            await asyncio.sleep(0.1)  # the database starts, or another becomes the primary

    async def _name_backend(self, connection: Connection) -> None:
        if self._backend_of is not connection:
            row = await connection.fetchrow(self._database.queries["backend"], timeout=QUERY_TIMEOUT)
            self._backend = (row["pid"], row["backend_start"]) if row else None
            self._backend_of = connection

    async def _send(
        self, connection: Connection, entries: list[Entry], attachments: Sequence[uuid.UUID | None], batch_id: int
    ) -> list[Written]:
        large = [(a, e) for a, e in zip(attachments, entries, strict=True) if a is not None]
        if large:
            await connection.execute(
                self._database.queries["attach"],
                [a for a, _ in large],
                [pack([(e.body or "").encode(), *e.parts]) for _, e in large],
                [False] * len(large),
                timeout=60,  # 50 MB on a slow disk
            )
        query, arguments = "write_event", _plain(entries)
        if not arguments or large:
            query, arguments = "write", _columns(entries, attachments)
        carried = _carried(entries)
        self._sending = self._backend_of is connection
        try:
            row = await connection.fetchrow(
                self._database.queries[query], batch_id, *arguments, carried, timeout=QUERY_TIMEOUT
            )
        except asyncpg.PostgresError as e:
            if isinstance(e, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
                raise Unsure(f"{type(e).__name__}: {e}") from e
            raise  # an answer of the server's: rolled back
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as e:
            raise Unsure(f"{type(e).__name__}: {e}") from e
        finally:
            self._sending = False
        if query == "write_event":
            at = self._last = row["at"]
            self._on_appended(at - 1, at, [self._record(entries[0], at, None)])
            return [Written(at)]
        return self._committed(entries, row["prev"], row["offsets"], row["results"])

    def _committed(
        self, entries: list[Entry], prev: int, offsets: list[int | None], results: list[str | None] | None
    ) -> list[Written]:
        written = [
            Written(-1 if offset is None else abs(offset), None if result is None else json.loads(result))
            for offset, result in zip(offsets, results or [None] * len(entries), strict=True)
        ]
        records: list[Record] | None = None
        if not any(entry.kind is Kind.KICK for entry in entries):  # whose record holds what only the log knows
            records = [
                self._record(entry, offset, one.result)
                for entry, offset, one in zip(entries, offsets, written, strict=True)
                if offset is not None and offset > 0
            ]
        last = max((offset for offset in offsets if offset is not None), default=0)
        if last > prev:
            self._last = last
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
            sid=result["sid"] if claim else entry.sid,
            generation=result["generation"] if claim else entry.args.get("as_of"),
            node=self._node if claim else None,
            body=entry.body,
            parts=entry.parts,
        )

    # -- a connection lost in commit -----------------------------------------------------------------
    async def _find_out(
        self, connection: Connection, backend: tuple[int, Any] | None, batch_id: int
    ) -> list[asyncpg.Record] | None:
        """What a batch left in the log whose answer was lost; ``None``: nothing, and it never will.

        On a new connection: end the old backend, wait until it is gone, then wait for the log's lock.
        """
        queries = self._database.queries
        if backend is not None:
            while await connection.fetch(queries["end_backend"], *backend, timeout=QUERY_TIMEOUT):
                await asyncio.sleep(0.02)  # ended, but not gone yet: PostgreSQL has nothing to wait on
        async with connection.transaction():
            await connection.execute(queries["lock"], timeout=QUERY_TIMEOUT)
            found: list[asyncpg.Record] = await connection.fetch(
                queries["batch"], self._last, batch_id, timeout=QUERY_TIMEOUT
            )
        return found or None

    async def _after_loss(self, entries: list[Entry], found: list[asyncpg.Record]) -> list[Written]:
        """A batch was committed and its answer lost: events have their offsets; the rest is done once more,
        since it changes nothing where it has been done, and its answer is needed."""
        self._on_appended(found[0]["offset"] - 1, found[-1]["offset"], None)
        events = iter([row["offset"] for row in found if row["kind"] == Kind.EVENT])
        written: list[Written] = []
        for entry in entries:
            if entry.kind is Kind.EVENT:
                written.append(Written(next(events)))
            else:
                written += await self._commit_again(entry)
        return written

    async def _commit_again(self, entry: Entry) -> list[Written]:
        async with self._database.writer as connection:
            return await self._send(connection, [entry], [None], secrets.randbits(62))

    # -- all members of a room ------------------------------------------------------------------------
    async def move(self, members: Members) -> Written:
        """Move all members of some rooms."""
        queries, end = self._database.queries, time.monotonic() + GIVE_UP_AFTER
        arguments = (members.rooms, members.unstored, members.skip_sids, members.targets)
        while True:
            committing = False
            try:
                async with self._database.writer as connection:
                    transaction = connection.transaction(isolation="read_committed")
                    await transaction.start()
                    try:
                        await connection.execute(queries["lock"], timeout=QUERY_TIMEOUT)
                        head = (secrets.randbits(62), int(members.kind), members.namespace)
                        row = await connection.fetchrow(
                            queries["move_members"], *head, *arguments, timeout=QUERY_TIMEOUT
                        )
                    except BaseException:  # cancelled, too: it holds the log's lock
                        await transaction.rollback()
                        raise
                    if row is not None and None in row["offsets"]:
                        await transaction.rollback()
                        return Written(-1)
                    committing = True
                    await transaction.commit()
            except (*LOST, StoreUnavailable) as e:
                await self._database.writer.drop()
                if committing or time.monotonic() > end:
                    message = f"appending to the log: {type(e).__name__}: {e}"
                    raise StoreUnavailable(message, may_be_stored=committing) from e
            else:
                last = max((offset for offset in row["offsets"] if offset > 0), default=0) if row else 0
                if last:
                    self._last = last
                    self._on_appended(row["prev"], last, None)
                return Written(max(map(abs, row["offsets"])) if row else 0)  # of what had already done it, too
            await asyncio.sleep(0.1)  # the database starts, or another becomes the primary


def _plain(entries: list[Entry]) -> tuple[Any, ...]:
    """What a lone event for one room is written with; empty where it is more than that."""
    one = entries[0]
    if len(entries) > 1 or one.kind is not Kind.EVENT or len(one.rooms) > 1 or one.skip_sids or one.parts:
        return ()
    return one.namespace, one.rooms[0], one.body


def _columns(entries: list[Entry], attachments: Sequence[uuid.UUID | None]) -> tuple[list[Any] | None, ...]:
    apart = [a is not None for a in attachments]
    return (
        [int(e.kind) for e in entries],
        [e.namespace for e in entries],
        [e.rooms[0] for e in entries],
        _column([json.dumps(e.rooms) if len(e.rooms) > 1 else None for e in entries]),
        _column([json.dumps(e.skip_sids) if e.skip_sids else None for e in entries]),
        _column([e.sid for e in entries]),
        [None if a else e.body for a, e in zip(apart, entries, strict=True)],
        _column([pack(e.parts) if e.parts and not a else None for a, e in zip(apart, entries, strict=True)]),
        _column(list(attachments)),
        _column([compact(e.args) if e.args else None for e in entries]),
    )


def _column(values: list[Any]) -> list[Any] | None:
    """None for one of nothing but None: an array has a price for each of its elements, and unnest() fills up."""
    return values if any(value is not None for value in values) else None


def _carried(entries: list[Entry]) -> str | None:
    """The batch's events as text, if they fit: nodes that are up to date then need not read them."""
    if sum(e.size for e in entries) > CARRY_BYTES or any(e.kind is not Kind.EVENT or e.parts for e in entries):
        return None
    text = compact([[e.namespace, e.rooms, e.skip_sids, e.body] for e in entries])
    return text if len(text) <= CARRY_BYTES else None  # ASCII: characters are bytes
