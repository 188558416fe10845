"""Whether the log is still the one this node's clients were served from, and their sessions are still this node's."""

from __future__ import annotations

import asyncio
import logging

from sio_pg_adapter.errors import PositionLost, SioPgError
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.epochs import Epochs
from sio_pg_adapter.store.reader import LogReader
from sio_pg_adapter.store.sessions import Sessions

from .clients import Clients
from .cursor import Cursor
from .protocols import Endings

RETRY = 0.25
"""Seconds until a check that failed is tried again."""

logger = logging.getLogger("sio_pg_adapter")


class Continuity:
    """Looks after this node's clients when the log, or the node's place in the cluster, is not as it was."""

    def __init__(
        self,
        database: Database,
        clients: Clients,
        cursor: Cursor,
        epochs: Epochs,
        reader: LogReader,
        sessions: Sessions,
        endings: Endings,
    ) -> None:
        self._database = database
        self._clients = clients
        self._cursor = cursor
        self._epochs = epochs
        self._reader = reader
        self._sessions = sessions
        self._endings = endings
        self._checking = asyncio.Lock()

    async def check(self) -> None:
        """Compare the epochs of the log with those that this node knows.

        After a reconnect the log may be another one: restored, truncated, or of a standby that lacks the last
        commits. If this node applied records that are lost, no other node knows of them, and its clients' sessions
        are over. If its cursor is still valid, only sessions that were opened above it may be lost.
        """
        async with self._checking:
            await self._compare()

    async def offset_of(self, position: object, namespace: str, *, argument: str) -> int:
        """Return the offset of a position. Its epoch may be one that another node has just begun.

        :param argument: the name of the argument that took it, for messages.
        :raises PositionInvalid: if it is malformed, forged, or of another namespace.
        :raises PositionLost: if the log does not have its epoch, or has lost it since.
        """
        try:
            return self._epochs.offset_of(position, namespace, argument=argument)
        except PositionLost:
            if not self._epochs.may_be_stale():
                raise
        await self.check()
        return self._epochs.offset_of(position, namespace, argument=argument)

    async def follow(self) -> None:
        """Follow the server that connections lead to now, once its log is known.

        Until then this node appends nothing: an append to another log would reach no client of this node.
        """
        while True:
            try:
                async with self._checking:
                    self._database.followed.forget()
                    await self._database.expire_connections()
                    await self._compare()
                    self._database.followed.confirm()
            except SioPgError as e:
                logger.warning("the log of the server cannot be checked, trying again: %s", e)
                await asyncio.sleep(RETRY)  # nothing announces that the database is back
            else:
                self._cursor.ring()
                return

    async def _compare(self) -> None:
        await self._epochs.begin_if_needed()
        read = await self._epochs.read()
        if read.epochs == self._epochs.codec.epochs:
            return
        cursor = self._cursor.offset
        if not cursor or self._epochs.codec.continued_by(read, cursor):
            self._epochs.adopt(read)
            await self._close_unheld()
            return
        logger.error("the log is another one: the clients of this node are disconnected, and come back")
        await self._sessions.end_all([client.held for client in self._clients if client.held is not None])
        head = await self._reader.head()
        self._epochs.adopt(read)
        self._cursor.jump(head)
        self._close_all()

    async def returned(self, *, counted_dead: bool) -> None:
        """The node is in the cluster again. If it was counted dead meanwhile, sessions may have run out."""
        if counted_dead:
            await self._close_unheld()

    def skipped(self, floor: int) -> None:
        """Retention deleted records that this node had not read, up to an offset, so its clients missed them."""
        logger.error("retention deleted records that this node had not read, up to offset %s", floor)
        self._close_all()

    def missed(self, namespace: str) -> None:
        """A record of a namespace could not be applied. Its clients come back, and their replays decide."""
        for client in [client for client in self._clients if client.namespace == namespace]:
            self._endings.taken(client)

    async def _close_unheld(self) -> None:
        """Close the clients whose sessions are no longer this node's, or have ended."""
        clients = [client for client in self._clients if client.held is not None]
        stored = await self._sessions.held_here() if clients else set()
        for client in clients:
            if client.held is not None and client.held not in stored:
                self._endings.taken(client)

    def _close_all(self) -> None:
        for client in list(self._clients):
            self._endings.taken(client)
