"""The history of a room: its events that are still in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from sio_pg_adapter.errors import PositionLost, StoreUnavailable
from sio_pg_adapter.log.names import EVERYBODY, namespace_name, room_name
from sio_pg_adapter.log.payload import decode_event
from sio_pg_adapter.log.records import StoredEvent
from sio_pg_adapter.options import whole_numbers
from sio_pg_adapter.store.epochs import Epochs
from sio_pg_adapter.store.reader import LogReader, RoomEvent

from .continuity import Continuity

LIMIT = whole_numbers(1, 10_000)
"""How many events one history may have."""

END = 2**63 - 1
"""An offset above all others."""

logger = logging.getLogger("sio_pg_adapter")


class History:
    """Reads the events of rooms from the log, even those that this node has not applied yet.

    :param json: the module that decodes events.
    """

    def __init__(self, reader: LogReader, epochs: Epochs, continuity: Continuity, json: ModuleType | Any) -> None:
        self._reader = reader
        self._epochs = epochs
        self._continuity = continuity
        self._json = json

    async def read(
        self, room: object, namespace: object, since: object, until: object, limit: int
    ) -> list[StoredEvent]:
        """Return events of a room in order. See :meth:`AsyncPostgresManager.history`."""
        name = EVERYBODY if room is None else room_name(room)
        where = namespace_name(namespace)
        LIMIT.check("limit", limit)
        after = None if since is None else await self._continuity.offset_of(since, where, argument="since")
        upto = END if until is None else await self._continuity.offset_of(until, where, argument="until")
        floor, events = await self._reader.history(where, name, after=after, upto=upto, limit=limit)
        if after is not None and after < floor:
            raise PositionLost(
                "since= is older than the events that are stored, so some after it may be missing. Load the page "
                "again, or keep events longer with retention=."
            )
        if events and not self._epochs.knows(events[-1].offset):  # another node has just begun an epoch
            await self._continuity.check()
            if not self._epochs.knows(events[-1].offset):
                raise StoreUnavailable("the log was exchanged while it was read. Read it again", may_be_stored=None)
        return list(self._decoded(events, where))

    def _decoded(self, events: Sequence[RoomEvent], namespace: str) -> Iterator[StoredEvent]:
        for stored in events:
            try:
                event, args = decode_event(*stored.encoded(), self._json)
            except Exception:  # a module may raise anything, and one record must not hide all others
                logger.exception("record %s is left out of a history, because it cannot be read", stored.offset)
                continue
            yield StoredEvent(event, args, self._epochs.position(stored.offset, namespace), stored.at)
