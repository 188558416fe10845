"""``sio-pg prune``: one pass of the pruner that also runs in each node."""

from __future__ import annotations

import argparse
import asyncio

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sio_pg_adapter.store.pruner import Pruned, prune

from . import terminal
from .connect import open_database


def main(args: argparse.Namespace) -> int:
    """Prune once, and show the progress on a terminal."""
    pruned = asyncio.run(_prune(args))
    if args.json:
        terminal.print_json({"sessions": pruned.sessions, "records": pruned.records})
    else:
        print(_words(pruned))
    return 0


async def _prune(args: argparse.Namespace) -> Pruned:
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"), TimeElapsedColumn())
    async with open_database(args) as database:
        with Progress(*columns, console=terminal.err(), transient=True) as progress:
            task = progress.add_task("looking for records", total=None)  # the total is only known at the end
            return await prune(database, lambda done: progress.update(task, description=_words(done)))


def _words(pruned: Pruned) -> str:
    return f"deleted {pruned.sessions} sessions and {pruned.records} records"
