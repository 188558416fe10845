"""What an event costs on its path through two nodes: `python bench/path.py [--peers ours,socketio-redis]`.

A client of node A sends an event, whose handler emits it to a room with one client of node B. Per event, for each
node: turns of the event loop, callbacks, timers, tasks, changes of the selector, JSON texts read, and CPU time. The
CPU time is from runs without the counters, which make everything more expensive.

Only CPU and counts mean anything on a machine with other work. The database is in memory, so no fsync disturbs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from typing import Any

import install

install.everything()  # before the imports that need it

from children import Child
from measure import BENCH, Bench, Sizes, percentile
from nodes import postgres_cpu
from peers import PEERS, Backends, Peer

COUNTED = ("turns", "callbacks", "timers", "tasks", "selector changes", "JSON read")
NAMES = (*COUNTED, "sleeps", "CPU us", "system CPU us")

Costs = dict[str, float]


async def relayed(bench: Bench, peer: Peer, count: int) -> Costs:
    """The costs of an event that a client sends."""
    async with bench.running(peer, 2) as (cluster, load):
        await load.ask("connect", group="a", urls=cluster.urls[:1], count=1)
        await load.ask("connect", group="b", urls=cluster.urls[-1:], count=1, auth=BENCH)
        options: dict[str, Any] = {"from": "a", "to": "b", "pause_ms": 1}
        await load.ask("latency", count=count // 4, warmup=0, **options)
        before, sql = await _counts(cluster.nodes), await _sql(bench, peer)
        took = await load.ask("latency", count=count, warmup=0, **options)
        after = await _counts(cluster.nodes)
        costs = {f"{node} {name}": value for node, now, then in zip("AB", after, before, strict=True)
                 for name, value in _each(now, then, count).items()}  # fmt: skip
        costs["PostgreSQL CPU us"] = (await _sql(bench, peer) - sql) / count * 1e6
    return costs | {"p50 us": statistics.median(took) * 1000, "p99 us": percentile(took, 0.99) * 1000}


async def awaited(bench: Bench, peer: Peer, count: int) -> Costs:
    """The costs of an emit of node A, awaited one after the other."""
    async with bench.running(peer, 2) as (cluster, load):
        await load.ask("connect", group="b", urls=cluster.urls[-1:], count=1, auth=BENCH)
        await cluster.nodes[0].ask("emit", count=count // 4, inflight=1)
        before, sql = await _counts(cluster.nodes), await _sql(bench, peer)
        emitted = await cluster.nodes[0].ask("emit", count=count, inflight=1)
        after = await _counts(cluster.nodes)
        costs = {f"{node} {name}": value for node, now, then in zip("AB", after, before, strict=True)
                 for name, value in _each(now, then, count).items()}  # fmt: skip
        costs["PostgreSQL CPU us"] = (await _sql(bench, peer) - sql) / count * 1e6
    return costs | {"us": (emitted["ended"] - emitted["begun"]) / count / 1e3}


async def _counts(nodes: list[Child]) -> list[Costs]:
    return [await node.ask("counts") for node in nodes]


async def _sql(bench: Bench, peer: Peer) -> float:
    return await postgres_cpu(bench.backends.postgres()) if peer.name == "ours" else 0.0


def _each(after: Costs, before: Costs, count: int) -> Costs:
    return {name: (after.get(name, 0) - before.get(name, 0)) / count for name in NAMES}


def show(title: str, runs: dict[str, list[Costs]]) -> None:
    print(f"\n{title}\n| per event | {' | '.join(runs)} |\n|{' --- |' * (len(runs) + 1)}")
    for name in next(iter(runs.values()))[0]:
        cells = []
        for costs in runs.values():
            values = [cost[name] for cost in costs]
            spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):.4g}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")


async def run(backends: Backends, peers: list[str], count: int, repeats: int, uvicorn: dict[str, Any]) -> None:
    for title, measure in (("A client sends, one after the other", relayed), ("Awaited emits", awaited)):
        runs: dict[str, list[Costs]] = {name: [] for name in peers}
        for _ in range(repeats):
            for name in peers:
                plain = Bench(backends, Sizes(), {"uvicorn": uvicorn})
                runs[name].append(await measure(plain, PEERS[name], count))
        for name in peers:
            counting = Bench(backends, Sizes(), {"uvicorn": uvicorn, "counting": True})
            counted = await measure(counting, PEERS[name], count)
            for costs in runs[name]:
                costs |= {key: value for key, value in counted.items() if key.split(" ", 1)[-1] in COUNTED}
        show(title, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=["ours"], type=lambda text: text.split(","))
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--uvloop", action="store_true", help="with uvloop, which has to be installed")
    options = parser.parse_args()
    backends = Backends(on_disk=False)
    uvicorn = {"loop": "uvloop" if options.uvloop else "asyncio"}
    with backends.stack:
        asyncio.run(run(backends, options.peers, options.count, options.repeats, uvicorn))


if __name__ == "__main__":
    main()
