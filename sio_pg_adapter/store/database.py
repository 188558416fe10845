"""The connections of a node to its tables.

A node keeps three connections from its start to its end: one that listens, one that writes, one that reads. Others
come from a pool, for what can wait.

It also keeps them if the pool is the application's. Suppose that each ``emit`` took a connection, that handlers hold
all connections of the pool, and that each of them awaits an emit. They would wait for ever.

The module is long because a DSN, an application's pool and a pooler differ in most steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import asyncpg

from sio_pg_adapter.addresses import plain_dsn, read_address
from sio_pg_adapter.errors import ConfigurationError, SioPgError, StoreUnavailable
from sio_pg_adapter.options import Durability
from sio_pg_adapter.servers import KEEPALIVES, check_support

from .backends import QUERY_TIMEOUT, keep_alive
from .failures import ENDED, LOST, UNMIGRATED, connecting, translated
from .fitness import ISOLATION, UnfitConnection, check_codecs, fitness_of, support_of
from .kept import Connection, KeptConnection, another_may_serve
from .pooler import PoolerBetween, can_listen, hides_backend
from .queries import Queries
from .version import check_range, check_version

CONNECT_TIMEOUT = 10.0
"""How long opening a connection, or getting one from the pool, may take, in seconds."""

CHECK_WAIT = 5.0
"""How long a new connection waits for the check of the server that it leads to, in seconds."""

LOCK_SHARE = 0.8
"""How much of a check's time may be spent on waiting for the log's lock."""

HOLDER_WAIT = 1.0
"""How long the name of the backend that holds the log's lock may take, in seconds."""

KEPT = 2
"""How many connections are kept besides the one that listens."""

Pool: TypeAlias = asyncpg.Pool


async def _nothing_to_reset(connection: Connection) -> None:
    """Take the place of asyncpg's reset, which is a round trip at each release.

    Nothing that runs on this package's own pool outlasts its transaction: no setting and no lock. If a transaction
    was left open, asyncpg has rolled it back before this.
    """


