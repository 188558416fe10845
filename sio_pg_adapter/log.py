"""The log: appends in batches, reads in ranges.

All that this node writes goes through one connection, in the order in which it was asked for. What waits while
one commit is under way is the next batch (group commit), so the cost of a commit is shared by whoever is in a
hurry at the same time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from .database import LOST, QUERY_TIMEOUT, Connection, Database, refusal, translated
from .errors import PayloadTooLarge, SioPgError, StoreUnavailable
from .records import Kind, Record, pack, unpack

BATCH_ENTRIES = 500
BATCH_BYTES = 4 * 1024 * 1024
"""Of one batch: a commit should not be long, since appends of all nodes wait for each other."""

CARRY_BYTES = 7_600
"""What a notification may carry beside its offsets: PostgreSQL takes 7,999 bytes in all."""

INLINE_BYTES = 64 * 1024
"""A larger body is written apart, before the log's lock is taken: 50 MB under it would hold up everybody."""

GIVE_UP_AFTER = 5.0
"""Seconds that an append is tried again after its connection was lost before anything was stored."""

ONE_AT_FAULT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""What PostgreSQL says of a value, not of itself."""

logger = logging.getLogger("sio_pg_adapter")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to write; see :class:`~.records.Kind`.

    :ivar args: those of its SQL function.
    :ivar answer: bytes that the function's answer may have, beyond a few: they count in a batch, too.
    """

    kind: Kind
    namespace: str = ""
    rooms: tuple[str, ...] = ("",)
    skip_sids: tuple[str, ...] = ()
    sid: str | None = None
    body: str | None = None
    parts: tuple[bytes, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)
    answer: int = 0

    @property
    def size(self) -> int:
        return len(self.body or "") + sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class Written:
    """What became of an entry.

    :ivar offset: of its record; of the record that had already done it; 0 if there is none; -1: refused, since
                  the room is a client's own.
    :ivar result: what a session function answered.
    """

    offset: int
    result: Any = None


class Unsure(Exception):  # noqa: N818 - not an error of the caller's
    """The connection was lost before the answer came."""


class LogWriter:
    """Writes entries in batches.

    :param on_appended: called as soon as a batch is committed, with the offset before it, its last one, and
                        its records if they are known without a read; before any of its waiters go on.
    """

    def __init__(
        self, database: Database, on_appended: Callable[[int, int, list[Record] | None], None], node: str
    ) -> None:
        self._database = database
        self._on_appended = on_appended
        self._node = node
        self._waiting: deque[tuple[Entry, asyncio.Future[Written]]] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._last = 0  # the highest offset this writer knows of
        self._backend: tuple[int, Any] | None = None  # pid and start time: which it is for certain
        self._backend_of: Connection = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sio_pg log writer")

    async def close(self) -> None:
        """Write what is waiting, then end. Safe to call twice."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    def append(self, entry: Entry) -> asyncio.Future[Written]:
        """Take an entry in line, at once: the order of the calls is the order in the log.

        :raises StoreUnavailable: from the future, if it is not stored, or that cannot be known.
        """
        future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        if self._closing or self._task is None:
            future.set_exception(StoreUnavailable("appending to the log: closed"))
        else:
            self._waiting.append((entry, future))
            self._wake.set()
        return future

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch: list[tuple[Entry, asyncio.Future[Written]]] = []
            size = 0
            while self._waiting and len(batch) < BATCH_ENTRIES and (not batch or size < BATCH_BYTES):
                batch.append(self._waiting.popleft())
                size += batch[-1][0].size + batch[-1][0].answer
            await self._write(batch)

    async def _write(self, batch: list[tuple[Entry, asyncio.Future[Written]]]) -> None:
        try:
            written = await self._commit([entry for entry, _ in batch])
        except ONE_AT_FAULT as e:
            if len(batch) == 1:
                _fail(batch, PayloadTooLarge(f"PostgreSQL refuses it: {e}"))
            for one in batch if len(batch) > 1 else ():  # the others shall not suffer
                await self._write([one])
        except Exception as e:
            if not isinstance(e, SioPgError | asyncpg.PostgresError):
                logger.exception("appending to the log failed")
            error = refusal("appending to the log", e) if isinstance(e, asyncpg.PostgresError) else e
            _fail(batch, error)
        except BaseException as e:
            _fail(batch, e)
            raise
        else:
            for (_, future), result in zip(batch, written, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _commit(self, entries: list[Entry]) -> list[Written]:
        """Store a batch, through lost connections where it is certain that nothing was stored yet."""
        batch_id = secrets.randbits(62)
        attachments = [uuid.uuid4() if e.kind is Kind.EVENT and e.size > INLINE_BYTES else None for e in entries]
        end = time.monotonic() + GIVE_UP_AFTER
        unsure = False
        lost: tuple[int, Any] | None = None
        while True:
            try:
                async with self._database.writer.use() as connection:
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
        arguments = _columns(entries, attachments)
        carried = _carried(entries)
        try:
            row = await connection.fetchrow(
                self._database.queries["write"], batch_id, *arguments, carried, timeout=QUERY_TIMEOUT
            )
        except asyncpg.PostgresError as e:
            if isinstance(e, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
                raise Unsure(f"{type(e).__name__}: {e}") from e
            raise  # an answer of the server's: rolled back
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as e:
            raise Unsure(f"{type(e).__name__}: {e}") from e
        return self._committed(entries, row)

    def _committed(self, entries: list[Entry], row: asyncpg.Record) -> list[Written]:
        results = row["results"] or [None] * len(entries)
        written = [
            Written(-1 if offset is None else abs(offset), None if result is None else json.loads(result))
            for offset, result in zip(row["offsets"], results, strict=True)
        ]
        records: list[Record] | None = None
        if not any(entry.kind is Kind.KICK for entry in entries):  # whose record holds what only the log knows
            records = [
                self._record(entry, offset, one.result)
                for entry, offset, one in zip(entries, row["offsets"], written, strict=True)
                if offset is not None and offset > 0
            ]
        last = max((offset for offset in row["offsets"] if offset is not None), default=0)
        if last > row["prev"]:
            self._last = last
            self._on_appended(row["prev"], last, records)
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
        async with self._database.writer.use() as connection:
            return await self._send(connection, [entry], [None], secrets.randbits(62))


def _fail(batch: list[tuple[Entry, asyncio.Future[Written]]], error: BaseException) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
            future.exception()  # the waiter may have gone: that is no news then


def _columns(entries: list[Entry], attachments: Sequence[uuid.UUID | None]) -> tuple[list[Any], ...]:
    apart = [a is not None for a in attachments]
    return (
        [int(e.kind) for e in entries],
        [e.namespace for e in entries],
        [e.rooms[0] for e in entries],
        [json.dumps(e.rooms) if len(e.rooms) > 1 else None for e in entries],
        [json.dumps(e.skip_sids) if e.skip_sids else None for e in entries],
        [e.sid for e in entries],
        [None if a else e.body for a, e in zip(apart, entries, strict=True)],
        [pack(e.parts) if e.parts and not a else None for a, e in zip(apart, entries, strict=True)],
        list(attachments),
        [json.dumps(e.args) for e in entries],
    )


# -- what a notification carries -----------------------------------------------------------------------
def _carried(entries: list[Entry]) -> str | None:
    """The batch's events as text, if they fit: nodes that are up to date then need not read them."""
    if sum(e.size for e in entries) > CARRY_BYTES or any(e.kind is not Kind.EVENT or e.parts for e in entries):
        return None
    text = json.dumps([[e.namespace, e.rooms, e.skip_sids, e.body] for e in entries], separators=(",", ":"))
    return text if len(text) <= CARRY_BYTES else None  # ASCII: characters are bytes


