"""The output of the commands: tables and color on a terminal, plain text in a pipe, or JSON."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from typing import Any

from rich.console import Console

WIDTH_IN_A_PIPE = 120
"""Columns of a table where there is no terminal."""


class _Out(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again. Rich would exit with 1."""
        raise  # noqa: PLE0704 - called while the error is handled


def out() -> Console:
    """Return a console on standard output. It has color only on a terminal, and not with NO_COLOR."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_IN_A_PIPE
    return _Out(highlight=False, markup=False, emoji=False, width=width)


def err() -> Console:
    """Return a console on standard error, for the progress of a command."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Print a value in one line, and flush it: a reader may act on each line."""
    print(json.dumps(value, separators=(",", ":")), flush=True)


def say(text: str) -> None:
    """Print a line on standard error."""
    print(f"sio-pg: {' '.join(text.split())}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return text of clients with control characters escaped, which a terminal would interpret."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count(number: int) -> str:
    """Format ``1234567`` as ``1,234,567``."""
    return f"{number:,}"


def size(number: float) -> str:
    """Format a number of bytes in the width of a column."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """Format seconds in their two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def timestamp(at: dt.datetime | None) -> str | None:
    """Format a time for JSON: ISO 8601 in UTC."""
    return None if at is None else at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
