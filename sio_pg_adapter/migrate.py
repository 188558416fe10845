"""Brings the tables of one schema to a version and back: what ``sio-pg migrate`` does.

The DDL itself is in ``migrations/``. An upgrade is one transaction: it happens as a whole or not at all, and
any number of processes may start one at the same time.
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
from alembic.util import CommandError
from sqlalchemy import URL, Connection, MetaData, Table, TextClause, inspect, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from sio_pg_adapter.errors import ConfigurationError, SchemaMismatch, StoreUnavailable

VERSION_TABLE = "sio_alembic_version"
SCHEMA_ATTRIBUTE = "sio_pg_schema"

# alembic hands its context to version scripts in module globals: one migration per process at a time
_alembic = threading.Lock()

_writing_to: ContextVar[str | None] = ContextVar("_writing_to", default=None)


def upgrade(dsn: str | URL | None, *, schema: str = "public", revision: str = "head") -> None:
    """Bring the tables in ``schema`` to ``revision``; make the schema where it is missing.

    Blocks until done, also where an event loop runs: call it there by ``asyncio.to_thread``.

    :param dsn: any asyncpg or libpq URL, or SQLAlchemy's; ``None``: libpq's ``PG*`` variables.
    :raises StoreUnavailable: the database cannot be reached, or was lost on the way.
    :raises SchemaMismatch: the tables are of a version that this one does not know.
    :raises ConfigurationError: the DSN or the schema's name is wrong, or the role may not create there.
    """
    config = config_for(schema)
    _run(dsn, config, lambda _: command.upgrade(config, revision))


def downgrade(dsn: str | URL | None, *, schema: str = "public", revision: str = "base") -> None:
    """Take the tables in ``schema`` back to ``revision``. After "base" nothing is left but the schema itself.

    Parameters and errors as for :func:`upgrade`.
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


def sql(schema: str = "public") -> str:
    """Give the whole upgrade of an empty ``schema`` as a script for psql, without a database."""
    config = config_for(schema)
    config.output_buffer = io.StringIO()
    with _alembic:
        command.upgrade(config, "head", sql=True)
    return config.output_buffer.getvalue()


# -- for migrations/ --------------------------------------------------------------------------------------


def target_schema(op: Operations | Any) -> str:
    """Tell a version script the schema to write to: "public" where nobody named another.

    In an application's own alembic history its env.py names it:
    ``config.attributes["sio_pg_schema"] = "chat"``.

    :param op: ``alembic.op``.
    """
    if named := _writing_to.get():
        return named
    config = op.get_context().config
    return checked_schema(config.attributes.get(SCHEMA_ATTRIBUTE, "public") if config else "public")


@contextlib.contextmanager
def writing_to(schema: str) -> Iterator[None]:
    """Have :func:`target_schema` tell this schema, whatever the configuration says."""
    token = _writing_to.set(checked_schema(schema))
    try:
        yield
    finally:
        _writing_to.reset(token)


def quoted(name: str) -> str:
    """Give a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def statement(ddl: str) -> TextClause:
    """Make one statement for ``op.execute()`` that is taken as it stands.

    Alembic's own reading of a string takes ``:word`` for a parameter, and a schema's name may hold one.
    """
    return text(ddl.replace(":", "\\:"))


def filled_in(ddl: str, schema: str) -> str:
    """Give a statement of a version script for one schema.

    ``{s}`` stands for the quoted schema, ``{l}`` for the same within a literal. All is filled in at once: the
    name is data, and may itself look like a placeholder, or end a function's body.
    """
    tag = f"$sio{hashlib.sha256(schema.encode()).hexdigest()[:8]}$"
    fill = {"{s}": quoted(schema), "{l}": quoted(schema).replace("'", "''"), "{{}}": "{}", "$$": tag}
    return re.sub(r"\{[sl]\}|\{\{\}\}|\$\$", lambda m: fill[m[0]], ddl)


def checked_schema(schema: str) -> str:
    """Return ``schema`` if PostgreSQL takes it as a name.

    :raises ConfigurationError: if not: a longer name would silently be cut, and two schemas become one.
    """
    try:
        size = len(schema.encode())
    except (AttributeError, UnicodeError):  # no text, or a surrogate in it
        size = 0
    if not 1 <= size <= 63 or "\0" in schema or schema.startswith("pg_"):
        raise ConfigurationError(
            f"schema takes a name of 1 to 63 bytes, without NUL and not beginning with pg_: not {schema!r}"
        )
    return schema


def lock_key(schema: str) -> int:
    """Give the key of the advisory lock under which a schema is migrated."""
    digest = hashlib.sha256(f"sio_pg_adapter migrate {schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


# -- how --------------------------------------------------------------------------------------------------


def config_for(schema: str) -> Config:
    """Tell alembic where this package's migrations are, and them the schema."""
    here = Path(__file__).resolve().parent
    inside = here / "migrations"
    location = inside if inside.is_dir() else here.parent / "migrations"  # where a checkout has no symbolic links
    config = Config()
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    config.attributes[SCHEMA_ATTRIBUTE] = checked_schema(schema)
    return config


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
            work(connection)

    connection = await _connect(dsn)
    try:
        await connection.run_sync(locked)
        await connection.commit()
    except DBAPIError as e:
        if e.connection_invalidated:
            raise StoreUnavailable("the database was lost during the migration", may_be_stored=True) from e
        said = e.orig.__cause__ if e.orig else None  # asyncpg's own, below SQLAlchemy's
        if isinstance(said, asyncpg.InsufficientPrivilegeError):
            raise ConfigurationError(f"the database does not allow the migration: {said}") from e
        raise
    except CommandError as e:
        raise SchemaMismatch(f"cannot migrate: {e}; is sio-pg-adapter older than the tables?") from e
    finally:
        await connection.close()


async def _connect(dsn: str | URL | None) -> AsyncConnection:
    if isinstance(dsn, str) and "+" in dsn.partition("://")[0]:
        dsn = make_url(dsn)
    if isinstance(dsn, URL):  # into asyncpg's words
        query = {"sslmode" if name == "ssl" else name: value for name, value in dsn.query.items()}
        dsn = dsn.set(drivername="postgresql", query=query).render_as_string(hide_password=False)

    async def connect() -> asyncpg.Connection:
        try:
            return await asyncpg.connect(dsn, statement_cache_size=0)
        except (ValueError, OverflowError, asyncpg.InterfaceError) as e:  # said before anything was sent
            raise ConfigurationError(f"the DSN is wrong: {e}") from e
        except (OSError, asyncpg.PostgresError) as e:
            raise StoreUnavailable(f"cannot connect to the database: {e}") from e

    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={
            "async_creator_fn": connect,
            # Unnamed statements: behind a pooler the names of former connections are still taken.
            "prepared_statement_name_func": str,
            "prepared_statement_cache_size": 0,
        },
        poolclass=NullPool,
        # Under a stricter default the version would be read as of before the lock was ours.
        isolation_level="READ COMMITTED",
    )
    return await engine.connect()
