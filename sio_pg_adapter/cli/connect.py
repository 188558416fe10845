"""The connection of a command to its database."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from sio_pg_adapter.errors import SioPgError, StoreUnavailable
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.failures import NODE_RIGHTS, lacks_rights
from sio_pg_adapter.store.pooler import PoolerBetween


class CommandFailed(SioPgError):
    """A command cannot do its work. The message says what to do."""


class CannotListen(CommandFailed):
    """The connection goes through a pooler, which does not pass on notifications."""


def dsn_of(args: argparse.Namespace) -> str | None:
    """Return the DSN of a command: its option, or ``SIO_PG_DSN``. ``None`` means libpq's ``PG*`` variables.

    :raises CommandFailed: the variable is empty. asyncpg would connect to a local default.
    """
    dsn: str | None = args.dsn
    if dsn is None:
        dsn = os.environ.get("SIO_PG_DSN")
        if dsn is not None and not dsn.strip():
            raise CommandFailed("SIO_PG_DSN is empty. Set it to a URL that begins with postgresql://, or unset it")
    return dsn


@contextlib.asynccontextmanager
async def open_database(args: argparse.Namespace) -> AsyncIterator[Database]:
    """Open the database of a command, and check its tables.

    :raises CommandFailed: if it cannot be reached.
    :raises SchemaMismatch: if it is not migrated.
    """
    listen_dsn = getattr(args, "listen_dsn", None)
    database = Database(dsn_of(args), listen_dsn=listen_dsn, schema=args.schema)
    with translate_connect_error():
        await database.open()
    try:
        yield database
    finally:
        await database.close()


@contextlib.contextmanager
def translate_pooler_error() -> Iterator[None]:
    """Raise the error of a pooler in between with the option of the command line."""
    try:
        yield
    except PoolerBetween as e:
        raise CannotListen(
            "LISTEN does not work through a pooler. Give --listen-dsn, the URL of a direct connection"
        ) from e


@contextlib.contextmanager
def translate_connect_error() -> Iterator[None]:
    """Raise the error of a failed connect with the options of the command line."""
    try:
        yield
    except StoreUnavailable as e:
        if e.may_be_stored:  # the connection was lost later
            raise
        cause = e.__cause__ or e
        if lacks_rights(cause):
            raise CommandFailed(f"the database refuses the command: {cause}. {NODE_RIGHTS}") from e
        silent = isinstance(cause, TimeoutError) and not str(cause)
        reason = "the host does not answer" if silent else str(cause) or type(cause).__name__
        raise CommandFailed(f"the database cannot be reached: {reason}. Check --dsn or SIO_PG_DSN") from e
