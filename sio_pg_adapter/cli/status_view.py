"""The output of ``sio-pg status`` for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sio_pg_adapter.options import Durability

from . import terminal
from .rights import lines

NARROW = 80
"""Columns of a terminal below which the least important details are left out."""

MANY = 8
"""Number of namespaces and tables that have a line of their own. The largest are shown."""

UNKNOWN = "-"
"""Shown for a value that only the node knows, when it has not answered."""

_STYLES = {"live": "green", "silent": "bold red", "missing": "yellow", "dead": "red", "stopped": "dim"}
_EXPLANATIONS = {
    "silent": "no answer. The node is busy, suspended, or of an earlier version",
    "missing": "no connection to the database. Other nodes declare the node dead if it does not return",
    "dead": "declared dead by other nodes. Its sessions can recover until they expire",
    "stopped": "stopped. Its sessions can recover until they expire",
}


def render(status: dict[str, Any], width: int) -> Iterator[RenderableType]:
    """Yield the blocks of the output from top to bottom.

    :param width: columns of the terminal.
    """
    narrow = width < NARROW
    yield from _nodes(status, narrow=narrow)
    yield Text()
    yield _sessions(status["sessions"])
    yield Text()
    yield _log(status["log"], status["relay"])
    yield Text()
    yield _tables(status["tables"], narrow=narrow)
    for line in lines(status["rights"]):
        yield Text(line, style="yellow")
    schema = status["schema"]
    footer = f"schema {schema['name']}, tables of version {schema['version']}, PostgreSQL {schema['server']}"
    yield Text(terminal.printable(footer), style="dim")


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
    for state, explanation in _EXPLANATIONS.items():
        if ids := [node["id"][:8] for node in nodes if node["state"] == state]:
            yield Text(f"{', '.join(ids)}: {explanation}", style="yellow")
    yield from _answers(nodes)
    if status["note"] is not None:
        yield Text(status["note"], style="yellow")


def _answers(nodes: list[dict[str, Any]]) -> Iterator[RenderableType]:
    for node in nodes:
        if node["reason"]:
            yield Text(f"{node['id'][:8]}: {terminal.printable(node['reason'])}", style="yellow")
    if ids := [node["id"][:8] for node in nodes if node["durability"] == Durability.MEMORY]:
        yield Text(f'{", ".join(ids)}: emits do not wait for the disk (durability="memory")')


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
        sums = {kind: sum(row[kind] for row in rest) for kind in ("live", "away", "expiring")}
        table.add_row(f"{len(rest)} more", *_counts(sums))
    if len(rows) != 1:
        table.add_row("all" if rows else "none", *_counts(sessions), style="bold")
    return table


def _counts(row: dict[str, Any]) -> list[str]:
    return [terminal.count(row[kind]) for kind in ("live", "away", "expiring")]


def _log(log: dict[str, Any], relay: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    oldest, keep = log["oldest_seconds"], log["keep_seconds"]
    empty = f"{log['head']} (no record yet in epoch {log['epoch']})"
    head = f"{log['head']} (offset {terminal.count(log['position'])} in epoch {log['epoch']})"
    table.add_row("log head", head if log["position"] else empty)
    table.add_row("rate", f"{log['rate']:,.1f} records/s over {terminal.duration(log['rate_seconds'])}")
    table.add_row("oldest", "the log is empty" if oldest is None else f"{terminal.duration(oldest)} ago")
    table.add_row("kept", "everything, for now" if keep is None else f"at least {terminal.duration(keep)}")
    if relay["on"] or relay["waiting"] or relay["faults"]:
        waiting = f"{terminal.count(relay['waiting'])} waiting"
        if relay["waiting"]:
            waiting += f" for {terminal.duration(relay['waiting_seconds'])}"
        faults = f", {terminal.count(relay['faults'])} cannot be moved" if relay["faults"] else ""
        table.add_row("relay", f"{'on' if relay['on'] else 'off'}, {waiting}{faults}")
    return table


def _tables(tables: list[dict[str, Any]], *, narrow: bool) -> Table:
    table = _table("table", "rows", "size", "indexes")
    table.columns[1].header = "rows" if narrow else "rows (estimate)"
    for row in tables[:MANY]:
        sizes = terminal.size(row["table_bytes"]), terminal.size(row["index_bytes"])
        table.add_row(terminal.printable(row["name"]), terminal.count(row["rows"]), *sizes)
    for name, group in ((f"{len(tables[MANY:])} more", tables[MANY:]), ("all", tables)):
        sums = (sum(row[kind] for row in group) for kind in ("table_bytes", "index_bytes"))
        if group:
            table.add_row(name, "", *map(terminal.size, sums), style="bold" if name == "all" else None)
    return table
