"""The methods of the server about positions: from a page that the application renders to the stream after it."""

from __future__ import annotations

from typing import Any

from sio_pg_adapter.log.names import namespace_name, text_name
from sio_pg_adapter.manager import AsyncPostgresManager


class PositionMethods:
    """The methods of :class:`sio_pg_adapter.AsyncServer` about positions."""

    manager: AsyncPostgresManager

    async def position(self, connection: Any = None, namespace: str | None = None) -> str:
        """Return the end of the log as a position, for ``enter_room(since=)``.

        See :meth:`AsyncPostgresManager.position`.

        :param connection: an asyncpg connection, an SQLAlchemy ``AsyncConnection`` or ``AsyncSession``, or a psycopg
                           ``AsyncConnection``: the position of its snapshot. ``None``: of now.
        :raises StoreUnavailable: if the database cannot be reached.
        """
        return await self.manager.position(connection, namespace)

    def last_position(self, sid: str, namespace: str | None = None) -> str | None:
        """Return the position up to which a client of this node has received events in a session that is over.

        It is what the client's offset proves as it connects, for the rooms that it was in. ``None`` if the client has
        recovered its session, or has none, or presented no valid offset.
        """
        namespace = namespace_name(namespace)
        client, node = self.manager.clients.addressed(text_name(sid, "sid"), namespace), self.manager.node
        if client is None or client.proved is None or node is None:
            return None
        return node.epochs.position(client.proved, namespace)
