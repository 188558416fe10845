"""Presence: that this node lives is shown by a lock, so that it costs no writes.

A node holds a shared session-level advisory lock on its LISTEN connection (PostgreSQL manual, 13.3.5). When
process, machine or connection are gone, so is the lock. Whoever prunes looks; two looks without the lock, ten
seconds apart, and the node is dead: the sessions that it held run out from then.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

from sio_pg_adapter.errors import StoreUnavailable

from .database import QUERY_TIMEOUT, Connection, Database, translated


@dataclass(frozen=True, slots=True)
class Return:
    """How a node found itself when it was back: was it taken for dead meanwhile?"""

    died: bool


class Presence:
    """This node's place in the cluster.

    :param node: its id, 32 hexadecimal digits.
    :param channel: where messages for it alone are notified.
    :param recovery_seconds: how long its sessions outlive their connections; ``None``: for ever.
    :param margin_seconds: how long a drop may go unnoticed, and a replay last.
    """

    def __init__(
        self, database: Database, node: str, channel: str, *, recovery_seconds: float | None, margin_seconds: float
    ) -> None:
        self._database = database
        self._row = (uuid.UUID(node), channel, recovery_seconds, margin_seconds)
        self._backend: tuple[int, Any] | None = None

    async def show(self, connection: Connection) -> Return:
        """Enter the cluster, or come back to it, on a new LISTEN connection.

        The former connection's backend is ended first: it may not have noticed yet that it serves nobody.

        :raises StoreUnavailable: if the lock cannot be had.
        """
        queries = self._database.queries
        with translated("entering the cluster"):
            if self._backend is not None:
                while await connection.fetch(queries["end_backend"], *self._backend, timeout=QUERY_TIMEOUT):
                    await asyncio.sleep(0.02)  # ended, but not gone yet
            back = await connection.fetch(queries["node_back"], self._row[0], timeout=QUERY_TIMEOUT)
            node = await connection.fetchrow(queries["node_start"], *self._row, timeout=QUERY_TIMEOUT)
            if not await self._lock(connection, node["number"]):
                raise StoreUnavailable("another role holds the advisory lock that shows that this node lives")
            row = await connection.fetchrow(queries["backend"], timeout=QUERY_TIMEOUT)
            was_here, self._backend = self._backend is not None, (row["pid"], row["backend_start"])
        forgotten = was_here and node["is_new"]
        return Return(died=forgotten or (bool(back) and back[0]["died_at"] is not None))

    async def _lock(self, connection: Connection, number: int) -> bool:
        queries = self._database.queries
        for _ in range(3):
            if await connection.fetchval(queries["node_lock"], number, timeout=QUERY_TIMEOUT):
                return True
            # Any role may hold any advisory lock: under another number this node is not in its way.
            number = await connection.fetchval(queries["node_renumber"], self._row[0], timeout=QUERY_TIMEOUT)
        return False

    async def held(self) -> set[tuple[int, int]]:
        """The sessions that the store has as this node's, by id and generation."""
        rows = await self._database.fetch("node_sessions", self._row[0])
        return {(row["id"], row["generation"]) for row in rows}

    async def leave(self) -> None:
        """Leave in order."""
        await self._database.fetch("node_stop", self._row[0])
