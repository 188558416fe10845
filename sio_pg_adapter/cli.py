"""``sio-pg``: the schema, the pruner and the demo from the command line."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from .errors import SioPgError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 1 after a line on standard error.

    :param argv: the arguments without the program's name; ``None``: those of the process.
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except SioPgError as e:
        print(f"sio-pg: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell has it
    return code


def _parser() -> argparse.ArgumentParser:
    database = argparse.ArgumentParser(add_help=False)
    database.add_argument(
        "--dsn",
        default=os.environ.get("SIO_PG_DSN"),
        help="URL of the database (else SIO_PG_DSN, then libpq's PG* variables)",
    )
    database.add_argument("--schema", default="public", help="where the tables are (public)")

    # prog: the same under `python -m`
    parser = argparse.ArgumentParser(prog="sio-pg", description="Socket.IO on PostgreSQL.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    migrate = commands.add_parser("migrate", parents=[database], help="bring the tables up to this version")
    migrate.add_argument("--sql", action="store_true", help="print the SQL instead of running it")
    migrate.set_defaults(run=_migrate)

    prune = commands.add_parser("prune", parents=[database], help="delete once what nobody can need any more")
    prune.set_defaults(run=_prune)

    demo = commands.add_parser("demo", help="see it recover; needs no database")
    demo.add_argument("--check", action="store_true", help="do the walk, print its result, and end")
    demo.add_argument("--port", type=int, default=8000, help="of the page (8000)")
    demo.add_argument("--client-js", metavar="PATH", help="socket.io.js for the page to load")
    demo.set_defaults(run=_demo)
    return parser


def _migrate(args: argparse.Namespace) -> int:
    from . import migrate

    if args.sql:
        print(migrate.sql(args.schema), end="")
    else:
        migrate.upgrade(args.dsn, schema=args.schema)
        print(f"the tables in schema {args.schema} are up to date")
    return 0


def _prune(args: argparse.Namespace) -> int:
    from .pruner import prune_once

    pruned = asyncio.run(prune_once(args.dsn, schema=args.schema))
    print(f"deleted {pruned.sessions} sessions and {pruned.packets} packets")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from . import demo

    return demo.main(args)
