"""``sio-pg status``: the nodes, the sessions, the log, and the sizes of the tables."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.store.database import Database

from . import terminal
from .ask_nodes import ask_nodes
from .connect import CannotListen, open_database, translate_pooler_error
from .rights import unexpected_rights
from .status_view import render

RATE_SECONDS = 60.0
"""Seconds over which the rate is counted. They are fewer if the log is younger."""

RATE_RECORDS = 100_000
"""Largest number of records over which the rate is counted, as in the query "status_log"."""


def main(args: argparse.Namespace) -> int:
    """Print the status. The exit code is 0 if the database answered, whatever the state of the nodes."""
    status = asyncio.run(_read_status(args))
    if args.json:
        terminal.print_json(status)
    else:
        console = terminal.out()
        for block in render(status, console.width):
            console.print(block)
    return 0


async def _read_status(args: argparse.Namespace) -> dict[str, Any]:
    async with open_database(args) as database:
        (log,) = await database.fetch("status_log")
        (due,) = await database.fetch("due_to_prune")
        (relay,) = await database.fetch("relay_status")
        rows = await database.fetch("status_nodes")
        live = {row["id"].hex for row in rows if _state(row) == "live"}
        answers: dict[str, Any] | None = None
        note = None
        try:
            with translate_pooler_error():
                answers = await ask_nodes(database, live, timeout=args.timeout)
        except CannotListen as e:  # the tables can still be read
            note = f"The nodes were not asked: {e}"
        nodes = [_node(row, answers) for row in rows]
        await _add_lag(database, nodes, log["head"])
        return {
            "schema": {"name": args.schema, "version": log["version"], "server": log["server"]},
            "nodes": nodes,
            "note": note,
            "sessions": _sessions(await database.fetch("status_sessions")),
            "log": _log(log) | {"keep_seconds": due["keep"]},
            "relay": {
                "on": relay["is_on"],
                "waiting": relay["waiting"],
                "waiting_seconds": relay["seconds"],
                "faults": relay["faults"],
            },
            "tables": [dict(row) for row in await database.fetch("status_tables")],
            "rights": unexpected_rights(await database.fetch("rights")),
        }


def _state(row: Any) -> str:
    if row["stopped_at"] is not None:
        return "stopped"
    if row["died_at"] is not None:
        return "dead"
    return "live" if row["alive"] else "missing"


def _node(row: Any, answers: dict[str, Any] | None) -> dict[str, Any]:
    node, state = row["id"].hex, _state(row)
    answer = (answers or {}).get(node) or {}
    if state == "live" and answers is not None and not answer:
        state = "silent"
    return {
        "id": node,
        "state": state,
        "host": answer.get("host"),
        "process": answer.get("process"),
        "started_at": terminal.timestamp(row["started_at"]),
        "seconds": row["seconds"],
        "clients": answer.get("clients"),
        "sessions": row["sessions"],
        "cursor": answer.get("cursor"),
        "lag": None,
        "lag_seconds": None,
        "reconnects": answer.get("reconnects"),
        "reason": answer.get("reason"),
        "durability": answer.get("durability"),
    }


async def _add_lag(database: Database, nodes: list[dict[str, Any]], head: int) -> None:
    """Add the lag of each node, counted in the log from its cursor to the head before the nodes were asked.

    A node that gets no notifications does not know that it is behind.
    """
    cursors = sorted({node["cursor"] for node in nodes if node["cursor"] is not None})
    behind = {row["cursor"]: row for row in await database.fetch("status_lag", cursors, head)}
    for node in nodes:
        if row := behind.get(node["cursor"]):
            node["lag"], node["lag_seconds"] = row["records"], row["seconds"]


def _sessions(rows: list[Any]) -> dict[str, Any]:
    kinds = ("live", "away", "expiring")
    total: dict[str, Any] = {kind: sum(row[kind] for row in rows) for kind in kinds}
    return {**total, "namespaces": [dict(row) for row in rows]}


def _log(row: Any) -> dict[str, Any]:
    seconds, oldest = RATE_SECONDS, row["oldest_at"]
    if row["records"] == RATE_RECORDS or (row["records"] and oldest == row["began_at"]):
        seconds = min(RATE_SECONDS, max(1.0, (row["now"] - row["began_at"]).total_seconds()))
    return {
        "head": row["head"],
        "floor": row["floor"],
        "epoch": row["epoch"],
        # The head of an empty log may be below the first offset of its epoch.
        "position": max(0, row["head"] - (row["epoch"] << EPOCH_BITS)),
        "rate": row["records"] / seconds,
        "rate_seconds": seconds,
        "oldest_at": terminal.timestamp(oldest),
        "oldest_seconds": None if oldest is None else max(0.0, (row["now"] - oldest).total_seconds()),
    }
