"""``sio-pg migrate``: the tables of this version."""

from __future__ import annotations

import argparse

from sqlalchemy.exc import SQLAlchemyError

from sio_pg_adapter import migrate

from . import terminal
from .connect import CommandFailed, reaching


def main(args: argparse.Namespace) -> int:
    """Bring the tables up to this version, or print the SQL for that."""
    if args.sql:
        print(migrate.sql(args.schema), end="")
        return 0
    try:
        with terminal.err().status(f"migrating the tables in schema {terminal.printable(args.schema)}"), reaching():
            migrate.upgrade(args.dsn, schema=args.schema)
    except SQLAlchemyError as e:
        raise CommandFailed(f"the database refuses the migration: {getattr(e, 'orig', None) or e}") from e
    print(f"the tables in schema {args.schema} are up to date")
    return 0
