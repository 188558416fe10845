"""``Store``: the log and the sessions of one node, without a server."""

from __future__ import annotations

from typing import Any

import asyncpg

from sio_pg_adapter import AsyncPostgresManager
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Entry, Held, Kind, Written
from sio_pg_adapter.log.verdict import Claim
from sio_pg_adapter.store.failures import OutcomeUnknown
from sio_pg_adapter.store.writer import LogWriter


def kinds_of(writer: LogWriter) -> list[Kind]:
    """Return the list that gets the kind of each entry that a writer is given from now on."""
    kinds: list[Kind] = []
    append = writer.append

    async def noted(entry: Entry) -> Written:
        kinds.append(entry.kind)
        return await append(entry)

    writer.append = noted
    return kinds


class Store:
    """Log and sessions as one node writes them, without a server: nobody follows the log here."""

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self.manager = manager
        self.log, self.sessions, self.reader = manager.node.writer, manager.node.sessions, manager.node.reader
        self.node = manager.node.id

    async def emit(
        self,
        *rooms: str,
        namespace: str = "/",
        skip: tuple[str, ...] = (),
        skip_rooms: tuple[str, ...] = (),
        body: str = '["e"]',
    ) -> int:
        entry = Entry(Kind.EVENT, namespace, rooms or ("",), skip, skip_rooms, body=body)
        return (await self.log.append(entry)).offset

    async def move(self, kind: Kind, sid: str, room: str, **args: Any) -> int:
        return (await self.log.append(Entry(kind, "/", (room,), sid=sid, args=args))).offset

    async def close_room(self, room: str) -> int:
        return (await self.log.append(Entry(Kind.CLOSE, "/", (room,)))).offset

    async def kick(self, sid: str) -> int:
        return (await self.log.append(Entry(Kind.KICK, "/", sid=sid))).offset

    async def open(self, sid: str = "s", pid: str = "p", *, cursor: int | None = None, **more: Any) -> Held | None:
        """Open a session; `rooms` as memberships have them, `start` and `cursor` at the head if not given."""
        head = await self.reader.head() if cursor is None else cursor
        memberships = Memberships(sid, more.pop("start", head), more.pop("rooms", {}))
        namespace, data = more.pop("namespace", "/"), more.pop("data", "{}")
        return await self.sessions.open(namespace, memberships, pid=pid, cursor=head, data=data, **more)

    async def claim(
        self, pid: str = "p", after: int | None = None, *, cap: int = 10_000, namespace: str = "/"
    ) -> Any:
        await self.manager.node.continuity.check()
        key = None if after is None else self.manager.node.epochs.codec.epochs[after >> EPOCH_BITS].key.hex()
        return await self.sessions.claim(namespace, Claim(pid, after, key), cap)

    def lose_next_answer(self, superuser: asyncpg.Connection) -> list[bool]:
        """Have the next batch committed, and its answer lost: its backend ends before that is read.

        :returns: a list that has an element once this has happened.
        """
        commits, lost = self.log._commits, []
        send, (backend, _) = commits._send, commits._backend

        async def send_and_lose(connection: asyncpg.Connection, *args: Any) -> Any:
            if lost:
                return await send(connection, *args)
            lost.append(True)
            on_appended, commits._on_appended = commits._on_appended, lambda *_: None
            await send(connection, *args)
            commits._on_appended = on_appended
            await superuser.fetchval("SELECT pg_terminate_backend($1)", backend)
            raise OutcomeUnknown("the answer did not come")

        commits._send = send_and_lose
        return lost

    async def due(self, held: Held, after: int) -> list[int]:
        page = await self.sessions.page(held, after, 1_000)
        return [record.offset for record in page.records]
