"""The log: appends in batches, reads in ranges.

All that this node writes goes through one connection, in the order in which it was asked for. What waits while
one commit is under way is the next batch (group commit), so the cost of a commit is shared by whoever is in a
hurry at the same time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable

import asyncpg

from sio_pg_adapter.counters import Counters
from sio_pg_adapter.errors import PayloadTooLarge, SioPgError, StoreUnavailable
from sio_pg_adapter.log.entries import Entry, Members, Written
from sio_pg_adapter.log.records import Kind, Record, unpack

from .backlog import Backlog
from .commits import Commits
from .database import Database, refusal, translated

BATCH_ENTRIES = 500
BATCH_BYTES = 4 * 1024 * 1024
"""Of one batch: a commit should not be long, since appends of all nodes wait for each other."""

BACKLOG = 20_000
"""Events that may wait to be written. An emit beyond that waits: memory is not filled while the database is slow."""

ONE_AT_FAULT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""What PostgreSQL says of a value, not of itself."""

logger = logging.getLogger("sio_pg_adapter")


class LogWriter:
    """Writes entries in batches.

    :param on_appended: called as soon as a batch is committed, with the offset before it, its last one, and
                        its records if they are known without a read; before any of its waiters go on.
    :param on_failed: called when a batch failed: it may be stored all the same.
    """

    def __init__(
        self,
        database: Database,
        on_appended: Callable[[int, int, list[Record] | None], None],
        on_failed: Callable[[], None],
        node: str,
        counters: Counters,
    ) -> None:
        self._on_failed = on_failed
        self._counters = counters
        self._commits = Commits(database, on_appended, node)
        self._waiting: deque[tuple[Entry | Members, asyncio.Future[Written], int]] = deque()
        self._backlog = Backlog(BACKLOG)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def waiting(self) -> int:
        """Entries in line, and emits that wait for a place in it; what is being committed is neither."""
        return len(self._waiting) + self._backlog.waiting

    @property
    def backend(self) -> int | None:
        """See :attr:`.commits.Commits.backend`."""
        return self._commits.backend

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sio_pg log writer")

    async def close(self) -> None:
        """Write what is waiting, then end. Safe to call twice."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    def append(self, entry: Entry | Members) -> asyncio.Future[Written]:
        """Take an entry in line, at once: the order of the calls is the order in the log.

        :raises StoreUnavailable: from the future, if it is not stored, or that cannot be known.
        """
        return self._enqueue(entry, places=0)

    def _enqueue(self, entry: Entry | Members, *, places: int) -> asyncio.Future[Written]:
        future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        if self._closing or self._task is None:
            future.set_exception(StoreUnavailable("appending to the log: closed"))
            self._backlog.leave(places)
        else:
            self._waiting.append((entry, future, places))
            self._wake.set()
        return future

    async def append_event(self, entry: Entry) -> Written:
        """Append an event in the order of the calls; while :data:`BACKLOG` of them wait to be written, the caller
        waits.

        :raises StoreUnavailable: as :meth:`append`. Cancelled while it waits for its turn it is not stored.
        """
        await self._backlog.take()
        return await self._enqueue(entry, places=1)

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch: list[tuple[Entry, asyncio.Future[Written]]] = []
            size = places = 0
            while self._waiting and len(batch) < BATCH_ENTRIES and (not batch or size < BATCH_BYTES):
                entry, future, taken = self._waiting[0]
                if isinstance(entry, Members):
                    break
                self._waiting.popleft()
                batch.append((entry, future))
                places += taken
                size += entry.size + entry.answer
            if batch:
                await self._write(batch)
                self._backlog.leave(places)
            else:
                entry, future, _ = self._waiting.popleft()
                assert isinstance(entry, Members)
                await self._move(entry, future)

    async def _move(self, members: Members, future: asyncio.Future[Written]) -> None:
        try:
            written = await self._commits.move(members)
        except Exception as e:  # noqa: BLE001 - the waiter's to handle
            self._fail([future], refusal("appending to the log", e) if isinstance(e, asyncpg.PostgresError) else e)
        except BaseException as e:
            self._fail([future], e)
            raise
        else:
            if not future.done():
                future.set_result(written)

    async def _write(self, batch: list[tuple[Entry, asyncio.Future[Written]]]) -> None:
        try:
            entries = [entry for entry, _ in batch]
            with self._counters.spans.append(entries):
                written = await self._commits.batch(entries)
            self._counters.wrote(entries)
        except ONE_AT_FAULT as e:
            if len(batch) == 1:
                self._fail([future for _, future in batch], PayloadTooLarge(f"PostgreSQL refuses it: {e}"))
            for one in batch if len(batch) > 1 else ():  # the others shall not suffer
                await self._write([one])
        except Exception as e:
            if not isinstance(e, SioPgError | asyncpg.PostgresError):
                logger.exception("appending to the log failed")
            error = refusal("appending to the log", e) if isinstance(e, asyncpg.PostgresError) else e
            self._fail([future for _, future in batch], error)
        except BaseException as e:
            self._fail([future for _, future in batch], e)
            raise
        else:
            for (_, future), result in zip(batch, written, strict=True):
                if not future.done():
                    future.set_result(result)

    def _fail(self, futures: list[asyncio.Future[Written]], error: BaseException) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # the waiter may have gone: that is no news then
        self._on_failed()


# -- reading -----------------------------------------------------------------------------------------
def read_notification(payload: str, cursor: int = 0) -> tuple[int, int, list[Record] | None]:
    """The offset before an append, its last one, and its records if they came along.

    :param cursor: what is not above it is not read: mostly the node's own appends.
    :raises ValueError: if it is none of ours.
    """
    prev_text, last_text, *carried = payload.split(" ", 2)
    prev, last = int(prev_text), int(last_text)
    if not carried or last <= cursor:
        return prev, last, None
    records = [
        Record(prev + i, Kind.EVENT, namespace, tuple(rooms), tuple(skips), body=body)
        for i, (namespace, rooms, skips, body) in enumerate(json.loads(carried[0]), 1)
    ]
    return (prev, last, records) if prev + len(records) == last else (prev, last, None)


def record_of(row: asyncpg.Record) -> Record:
    """A row of the log."""
    return Record(
        offset=row["offset"],
        kind=Kind(row["kind"]),
        namespace=row["namespace"],
        rooms=tuple(row["rooms"] or (row["room"],)),
        skip_sids=tuple(row["skip_sids"] or ()),
        sid=row["sid"],
        generation=row["as_of"] if row["generation"] is None else row["generation"],
        node=row["node"] and row["node"].hex,
        body=row["data"] if row["body"] is None else row["body"],
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
