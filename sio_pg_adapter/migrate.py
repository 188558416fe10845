"""Migrations of the tables in one schema: what ``sio-pg migrate`` runs.

The DDL is in ``migrations/``. An upgrade is one transaction, so it happens as a whole or not at all. Any number of
processes may start one at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, MetaData, Table, TextClause, func, inspect, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from sio_pg_adapter.addresses import read_address
from sio_pg_adapter.errors import ConfigurationError, SchemaMismatch, StoreUnavailable
from sio_pg_adapter.schema_names import checked_schema, in_schema
from sio_pg_adapter.servers import check_support, keepalives_sql

VERSION_TABLE = "sio_alembic_version"
"""The table in which ``sio-pg migrate`` keeps the revision."""

SCHEMA_ATTRIBUTE = "sio_pg_schema"
"""The attribute of alembic's configuration that names the schema."""

CONNECT_TIMEOUT = 10.0
"""Seconds until a host that does not answer is given up."""

# alembic hands its context to version scripts in module globals, so a process runs one migration at a time.
_alembic = threading.Lock()

_CHANGED = re.compile(r"^(?:INSERT INTO|UPDATE) sio\.(\w+)", re.MULTILINE)

_writing_to: ContextVar[str | None] = ContextVar("_writing_to", default=None)


def upgrade(
    dsn: str | URL | None, *, schema: str = "public", revision: str = "head", relay: bool | None = None
) -> None:
    """Bring the tables in ``schema`` to ``revision``, and create the schema if it is missing.

    Blocks until it is done, even if an event loop is running. Call it there by ``asyncio.to_thread``.

    :param dsn: any asyncpg, libpq or SQLAlchemy URL. ``None`` uses libpq's ``PG*`` variables.
    :param relay: whether transactional emits go through the relay. ``None`` leaves that as it is.
    :raises StoreUnavailable: if the database cannot be reached, or was lost during the migration.
    :raises SchemaMismatch: if this package does not know the version of the tables.
    :raises ConfigurationError: if the DSN or the schema's name is wrong, or the role may not create there.
    """
    config = config_for(schema)

    def work(connection: Connection) -> None:
        asked = text("SELECT version() AS version, current_setting('server_encoding') AS encoding")
        check_support(**connection.execute(asked).mappings().one())
        command.upgrade(config, revision)
        _restore_rows(connection, config, schema)
        if relay is not None:
            connection.execute(clause(relay_sql(relay), schema))

    _run(dsn, config, work)


def _restore_rows(connection: Connection, config: Config, schema: str) -> None:
    """Write the first rows again if something has emptied the tables, such as a test suite between two tests.

    Each revision that inserts or updates first rows has these statements in a file of their own, ``ROWS``.
    """
    opts = {"version_table": VERSION_TABLE, "version_table_schema": schema}
    scripts = ScriptDirectory.from_config(config)
    heads = MigrationContext.configure(connection, opts=opts).get_current_heads()
    applied = reversed(list(scripts.iterate_revisions(heads, "base")))
    files = [script.module.ROWS for script in applied if hasattr(script.module, "ROWS")]
    changes = [
        (_CHANGED.findall(ddl)[0], ddl) for file in files for ddl in statements(file.read_text(encoding="utf-8"))
    ]
    empty = {table for table, _ in changes if _is_empty(connection, table, schema)}
    for table, ddl in changes:
        if table in empty:
            connection.execute(clause(ddl, schema))


def _is_empty(connection: Connection, table: str, schema: str) -> bool:
    rows = select(func.count()).select_from(Table(table, MetaData(), schema=schema))
    return connection.execute(rows).scalar_one() == 0


def downgrade(dsn: str | URL | None, *, schema: str = "public", revision: str = "base") -> None:
    """Take the tables in ``schema`` back to ``revision``. "base" leaves nothing but the schema itself.

    Parameters and errors are those of :func:`upgrade`.
    """
    config = config_for(schema)

    def work(connection: Connection) -> None:
        if not inspect(connection).has_schema(schema):
            return
        command.downgrade(config, revision)
        at = {"version_table": VERSION_TABLE, "version_table_schema": schema}
        if not MigrationContext.configure(connection, opts=at).get_current_heads():
            Table(VERSION_TABLE, MetaData(), schema=schema).drop(connection, checkfirst=True)

    _run(dsn, config, work)


def sql(schema: str = "public", *, relay: bool | None = None) -> str:
    """Return the upgrade of an empty ``schema`` as a script for psql, without a database."""
    config = config_for(schema)
    config.output_buffer = io.StringIO()
    with _alembic:
        command.upgrade(config, "head", sql=True)
    switch = "" if relay is None else f"{in_schema(relay_sql(relay), schema)};\n\n"
    return config.output_buffer.getvalue() + switch


def relay_sql(relay: object) -> str:
    """Return the statement that switches the relay on or off.

    :raises ConfigurationError: if it is neither ``True`` nor ``False``.
    """
    if not isinstance(relay, bool):
        raise ConfigurationError(f"relay takes True, False or None, not {relay!r}")
    return f"SELECT sio.sio_set_relay({str(relay).lower()})"


# -- for migrations/ --------------------------------------------------------------------------------------


