"""The connections of a node to its tables.

A node keeps three connections from its start to its end: one that listens, one that writes, one that reads. Others
come from a pool, for what can wait.

It also keeps them if the pool is the application's. Suppose that each ``emit`` took a connection, that handlers hold
all connections of the pool, and that each of them awaits an emit. They would wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg

from sio_pg_adapter.errors import ConfigurationError, SioPgError, StoreUnavailable
from sio_pg_adapter.options import Durability
from sio_pg_adapter.servers import check_support

from .backends import QUERY_TIMEOUT, keep_alive
from .endpoints import Endpoints, Pool
from .failures import ENDED, LOST, UNMIGRATED, translated
from .fitness import ISOLATION, check_codecs, support_of
from .followed import FollowedServer
from .kept import Connection, KeptConnection, another_may_serve
from .pooler import check_listens, hides_backend
from .queries import Queries
from .version import check_version

ACQUIRE_TIMEOUT = 10.0
"""How long getting a connection from the pool may take, in seconds."""

KEPT = 2
"""How many connections are kept besides the one that listens."""


class Database:
    """The tables of a node, and its connections to them.

    :param dsn: where they are. See :class:`.endpoints.Endpoints`.
    :param pool: an application's ``asyncpg.Pool``, to use instead of one of its own.
    :param listen_dsn: where to listen, if not at ``dsn``.
    :param schema: the schema of the tables.
    :param durability: whether appends of events wait until they are on disk. See :class:`.options.Durability`.
    :param must_fit: whether connections are judged. Those of the command line are not.
    :ivar pooled: whether a pooler serves all connections but the one that listens, so that no backend can be named.
    :ivar followed: the server whose log the node follows.
    """

    def __init__(
        self,
        dsn: str | None,
        *,
        pool: Pool | None = None,
        listen_dsn: str | None = None,
        schema: str = "public",
        durability: Durability = Durability.FLUSH,
        must_fit: bool = False,
    ) -> None:
        self._endpoints = Endpoints(dsn, listen_dsn)
        if pool is not None and not callable(getattr(pool, "acquire", None)):
            raise ConfigurationError(f"pool takes an asyncpg.Pool, not a {type(pool).__name__}")
        self._given_pool = pool
        self._pool: Pool | None = None
        self.pooled = False
        self.queries = Queries(schema)
        self.schema = schema
        self.durability = durability
        self._must_fit = must_fit
        self.followed = FollowedServer(self.queries, schema)
        self.writer = KeptConnection(self, "writer")
        self.reader = KeptConnection(self, "reader")

    @property
    def channel(self) -> str:
        """The channel that announces appends."""
        return self.followed.channel

    async def open(self, *, listens: bool = False) -> None:
        """Connect, and check that the tables are there, of this version.

        :param listens: whether a connection that listens, and others for a moment, will be needed, too.
        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated, or to another version.
        """
        with translated("connecting to PostgreSQL"):
            if self._given_pool is not None:
                self._check_size(self._given_pool, listens=listens)
                self._pool = self._given_pool
            else:
                self._pool = await self._endpoints.open_pool()
            try:
                connection = await self.acquire("writer")
                try:
                    self.pooled = await hides_backend(connection)
                    if self._given_pool is not None and self._must_fit:
                        await check_codecs(connection)
                    if self._must_fit:
                        with contextlib.suppress(*UNMIGRATED):  # the check of the version says so
                            check_support(**await support_of(connection, self.queries))
                    self.followed.begin(await check_version(connection, self.queries, self.schema))
                finally:
                    await self.release(connection)
                async with self.writer:
                    pass
            except BaseException:  # cancelled, too: what was opened is closed
                await self.close()
                raise

    def _check_size(self, pool: Pool, *, listens: bool) -> None:
        needed = KEPT + 1 if listens else KEPT
        if listens and not self._endpoints.names_listener:
            needed += 1
        if self._must_fit and pool.get_max_size() < needed:
            raise ConfigurationError(
                f"the pool has max_size={pool.get_max_size()}, and a node needs {needed} connections. Add "
                f"{needed} to the number that the application needs, and give the pool that max_size."
            )

    async def close(self) -> None:
        """Give everything back. Safe to call twice."""
        await self.writer.give_back()
        await self.reader.give_back()
        pool, self._pool = self._pool, None
        if pool is not None and pool is not self._given_pool:
            try:
                async with asyncio.timeout(5):
                    await pool.close()
            except TimeoutError:  # a connection does not answer any more
                pool.terminate()

    async def acquire(self, purpose: str) -> Connection:
        """Take a connection from the pool, whatever it leads to. :meth:`release` or :meth:`discard` gives it back.

        :param purpose: what it is for, for the error message.
        :raises StoreUnavailable: if none can be had.
        """
        if self._pool is None:
            raise StoreUnavailable(f"no connection for {purpose}: closed", may_be_stored=None)
        with translated("connecting to PostgreSQL", may_be_stored=None):
            return await self._pool.acquire(timeout=ACQUIRE_TIMEOUT)

    async def release(self, connection: Connection) -> None:
        """Give a connection back to the pool. It does no harm if it is lost by now."""
        if self._pool is not None:
            with contextlib.suppress(*LOST):
                await self._pool.release(connection, timeout=2)

    async def discard(self, connection: Connection) -> None:
        """Close a connection without a goodbye, for which a silent server would take seconds."""
        with contextlib.suppress(*LOST):
            connection.terminate()
        await self.release(connection)

    async def expire_connections(self) -> None:
        """Have a pool of this node's own open new connections.

        When a connection was lost, another server may serve by now. The idle connections of the pool would still lead
        to the former one, if that is still there.
        """
        if self._pool is not None and self._pool is not self._given_pool:
            await self._pool.expire_connections()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool, for what can wait."""
        connection = await self._fit_connection("a query")
        try:
            yield connection
        except BaseException as e:
            if another_may_serve(e):
                await self.discard(connection)
                connection = None
            raise
        finally:
            if connection is not None:
                await self.release(connection)

    def page_connection(self) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection for a page of a replay.

        It does not come from a pool of the application. While that is busy, no client would recover. The page
        takes its turn on the reader instead, and the cursor waits for it.
        """
        return self.connection() if self._given_pool is None else self.reader

    # -- what a connection must be ---------------------------------------------------------------------
    async def _fit_connection(self, purpose: str) -> Connection:
        """Return a connection of the pool that is fit. See :meth:`judge` for the errors."""
        connection = await self.acquire(purpose)
        try:
            await self.judge(connection, purpose)
        except BaseException:  # cancelled, too: it is closed
            await self.discard(connection)
            raise
        return connection

    async def kept_connection(self, purpose: str) -> Connection:
        """Return a fit connection of the pool, to keep. See :meth:`judge` for the errors."""
        connection = await self._fit_connection(purpose)
        try:
            with translated("connecting to PostgreSQL", may_be_stored=None):
                await self._keep_alive(connection)
        except BaseException:  # cancelled, too: it is closed
            await self.discard(connection)
            raise
        return connection

    async def _keep_alive(self, connection: Connection) -> None:
        """Set the keepalives, which the application did not choose when it opened the connection.

        Behind a pooler the setting would be another client's, too.
        """
        if self._must_fit and self._given_pool is not None and not self.pooled:
            await keep_alive(connection)

    async def judge(self, connection: Connection, purpose: str) -> None:
        """Check that a connection is fit, and leads to the server that the node follows.

        :raises StoreUnavailable: if it is not.
        :raises SchemaMismatch: if the tables are of another version.
        :raises ConfigurationError: if its isolation level is not read committed.
        """
        if self._must_fit:
            await self.followed.judge(connection, purpose)

    def gave(self, server: str) -> bool:
        """Whether an answer that names its server came from the one that the node follows."""
        return not self._must_fit or self.followed.gave(server)

    async def listen_connection(self) -> tuple[Connection, bool]:
        """Return a connection to listen on, and whether it goes back to the application's pool.

        :raises PoolerBetween: if LISTEN does not work on it.
        :raises StoreUnavailable: if the database cannot be reached, or the connection is not fit.
        """
        given = self._given_pool is not None and not self._endpoints.names_listener
        connection = await (self.acquire("LISTEN") if given else self._endpoints.open_listener())
        try:
            with translated("LISTEN", may_be_stored=None):
                await check_listens(connection, self._notify)
                if given:
                    await self._keep_alive(connection)
                else:
                    await keep_alive(connection)
                    await connection.execute(
                        "SELECT set_config('default_transaction_isolation', $1, false)",
                        ISOLATION,
                        timeout=QUERY_TIMEOUT,
                    )
                await self.judge(connection, "LISTEN")
        except BaseException:  # cancelled, too: it is closed
            await self.discard(connection)
            raise
        return connection, given

    async def _notify(self, channel: str) -> None:
        await self.fetch("notify", [channel], [""])

    # -- reads on the kept connection ----------------------------------------------------------------
    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Run a named statement that changes nothing, or nothing more when it is run again.

        :raises StoreUnavailable: if the database did not answer.
        """
        with translated(query, may_be_stored=None):
            try:
                return await self._fetch(query, args)
            except ENDED as e:
                if isinstance(e, SioPgError):  # no connection could be opened
                    raise
                return await self._fetch(query, args)  # on another connection

    async def _fetch(self, query: str, args: tuple[object, ...]) -> list[asyncpg.Record]:
        async with self.reader as connection:
            rows: list[asyncpg.Record] = await connection.fetch(self.queries[query], *args, timeout=QUERY_TIMEOUT)
            return rows

    async def fetch_value(self, query: str, *args: object) -> Any:
        """Return the first value of a named statement. See :meth:`fetch`."""
        return (await self.fetch(query, *args))[0][0]
