"""The tables of a run: medians, their spread, and our ratio to the peer that a target names.

`python bench/report.py FIGURES.json ...` prints, as markdown, what run.py has written with --json: the table of
docs/benchmark.md, the targets, and all figures. Several files count as one run if they have different measurements.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    "idle10k": ("WAL bytes", "own WAL bytes", "transactions", "CPU ms/s", "MB", "kB/client"),
}


PUBLISHED = {  # rows of docs/benchmark.md: the measurement and its figure
    "ms from client to client through two nodes, median": ("latency", "p50 ms"),
    "Emits/s, one after the other": ("sequential", "ev/s"),
    "Emits/s, 100 in flight": ("inflight", "ev/s"),
    "Emits/s, 50,000 at once": ("inflight50k", "ev/s"),
    "Deliveries/s to 1,000 clients of a node": ("fanout", "deliveries/s"),
    "CPU seconds of the node for 100,000 deliveries": ("fanout", "CPU s/100k"),
    "ms to recover 20 missed events among 1,000 of other rooms": ("recovery", "1000 ms"),
    "ms to recover 20 missed events among 100,000": ("recovery", "100000 ms"),
    "ms until 500 clients, disconnected at once, are all back": ("storm", "500 ms"),
    "Longest stall of the event loop meanwhile, ms": ("storm", "500 stall ms"),
    "WAL bytes that two idle nodes with 100 clients write in a minute": ("idle", "WAL bytes"),
}


@dataclass(frozen=True)
class Target:
    """A column of ours over that peer's (``None``: ours itself) is at most, or at least, so much."""

    item: str
    figure: str
    peer: str | None
    most: float | None = None
    least: float | None = None
    ours: str = "ours"

    def holds(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def __str__(self) -> str:
        bound = f"<= {self.most:g}" if self.most is not None else f">= {self.least:g}"
        of = "" if self.ours == "ours" else f" of {self.ours}"
        return f"{self.item}: {self.figure}{of} {bound}" + (f" x {self.peer}" if self.peer else "")


TARGETS = (
    Target("latency", "p50 ms", "socketio-redis", most=1.0),
    Target("latency", "p50 ms", "socketio-redis", most=0.8, ours="ours-memory"),
    Target("sequential", "ev/s", "postgres", least=0.8),
    Target("sequential", "ev/s", "socketio-redis", least=1.0, ours="ours-memory"),
    Target("inflight", "ev/s", "socketio-redis", least=3.5),
    Target("inflight", "ev/s", "node-redis-streams", least=1.2),
    Target("inflight", "ev/s", "socketio-threads-redis", least=1.0, ours="ours-threads"),
    Target("inflight", "late", None, most=0),
    Target("inflight50k", "ev/s", "socketio-redis", least=4.0),
    Target("fanout", "CPU s/100k", "node-memory", most=1.0),
    Target("fanout", "deliveries/s", "socketio-threads-redis", least=2.0, ours="ours-threads"),
    Target("recovery", "1000 ms", "node-memory", most=1.2),
    Target("recovery", "100000 ms", "node-memory", most=0.5),
    Target("storm", "500 ms", "node-memory", most=1.0),
    Target("storm", "500 stall ms", None, most=150),
    Target("storm", "500 p99 / quiet", None, most=3),
    Target("storm", "5000 ms / 500 ms", None, most=12),
    Target("idle", "WAL bytes", None, most=0),
    Target("idle", "transactions", None, most=12),
    Target("idle10k", "WAL bytes", None, most=0),
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


def published(runs: Runs) -> str:
    """The table of docs/benchmark.md: medians alone."""
    peers = [name for name in PEERS if any(of_item.get(name) for of_item in runs.values())]
    rows = [["", *(PEERS[name].title for name in peers)], ["---"] * (len(peers) + 1)]
    for title, (item, figure) in PUBLISHED.items():
        values = [median(runs.get(item, {}).get(name, ()), figure) for name in peers]
        rows.append([title, *("" if value is None else _number(value) for value in values)])
    return "\n".join("| " + " | ".join(row).rstrip() + " |" for row in rows if any(row[1:]))


def targets(runs: Runs) -> str:
    """Each target for which there are figures: the ratio of medians, the range of the repeats' own ratios."""
    lines = []
    for target in TARGETS:
        of_item = runs.get(target.item, {})
        ours = _values(of_item.get(target.ours, ()), target.figure)
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


def main() -> None:
    runs: Runs = {}
    for path in sys.argv[1:]:
        figures = json.loads(Path(path).read_text())
        for item, of_item in figures.get("runs", figures).items():  # a run that was stopped has nothing else
            runs.setdefault(item, {}).update(of_item)
    for title, text in (("Medians", published(runs)), ("Targets", targets(runs)), ("All figures", table(runs))):
        print(f"{title}:\n\n{text}\n")


if __name__ == "__main__":
    main()
