"""What ``sio-pg status`` looks like for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from . import terminal

NARROW = 80
"""Columns; where there are fewer, what tells least is left out."""

MANY = 8
"""Namespaces and tables that are shown one by one: the largest."""

UNKNOWN = "-"
"""What only a node could tell that has not."""

_STYLES = {"live": "green", "silent": "bold red", "missing": "yellow", "dead": "red", "stopped": "dim"}
_WORDS = {
    "silent": "is there, but has not answered: busy, or of an earlier version",
    "missing": "has no connection; found dead in ten seconds, unless it comes back",
    "dead": "is gone; its sessions run out",
    "stopped": "has stopped; its sessions run out",
}


def view(status: dict[str, Any], width: int) -> Iterator[RenderableType]:
    """Its parts from top to bottom.

    :param width: of the terminal.
    """
    narrow = width < NARROW
    yield from _nodes(status, narrow=narrow)
    yield Text()
    yield _sessions(status["sessions"])
    yield Text()
    yield _log(status["log"])
    yield Text()
    yield _tables(status["tables"], narrow=narrow)
    schema = status["schema"]
    about = f"schema {schema['name']}, tables of version {schema['version']}, PostgreSQL {schema['server']}"
    yield Text(terminal.printable(about), style="dim")


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, overflow="ellipsis")
    return table


def _nodes(status: dict[str, Any], *, narrow: bool) -> Iterator[RenderableType]:
    nodes = status["nodes"]
    if not nodes:
        yield Text("no node is running", style="yellow")
        return
    table = _table("node", "state", "clients", "sessions", "lag", *([] if narrow else ["up", "host:process"]))
    for column in table.columns:
        if column.header in ("state", "host:process"):
            column.justify = "left"
    for node in nodes:
        host = "" if node["host"] is None else terminal.printable(f"{node['host']}:{node['process']}")
        up = terminal.duration(node["seconds"]) if node["state"] in ("live", "silent") else ""
        table.add_row(
            node["id"][:8],
            Text(node["state"], style=_STYLES[node["state"]]),
            UNKNOWN if node["clients"] is None else terminal.count(node["clients"]),
            terminal.count(node["sessions"]),
            _lag(node),
            *([] if narrow else [up, host]),
        )
    yield table
    for state, words in _WORDS.items():
        if some := [node["id"][:8] for node in nodes if node["state"] == state]:
            yield Text(f"{', '.join(some)} {words}", style="yellow")
    if status["note"] is not None:
        yield Text(status["note"], style="yellow")


def _lag(node: dict[str, Any]) -> Text:
    if node["lag"] is None:
        return Text(UNKNOWN)
    if not node["lag"]:
        return Text("0", style="green")
    return Text(f"{terminal.count(node['lag'])}, {terminal.duration(node['lag_seconds'])}", style="yellow")


def _sessions(sessions: dict[str, Any]) -> Table:
    table = _table("sessions", "live", "away", "expiring")
    rows = sessions["namespaces"]
    by_size = sorted(rows, key=lambda row: -(row["live"] + row["away"] + row["expiring"]))
    for row in by_size[:MANY]:
        table.add_row(terminal.printable(row["namespace"]), *_counts(row))
    if rest := by_size[MANY:]:
        more = {kind: sum(row[kind] for row in rest) for kind in ("live", "away", "expiring")}
        table.add_row(f"{len(rest)} more", *_counts(more))
    if len(rows) != 1:
        table.add_row("all" if rows else "none", *_counts(sessions), style="bold")
    return table


def _counts(row: dict[str, Any]) -> list[str]:
    return [terminal.count(row[kind]) for kind in ("live", "away", "expiring")]


def _log(log: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    oldest = log["oldest_seconds"]
    table.add_row("log head", f"{log['head']} ({terminal.count(log['position'])} of history {log['epoch']})")
    table.add_row("rate", f"{log['rate']:,.1f} records/s over {terminal.duration(log['rate_seconds'])}")
    table.add_row("oldest", "the log is empty" if oldest is None else f"{terminal.duration(oldest)} ago")
    return table


def _tables(tables: list[dict[str, Any]], *, narrow: bool) -> Table:
    table = _table("table", "rows", "size", "indexes")
    table.columns[1].header = "rows, about" if not narrow else "rows"
    for row in tables[:MANY]:
        sizes = terminal.size(row["table_bytes"]), terminal.size(row["index_bytes"])
        table.add_row(terminal.printable(row["name"]), terminal.count(row["rows"]), *sizes)
    for name, some in ((f"{len(tables[MANY:])} more", tables[MANY:]), ("all", tables)):
        sums = (sum(row[kind] for row in some) for kind in ("table_bytes", "index_bytes"))
        if some:
            table.add_row(name, "", *map(terminal.size, sums), style="bold" if name == "all" else None)
    return table
