"""How the commands print: tables and colour on a terminal, plain text in a pipe, or JSON."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from typing import Any

from rich.console import Console

WIDTH_IN_A_PIPE = 120


class _Out(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process here, with 1; it is called while the error is handled."""
        raise  # noqa: PLE0704


def out() -> Console:
    """Standard output. Colour only on a terminal, and not under NO_COLOR."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_IN_A_PIPE
    return _Out(highlight=False, markup=False, emoji=False, width=width)


def err() -> Console:
    """Standard error: for what comes and goes while a command works."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """A value in one line, at once: who reads it may act on each."""
    print(json.dumps(value, separators=(",", ":")), flush=True)


def say(text: str) -> None:
    """A line on standard error."""
    print(f"sio-pg: {' '.join(text.split())}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text of clients, without what a terminal would take for an order."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count(number: int) -> str:
    """``1234567`` as ``1,234,567``."""
    return f"{number:,}"


def size(number: float) -> str:
    """Bytes, in words that fit a column."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds, in the two largest of their units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def timestamp(at: dt.datetime | None) -> str | None:
    """As JSON has it: ISO 8601, UTC."""
    return None if at is None else at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
