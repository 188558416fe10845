"""The tables of a run: medians, their spread, and our ratio to the peer that a target names.

`python bench/report.py FIGURES.json ...` prints, as markdown, what run.py has written with --json: the tables of
docs/benchmark.md, the targets of REPORT.md, and all figures. Several files count as one run if they have different
measurements.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import PEERS

Runs = dict[str, dict[str, list[dict[str, Any]]]]
"""By item and peer: the figures of each repeat."""

SHOWN = {  # the figures of an item in the order of the table. Others are shown as they come
    "latency": ("p50 ms", "p99 ms"),
    "sequential": ("ev/s", "arrived ev/s", "CPU us/event"),
    "inflight": ("ev/s", "arrived ev/s", "late", "missing", "CPU us/event"),
    "inflight50k": ("ev/s", "arrived ev/s", "late", "missing", "drops", "CPU us/event"),
    "fanout": ("deliveries/s", "CPU s/100k", "paced CPU s/100k", "missing", "MB"),
    "idle": ("WAL bytes", "own WAL bytes", "transactions", "CPU ms/s"),
    "idle10k": ("WAL bytes", "own WAL bytes", "transactions", "CPU ms/s", "MB", "kB/client"),
}

Repeats = Sequence[dict[str, Any]]
Row = tuple[str, str, Callable[[Repeats], str]]
"""A row of docs/benchmark.md: its title, the measurement, and the text of the cell of a peer."""


def middle(figure: str) -> Callable[[Repeats], str]:
    """The median."""
    return lambda repeats: "" if (value := median(repeats, figure)) is None else number(value)


def with_late(repeats: Repeats) -> str:
    return f"{middle('ev/s')(repeats)} ({middle('late')(repeats)})"


def all_back(repeats: Repeats) -> str:
    state = "new" if median(repeats, "500 recovered") is None else "recovered"
    return f"{middle('500 ms')(repeats)}, {state}"


def lost(repeats: Repeats) -> str:
    values = _values(repeats, "500 lost")
    if not values:
        return "all"
    return " to ".join(dict.fromkeys((number(min(values)), number(max(values)))))


EMITS: tuple[Row, ...] = (
    ("ms from client to client through two nodes, median", "latency", middle("p50 ms")),
    ("Emits/s, one after the other", "sequential", middle("ev/s")),
    ("Emits/s, 100 in flight", "inflight", middle("ev/s")),
    ("Events/s that arrive, 100 in flight", "inflight", middle("arrived ev/s")),
    ("Emits/s, 50,000 at once (late arrivals)", "inflight50k", with_late),
    ("The same, with the garbage collector tuned", "inflight50k tuned", with_late),
)
CLIENTS: tuple[Row, ...] = (
    ("Deliveries/s to 1,000 clients of a node", "fanout", middle("deliveries/s")),
    ("CPU seconds of the node for 100,000 deliveries", "fanout", middle("CPU s/100k")),
    ("MB of the node with 1,000 clients", "fanout", middle("MB")),
    ("ms to recover 20 missed events among 1,000 of other rooms", "recovery", middle("1000 ms")),
    ("ms to recover 20 missed events among 100,000", "recovery", middle("100000 ms")),
    ("ms until 500 clients, disconnected at once, are all back", "storm", all_back),
    ("Events that these clients missed for good", "storm", lost),
    ("Longest stall of the node's event loop meanwhile, ms", "storm", middle("500 stall ms")),
    ("p99 of the events of two other clients meanwhile, ms", "storm", middle("500 p99 ms")),
    ("CPU seconds of the node meanwhile", "storm", middle("500 CPU s")),
)
THREADS: tuple[Row, ...] = (
    ("Emits/s, 100 threads emit", "inflight", middle("ev/s")),
    ("CPU microseconds of both nodes for such an emit", "inflight", middle("CPU us/event")),
    ("Deliveries/s to 1,000 clients of a node", "fanout", middle("deliveries/s")),
    ("CPU seconds of the node for 100,000 deliveries", "fanout", middle("CPU s/100k")),
    ("MB of the node with 1,000 clients", "fanout", middle("MB")),
)


SHORT = {
    "socketio-redis": "AsyncRedisManager",
    "socketio-threads-redis": "RedisManager",
    "node-redis-streams": "redis-streams",
    "node-redis-streams-fsync": "redis-streams, `appendfsync always`",
    "node-memory": "Node.js in memory",
    "postgres": "PostgreSQL's own limit",
}
MEMORY = 'The same, `durability="memory"`'


@dataclass(frozen=True)
class Target:
    """A column of ours over that peer's (``None``: ours itself) is at most, or at least, so much."""

    title: str
    item: str
    figure: str
    peer: str | None
    most: float | None = None
    least: float | None = None
    ours: str = "ours"

    def holds(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def __str__(self) -> str:
        bound = f"<= {self.most:,g}" if self.most is not None else f">= {self.least:,g}"
        return bound + (f" x {SHORT[self.peer]}" if self.peer else "")


TARGETS = (
    Target("Latency p50", "latency", "p50 ms", "socketio-redis", most=1.0),
    Target(MEMORY, "latency", "p50 ms", "socketio-redis", most=0.8, ours="ours-memory"),
    Target("Emits/s, one after the other", "sequential", "ev/s", "postgres", least=0.8),
    Target(MEMORY, "sequential", "ev/s", "socketio-redis", least=1.0, ours="ours-memory"),
    Target("Emits/s, 100 in flight", "inflight", "ev/s", "socketio-redis", least=3.5),
    Target(MEMORY, "inflight", "ev/s", "socketio-redis", least=3.5, ours="ours-memory"),
    Target("Emits/s, 100 in flight", "inflight", "ev/s", "node-redis-streams", least=1.2),
    Target("The same, both on disk", "inflight", "ev/s", "node-redis-streams-fsync", least=1.2),
    Target(MEMORY, "inflight", "ev/s", "node-redis-streams", least=1.2, ours="ours-memory"),
    Target("Events/s that arrive, 100 in flight", "inflight", "arrived ev/s", "socketio-redis", least=3.5),
    Target("Late arrivals, 100 in flight", "inflight", "late", None, most=0),
    Target("Emits/s, 50,000 at once", "inflight50k", "ev/s", "socketio-redis", least=4.0),
    Target("The same, all with `--tuned`", "inflight50k tuned", "ev/s", "socketio-redis", least=4.0),
    Target("Fan-out, CPU", "fanout", "CPU s/100k", "node-memory", most=1.0),
    Target("Recovery among 1,000, ms", "recovery", "1000 ms", "node-memory", most=1.2),
    Target("Recovery among 100,000, ms", "recovery", "100000 ms", "node-memory", most=0.5),
    Target("Storm of 500, ms", "storm", "500 ms", "node-memory", most=1.0),
    Target("Storm of 500, longest stall in ms", "storm", "500 stall ms", None, most=150),
    Target("Storm of 500, p99 of others over a quiet one", "storm", "500 p99 / quiet", None, most=3),
    Target("Storm of 5,000 over that of 500, ms", "storm", "5000 ms / 500 ms", None, most=12),
    Target("Threads, emits/s", "inflight", "ev/s", "socketio-threads-redis", least=1.0, ours="ours-threads"),
    Target(
        "Threads, deliveries/s", "fanout", "deliveries/s", "socketio-threads-redis", least=2.0, ours="ours-threads"
    ),
    Target("Idle, WAL bytes in a minute", "idle", "WAL bytes", None, most=0),
    Target("Idle, transactions in a minute", "idle", "transactions", None, most=12),
    Target("10,000 idle clients, WAL bytes in a minute", "idle10k", "WAL bytes", None, most=0),
)


def median(repeats: Iterable[dict[str, Any]], figure: str) -> float | None:
    values = _values(repeats, figure)
    return statistics.median(values) if values else None


def table(runs: Runs) -> str:
    """Median (least to most of the repeats), a row for each figure, a column for each peer."""
    peers = [name for name in PEERS if any(name in of_item for of_item in runs.values())]
    rows: list[list[str]] = [["", *(PEERS[name].title for name in peers)], ["---"] * (len(peers) + 1)]
    for item, of_item in runs.items():
        figures = SHOWN.get(item) or list(
            dict.fromkeys(f for repeats in of_item.values() for r in repeats for f in r)
        )
        rows += [
            [f"{item}: {figure}", *(_cell(of_item.get(name, ()), figure) for name in peers)] for figure in figures
        ]
    return _markdown(rows)


def published(runs: Runs, rows: Sequence[Row], *, threads: bool = False) -> str:
    """One of the tables of docs/benchmark.md. Empty if there are no figures for it."""
    items = {item for _, item, _ in rows}
    found = {name for item, peers in runs.items() if item in items for name, repeats in peers.items() if repeats}
    peers = [name for name, peer in PEERS.items() if name in found and peer.threads is threads]
    lines = [["", *(PEERS[name].title for name in peers)], ["---"] * (len(peers) + 1)]
    if rows is EMITS:
        on_disk = ("yes" if PEERS[name].durable else "no" for name in peers)
        lines.append(["On disk when the emit returns", *on_disk])
    for title, item, text in rows:
        of_item = runs.get(item, {})
        lines.append([title, *(text(of_item[name]) if of_item.get(name) else "" for name in peers)])
    return _markdown(line for line in lines if any(line[1:])) if peers else ""


def targets(runs: Runs) -> str:
    """Each target for which there are figures: the ratio of medians, the range of the repeats' own ratios."""
    lines = [["", "Target", "Ratio (range)", ""], ["---"] * 4]
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
        met = "Met" if target.holds(value) else "Missed"
        lines.append(
            [target.title, str(target), f"{number(value)} ({number(min(each))} to {number(max(each))})", met]
        )
    return _markdown(lines)


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row).rstrip() + " |" for row in rows)


def _values(repeats: Iterable[dict[str, Any]], figure: str) -> list[float]:
    return [one[figure] for one in repeats if one.get(figure) is not None]


def _cell(repeats: Sequence[dict[str, Any]], figure: str) -> str:
    values = _values(repeats, figure)
    if not values:
        return "-"
    text = number(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def load(paths: Iterable[str]) -> Runs:
    runs: Runs = {}
    for path in paths:
        figures = json.loads(Path(path).read_text())
        suffix = " tuned" if figures.get("tuned") else ""
        for item, of_item in figures.get("runs", figures).items():  # a run that was stopped has nothing else
            runs.setdefault(item + suffix, {}).update(of_item)
    return runs


def main() -> None:
    runs = load(sys.argv[1:])
    texts = {
        "Emits": published(runs, EMITS),
        "Clients": published(runs, CLIENTS),
        "Threads": published(runs, THREADS, threads=True),
        "Targets": targets(runs),
        "All figures": table(runs),
    }
    for title, text in texts.items():
        if text:
            print(f"{title}:\n\n{text}\n")


if __name__ == "__main__":
    main()
