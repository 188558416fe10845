"""``sio-pg tail``: follow the log.

It works as a node does. A notification, a reconnect and the start only mean that there may be records above the
cursor, and a page is read from there. So no record is missed while the database is away.
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
from .connect import open_database, translate_pooler_error
from .tail_records import Filter, TailRecord, from_row
from .tail_view import LinePrinter

PAGE = 500
"""Records in one read."""

PAGE_WITH_PAYLOADS = 20
"""Records in one read with payloads, each of which may have many megabytes."""

RETRY = 0.5
"""Seconds between two attempts to read while the database is away."""


def main(args: argparse.Namespace) -> int:
    """Print records as they are committed, until Ctrl-C or until standard output is closed."""
    asyncio.run(_follow(args))
    return 0


async def _follow(args: argparse.Namespace) -> None:
    write = terminal.print_json if args.json else LinePrinter(args.payload).write
    selected = Filter(args.namespace, args.room, args.event)
    async with open_database(args) as database, _watch_output() as output_closed:
        tail = Tail(database, selected, payload=args.payload)
        async with tail:
            reading = asyncio.create_task(_print(tail, args.last, write), name="sio-pg tail")
            await asyncio.wait({reading, output_closed}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading


async def _print(tail: Tail, last: int, write: Any) -> None:
    for record in await tail.read_last(last):
        write(record)
    async for record in tail.follow():
        write(record)


@contextlib.asynccontextmanager
async def _watch_output() -> AsyncIterator[asyncio.Future[None]]:
    """Give a future that is done when standard output is a pipe without a reader.

    A write would also fail then, but a quiet log has nothing to write.
    """
    loop = asyncio.get_running_loop()
    output_closed: asyncio.Future[None] = loop.create_future()
    try:
        fd = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except (OSError, ValueError):  # no file
        is_pipe = False
    if not is_pipe:
        yield output_closed
        return

    def on_readable() -> None:  # the write end of a pipe becomes readable only when the read end is closed
        loop.remove_reader(fd)
        if not output_closed.done():
            output_closed.set_result(None)

    loop.add_reader(fd, on_readable)
    try:
        yield output_closed
    finally:
        loop.remove_reader(fd)


class Tail:
    """The records above a cursor, also across lost connections.

    :param selected: the records to give.
    :param payload: whether to read their payloads.
    """

    def __init__(self, database: Database, selected: Filter, *, payload: bool) -> None:
        self._database = database
        self._selected = selected
        self._payload = payload
        self._page = PAGE_WITH_PAYLOADS if payload else PAGE
        self._cursor = 0
        self._ring = asyncio.Event()
        self._away = False
        self._listener = Listener(
            database, lambda: [database.channel], lambda *_: self._ring.set(), self._on_listening
        )
        self._warnings = _WarningHandler(self._say_lost)

    async def __aenter__(self) -> Self:
        logging.getLogger("sio_pg_adapter").addHandler(self._warnings)
        try:
            with translate_pooler_error():
                await self._listener.start()
            self._cursor = await self._database.fetch_value("head")
        except BaseException:  # also when cancelled
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listener.close()
        logging.getLogger("sio_pg_adapter").removeHandler(self._warnings)

    async def read_last(self, number: int) -> list[TailRecord]:
        """Return the last selected records up to the cursor, in order. They are read in pages, from the end."""
        records: deque[TailRecord] = deque()
        upto = self._cursor
        while len(records) < number:
            after = await self._database.fetch_value("back", upto, self._page)
            if after is None:
                break
            page = [record for record in await self._read(after) if record["offset"] <= upto]
            records.extendleft(record for record in reversed(page) if self._selected.matches(record))
            upto = after
        return list(records)[max(0, len(records) - number) :]

    async def follow(self) -> AsyncIterator[TailRecord]:
        """Yield the selected records above the cursor, without end."""
        while True:
            try:
                page = await self._read(self._cursor)
            except SioPgError as e:
                self._say_lost(f": {e}")
                await asyncio.sleep(RETRY)  # the database is away, and signals no event to wait for
                continue
            self._say_connected()
            for record in page:
                self._cursor = record["offset"]
                if self._selected.matches(record):
                    yield record
            if len(page) < self._page:
                await self._ring.wait()
                self._ring.clear()

    async def _read(self, after: int) -> list[TailRecord]:
        rows = await self._database.fetch("tail", after, self._page, self._payload)
        return [from_row(row, payload=self._payload) for row in rows]

    # -- state of the connection, on standard error ------------------------------------------------------
    async def _on_listening(self, _connection: object) -> None:
        self._ring.set()

    def _say_lost(self, reason: str = "") -> None:
        if not self._away:
            self._away = True
            terminal.say(f"the connection to the database was lost, trying again{reason}")

    def _say_connected(self) -> None:
        if self._away and self._listener.connected:
            self._away = False
            terminal.say("connected again")


class _WarningHandler(logging.Handler):
    """A handler of the listener's warnings: one for a lost connection, and one for each failed reconnect.

    :param on_warning: called for each warning.
    """

    def __init__(self, on_warning: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._on_warning = on_warning

    def emit(self, record: logging.LogRecord) -> None:
        self._on_warning()