def target_schema(op: Operations | Any) -> str:
    """Return the schema that a version script writes to, by default "public".

    The env.py of an application's own alembic names another one:
    ``config.attributes["sio_pg_schema"] = "chat"``.

    :param op: ``alembic.op``.
    """
    if named := _writing_to.get():
        return named
    config = op.get_context().config
    return checked_schema(config.attributes.get(SCHEMA_ATTRIBUTE, "public") if config else "public")


@contextlib.contextmanager
def writing_to(schema: str) -> Iterator[None]:
    """Have :func:`target_schema` return this schema, whatever the configuration says."""
    token = _writing_to.set(checked_schema(schema))
    try:
        yield
    finally:
        _writing_to.reset(token)


def run_sql(op: Operations | Any, *files: Path) -> None:
    """Run the .sql files of a version script in the schema that it writes to.

    :param op: ``alembic.op``.
    """
    schema = target_schema(op)
    for file in files:
        for ddl in statements(file.read_text(encoding="utf-8")):
            op.execute(clause(ddl, schema))


def statements(script: str) -> Iterator[str]:
    """Yield the statements of a .sql file, each with the comments above it.

    A statement ends at a semicolon at the end of a line, outside of a function's ``$$``.
    """
    lines: list[str] = []
    in_body = False
    for line in script.splitlines():
        lines.append(line)
        in_body ^= line.count("$$") % 2 == 1
        if line.endswith(";") and not in_body and not line.startswith("--"):
            yield "\n".join(lines).strip().removesuffix(";")
            lines.clear()


def clause(statement: str, schema: str) -> TextClause:
    """Return a statement that names its schema ``sio`` for another schema. A ``:word`` in it is no parameter."""
    return text(in_schema(statement, schema).replace(":", "\\:"))


def lock_key(schema: str) -> int:
    """Return the key of the advisory lock under which a schema is migrated."""
    digest = hashlib.sha256(f"sio_pg_adapter migrate {schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


# -- how --------------------------------------------------------------------------------------------------


def config_for(schema: str) -> Config:
    """Return alembic's configuration for this package's migrations in ``schema``."""
    config = Config()
    config.set_main_option("script_location", str(_location()).replace("%", "%%"))
    config.attributes[SCHEMA_ATTRIBUTE] = checked_schema(schema)
    return config


def _location() -> Path:
    package = Path(__file__).resolve().parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"  # a checkout without symbolic links


def _run(dsn: str | URL | None, config: Config, work: Callable[[Connection], None]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_transaction(dsn, config, work))
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _transaction(dsn, config, work)).result()


async def _transaction(dsn: str | URL | None, config: Config, work: Callable[[Connection], None]) -> None:
    def locked(connection: Connection) -> None:
        with _alembic:
            config.attributes["connection"] = connection
            # It will hold locks on the tables. If this process vanishes, nodes must not wait for them for hours.
            connection.execute(text(keepalives_sql(local=True)))
            work(connection)

    connection = await _connect(dsn)
    try:
        await connection.run_sync(locked)
        await connection.commit()
    except DBAPIError as e:
        if e.connection_invalidated:
            raise StoreUnavailable("the database was lost during the migration", may_be_stored=True) from e
        cause = e.orig.__cause__ if e.orig else None  # asyncpg's own error, below SQLAlchemy's
        if isinstance(cause, asyncpg.InsufficientPrivilegeError):
            raise ConfigurationError(f"the database does not allow the migration: {cause}") from e
        if isinstance(cause, asyncpg.DuplicateTableError):
            raise SchemaMismatch(
                f"cannot migrate: {cause}. Another Alembic history has made the tables. Run that one, for example "
                "with `alembic upgrade heads`."
            ) from e
        raise
    except CommandError as e:
        raise SchemaMismatch(f"cannot migrate: {e}; is sio-pg-adapter older than the tables?") from e
    finally:
        await connection.close()


async def _connect(dsn: str | URL | None) -> AsyncConnection:
    if isinstance(dsn, str) and "+" in dsn.partition("://")[0]:
        dsn = make_url(dsn)
    if isinstance(dsn, URL):  # asyncpg has other words for some of it
        query = {"sslmode" if name == "ssl" else name: value for name, value in dsn.query.items()}
        dsn = dsn.set(drivername="postgresql", query=query).render_as_string(hide_password=False)

    address = read_address(dsn, "the DSN")

    async def connect() -> asyncpg.Connection:
        try:
            return await address.connect(asyncpg.connect, CONNECT_TIMEOUT, statement_cache_size=0)
        except (ValueError, OverflowError, asyncpg.InterfaceError) as e:  # raised before anything was sent
            raise ConfigurationError(f"the DSN is wrong: {e}") from e
        except (OSError, asyncpg.PostgresError) as e:
            reason = str(e) or "the host does not answer"  # a TimeoutError has no text
            raise StoreUnavailable(f"cannot connect to the database: {reason}") from e

    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={
            "async_creator_fn": connect,
            # Unnamed statements, because behind a pooler the names of former connections are still taken.
            "prepared_statement_name_func": str,
            "prepared_statement_cache_size": 0,
        },
        poolclass=NullPool,
        # Under a stricter default the version would be read as of a moment before the lock was taken.
        isolation_level="READ COMMITTED",
    )
    return await engine.connect()
