"""``sio-pg migrate``: create or upgrade the tables."""

from __future__ import annotations

import argparse
import asyncio

from sqlalchemy.exc import SQLAlchemyError

from sio_pg_adapter import migrate

from . import terminal
from .connect import CommandFailed, dsn_of, open_database, translate_connect_error
from .rights import lines, unexpected_rights


def main(args: argparse.Namespace) -> int:
    """Upgrade the tables to this version, or print the SQL that does it."""
    if args.sql:
        print(migrate.sql(args.schema, relay=args.relay), end="")
        return 0
    try:
        status = terminal.err().status(f"migrating the tables in schema {terminal.printable(args.schema)}")
        with status, translate_connect_error():
            migrate.upgrade(dsn_of(args), schema=args.schema, relay=args.relay)
    except SQLAlchemyError as e:
        raise CommandFailed(f"the database refused the migration: {getattr(e, 'orig', None) or e}") from e
    print(f"the tables in schema {args.schema} are up to date")
    if args.relay is not None:
        print(f"the relay is {'on' if args.relay else 'off'}")
    for line in asyncio.run(_read_rights(args)):
        print(line)
    return 0


async def _read_rights(args: argparse.Namespace) -> list[str]:
    async with open_database(args) as database:
        return list(lines(unexpected_rights(await database.fetch("rights"))))
