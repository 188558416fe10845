"""``manage.py sio_pg``: the commands of ``sio-pg``, on a database of the settings."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from sio_pg_adapter import cli
from sio_pg_adapter.django.settings import database_url, read_settings
from sio_pg_adapter.errors import ConfigurationError

COMMANDS = ("status", "tail", "emit", "prune")
"""The commands that are passed on. ``manage.py migrate`` makes the tables."""


class Command(BaseCommand):
    """``manage.py sio_pg COMMAND ...`` is ``sio-pg COMMAND --dsn ... --schema ... ...``."""

    help = f"Runs `sio-pg COMMAND`, which is one of {', '.join(COMMANDS)}, on the database of the settings."
    requires_system_checks = ()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Take everything after the command as its arguments."""
        parser.add_argument("--database", metavar="ALIAS", help="a key of DATABASES (default: that of SIO_PG)")
        parser.add_argument("subcommand", choices=COMMANDS, help="the command of sio-pg")
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments, see `sio-pg COMMAND --help`")

    def handle(self, *_: Any, **options: Any) -> None:
        """Run the command, and exit with its code."""
        try:
            url, schema = database_url(options["database"]), read_settings().schema
        except ConfigurationError as e:
            raise CommandError(str(e)) from e
        if code := cli.main([options["subcommand"], "--dsn", url, "--schema", schema, *options["arguments"]]):
            raise SystemExit(code)
