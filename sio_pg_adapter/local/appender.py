"""Appending to the log, until the change has taken effect on this node."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from sio_pg_adapter.log.records import Entry, Kind, MemberMove, Outgoing, Written
from sio_pg_adapter.store.writer import LogWriter

from .cursor import Cursor

EFFECT_WAIT = 5.0
"""How long an append waits for this node's cursor, in seconds. It is in the log in any case, and will take effect."""

logger = logging.getLogger("sio_pg_adapter")


class Appender:
    """Appends entries, and waits for the cursor.

    :param follows: whether this node follows the log. A process that only emits does not.
    """

    def __init__(self, writer: LogWriter, cursor: Cursor, *, follows: bool) -> None:
        self._writer = writer
        self._cursor = cursor
        self._follows = follows
        self._leaving: Counter[tuple[str, str]] = Counter()

    async def event(self, outgoing: Outgoing) -> bool:
        """Append an event. Return when this node has sent it to its own clients.

        :returns: whether it was stored. If not, the log has an event with the same key, and this node has sent
                  that one.
        :raises PayloadTooLarge: if PostgreSQL refuses it. Nothing is stored.
        :raises StoreUnavailable: says whether it may be stored.
        """
        written = await self._writer.append_event(Entry.event(outgoing))
        await self._effect(written)
        return not written.duplicate

    async def change(self, entry: Entry | MemberMove) -> int:
        """Append a move, a closed room or a kick. Return its offset when it has taken effect on this node.

        If an earlier record had already done the same, the offset is that of the earlier record. It is 0 if there was
        nothing to do.

        :raises ValueError: if the room is a client's own. Nothing is stored.
        :raises StoreUnavailable: says whether it may be stored.
        """
        appended = self._writer.append(entry)
        if self._follows and entry.kind in (Kind.LEAVE, Kind.CLOSE):
            self._note_leaving(entry, appended)
        written = await appended
        if written.refused:
            raise ValueError(f"cannot {'close' if entry.kind is Kind.CLOSE else 'enter'} a sid room")
        await self._effect(written)
        return written.offset

    async def _effect(self, written: Written) -> None:
        if written.offset <= self._cursor.offset or not self._follows:
            return
        if not await self._cursor.passed(written.offset, EFFECT_WAIT):
            logger.warning("this node is behind the log, at offset %s", self._cursor.offset)

    def is_leaving(self, namespace: str, room: str) -> bool:
        """Whether clients of this node may be about to leave a room."""
        return self._leaving[namespace, room] > 0

    def _note_leaving(self, entry: Entry | MemberMove, appended: asyncio.Future[Written]) -> None:
        """Record that clients are leaving rooms, until the cursor has passed the change or the append has failed."""
        left = entry.targets if isinstance(entry, MemberMove) else entry.rooms
        rooms, leaving = [(entry.namespace, room) for room in left], self._leaving

        def over() -> None:
            leaving.subtract(rooms)
            for room in rooms:
                if not leaving[room]:
                    del leaving[room]

        def stored(appended: asyncio.Future[Written]) -> None:
            failed = appended.cancelled() or appended.exception() is not None
            self._cursor.when(0 if failed else appended.result().offset, over)

        leaving.update(rooms)
        appended.add_done_callback(stored)
