"""``sio-pg migrate``: create or upgrade the tables."""

from __future__ import annotations

import argparse

from sqlalchemy.exc import SQLAlchemyError

from sio_pg_adapter import migrate

from . import terminal
from .connect import CommandFailed, dsn_of, translate_connect_error


def main(args: argparse.Namespace) -> int:
    """Upgrade the tables to this version, or print the SQL that does it."""
    if args.sql:
        print(migrate.sql(args.schema), end="")
        return 0
    try:
        status = terminal.err().status(f"migrating the tables in schema {terminal.printable(args.schema)}")
        with status, translate_connect_error():
            migrate.upgrade(dsn_of(args), schema=args.schema)
    except SQLAlchemyError as e:
        raise CommandFailed(f"the database refused the migration: {getattr(e, 'orig', None) or e}") from e
    print(f"the tables in schema {args.schema} are up to date")
    return 0
