"""Connections: which there are, how they are opened, and what their errors mean here.

A node keeps three connections from its start to its end: one that listens, one that writes, one that reads.
The others are of a pool, for what can wait. That is so with a pool of the application's, too: if an ``emit``
had to take a connection when it is called, as many handlers as the pool has connections, each holding one and
awaiting an emit, would wait for each other for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg

from sio_pg_adapter.errors import ConfigurationError, SchemaMismatch, SioPgError, StoreUnavailable
from sio_pg_adapter.log.records import Epoch, OffsetCodec

from .pooler import PoolerInBetween, hears, hides_backend
from .queries import Queries

SCHEMA_VERSION = 1
"""The version of the tables that this package is made for.

It works with tables for which ``sio_log.compatible <= SCHEMA_VERSION <= sio_log.version``.
"""

CONNECT_TIMEOUT = 10.0
"""Seconds to open a connection, or to get one from the pool."""

QUERY_TIMEOUT = 10.0
"""Seconds that a statement may take before the database counts as unavailable."""

EPOCHS_FRESH = 1.0
"""Seconds for which the epochs, once read, are taken for all that there are."""

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement begun between the server's farewell and the end of the connection
    asyncpg.OperatorInterventionError,  # shut down, terminated, starting up, cancelled
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby: after a failover the primary is elsewhere
    OSError,
    TimeoutError,
)
"""What means that the database cannot be reached, or did not answer."""

BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError, OSError)
"""What means that a connection cannot be used any more."""

_UNMIGRATED = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
)

# Of the connection that listens: a peer that vanished without a word is noticed by both sides in seconds.
_KEEPALIVES = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}

logger = logging.getLogger("sio_pg_adapter")

Pool = asyncpg.Pool

Connection = Any
"""An ``asyncpg.Connection``, or the proxy of it that a pool hands out."""


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """The errors of asyncpg as ours, with their cause. For statements that change nothing."""
    try:
        yield
    except SioPgError:  # said already; StoreUnavailable is an OSError, too
        raise
    except asyncpg.PostgresError as e:
        raise refusal(doing, e) from e
    except LOST as e:
        raise StoreUnavailable(f"{doing}: {type(e).__name__}: {e}".rstrip(": ")) from e


def refusal(doing: str, error: asyncpg.PostgresError) -> SioPgError:
    """What it means that the server answered with an error, and so did nothing."""
    if isinstance(error, _UNMIGRATED):
        return SchemaMismatch(f"{doing}: {error}; `sio-pg migrate` brings the database to this version")
    return StoreUnavailable(f"{doing}: {type(error).__name__}: {error}")


@contextlib.contextmanager
def connecting(what: str, option: str) -> Iterator[None]:
    """The errors of a connect as ours; also those of asyncpg's about where to.

    :param what: what the connection is for.
    :param option: what told where to.
    """
    with translated(f"connecting to PostgreSQL for {what}"):
        try:
            yield
        except asyncpg.ClientConfigurationError as e:
            raise ConfigurationError(f"{option} is wrong: {e}") from e
        except (ValueError, OverflowError) as e:
            if isinstance(e, SioPgError | asyncpg.InterfaceError):
                raise
            # Without the cause, which shows what it stumbled over: behind a / in a password, a part of that
            raise ConfigurationError(
                f"{option} is wrong: its host or port cannot be read ({type(e).__name__}); in a user or password "
                "write %2F for / and %40 for @"
            ) from None


async def _nothing_was_set(connection: Connection) -> None:
    """Instead of asyncpg's reset, a round trip at each release: what runs on a pool of our own sets and holds nothing
    beyond its transaction. One that was left open is rolled back before this."""


def _closed(connection: Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # lost while nobody used it: the pool took it back by itself
        return True


class Kept:
    """One connection that is kept, opened anew when it was lost: ``async with kept as connection``. Who uses it holds
    its lock."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._connection: Connection = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Connection:
        await self._lock.acquire()
        try:
            if self._connection is None or _closed(self._connection):
                await self.drop()
                self._connection = await self._database.acquire(self._name)
        except BaseException:  # cancelled, too: nobody else would ever have it
            self._lock.release()
            raise
        return self._connection

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if isinstance(error, BROKEN):
                await self.drop()
        finally:
            self._lock.release()

    async def drop(self) -> None:
        """Give the connection back, or up where it is broken."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._database.release(connection)


class Database:
    """Where a node's tables are, and its connections to them.

    :param dsn: an asyncpg or libpq URL; ``None``: ``SIO_PG_DSN``, then libpq's ``PG*`` variables.
    :param pool: an ``asyncpg.Pool`` of the application's to use instead of one of its own.
    :param listen_dsn: where to listen, if not at ``dsn``.
    :param schema: of the tables.
    :ivar pooled: whether a pooler is in between (not for LISTEN), so that no backend can be named.
    """

    def __init__(self, dsn: str | None, *, pool: asyncpg.Pool | None, listen_dsn: str | None, schema: str) -> None:
        self._own_dsn = dsn is not None and dsn != ""
        self._named = "dsn" if self._own_dsn else "SIO_PG_DSN"
        self.dsn = plain_dsn(dsn if self._own_dsn else os.environ.get("SIO_PG_DSN"), self._named)
        if self.dsn is None:
            self._named = "dsn, or one of libpq's PG* variables,"
        self._listen_dsn = plain_dsn(listen_dsn, "listen_dsn")
        if pool is not None and not callable(getattr(pool, "acquire", None)):
            raise ConfigurationError(f"pool takes an asyncpg.Pool: not a {type(pool).__name__}")
        self._given_pool = pool
        self._pool: asyncpg.Pool | None = None
        self.pooled = False
        self.queries = Queries(schema)
        self.schema = schema
        self.channel = ""
        self.codec = OffsetCodec(())
        self._epochs_read_at = 0.0
        self.writer = Kept(self, "writer")
        self.reader = Kept(self, "reader")

    async def open(self) -> None:
        """Connect and look whether the tables are there, of this version.

        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated, or to another version.
        """
        with translated("connecting to PostgreSQL"):
            if self._given_pool is not None:
                self._pool = self._given_pool
            else:
                self._pool = await asyncpg.create_pool(
                    self.dsn,
                    min_size=0,
                    max_size=4,  # ten processes share max_connections
                    timeout=CONNECT_TIMEOUT,
                    command_timeout=QUERY_TIMEOUT,
                    max_inactive_connection_lifetime=60,
                    reset=_nothing_was_set,
                    **await self._settings(),
                )
            try:
                async with self.writer as connection:
                    self.pooled = await hides_backend(connection)
                    await self._check_version(connection)
                async with self.reader as connection:
                    if not await connection.fetchval(self.queries["in_history"]):
                        await connection.execute(self.queries["check_epoch"])
                self.codec = await self.read_epochs()
            except BaseException:  # cancelled, too: what was opened is closed
                await self.close()
                raise

    async def _settings(self) -> dict[str, Any]:
        """How a pool of our own connects: in the way that a pooler in between can stand, if there is one.

        Not always so: without prepared statements a write took 1.5 and a range read 4 times as long.
        """
        name = {"application_name": "sio_pg_adapter"}
        with connecting("a pool", self._named):
            connection = await asyncpg.connect(
                self.dsn, timeout=CONNECT_TIMEOUT, statement_cache_size=0, server_settings=name
            )
        try:
            if await hides_backend(connection):
                return {"statement_cache_size": 0, "server_settings": name}  # PgBouncer refuses others
        finally:
            await connection.close(timeout=2)
        return {"server_settings": {**name, "jit": "off"}}

    async def _check_version(self, connection: Connection) -> None:
        where = f"the tables of schema {self.schema!r}"
        hint = "sio-pg migrate" + ("" if self.schema == "public" else f" --schema {shlex.quote(self.schema)}")
        try:
            row = await connection.fetchrow(self.queries["version"])
        except _UNMIGRATED as e:
            raise SchemaMismatch(f"{where} are not there: run `{hint}`") from e
        if row is None or not row["compatible"] <= SCHEMA_VERSION <= row["version"]:
            found = row and row["version"]
            newer = row is not None and row["compatible"] > SCHEMA_VERSION
            mend = "upgrade the package sio-pg-adapter" if newer else f"run `{hint}`"
            raise SchemaMismatch(f"{where} are of version {found}, this package needs {SCHEMA_VERSION}: {mend}")
        self.channel = row["channel"]

    async def close(self) -> None:
        """Give everything back. Safe to call twice."""
        await self.writer.drop()
        await self.reader.drop()
        pool, self._pool = self._pool, None
        if pool is not None and pool is not self._given_pool:
            try:
                await asyncio.wait_for(pool.close(), 5)
            except TimeoutError:  # a connection that does not answer any more
                pool.terminate()

    async def acquire(self, what: str = "a query") -> Connection:
        if self._pool is None:
            raise StoreUnavailable(f"no connection for {what}: closed")
        with translated(f"connecting to PostgreSQL for {what}"):
            return await self._pool.acquire(timeout=CONNECT_TIMEOUT)

    async def release(self, connection: Connection) -> None:
        if self._pool is not None:
            with contextlib.suppress(*LOST):
                await self._pool.release(connection, timeout=2)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One of the pool, for what can wait."""
        connection = await self.acquire()
        try:
            yield connection
        finally:
            await self.release(connection)

    async def listen_connection(self) -> tuple[Connection, bool]:
        """A connection to listen on, and whether it is of the application's pool (then it goes back there).

        :raises ConfigurationError: if LISTEN does not work on it.
        """
        if self._given_pool is not None and self._listen_dsn is None and not self._own_dsn:
            connection = await self.acquire("LISTEN")
            try:
                await self._check_hears(connection)
            except BaseException:  # cancelled, too: it goes back
                await self.release(connection)
                raise
            return connection, True
        with connecting("LISTEN", self._named if self._listen_dsn is None else "listen_dsn"):
            settings = {"application_name": "sio_pg_adapter listen"}
            connection = await asyncpg.connect(
                self._listen_dsn or self.dsn,
                timeout=CONNECT_TIMEOUT,
                statement_cache_size=0,  # a pooler is refused below, in our words and not in PostgreSQL's
                server_settings=settings,
            )
            try:
                await self._check_hears(connection)
            except BaseException:  # cancelled, too: it is closed
                await connection.close(timeout=2)
                raise
            for name, value in _KEEPALIVES.items():
                with contextlib.suppress(asyncpg.PostgresError):  # over a socket file, or not on this system
                    await connection.execute("SELECT set_config($1, $2, false)", name, value)
            return connection, False

    async def _check_hears(self, connection: Connection) -> None:
        async def notify(channel: str) -> None:
            await self.fetch("notify", [channel], [""])

        with translated("LISTEN"):
            if not await hides_backend(connection) or await hears(connection, notify):
                return
        raise PoolerInBetween(
            "LISTEN does not work through a pooler in transaction mode (PgBouncer): give listen_dsn=, the URL of a "
            "direct connection to PostgreSQL"
        )

    def epochs_may_be_stale(self) -> bool:
        """Were they read so long ago that another node may have begun one? Whoever makes offsets up shall not
        make this node read them each time."""
        return time.monotonic() - self._epochs_read_at > EPOCHS_FRESH

    async def read_epochs(self) -> OffsetCodec:
        """The histories of the log, with the keys of their offsets."""
        self._epochs_read_at = time.monotonic()
        rows = await self.fetch("epochs")
        return OffsetCodec(Epoch(r["epoch"], r["key"], r["ended"]) for r in rows)

    # -- reads on the kept connection ----------------------------------------------------------------
    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Run a named statement that changes nothing.

        :raises StoreUnavailable: if the database did not answer.
        """
        with translated(query):
            async with self.reader as connection:
                rows: list[asyncpg.Record] = await connection.fetch(self.queries[query], *args, timeout=QUERY_TIMEOUT)
                return rows

    async def fetch_value(self, query: str, *args: object) -> Any:
        """The first value that a named statement gives; see :meth:`fetch`."""
        return (await self.fetch(query, *args))[0][0]


def plain_dsn(dsn: str | None, option: str) -> str | None:
    """SQLAlchemy's form of a URL, ``postgresql+asyncpg://``, without the driver's name.

    :param option: where it was given, for the message; of the URL that shows nothing.
    """
    if dsn is None:
        return None
    if not isinstance(dsn, str):
        raise ConfigurationError(f"{option} takes a PostgreSQL URL: not a {type(dsn).__name__}")
    dsn = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", dsn)
    if not re.match(r"^postgres(ql)?://", dsn):
        raise ConfigurationError(f"{option} takes a URL that begins with postgresql://")
    return dsn
