"""``sio-pg``: the tables, the log and the cluster from the command line.

Each command has a module of its own: :mod:`.migrate`, :mod:`.status`, :mod:`.tail`, :mod:`.emit` and :mod:`.prune`.
``status`` asks the nodes with :mod:`.ask_nodes` and prints with :mod:`.status_view`. ``migrate`` and ``status`` look
at roles with :mod:`.rights`. ``tail`` reads with :mod:`.tail_records` and prints with :mod:`.tail_view`. All connect
with :mod:`.connect` and print with :mod:`.terminal`. The demo is the package :mod:`sio_pg_adapter.demo`,
and ``check`` the module :mod:`sio_pg_adapter.check`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from sio_pg_adapter.errors import SioPgError

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as in a shell."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 0 on success, 1 after an error, which is one line on standard error, and 130 after Ctrl-C. Wrong usage
    exits with 2. Without a command it prints the help and returns 1, as git does. A closed pipe, as with ``| head``,
    is a normal end.

    :param argv: the arguments without the program's name. ``None`` takes those of the process.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    logging.getLogger("sio_pg_adapter").addHandler(logging.NullHandler())  # else Python prints bare warnings
    try:
        code = _run(parser, args)
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # the rest of the buffer has no reader
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SioPgError, OSError) as e:
        print(f"sio-pg: {' '.join(str(e).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.command is None:
        parser.print_help()
        return 1
    code: int = import_module(args.command, __package__).main(args)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, as for all errors, and exit."""
        self.exit(2, f"{self.prog}: {message.rstrip('.')}. See `{self.prog} --help`\n")


_CODES = "Exit codes: 0 success, 1 error (one line on standard error), 2 wrong usage, 130 interrupted."


def _parser() -> argparse.ArgumentParser:
    # prog: also under `python -m`
    parser = _Parser(prog="sio-pg", description="Socket.IO on PostgreSQL.", epilog=_CODES)
    version = f"sio-pg {importlib.metadata.version('sio-pg-adapter')}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    database = _Parser(add_help=False)
    database.add_argument(
        "--dsn",
        type=_dsn,
        help="URL of the database (default: SIO_PG_DSN, then libpq's PG* variables)",
    )
    database.add_argument("--schema", default="public", help="schema of the tables (default: public)")
    listen = _Parser(add_help=False)
    listen.add_argument(
        "--listen-dsn", type=_dsn, metavar="DSN", help="URL of a direct connection, if --dsn goes through a pooler"
    )
    json = _Parser(add_help=False)
    json.add_argument("--json", action="store_true", help="print JSON")

    def add(name: str, text: str, *parents: _Parser, module: str = "") -> _Parser:
        description = text[:1].upper() + text[1:] + "."
        command = commands.add_parser(name, parents=parents, help=text, description=description, epilog=_CODES)
        command.set_defaults(command=module or f".{name}", parser=command)
        return command

    migrate = add("migrate", "create the tables, or upgrade them to this version", database)
    migrate.add_argument(
        "--relay",
        action=argparse.BooleanOptionalAction,
        help="switch the relay of transactional emits on or off (default: leave it as it is)",
    )
    migrate.add_argument("--sql", action="store_true", help="print the SQL instead of running it")

    status = add("status", "show the nodes, sessions, log and table sizes", database, listen, json)
    status.add_argument(
        "--timeout",
        type=_seconds,
        default=1.5,
        metavar="SECONDS",
        help="seconds to wait for the answers of the nodes (default: 1.5)",
    )

    tail = add("tail", "follow the log", database, listen, json)
    tail.add_argument("--namespace", type=_namespace, action="append", help="show only this namespace (repeatable)")
    tail.add_argument("--room", action="append", help="show only records for this room (repeatable)")
    tail.add_argument("--event", action="append", help="show only events of this name (repeatable)")
    tail.add_argument("--payload", action="store_true", help="also show the arguments of events")
    tail.add_argument("--last", type=_count, default=0, metavar="N", help="begin with the last N records")

    emit = add("emit", "send an event to clients", database, json)
    emit.add_argument("event", metavar="EVENT", help="name of the event")
    # With a default, argparse does not report the list as required when EVENT is missing.
    emit.add_argument("data", metavar="JSON", nargs="*", default=(), help="its arguments, each as JSON")
    emit.add_argument("--namespace", type=_namespace, default="/", help="namespace of the clients (default: /)")
    emit.add_argument("--room", action="append", help="a room or a sid (repeatable; default: everybody)")
    emit.add_argument("--key", help="do not store the event if one with this key is stored")
    emit.add_argument(
        "--skip-room", metavar="ROOM", action="append", help="a room whose members do not get it (repeatable)"
    )
    emit.add_argument("--skip-sid", metavar="SID", action="append", help="a client that does not get it (repeatable)")

    add("prune", "delete expired records and sessions once", database, json)

    check = add("check", "compare what clients received in a run with what they were due", module="..check")
    check.add_argument("history", metavar="HISTORY", help="a file that `sio-pg demo --history` or a test run wrote")
    check.add_argument("--show", type=_count, default=20, metavar="N", help="show the first N findings (default: 20)")

    demo = add("demo", "show connection state recovery, without a database", module="..demo")
    demo.add_argument("--check", action="store_true", help="run the walk in the terminal, print its result, and exit")
    demo.add_argument("--history", metavar="FILE", help="write the history of the walk, for `sio-pg check`")
    demo.add_argument("--port", type=_port, default=8000, help="port of the page, 0 for a free one (default: 8000)")
    return parser


def _dsn(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty. Give a URL that begins with postgresql://, or omit the option")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"it takes a whole number, not {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"it takes a port from 0 to 65535, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 60:
        raise argparse.ArgumentTypeError(f"it takes seconds, up to 60, not {text!r}")
    return seconds


def _namespace(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"it takes a name that begins with /, not {text!r}")
    return text
