"""What ``sio-pg tail`` looks like for people: a line for each record."""

from __future__ import annotations

import datetime as dt
import json

from rich.text import Text

from . import terminal
from .tail_records import Entry

_MOVES = {"enter": "enters", "leave": "leaves", "close": "is closed", "claim": "comes back", "kick": "is ended"}


class Lines:
    """Writes lines to standard output, each at once.

    :param payload: whether the entries have one.
    """

    def __init__(self, payload: bool) -> None:
        self._payload = payload
        self._console = terminal.out()

    def write(self, entry: Entry) -> None:
        """Time, offset, size, namespace, what it is, who it is for, and its payload."""
        at = dt.datetime.fromisoformat(entry["at"]).astimezone()
        line = Text()
        line.append(f"{at:%H:%M:%S}.{at.microsecond // 1000:03}", style="dim")
        line.append(f" {entry['offset']} ", style="cyan")
        line.append(f"{terminal.size(entry['bytes']):>6} ", style="dim")
        line.append(terminal.printable(entry["namespace"]) + " ")
        _event(line, entry) if entry["kind"] == "event" else _move(line, entry)
        if self._payload and entry["payload"]:
            line.append(" " + terminal.printable(json.dumps(entry["payload"], ensure_ascii=False)))
        if entry.get("binary"):
            line.append(f" and {len(entry['binary'])} binary", style="dim")
        if self._console.is_terminal:
            self._console.print(line, soft_wrap=True)
        else:  # at the pace of the log: rich takes half a millisecond for a line
            print(line.plain, flush=True)


def _event(line: Text, entry: Entry) -> None:
    line.append(terminal.printable(entry["event"]), style="bold")
    rooms = ", ".join(map(terminal.printable, entry["rooms"]))
    line.append(f" to {rooms or 'everybody'}", style="green")
    if entry["skip_sids"]:
        line.append(f" but {', '.join(map(terminal.printable, entry['skip_sids']))}")


def _move(line: Text, entry: Entry) -> None:
    word = _MOVES[entry["kind"]]
    rooms = ", ".join(map(terminal.printable, entry["rooms"]))
    who = terminal.printable(entry["sid"] or "")
    parts = (rooms, word) if entry["kind"] == "close" else (who, word, rooms)
    line.append(" ".join(part for part in parts if part), style="magenta")
    if entry["node"]:
        line.append(f" at {entry['node'][:8]}", style="dim")
