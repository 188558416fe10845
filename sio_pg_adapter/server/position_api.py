"""The methods of the server about positions and history."""

from __future__ import annotations

from typing import Any

from sio_pg_adapter.log.names import namespace_name, text_name
from sio_pg_adapter.log.records import StoredEvent
from sio_pg_adapter.manager import AsyncPostgresManager


class PositionMethods:
    """The methods of :class:`sio_pg_adapter.AsyncServer` about positions and history."""

    manager: AsyncPostgresManager

    async def position(self, connection: Any = None, namespace: str | None = None) -> str:
        """Return the end of the log as a position, for ``enter_room(since=)``.

        See :meth:`AsyncPostgresManager.position`.

        :param connection: an asyncpg connection, an SQLAlchemy ``AsyncConnection`` or ``AsyncSession``, or a psycopg
                           ``AsyncConnection``. The position is that of its snapshot. ``None``: the present end.
        :raises StoreUnavailable: if the database cannot be reached.
        """
        return await self.manager.position(connection, namespace)

    def last_position(self, sid: str, namespace: str | None = None) -> str | None:
        """Return the position up to which a client of this node has received events in a session that is over.

        The offset that the client presents as it connects proves this, for the rooms that it was in. ``None`` if the
        client has recovered its session, has no session, or presented no valid offset.
        """
        namespace = namespace_name(namespace)
        client, node = self.manager.clients.addressed(text_name(sid, "sid"), namespace), self.manager.node
        if client is None or client.proved is None or node is None:
            return None
        return node.epochs.position(client.proved, namespace)

    async def history(
        self,
        room: str | None,
        namespace: str | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        """Return the events of a room that are stored, in the order of the log.

        They are the last ``limit`` events or, with ``since``, the first ``limit`` events after it. See
        :meth:`AsyncPostgresManager.history`.

        :param room: the name of one room. ``None``: the events to everybody in the namespace.
        :param since: a position. Only events after it (exclusive).
        :param until: a position. Only events up to it (inclusive).
        :param limit: at most so many, from 1 to 10,000.
        :raises PositionInvalid: if a position is malformed, forged, or of another namespace.
        :raises PositionLost: if ``since`` is older than the oldest stored event, or was lost in a failover.
        :raises StoreUnavailable: if the database does not answer.
        """
        return await self.manager.history(room, namespace, since, until, limit)
