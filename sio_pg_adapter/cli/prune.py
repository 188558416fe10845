"""``sio-pg prune``: one pass of the pruner, which runs in each node, too."""

from __future__ import annotations

import argparse
import asyncio

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sio_pg_adapter.store.pruner import Pruned, prune

from . import terminal
from .connect import opened


def main(args: argparse.Namespace) -> int:
    """Prune, and show on a terminal what is done so far."""
    pruned = asyncio.run(_prune(args))
    if args.json:
        terminal.print_json({"sessions": pruned.sessions, "records": pruned.records})
    else:
        print(_words(pruned))
    return 0


async def _prune(args: argparse.Namespace) -> Pruned:
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"), TimeElapsedColumn())
    async with opened(args) as database:
        with Progress(*columns, console=terminal.err(), transient=True) as progress:
            task = progress.add_task("looking", total=None)  # how much there is, only the end tells
            return await prune(database, lambda done: progress.update(task, description=_words(done)))


def _words(pruned: Pruned) -> str:
    return f"deleted {pruned.sessions} sessions and {pruned.records} records"
