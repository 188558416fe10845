"""``StoredNode``: the local side of a node that has a log and sessions, on a stand-in for PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

from sio_pg_adapter.local.appender import Appender
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.continuity import Continuity
from sio_pg_adapter.local.cursor import Cursor
from sio_pg_adapter.local.history import History
from sio_pg_adapter.local.moves import Moves
from sio_pg_adapter.local.positions import Positions
from sio_pg_adapter.log.offsets import EPOCH_BITS, Epoch, OffsetCodec
from sio_pg_adapter.log.positions import encode_position
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.store.reader import LogReader
from sio_pg_adapter.store.sessions import Sessions
from sio_pg_adapter.store.writer import LogWriter

from .local import Local
from .postgres import Postgres

KEY = b"k" * 32
RUNNING = Epoch(0, KEY)
SECOND = Epoch(1, b"l" * 32)
FIRST_OF_SECOND = (1 << EPOCH_BITS) + 1


class StoredNode(Local):
    """The local side of a node whose cursor is at offset 7 of the epoch ``RUNNING``.

    :param limit: ``max_missed_packets``.
    """

    def __init__(self, postgres: Postgres, limit: int | None = 10) -> None:
        database = postgres.database
        super().__init__(database=database)
        self.postgres = postgres
        postgres.answers |= {"in_epoch": [[True]], "head": [[7]], "since": [{"missed": 0, "floor": 0}]}
        self.epochs_of_the_log(RUNNING)
        self.reader = LogReader(database, self.epochs)
        self.cursor = Cursor(self.reader)
        self.cursor.jump(7)
        self.writer = LogWriter(
            database, self.cursor.offer, self.cursor.ring, "node", self.counters, lambda: self.cursor.reached
        )
        self.sessions = Sessions(database, self.writer, "node")
        self.continuity = Continuity(
            database, self.clients, self.cursor, self.epochs, self.reader, self.sessions, self.ended
        )
        self.moves = Moves(self.clients, self.rooms, self.cursor, Appender(self.writer, self.cursor, follows=True))
        self.positions = Positions(
            self.cursor, self.epochs, self.continuity, self.sessions, self.rooms, self.moves, limit
        )
        self.history = History(self.reader, self.epochs, self.continuity, json)

    def epochs_of_the_log(self, *epochs: Epoch) -> None:
        """Let the log have these epochs from here on. The node reads them when it checks."""
        self.postgres.answers["epochs"] = [
            {"epoch": epoch.number, "key": epoch.key, "ended": epoch.end} for epoch in epochs
        ]

    def holding(self, sid: str, session: int, generation: int) -> Client:
        """Add a live client that holds a session."""
        client = self.client(sid, state=State.CONNECTING)
        client.begin_opening()
        client.opened(Held(session, generation))
        self.rooms.go_live(client)
        return client

    def statements(self) -> list[str]:
        """Return the names of the statements that were run."""
        return [name for name, _ in self.postgres.statements]


def position(offset: int, namespace: str = "/", *epochs: Epoch) -> str:
    """Return the position of an offset in a log that has these epochs."""
    return encode_position(offset, namespace, OffsetCodec(epochs or (RUNNING,)))


def written(*offsets: int | None, prev: int = 7) -> dict[str, Any]:
    """Return an answer of the database to a batch. The offset of a refused entry is ``None``."""
    return {"prev": prev, "offsets": list(offsets), "results": None, "server": None}
