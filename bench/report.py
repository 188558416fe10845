"""The table of a run: medians, their spread, and our ratio to the peer that a target names."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peers import PEERS

Runs = dict[str, dict[str, list[dict[str, Any]]]]
"""By item and peer: the figures of each repeat."""

SHOWN = {  # figures of an item, in the order of the table
    "latency": ("p50 ms", "p99 ms"),
    "sequential": ("ev/s", "arrived ev/s", "CPU us/event"),
    "inflight": ("ev/s", "arrived ev/s", "late", "missing", "CPU us/event"),
    "inflight50k": ("ev/s", "arrived ev/s", "late", "missing", "drops", "CPU us/event"),
    "fanout": ("deliveries/s", "CPU s/100k", "paced CPU s/100k", "missing", "MB"),
    "recovery": (),  # as they come
    "storm": (),
    "idle": ("WAL bytes", "own WAL bytes", "transactions", "CPU ms/s"),
}


@dataclass(frozen=True)
class Target:
    """Ours over that peer's (``None``: ours itself) is at most, or at least, so much."""

    item: str
    figure: str
    peer: str | None
    most: float | None = None
    least: float | None = None

    def holds(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def __str__(self) -> str:
        bound = f"<= {self.most:g}" if self.most is not None else f">= {self.least:g}"
        return f"{self.item}: {self.figure} {bound}" + (f" x {self.peer}" if self.peer else "")


TARGETS = (
    Target("latency", "p50 ms", "socketio-redis", most=1.0),
    Target("sequential", "ev/s", "postgres", least=0.8),
    Target("inflight", "ev/s", "socketio-redis", least=3.0),
    Target("inflight", "ev/s", "node-redis-streams", least=1.0),
    Target("inflight", "late", None, most=0),
    Target("inflight50k", "ev/s", "socketio-redis", least=3.0),
    Target("fanout", "deliveries/s", "socketio", least=2.5),
    Target("recovery", "1000 ms", None, most=8),
    Target("recovery", "10000 ms", None, most=8),
    Target("recovery", "100000 ms", None, most=8),
    Target("storm", "500 ms", "node-memory", most=1.0),
    Target("storm", "500 stall ms", None, most=150),
    Target("storm", "500 p99 / quiet", None, most=3),
    Target("storm", "5000 ms / 500 ms", None, most=12),
    Target("idle", "WAL bytes", None, most=0),
    Target("idle", "transactions", None, most=12),
)


def median(repeats: Iterable[dict[str, Any]], figure: str) -> float | None:
    values = _values(repeats, figure)
    return statistics.median(values) if values else None


def table(runs: Runs) -> str:
    """Median (least to most of the repeats), a row for each figure, a column for each peer."""
    peers = [name for name in PEERS if any(name in of_item for of_item in runs.values())]
    rows: list[list[str]] = [["", *(PEERS[name].title for name in peers)], ["---"] * (len(peers) + 1)]
    for item, of_item in runs.items():
        figures = SHOWN[item] or list(dict.fromkeys(f for repeats in of_item.values() for r in repeats for f in r))
        rows += [
            [f"{item}: {figure}", *(_cell(of_item.get(name, ()), figure) for name in peers)] for figure in figures
        ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def targets(runs: Runs) -> str:
    """Each target for which there are figures: the ratio of medians, the range of the repeats' own ratios."""
    lines = []
    for target in TARGETS:
        of_item = runs.get(target.item, {})
        ours = _values(of_item.get("ours", ()), target.figure)
        if not ours:
            continue
        theirs = [1.0] * len(ours) if target.peer is None else _values(of_item.get(target.peer, ()), target.figure)
        if not theirs or not all(theirs):
            continue
        value = statistics.median(ours) / statistics.median(theirs)
        each = [a / b for a, b in zip(ours, theirs, strict=False)]
        verdict = "holds" if target.holds(value) else "MISSED"
        lines.append(f"{verdict:7} {target}: {value:.2f} ({min(each):.2f} to {max(each):.2f})")
    return "\n".join(lines)


def _values(repeats: Iterable[dict[str, Any]], figure: str) -> list[float]:
    return [one[figure] for one in repeats if one.get(figure) is not None]


def _cell(repeats: Sequence[dict[str, Any]], figure: str) -> str:
    values = _values(repeats, figure)
    if not values:
        return "-"
    text = _number(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"