def read_notification(payload: str) -> tuple[int, int, list[Record] | None]:
    """The offset before an append, its last one, and its records if they came along.

    :raises ValueError: if it is none of ours.
    """
    prev_text, last_text, *carried = payload.split(" ", 2)
    prev, last = int(prev_text), int(last_text)
    if not carried:
        return prev, last, None
    records = [
        Record(prev + i, Kind.EVENT, namespace, tuple(rooms), tuple(skips), body=body)
        for i, (namespace, rooms, skips, body) in enumerate(json.loads(carried[0]), 1)
    ]
    return (prev, last, records) if prev + len(records) == last else (prev, last, None)


# -- reading -----------------------------------------------------------------------------------------
def record_of(row: asyncpg.Record) -> Record:
    """A row of the log."""
    return Record(
        offset=row["offset"],
        kind=Kind(row["kind"]),
        namespace=row["namespace"],
        rooms=tuple(row["rooms"] or (row["room"],)),
        skip_sids=tuple(row["skip_sids"] or ()),
        sid=row["sid"],
        generation=row["generation"],
        node=row["node"] and row["node"].hex,
        body=row["body"],
        parts=tuple(unpack(row["parts"])) if row["parts"] else (),
        attachment=row["attachment"] and str(row["attachment"]),
    )


class LogReader:
    """Reads the log in order.

    :param on_epoch: awaited when there are records of an epoch that is not known here, before they are applied.
    """

    def __init__(self, database: Database, on_epoch: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._on_epoch = on_epoch

    async def head(self) -> int:
        """The offset of the last record, or the floor."""
        return int(await self._database.fetch_value("head"))

    async def range(self, after: int, limit: int) -> tuple[int, list[Record]]:
        """The floor, and at most ``limit`` records above ``after`` (exclusive), in order."""
        rows = await self._database.fetch("range", after, limit)
        return rows[0]["floor"], [record_of(row) for row in rows if row["offset"] is not None]

    def knows(self, offset: int) -> bool:
        """Is the epoch of the offset known here?"""
        return self._database.codec.known(offset)

    async def learn(self) -> None:
        """An epoch has begun that is not known here."""
        await self._on_epoch()

    async def whole(self, record: Record) -> Record:
        """The record with its body, where that was written apart."""
        if record.attachment is None:
            return record
        body, parts = await read_attachment(self._database, record.attachment)
        return Record(
            record.offset, record.kind, record.namespace, record.rooms, record.skip_sids, body=body, parts=parts
        )


async def read_attachment(database: Database, key: str) -> tuple[str, tuple[bytes, ...]]:
    """A body that was written apart, and its binary parts."""
    with translated("attachment"):
        async with database.connection() as connection:
            data = await connection.fetchval(database.queries["attachment"], uuid.UUID(key), timeout=60)
    if data is None:
        raise StoreUnavailable(f"the attachment {key} is gone: retention deleted it while it was being read")
    body, *parts = unpack(data)
    return body.decode(), tuple(parts)
