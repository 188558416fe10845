"""Our server with 1, 2, 4 and 8 nodes, with notifications that carry the events or only ring.

    python bench/nodes.py                    # three times: about four minutes
    python bench/nodes.py --nodes 2,8 --repeats 5 --json nodes.json

Each node has one client, in the room that all emits go to. In `alone`, the first node emits, 100 at a time. In
`all`, every node emits its share, 25 at a time. CPU is the time of all nodes, and of all of PostgreSQL, per event.
If the nodes share two cores with other work, only the ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
from pathlib import Path

import install

install.everything()  # before the imports that need it

import asyncpg
import psutil
from children import Child
from measure import BENCH, Bench, Figures, Sizes, percentile
from peers import PEERS, Backends

LATENCIES, WARMUP, ALONE, ALL = 200, 50, 3_000, 4_000
CONFIGS: dict[str, dict[str, bool]] = {"carry": {}, "ring": {"ring_only": True}}


async def postgres_cpu(dsn: str) -> float:
    """CPU seconds of the server, with all its processes that were and are."""
    connection = await asyncpg.connect(dsn)
    backend = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    server = backend.parent()
    assert server is not None
    ended = server.cpu_times()
    spent = ended.user + ended.system + ended.children_user + ended.children_system
    for process in server.children():
        times = process.cpu_times()
        spent += times.user + times.system
    await connection.close()
    return spent


async def commits(dsn: str) -> int:
    """Return the commits of all databases so far. Each backend reports its own within a second."""
    await asyncio.sleep(1.5)
    connection = await asyncpg.connect(dsn)
    found: int = await connection.fetchval("SELECT sum(xact_commit)::bigint FROM pg_stat_database")
    await connection.close()
    return found


async def measure(bench: Bench, nodes: int) -> Figures:
    dsn = bench.backends.postgres()
    peer = dataclasses.replace(PEERS["ours"], nodes=nodes)
    figures = Figures()
    async with bench.running(peer, nodes) as (cluster, load):
        for i, url in enumerate(cluster.urls):
            await load.ask("connect", group=f"n{i}", urls=[url], count=1, auth=BENCH)
        last = f"n{nodes - 1}"
        await load.ask("connect", group="from", urls=cluster.urls[:1], count=1)
        for i in range(nodes):
            await load.ask("watch", group=f"n{i}")
        found = await load.ask("latency", **{"from": "from", "to": last, "count": LATENCIES, "warmup": WARMUP})
        for i in range(nodes):  # the last of them may come later elsewhere
            await load.ask("arrived", group=f"n{i}", count=LATENCIES + WARMUP)
        figures |= {"p50 ms": statistics.median(found), "p99 ms": percentile(found, 0.99)}

        async def emit(name: str, emitters: list[Child], count: int, inflight: int) -> None:
            for i in range(nodes):
                await load.ask("watch", group=f"n{i}")
            done, spent, sql = await commits(dsn), sum(cluster.cpu()), await postgres_cpu(dsn)
            each = count // len(emitters)
            said = await asyncio.gather(*(one.ask("emit", count=each, inflight=inflight) for one in emitters))
            for i in range(nodes):
                arrived = await load.ask("arrived", group=f"n{i}", count=each * len(emitters))
                assert arrived["count"] == each * len(emitters), arrived
            seconds = (max(s["ended"] for s in said) - min(s["begun"] for s in said)) / 1e9
            figures[f"{name} ev/s"] = count / seconds
            figures[f"{name} nodes' CPU us/ev"] = (sum(cluster.cpu()) - spent) / count * 1e6
            figures[f"{name} PostgreSQL's CPU us/ev"] = (await postgres_cpu(dsn) - sql) / count * 1e6
            figures[f"{name} transactions/ev"] = (await commits(dsn) - done) / count

        await emit("alone", cluster.nodes[:1], ALONE, 100)
        await emit("all", cluster.nodes, ALL, 25)
    return figures


async def run(backends: Backends, counts: list[int], repeats: int) -> dict[str, dict[str, list[float]]]:
    runs: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for nodes in counts:
            for name, config in CONFIGS.items():
                for figure, value in (await measure(Bench(backends, Sizes(), dict(config)), nodes)).items():
                    assert value is not None
                    runs.setdefault(f"{nodes} {name}", {}).setdefault(figure, []).append(value)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures of all repeats go")
    options = parser.parse_args()
    backends = Backends()
    with backends.stack:
        runs = asyncio.run(run(backends, [int(n) for n in options.nodes.split(",")], options.repeats))
    print(f"| median of {options.repeats} | {' | '.join(runs)} |\n|{' --- |' * (len(runs) + 1)}")
    for figure in next(iter(runs.values())):
        print(f"| {figure} | {' | '.join(f'{statistics.median(found[figure]):,.3g}' for found in runs.values())} |")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
