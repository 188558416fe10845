"""``sio-pg tail``: follow the log.

As a node does: a notification, a reconnect and the start all only say that there may be something above the cursor,
and a range is read from there. So nothing is missed while the database is away.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import stat
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.listener import Listener

from . import terminal
from .connect import listening, opened
from .tail_records import Entry, Filter, entry_of
from .tail_view import Lines

PAGE = 500
PAGE_WITH_PAYLOADS = 20
"""Records that are read at once: a payload may have many megabytes."""

RETRY = 0.5
"""Seconds between two tries to read: the database is away."""


def main(args: argparse.Namespace) -> int:
    """Print records as they come, until it is interrupted or nobody reads any more."""
    asyncio.run(_follow(args))
    return 0


async def _follow(args: argparse.Namespace) -> None:
    write = terminal.print_json if args.json else Lines(args.payload).write
    wanted = Filter(args.namespace, args.room, args.event)
    async with opened(args) as database, _until_unread() as unread:
        tail = Tail(database, wanted, payload=args.payload)
        async with tail:
            reading = asyncio.create_task(_print(tail, args.last, write), name="sio-pg tail")
            await asyncio.wait({reading, unread}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading


async def _print(tail: Tail, last: int, write: Any) -> None:
    for entry in await tail.last(last):
        write(entry)
    async for entry in tail.follow():
        write(entry)


@contextlib.asynccontextmanager
async def _until_unread() -> AsyncIterator[asyncio.Future[None]]:
    """Done when standard output is a pipe that nobody reads any more: a quiet log would not find that out."""
    loop = asyncio.get_running_loop()
    unread: asyncio.Future[None] = loop.create_future()
    try:
        fd = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except (OSError, ValueError):  # no file
        is_pipe = False
    if not is_pipe:
        yield unread
        return

    def closed() -> None:  # the writing end of a pipe is never readable, but for its other end being closed
        loop.remove_reader(fd)
        if not unread.done():
            unread.set_result(None)

    loop.add_reader(fd, closed)
    try:
        yield unread
    finally:
        loop.remove_reader(fd)


class Tail:
    """The records above a cursor, through lost connections.

    :param wanted: which of them.
    :param payload: whether their payloads are read.
    """

    def __init__(self, database: Database, wanted: Filter, *, payload: bool) -> None:
        self._database = database
        self._wanted = wanted
        self._payload = payload
        self._page = PAGE_WITH_PAYLOADS if payload else PAGE
        self._cursor = 0
        self._ring = asyncio.Event()
        self._away = False
        self._listener = Listener(database, [database.channel], lambda *_: self._ring.set(), self._listening)
        self._warnings = _Warnings(self._lost)

    async def __aenter__(self) -> Self:
        logging.getLogger("sio_pg_adapter").addHandler(self._warnings)
        try:
            with listening():
                await self._listener.start()
            self._cursor = await self._database.fetch_value("head")
        except BaseException:  # cancelled, too: what was opened is closed
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listener.close()
        logging.getLogger("sio_pg_adapter").removeHandler(self._warnings)

    async def last(self, number: int) -> list[Entry]:
        """The last wanted ones up to the cursor, in order: read in pages, from the end."""
        found: deque[Entry] = deque()
        upto = self._cursor
        while len(found) < number:
            after = await self._database.fetch_value("back", upto, self._page)
            if after is None:
                break
            page = [entry for entry in await self._read(after) if entry["offset"] <= upto]
            found.extendleft(entry for entry in reversed(page) if self._wanted.takes(entry))
            upto = after
        return list(found)[max(0, len(found) - number) :]

    async def follow(self) -> AsyncIterator[Entry]:
        """The wanted ones above the cursor, for ever."""
        while True:
            try:
                page = await self._read(self._cursor)
            except SioPgError as e:
                self._lost(f": {e}")
                await asyncio.sleep(RETRY)  # the database is away: it has nothing that could be awaited
                continue
            self._back()
            for entry in page:
                self._cursor = entry["offset"]
                if self._wanted.takes(entry):
                    yield entry
            if len(page) < self._page:
                await self._ring.wait()
                self._ring.clear()

    async def _read(self, after: int) -> list[Entry]:
        rows = await self._database.fetch("tail", after, self._page, self._payload)
        return [entry_of(row, payload=self._payload) for row in rows]

    # -- the connection, in words ----------------------------------------------------------------------
    async def _listening(self, _connection: object) -> None:
        self._ring.set()

    def _lost(self, reason: str = "") -> None:
        if not self._away:
            self._away = True
            terminal.say(f"the connection to the database was lost, trying again{reason}")

    def _back(self) -> None:
        if self._away and self._listener.connected:
            self._away = False
            terminal.say("connected again")


class _Warnings(logging.Handler):
    """The listener warns when it has lost its connection, and of each try to reconnect that fails.

    :param tell: called for each warning.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell()
