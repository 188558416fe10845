"""Where the connections of a node lead, and with which settings they are opened.

There is one endpoint for the pool and one for the connection that listens. Each error names the option that gave it.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import asyncpg

from sio_pg_adapter.addresses import plain_dsn, read_address
from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.servers import KEEPALIVES

from .backends import QUERY_TIMEOUT
from .failures import connecting
from .fitness import ISOLATION
from .kept import Connection
from .pooler import hides_backend

CONNECT_TIMEOUT = 10.0
"""How long opening a connection may take, in seconds."""


Pool: TypeAlias = asyncpg.Pool


async def _nothing_to_reset(connection: Connection) -> None:
    """Take the place of asyncpg's reset, which is a round trip at each release.

    Nothing that runs on this package's own pool outlasts its transaction: no setting and no lock. If a transaction
    was left open, asyncpg has rolled it back before this.
    """


class Endpoints:
    """The endpoints of a database.

    :param dsn: an asyncpg or libpq URL. ``None``: ``SIO_PG_DSN``, then libpq's ``PG*`` variables.
    :param listen_dsn: where to listen, if not at ``dsn``.
    :raises ConfigurationError: naming the option that is wrong.
    :ivar names_listener: whether an option says where to listen. Then a pool of the application is not used for that.
    """

    def __init__(self, dsn: str | None, listen_dsn: str | None) -> None:
        is_given = dsn is not None and dsn != ""
        self._option = "dsn" if is_given else "SIO_PG_DSN"
        url = plain_dsn(dsn if is_given else os.environ.get("SIO_PG_DSN"), self._option)
        self._is_named = url is not None
        if url is None:
            self._option = "dsn, or one of libpq's PG* variables,"
        self._address = self._listen_address = read_address(url, self._option)
        self._listen_option = self._option
        if (listen_url := plain_dsn(listen_dsn, "listen_dsn")) is not None:
            self._listen_option = "listen_dsn"
            self._listen_address = read_address(listen_url, self._listen_option)
        self.names_listener = is_given or listen_url is not None

    async def open_pool(self) -> Pool:
        """Open a pool. It connects once, and then when it is asked for connections.

        :raises StoreUnavailable: if the database cannot be reached.
        """
        return await asyncpg.create_pool(
            connect=self._connect,
            min_size=0,
            max_size=4,  # ten processes share max_connections
            command_timeout=QUERY_TIMEOUT,
            max_inactive_connection_lifetime=60,
            reset=_nothing_to_reset,
            **await self._settings(),
        )

    async def _connect(self, *_: object, **options: Any) -> Connection:
        """Open a connection, as asyncpg's pool asks for one."""
        return await self._address.connect(asyncpg.connect, CONNECT_TIMEOUT, **options)

    async def _settings(self) -> dict[str, Any]:
        """Return how the pool connects: in the way that a pooler can handle, if there is one.

        Only then: without prepared statements a write took 1.5 times as long, and a range read 4 times.
        """
        name = {"application_name": "sio_pg_adapter"}
        try:
            with connecting(self._option):
                connection = await self._connect(statement_cache_size=0, server_settings=name)
        except StoreUnavailable as e:
            missing = "Set dsn, SIO_PG_DSN or libpq's PG* variables, or start PostgreSQL"
            advice = f"Check {self._option}" if self._is_named else missing
            raise StoreUnavailable(f"{e.args[0]}. {advice}") from e.__cause__
        try:
            if await hides_backend(connection):
                return {"statement_cache_size": 0, "server_settings": name}  # PgBouncer refuses others
        finally:
            await connection.close(timeout=2)
        settings = {
            **name,
            **KEEPALIVES,
            "jit": "off",
            "default_transaction_isolation": ISOLATION,
            "idle_in_transaction_session_timeout": "10s",
        }
        return {"server_settings": settings}

    async def open_listener(self) -> Connection:
        """Open the connection that listens. It may lead to a pooler.

        :raises StoreUnavailable: if the database cannot be reached.
        """
        with connecting(self._listen_option):
            return await self._listen_address.connect(
                asyncpg.connect,
                CONNECT_TIMEOUT,
                statement_cache_size=0,  # a pooler is refused later, in this package's words
                server_settings={"application_name": "sio_pg_adapter listen"},
            )