class Database:
    """The tables of a node, and its connections to them.

    :param dsn: an asyncpg or libpq URL. ``None``: ``SIO_PG_DSN``, then libpq's ``PG*`` variables.
    :param pool: an application's ``asyncpg.Pool``, to use instead of one of its own.
    :param listen_dsn: where to listen, if not at ``dsn``.
    :param schema: the schema of the tables.
    :param durability: whether appends of events wait until they are on disk. See :class:`.options.Durability`.
    :ivar pooled: whether a pooler serves all connections but the one that listens, so that no backend can be named.
    :ivar channel: the channel that announces appends.
    :ivar era: counts how often its connections had to be reopened.
    :ivar server: the server whose log the node follows, as ``sio_fingerprint()`` names it.
    :ivar settled: whether it is certain that this server has the log that the node follows. Until then only the
                   reader is used.
    :ivar on_moved: called when a connection leads to another server. The future is done when the node has decided
                    which server to follow.
    :ivar must_fit: whether connections are judged. Those of the command line are not.
    """

    def __init__(
        self,
        dsn: str | None,
        *,
        pool: Pool | None,
        listen_dsn: str | None,
        schema: str,
        durability: Durability = Durability.FLUSH,
    ) -> None:
        self._own_dsn = dsn is not None and dsn != ""
        self._option = "dsn" if self._own_dsn else "SIO_PG_DSN"
        self.dsn = plain_dsn(dsn if self._own_dsn else os.environ.get("SIO_PG_DSN"), self._option)
        if self.dsn is None:
            self._option = "dsn, or one of libpq's PG* variables,"
        self._listen_dsn = plain_dsn(listen_dsn, "listen_dsn")
        self._address = read_address(self.dsn, self._option)
        self._listen_address = (
            self._address if self._listen_dsn is None else read_address(self._listen_dsn, "listen_dsn")
        )
        if pool is not None and not callable(getattr(pool, "acquire", None)):
            raise ConfigurationError(f"pool takes an asyncpg.Pool, not a {type(pool).__name__}")
        self._given_pool = pool
        self._pool: Pool | None = None
        self.pooled = False
        self.queries = Queries(schema)
        self.schema = schema
        self.durability = durability
        self.channel = ""
        self.era = 0
        self.server: str | None = None
        self.settled = True
        self.must_fit = False
        self.on_moved: Callable[[], asyncio.Future[None]] | None = None
        self.writer = KeptConnection(self, "writer")
        self.reader = KeptConnection(self, "reader")

    async def open(self, *, listens: bool = False) -> None:
        """Connect, and check that the tables are there, of this version.

        :param listens: whether a connection that listens, and others for a moment, will be needed, too.
        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated, or to another version.
        """
        self.server, self.settled = None, True
        with translated("connecting to PostgreSQL"):
            if self._given_pool is not None:
                self._check_size(self._given_pool, listens=listens)
                self._pool = self._given_pool
            else:
                self._pool = await asyncpg.create_pool(
                    connect=self._connect,
                    min_size=0,
                    max_size=4,  # ten processes share max_connections
                    command_timeout=QUERY_TIMEOUT,
                    max_inactive_connection_lifetime=60,
                    reset=_nothing_to_reset,
                    **await self._settings(),
                )
            try:
                connection = await self.acquire("writer")
                try:
                    self.pooled = await hides_backend(connection)
                    if self._given_pool is not None and self.must_fit:
                        await check_codecs(connection)
                    if self.must_fit:
                        with contextlib.suppress(*UNMIGRATED):  # the check of the version says so
                            check_support(**await support_of(connection, self.queries))
                    self.channel = await check_version(connection, self.queries, self.schema)
                finally:
                    await self.release(connection)
                async with self.writer:
                    pass
            except BaseException:  # cancelled, too: what was opened is closed
                await self.close()
                raise

    async def _connect(self, *_: object, **options: Any) -> Connection:
        return await self._address.connect(asyncpg.connect, CONNECT_TIMEOUT, **options)

    def _check_size(self, pool: Pool, *, listens: bool) -> None:
        needed = KEPT + 1 if listens else KEPT
        if listens and self._listen_dsn is None and not self._own_dsn:
            needed += 1
        if self.must_fit and pool.get_max_size() < needed:
            raise ConfigurationError(
                f"the pool has max_size={pool.get_max_size()}, and a node needs {needed} connections. Add "
                f"{needed} to the number that the application needs, and give the pool that max_size."
            )

    async def _settings(self) -> dict[str, Any]:
        """Return how an own pool connects: in the way that a pooler can handle, if there is one.

        Only then: without prepared statements a write took 1.5 times as long, and a range read 4 times.
        """
        name = {"application_name": "sio_pg_adapter"}
        try:
            with connecting(self._option):
                connection = await self._address.connect(
                    asyncpg.connect, CONNECT_TIMEOUT, statement_cache_size=0, server_settings=name
                )
        except StoreUnavailable as e:
            missing = "Set dsn, SIO_PG_DSN or libpq's PG* variables, or start PostgreSQL"
            advice = missing if self.dsn is None else f"Check {self._option}"
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

    async def close(self) -> None:
        """Give everything back. Safe to call twice."""
        await self.writer.give_back()
        await self.reader.give_back()
        pool, self._pool = self._pool, None
        if pool is not None and pool is not self._given_pool:
            try:
                await asyncio.wait_for(pool.close(), 5)
            except TimeoutError:  # a connection does not answer any more
                pool.terminate()

    async def acquire(self, purpose: str = "a query") -> Connection:
        if self._pool is None:
            raise StoreUnavailable(f"no connection for {purpose}: closed", may_be_stored=None)
        with translated("connecting to PostgreSQL", may_be_stored=None):
            return await self._pool.acquire(timeout=CONNECT_TIMEOUT)

    async def release(self, connection: Connection) -> None:
        if self._pool is not None:
            with contextlib.suppress(*LOST):
                await self._pool.release(connection, timeout=2)

    async def discard(self, connection: Connection) -> None:
        """Close a connection."""
        with contextlib.suppress(*LOST):
            connection.terminate()
        await self.release(connection)

    async def expire(self) -> None:
        """Have a pool of this node's own open new connections.

        When a connection was lost, another server may serve by now. The idle connections of the pool would still lead
        to the former one, if that is still there.
        """
        if self._pool is not None and self._pool is not self._given_pool:
            await self._pool.expire_connections()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool, for what can wait."""
        connection = await self.fit_connection("a query")
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

    # -- which server, and what a connection must be --------------------------------------------------
    async def fit_connection(self, purpose: str) -> Connection:
        """Return a connection of the pool that is fit. See :mod:`.fitness`.

        :raises StoreUnavailable: if it is not.
        :raises ConfigurationError: if its isolation level is not read committed.
        """
        connection = await self.acquire(purpose)
        try:
            await self.judge(connection, purpose)
        except BaseException:  # cancelled, too: it is closed
            await self.discard(connection)
            raise
        return connection

    async def kept_connection(self, purpose: str) -> Connection:
        """Return a connection to keep, as :meth:`fit_connection` does.

        :raises StoreUnavailable: if it is not fit.
        :raises ConfigurationError: if its isolation level is not read committed.
        """
        connection = await self.fit_connection(purpose)
        try:
            with translated("connecting to PostgreSQL", may_be_stored=None):
                await self._keep_alive(connection)
        except BaseException:  # cancelled, too: it is closed
            await self.discard(connection)
            raise
        return connection

    async def _keep_alive(self, connection: Connection) -> None:
        """Set what the application did not choose when it opened the connection.

        Behind a pooler the setting would be another client's, too.
        """
        if self.must_fit and self._given_pool is not None and not self.pooled:
            await keep_alive(connection)

    async def judge(self, connection: Connection, purpose: str) -> None:
        """Check that a connection is fit.

        :raises StoreUnavailable: if it is not.
        :raises ConfigurationError: if its isolation level is not read committed.
        """
        if not self.must_fit:
            return
        with translated("connecting to PostgreSQL", may_be_stored=None):
            fitness = await fitness_of(connection, self.queries)
        fitness.check_isolation()
        if fault := fitness.fault():
            raise UnfitConnection(f"connecting to PostgreSQL: {fault}", may_be_stored=None)
        check_range(fitness.version or 0, fitness.compatible or 0, self.schema)
        if self.server is None and (self.settled or purpose == "reader"):
            self.server, self.channel = fitness.server, fitness.channel or ""
        if not self._serves(fitness.server, purpose) and self.on_moved is not None:
            deciding = self.on_moved()
            if purpose != "reader":  # the check reads on that connection
                await asyncio.wait({deciding}, timeout=CHECK_WAIT)
        if not self._serves(fitness.server, purpose):
            raise UnfitConnection(
                "connecting to PostgreSQL: this is another server than that of the other connections. "
                "Check the hosts of the DSN, of listen_dsn and of the pooler",
                may_be_stored=None,
            )

    def _serves(self, server: str, purpose: str) -> bool:
        return server == self.server and (self.settled or purpose == "reader")

    def follows(self, server: str) -> bool:
        """Whether an answer came from the server that the node follows.

        A pooler may be pointed to another server at any time, and a connection may be in use while the node decides.
        """
        if not self.must_fit or (self.settled and server == self.server):
            return True
        if self.on_moved is not None:
            self.on_moved()
        if self.settled and self.server is None:  # a process that only emits: one server is as good as another
            self.server = server
        return self.settled and server == self.server

    def reopen(self) -> None:
        """Have all connections but the one that listens reopened at their next use."""
        self.era += 1

    def forget_server(self) -> None:
        """Follow whatever server the reader leads to next. Until :meth:`settle` nothing else is used."""
        self.reopen()
        self.server, self.settled = None, False

    def settle(self) -> None:
        """Follow the server that the reader leads to."""
        self.settled = True

    async def check_kept(self, timeout: float) -> None:
        """Ask whether the connections that are kept are still fit, and whether an append could be made."""

        async def could_append(connection: Connection) -> None:
            wait = timeout * LOCK_SHARE
            with translated("waiting for the log's lock", may_be_stored=None):
                try:
                    await connection.execute(self.queries["wait_for_lock"], int(wait * 1000), timeout=timeout)
                except asyncpg.LockNotAvailableError as e:
                    raise StoreUnavailable(f"the log's lock was not free for {wait:g} s", may_be_stored=None) from e

        await asyncio.gather(self.writer.check(timeout, could_append), self.reader.check(timeout))
        if self.writer.fault:
            with contextlib.suppress(SioPgError, TimeoutError):
                async with asyncio.timeout(HOLDER_WAIT):
                    self.writer.fault += await self._lock_holder()

    async def _lock_holder(self) -> str:
        """Return a sentence about the backend that holds the log's lock. Empty if there is none."""
        if not (rows := await self.fetch("lock_holder")):
            return ""
        pid, application, waits_for = rows[0]
        standby = waits_for == "SyncRep"
        reason = ", and its commit waits for a synchronous standby (synchronous_standby_names)" if standby else ""
        return f". Process {pid} of the server ({application or 'without a name'}) holds the log's lock{reason}"

    async def listen_connection(self) -> tuple[Connection, bool]:
        """Return a connection to listen on, and whether it goes back to the application's pool.

        :raises ConfigurationError: if LISTEN does not work on it.
        """
        if self._given_pool is not None and self._listen_dsn is None and not self._own_dsn:
            connection = await self.acquire("LISTEN")
            try:
                with translated("LISTEN", may_be_stored=None):
                    await self._check_listens(connection)
                    await self._keep_alive(connection)
                    await self.judge(connection, "LISTEN")
            except BaseException:  # cancelled, too: it is closed
                await self.discard(connection)
                raise
            return connection, True
        with connecting(self._option if self._listen_dsn is None else "listen_dsn"):
            settings = {"application_name": "sio_pg_adapter listen"}
            connection = await self._listen_address.connect(
                asyncpg.connect,
                CONNECT_TIMEOUT,
                statement_cache_size=0,  # a pooler is refused below, in this package's words
                server_settings=settings,
            )
            try:
                await self._check_listens(connection)
                await keep_alive(connection)
                await connection.execute(
                    "SELECT set_config('default_transaction_isolation', $1, false)", ISOLATION, timeout=QUERY_TIMEOUT
                )
                await self.judge(connection, "LISTEN")
            except BaseException:  # cancelled, too: it is closed
                await connection.close(timeout=2)
                raise
            return connection, False

    async def _check_listens(self, connection: Connection) -> None:
        async def notify(channel: str) -> None:
            await self.fetch("notify", [channel], [""])

        with translated("LISTEN", may_be_stored=None):
            if not await hides_backend(connection) or await can_listen(connection, notify):
                return
        raise PoolerBetween(
            "LISTEN does not work through a pooler in transaction mode (PgBouncer). Give listen_dsn=, the URL of a "
            "direct connection to PostgreSQL."
        )

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
