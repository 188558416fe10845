"""The methods of the server about positions: from a page that the application renders to the stream after it."""

from __future__ import annotations

from typing import Any

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
