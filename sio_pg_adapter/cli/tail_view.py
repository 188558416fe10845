"""The output of ``sio-pg tail`` for people: a line for each record."""

from __future__ import annotations

import datetime as dt
import json

from rich.text import Text

from . import terminal
from .tail_records import TailRecord

_VERBS = {
    "enter": "enters",
    "leave": "leaves",
    "close": "is closed",
    "claim": "recovers",
    "kick": "is disconnected",
    "members_enter": "enter",
    "members_leave": "leave",
    "members_kick": "are disconnected",
    "unreadable": "cannot be read",
}


class LinePrinter:
    """Prints each record to standard output as one line, and flushes it.

    :param payload: whether the records have payloads.
    """

    def __init__(self, payload: bool) -> None:
        self._payload = payload
        self._console = terminal.out()

    def write(self, record: TailRecord) -> None:
        """Print the time, offset, size, namespace, description and payload of a record."""
        at = dt.datetime.fromisoformat(record["at"]).astimezone()
        line = Text()
        line.append(f"{at:%H:%M:%S}.{at.microsecond // 1000:03}", style="dim")
        line.append(f" {record['offset']} ", style="cyan")
        line.append(f"{terminal.size(record['bytes']):>6} ", style="dim")
        line.append(terminal.printable(record["namespace"]) + " ")
        _append_event(line, record) if record["kind"] == "event" else _append_change(line, record)
        if self._payload and record["payload"]:
            line.append(" " + terminal.printable(json.dumps(record["payload"], ensure_ascii=False)))
        if record.get("binary"):
            line.append(f" and {len(record['binary'])} binary", style="dim")
        if self._console.is_terminal:
            self._console.print(line, soft_wrap=True)
        else:  # rich takes half a millisecond for a line, which is slower than the log
            print(line.plain, flush=True)


def _append_event(line: Text, record: TailRecord) -> None:
    line.append(terminal.printable(record["event"]), style="bold")
    rooms = ", ".join(map(terminal.printable, record["rooms"]))
    line.append(f" to {rooms or 'everybody'}", style="green")
    _append_skips(line, record)


def _append_skips(line: Text, record: TailRecord) -> None:
    skips = [*record["skip_sids"], *record["skip_rooms"]]
    if skips:
        line.append(f" except {', '.join(map(terminal.printable, skips))}")


def _append_change(line: Text, record: TailRecord) -> None:
    verb = _VERBS[record["kind"]]
    rooms = ", ".join(map(terminal.printable, record["rooms"]))
    if record["members"] is None:
        subject = terminal.printable(record["sid"] or "")
    else:
        subject = f"members of {', '.join(map(terminal.printable, record['members'])) or 'the namespace'}"
    words = (rooms, verb) if record["kind"] in ("close", "unreadable") else (subject, verb, rooms)
    line.append(" ".join(filter(None, words)), style="magenta")
    _append_skips(line, record)
    if record["node"]:
        line.append(f" on node {record['node'][:8]}", style="dim")
