"""How the commands connect."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator, Iterator

from sio_pg_adapter.errors import SioPgError, StoreUnavailable
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.pooler import PoolerBetween

MEND = "give --dsn, or set SIO_PG_DSN, to where it is"


class CommandFailed(SioPgError):  # noqa: N818 - as its relatives
    """A command cannot do it. The message says what mends that."""


class CannotListen(CommandFailed):
    """A pooler is in between."""


@contextlib.asynccontextmanager
async def opened(args: argparse.Namespace) -> AsyncIterator[Database]:
    """The database that a command was given, looked at whether its tables are there.

    :raises CommandFailed: if it cannot be reached.
    :raises SchemaMismatch: if it is not migrated.
    """
    listen_dsn = getattr(args, "listen_dsn", None)
    database = Database(args.dsn, pool=None, listen_dsn=listen_dsn, schema=args.schema)
    with reaching():
        await database.open()
    try:
        yield database
    finally:
        await database.close()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """The refusal to listen through a pooler, in the words of the command line."""
    try:
        yield
    except PoolerBetween as e:
        raise CannotListen("LISTEN does not work through a pooler: give --listen-dsn, of a direct connection") from e


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Errors of a connect, with what mends them."""
    try:
        yield
    except StoreUnavailable as e:
        if e.may_be_stored:  # it was reached, and lost
            raise
        reason = e.__cause__ or e
        raise CommandFailed(f"the database cannot be reached: {reason or type(reason).__name__}; {MEND}") from e
