"""``sio-pg``: the tables, the log and the cluster from the command line.

A room per command: :mod:`.migrate`, :mod:`.status` (which asks by :mod:`.roll_call` and is shown by
:mod:`.status_view`), :mod:`.tail` (:mod:`.entry`, :mod:`.tail_view`), :mod:`.emit`, :mod:`.prune`; the demo is a
package of its own. :mod:`.terminal` is how they print, and :mod:`.store` how they connect.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from sio_pg_adapter.errors import SioPgError

INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 1 after a line on standard error; 130 where it was interrupted.
    Wrong usage exits with 2.

    A closed pipe, as of ``| head``, is an ordinary end.

    :param argv: the arguments without the program's name; ``None``: those of the process.
    """
    args = _parser().parse_args(argv)
    logging.getLogger("sio_pg_adapter").addHandler(logging.NullHandler())  # else Python prints warnings as they are
    try:
        code: int = import_module(args.command, __package__).main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # what is buffered is for nobody
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SioPgError, OSError) as e:
        print(f"sio-pg: {' '.join(str(e).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as all errors are."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    # prog: the same under `python -m`
    parser = _Parser(prog="sio-pg", description="Socket.IO on PostgreSQL.", epilog=_CODES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    database = _Parser(add_help=False)
    database.add_argument(
        "--dsn",
        default=os.environ.get("SIO_PG_DSN"),
        help="URL of the database (else SIO_PG_DSN, then libpq's PG* variables)",
    )
    database.add_argument("--schema", default="public", help="where the tables are (public)")
    listen = _Parser(add_help=False)
    listen.add_argument("--listen-dsn", metavar="DSN", help="of a direct connection, where --dsn is of a pooler")
    json = _Parser(add_help=False)
    json.add_argument("--json", action="store_true", help="print JSON")

    def add(name: str, text: str, *parents: _Parser, module: str = "") -> _Parser:
        about = text[:1].upper() + text[1:] + "."
        one = commands.add_parser(name, parents=parents, help=text, description=about, epilog=_CODES)
        one.set_defaults(command=module or f".{name}", parser=one)
        return one

    migrate = add("migrate", "bring the tables up to this version", database)
    migrate.add_argument("--sql", action="store_true", help="print the SQL instead of running it")

    status = add("status", "show nodes, sessions, the log and what it takes up", database, listen, json)
    status.add_argument(
        "--timeout", type=_seconds, default=1.5, metavar="SECONDS", help="to wait for the nodes' answers (1.5)"
    )

    tail = add("tail", "follow the log", database, listen, json)
    tail.add_argument("--namespace", type=_namespace, action="append", help="only of it; may be repeated")
    tail.add_argument("--room", action="append", help="only what is for it; may be repeated")
    tail.add_argument("--event", action="append", help="only events of that name; may be repeated")
    tail.add_argument("--payload", action="store_true", help="show the events' arguments, too")
    tail.add_argument("--last", type=_count, default=0, metavar="N", help="begin with the last N of them")

    emit = add("emit", "send an event to clients", database, json)
    emit.add_argument("event", metavar="EVENT", help="its name")
    emit.add_argument("data", metavar="JSON", nargs="*", help="its arguments, each as JSON")
    emit.add_argument("--namespace", type=_namespace, default="/", help="whose clients (/)")
    emit.add_argument("--room", action="append", help="a room, or a client's sid; may be repeated (everybody)")
    emit.add_argument("--skip-sid", metavar="SID", action="append", help="who shall not get it; may be repeated")

    add("prune", "delete once what nobody can need any more", database, json)

    demo = add("demo", "see it recover; needs no database", module="..demo")
    demo.add_argument("--check", action="store_true", help="do the walk, print its result, and end")
    demo.add_argument("--port", type=int, default=8000, help="of the page (8000)")
    demo.add_argument("--client-js", metavar="PATH", help="socket.io.js for the page to load")
    return parser


_CODES = "Exit codes: 0; 1 an error, told in one line on standard error; 2 wrong usage; 130 interrupted."


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"takes a whole number: not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 60:
        raise argparse.ArgumentTypeError(f"takes seconds, up to 60: not {text!r}")
    return seconds


def _namespace(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"takes a name that begins with /: not {text!r}")
    return text
