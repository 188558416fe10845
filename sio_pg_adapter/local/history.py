"""Is the log still the one that this node's clients were served from, and are their sessions still this node's?"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sio_pg_adapter.store.presence import Return

from .clients import Client

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

logger = logging.getLogger("sio_pg_adapter")


class History:
    """What a node does about its clients when it finds the log, or itself, not as it was.

    :param manager: whose clients, cursor and knowledge of the epochs it is about.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        self._checking = asyncio.Lock()

    async def check(self) -> None:
        """After a reconnect, or with a new epoch, the log may be another one: restored, truncated, or of a standby
        that has not got the last commits.

        What this node applied of a history that is lost, no other node knows of: its clients' sessions are over.
        Where its cursor is good, a session may still be lost that was opened after it.
        """
        manager, database = self._manager, self._manager.database
        async with self._checking:
            if not await database.fetch_value("in_history"):
                await database.fetch("check_epoch")
            codec, former = await database.read_epochs(), database.codec
            if codec.epochs == former.epochs:
                return
            cursor = manager.dispatcher.cursor
            if not cursor or former.same_history(cursor, codec):
                database.codec = codec
                await self._drop_unheld()
                return
            logger.error("the log is of another history: this node's clients are closed, to come back")
            held = [client.held for client in manager.clients if client.held is not None]
            await asyncio.gather(*(manager.sessions.end(one) for one in held))
            database.codec = codec
            manager.dispatcher.jump(await manager.log_reader.head())
            self._close_all()

    async def back(self, back: Return) -> None:
        """This node is in the cluster again. Was it taken for dead, sessions may have run out; claims of others are
        in the log."""
        if back.died:
            await self._drop_unheld()

    def hole(self, floor: int) -> None:
        """Retention deleted records that this node had not read, up to an offset: its clients miss them."""
        logger.error("retention deleted records that this node had not read, up to %s", floor)
        self._close_all()

    async def _drop_unheld(self) -> None:
        """Close the clients whose sessions are not this node's any more, or not at all."""
        manager = self._manager
        clients = [client for client in manager.clients if client.held is not None]
        stored = await manager.presence.held() if clients and manager.presence is not None else set()
        for client in clients:
            if client.held is not None and (client.held.id, client.held.generation) not in stored:
                manager.on_taken(client)

    def _close_all(self) -> None:
        clients: list[Client] = list(self._manager.clients)
        for client in clients:
            self._manager.on_taken(client)
