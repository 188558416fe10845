"""Reading the log: ranges of it, single large bodies, and the records that notifications carry."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import asyncpg

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.log.payload import unpack
from sio_pg_adapter.log.records import Kind, Record

from .backends import QUERY_TIMEOUT
from .database import Database
from .epochs import Epochs
from .failures import translated

TRIES = 3
"""How often reading the end of the log is tried. Retention truncates at most one segment in some minutes."""

HISTORIES_AT_ONCE = 2
"""How many histories are read at a time, each on a connection of the pool. The pool has four."""

NO_LOG = "the table sio_log is empty: run `sio-pg migrate`, which repairs it"

ZERO = datetime(1970, 1, 1, tzinfo=UTC)
"""The time from which the microseconds of the database count."""

ATTACHMENT_TIMEOUT = 60.0
"""How long reading or writing a large body may take, in seconds: 50 MB on a slow disk."""


@dataclass(frozen=True, slots=True)
class RoomEvent:
    """An event in the history of a room, as it is stored.

    :ivar at: when it entered the log, in UTC.
    """

    offset: int
    at: datetime
    body: str | None
    parts: bytes | None
    attached: bytes | None

    def encoded(self) -> tuple[str, tuple[bytes, ...]]:
        """Return its body and its binary parts.

        :raises ValueError: if they cannot be read.
        """
        if self.attached is not None:
            body, *parts = unpack(self.attached)
            return body.decode(), tuple(parts)
        if self.body is None:
            raise ValueError("it has no body")
        return self.body, tuple(unpack(self.parts)) if self.parts else ()


class LogReader:
    """Reads the log in order.

    :ivar epochs: the epochs that this node knows.
    """

    def __init__(self, database: Database, epochs: Epochs) -> None:
        self._database = database
        self._paging = asyncio.Semaphore(HISTORIES_AT_ONCE)
        self.epochs = epochs

    async def head(self) -> int:
        """Return the offset of the last record, or the floor."""
        return int(await self._database.fetch_value("head"))

    async def range(self, after: int, limit: int) -> tuple[int, list[Record]]:
        """Return the floor, and at most ``limit`` records above ``after`` (exclusive), in order."""
        rows = await self._database.fetch("range", after, limit)
        if not rows:
            raise StoreUnavailable(NO_LOG, may_be_stored=None)
        return rows[0]["floor"], [readable(row) for row in rows if row["offset"] is not None]

    async def position(self, namespace: str) -> str:
        """Return the position of the end of the log.

        :raises StoreUnavailable: if the database did not answer.
        """
        for _ in range(TRIES - 1):
            try:
                return str(await self._database.fetch_value("position", namespace))
            except StoreUnavailable as e:
                if not isinstance(e.__cause__, asyncpg.SerializationError):
                    raise  # the others: retention truncated a segment between the statement's snapshot and its locks
        return str(await self._database.fetch_value("position", namespace))

    async def history(
        self, namespace: str, room: str, *, after: int | None, upto: int, limit: int
    ) -> tuple[int, list[RoomEvent]]:
        """Return the floor, and at most ``limit`` events of a room, in order.

        :param after: the first events above this offset (exclusive). ``None``: the last ones.
        :param upto: only events at or below this offset (inclusive).
        :raises StoreUnavailable: if the database did not answer.
        """
        async with self._paging:
            with translated("reading the history of a room", may_be_stored=None):
                async with self._database.connection() as connection:
                    rows = await connection.fetch(
                        self._database.queries["history"],
                        namespace,
                        room,
                        after,
                        upto,
                        limit,
                        timeout=QUERY_TIMEOUT,
                    )
        if not rows:
            raise StoreUnavailable(NO_LOG, may_be_stored=None)
        events = [
            RoomEvent(row["offset"], ZERO + timedelta(microseconds=row["at"]), *row[3:])
            for row in rows
            if row["offset"] is not None
        ]
        return rows[0]["floor"], events

    async def whole(self, record: Record) -> Record:
        """Return an event with its body, if that is in the attachment table.

        :raises StoreUnavailable: if it cannot be read, or retention has deleted the event.
        """
        if record.attachment is None:
            return record
        try:
            body, parts = await read_attachment(self._database, record.attachment)
        except LookupError as e:
            _, records = await self.range(record.offset - 1, 1)
            if [other.offset for other in records] == [record.offset]:  # retention deletes both together
                return _unreadable(record.offset, record.namespace, e)
            raise StoreUnavailable("an event was deleted while its body was being read", may_be_stored=None) from e
        except ValueError as e:
            return _unreadable(record.offset, record.namespace, e)
        return replace(record, body=body, parts=parts, attachment=None, frames={})


def readable(row: asyncpg.Record) -> Record:
    """Return a row of the log as a record. It is ``UNREADABLE`` if its columns do not make one."""
    try:
        return _record_of(row)
    except (ValueError, TypeError, AttributeError) as e:  # one record must not stop all nodes
        return _unreadable(row["offset"], row["namespace"], e)


def _unreadable(offset: int, namespace: str, reason: Exception) -> Record:
    return Record(offset, Kind.UNREADABLE, namespace, data=f"{type(reason).__name__}: {reason}")


def _record_of(row: asyncpg.Record) -> Record:
    kind = Kind(row["kind"])
    of_members = kind in (Kind.MEMBERS_ENTER, Kind.MEMBERS_LEAVE, Kind.MEMBERS_KICK)
    return Record(
        offset=row["offset"],
        kind=kind,
        namespace=row["namespace"],
        rooms=tuple(row["rooms"] or (row["room"],)),
        skip_sids=tuple(row["skip_sids"] or ()),
        skip_rooms=tuple(row["skip_rooms"] or ()),
        members=tuple(json.loads(row["data"])) if of_members else (),
        sid=row["sid"],
        generation=row["generation"],
        node=row["node"] and row["node"].replace("-", ""),
        body=row["body"],
        parts=tuple(unpack(row["parts"])) if row["parts"] else (),
        attachment=row["attachment"],
        as_of=row["as_of"],
        data=None if of_members else row["data"],
    )


def read_notification(payload: str, cursor: int = 0) -> tuple[int, int, list[Record] | None]:
    """Return the offset before an append, its last one, and its records if they came along.

    :param cursor: the records are not decoded if the append does not lie above it. Most are the node's own.
    :raises ValueError: if the payload has another form.
    """
    prev_text, last_text, *carried = payload.split(" ", 2)
    prev, last = int(prev_text), int(last_text)
    if not carried or last <= cursor:
        return prev, last, None
    if carried[0].startswith("="):
        records = [_lone_record(last, carried[0])]
        return (prev, last, records) if prev + 1 == last else (prev, last, None)
    records = [
        Record(prev + i, Kind.EVENT, namespace, tuple(rooms), tuple(skips), tuple(skip_rooms), body=body)
        for i, (namespace, rooms, skips, skip_rooms, body) in enumerate(json.loads(carried[0]), 1)
    ]
    return (prev, last, records) if prev + len(records) == last else (prev, last, None)


def _lone_record(offset: int, carried: str) -> Record:
    namespace_size, room_size, rest = carried[1:].split(" ", 2)
    room_at = int(namespace_size)
    body_at = room_at + int(room_size)
    return Record(offset, Kind.EVENT, rest[:room_at], (rest[room_at:body_at],), body=rest[body_at:])


async def read_attachment(database: Database, key: str) -> tuple[str, tuple[bytes, ...]]:
    """Return a large body and its binary parts.

    :raises LookupError: if it is not there.
    :raises StoreUnavailable: if it cannot be read.
    """
    with translated("attachment", may_be_stored=None):
        async with database.reader as connection:
            data = await connection.fetchval(database.queries["attachment"], key, timeout=ATTACHMENT_TIMEOUT)
    if data is None:
        raise LookupError(f"the attachment {key} is gone")
    body, *parts = unpack(data)
    return body.decode(), tuple(parts)
