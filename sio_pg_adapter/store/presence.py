"""Presence: a node shows that it lives by a lock, which costs no writes.

A node holds a shared session-level advisory lock on its LISTEN connection (PostgreSQL manual, chapter 13.3.5). When
its process, machine or connection is gone, so is the lock. The pruners look for it. A node is dead when two looks ten
seconds apart find no lock. The sessions that it held run out from then on.
"""

from __future__ import annotations

import uuid

import asyncpg

from sio_pg_adapter.errors import StoreUnavailable

from .backends import QUERY_TIMEOUT, Backend, backend_of, end_backend
from .database import Database
from .failures import translated
from .fitness import Probe, probe_of
from .kept import Connection


class Presence:
    """This node's place in the cluster.

    :param node: its id, 32 hexadecimal digits.
    :param channel: the channel for messages to this node alone.
    :param recovery_seconds: how long its sessions outlive their connections. ``None``: for ever.
    :param margin_seconds: how long a drop may go unnoticed, and a replay last.
    :param retention_seconds: how long events are kept, whatever sessions need. ``None``: for ever.
    """

    def __init__(
        self,
        database: Database,
        node: str,
        channel: str,
        *,
        recovery_seconds: float | None,
        margin_seconds: float,
        retention_seconds: float | None,
    ) -> None:
        self._database = database
        self._id = str(uuid.UUID(node))
        self._row = (self._id, channel, recovery_seconds, margin_seconds, retention_seconds)
        self._backend: Backend | None = None

    async def show(self, connection: Connection) -> bool:
        """Enter the cluster, or come back to it, on a new LISTEN connection.

        The former connection's backend is ended first: it may not have noticed yet that it serves nobody.

        :returns: whether the node was counted dead meanwhile.
        :raises StoreUnavailable: if the lock cannot be had.
        """
        queries = self._database.queries
        with translated("entering the cluster"):
            if self._backend is not None:
                await end_backend(connection, queries, self._backend)
            back = await connection.fetch(queries["node_back"], self._id, timeout=QUERY_TIMEOUT)
            node = await self._numbered(connection, "node_start", *self._row)
            if not await self._lock(connection, node["number"]):
                raise StoreUnavailable("another role holds the advisory lock that shows that this node lives")
            returned, self._backend = self._backend is not None, await backend_of(connection, queries)
        forgotten = returned and node["is_new"]
        return forgotten or (bool(back) and back[0]["died"])

    async def _lock(self, connection: Connection, number: int) -> bool:
        queries = self._database.queries
        for _ in range(3):
            if await connection.fetchval(queries["node_lock"], number, timeout=QUERY_TIMEOUT):
                return True
            # Any role may hold any advisory lock. Under another number it is not in this node's way.
            number = (await self._numbered(connection, "node_renumber", self._id))["number"]
        return False

    async def _numbered(self, connection: Connection, query: str, *args: object) -> asyncpg.Record:
        """Run a statement that takes the next number. Numbers that are taken are passed over.

        The sequence is behind the table where logical replication copied the one and not the other.
        """
        while True:
            try:
                return await connection.fetchrow(self._database.queries[query], *args, timeout=QUERY_TIMEOUT)
            except asyncpg.UniqueViolationError as e:
                if "number" not in str(e):
                    raise

    async def probe(self, connection: Connection, timeout: float) -> Probe:
        """Return the facts about the LISTEN connection."""
        return await probe_of(connection, self._database.queries, self._id, timeout)

    async def others(self) -> set[str]:
        """Return the ids of the other nodes that live.

        :raises StoreUnavailable: if the database does not answer.
        """
        return {row["id"] for row in await self._database.fetch("others", self._id)}

    async def leave(self) -> None:
        """Leave the cluster."""
        await self._database.fetch("node_stop", self._id)
