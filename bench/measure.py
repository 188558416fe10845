"""The measurements. Each takes a peer, starts servers and load, and returns figures by name."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import install
import postgres
from children import Child
from peers import Backends, Cluster, Peer

BENCH = {"room": "bench"}
SETTLE = 40.0
"""Seconds until PostgreSQL is quiet: backends report within 10, and a snapshot follows a checkpoint within 25."""

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Sizes:
    """How much of it; see run.py for --quick and --tiny."""

    latencies: int = 1_000
    sequential: int = 3_000
    inflight: int = 5_000
    at_once: int = 50_000
    clients: int = 1_000
    fanout_events: int = 100
    paced_rate: float = 8.0  # events a second: a load that all peers can bear
    others: tuple[int, ...] = (1_000, 10_000, 100_000)
    missed: int = 20
    recoveries: int = 5  # clients of one fill that come back one after the other
    storms: tuple[int, ...] = (500, 2_000, 5_000)
    storm_deliveries: float = 5_000.0  # a second, of the events that come while the clients of a storm are away
    quiet_seconds: float = 3.0
    idle_seconds: float = 60.0
    idle_clients: int = 100
    many_idle_clients: int = 10_000
    postgres_rows: int = 50_000


@dataclass
class Bench:
    backends: Backends
    sizes: Sizes
    config: dict[str, Any] = field(default_factory=dict)  # for our servers, as they take it

    @contextlib.asynccontextmanager
    async def running(self, peer: Peer, nodes: int) -> AsyncIterator[tuple[Cluster, Child]]:
        async with (
            peer.running(self.backends, nodes, **self.config) as cluster,
            Child(install.node(), "--expose-gc", "js/load.mjs") as load,
        ):
            yield cluster, load


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# -- emits -----------------------------------------------------------------------------------------------
async def latency(bench: Bench, peer: Peer) -> Figures:
    """From an event sent to node A until what that broadcasts has come to a client of node B."""
    count, warmup = bench.sizes.latencies, bench.sizes.latencies // 5
    if peer.name == "postgres":
        found = (await postgres.round_trips(bench.backends.postgres(), count + warmup))[warmup:]
    else:
        async with bench.running(peer, 2) as (cluster, load):
            await load.ask("connect", group="a", urls=[cluster.urls[cluster.first]], count=1)
            await load.ask("connect", group="b", urls=[cluster.urls[cluster.other]], count=1, auth=BENCH)
            found = await load.ask("latency", **{"from": "a", "to": "b", "count": count, "warmup": warmup})
    return {"p50 ms": statistics.median(found), "p99 ms": percentile(found, 0.99)}


async def sequential(bench: Bench, peer: Peer) -> Figures:
    """Awaited emits, one after the other."""
    if peer.name == "postgres":
        return {"ev/s": await postgres.one_after_the_other(bench.backends.postgres(), bench.sizes.sequential)}
    return await _emits(bench, peer, bench.sizes.sequential, 1)


async def inflight(bench: Bench, peer: Peer) -> Figures:
    """100 that emit, each awaiting its own."""
    if peer.name == "postgres":
        return {"ev/s": await postgres.in_batches(bench.backends.postgres(), bench.sizes.postgres_rows)}
    return await _emits(bench, peer, bench.sizes.inflight, 100)


async def inflight50k(bench: Bench, peer: Peer) -> Figures:
    """All at once."""
    if peer.name == "postgres":
        return {"ev/s": await postgres.in_batches(bench.backends.postgres(), bench.sizes.postgres_rows)}
    return await _emits(bench, peer, bench.sizes.at_once, 0)


async def _emits(bench: Bench, peer: Peer, count: int, at_once: int) -> Figures:
    async with bench.running(peer, 2) as (cluster, load):
        emitter = cluster.nodes[cluster.first]
        await load.ask("connect", group="b", urls=[cluster.urls[cluster.other]], count=1, auth=BENCH)
        warmup = min(count // 5, 500)
        await load.ask("watch", group="b")
        await emitter.ask("emit", count=warmup, inflight=at_once)
        await load.ask("arrived", group="b", count=warmup)
        await load.ask("watch", group="b", times=count)
        before = cluster.cpu()
        emitted = await emitter.ask("emit", count=count, inflight=at_once)
        arrived = await load.ask("arrived", group="b", count=count, timeout_ms=60_000, after=emitted["ended"] + 1e9)
        after = cluster.cpu()
    return {
        "ev/s": count / (emitted["ended"] - emitted["begun"]) * 1e9,
        "arrived ev/s": arrived["count"] / (arrived["last"] - emitted["begun"]) * 1e9,
        "late": arrived["late"],
        "missing": count - arrived["count"],
        "drops": arrived["drops"],
        "CPU us/event": sum(b - a for a, b in zip(before, after, strict=True)) / count * 1e6,
    }


# -- many clients ------------------------------------------------------------------------------------------
async def fanout(bench: Bench, peer: Peer) -> Figures:
    """To a room of many clients of one node: as fast as it goes, then at a pace that leaves the server idle."""
    sizes = bench.sizes
    async with bench.running(peer, 1) as (cluster, load):
        await load.ask("connect", group="all", urls=cluster.urls, count=sizes.clients, auth=BENCH)
        await _fan(cluster, load, sizes.clients, 5, 0)
        fast = await _fan(cluster, load, sizes.clients, sizes.fanout_events, 0)
        paced = await _fan(cluster, load, sizes.clients, max(5, sizes.fanout_events // 3), sizes.paced_rate)
        memory = cluster.memory()[0]
    return {
        "deliveries/s": fast[0],
        "CPU s/100k": fast[1],
        "paced CPU s/100k": paced[1],
        "missing": fast[2] + paced[2],
        "MB": memory,
    }


async def _fan(cluster: Cluster, load: Child, clients: int, events: int, rate: float) -> tuple[float, float, int]:
    """Deliveries a second, CPU seconds of the server for 100,000 of them, and how many are missing."""
    expected = clients * events
    await load.ask("watch", group="all")
    before = cluster.cpu()[0]
    emitted = await cluster.nodes[0].ask("emit", count=events, inflight=1, rate=rate)
    arrived = await load.ask("arrived", group="all", count=expected)
    cpu = cluster.cpu()[0] - before
    seconds = (arrived["last"] - emitted["begun"]) / 1e9
    return arrived["count"] / seconds, cpu / expected * 100_000, expected - arrived["count"]


async def recovery(bench: Bench, peer: Peer) -> Figures:
    """From a CONNECT packet to the last of 20 missed events, with many of other rooms among them."""
    sizes, figures = bench.sizes, Figures()
    async with bench.running(peer, 2) as (cluster, load):
        node, urls = cluster.nodes[0], cluster.urls[:1]
        for others in sizes.others:
            group = f"of {others}"
            options = {"group": group, "urls": urls, "count": sizes.recoveries, "auth": BENCH}
            await load.ask("connect", **options)
            await load.ask("watch", group=group)
            await node.ask("emit", count=1, inflight=1)  # so that they have an offset
            await load.ask("arrived", group=group, count=sizes.recoveries)
            await load.ask("cut", group=group)
            await asyncio.sleep(0.3)  # until the server has noticed
            await node.ask("emit", count=others + sizes.missed, inflight=100, due=sizes.missed)
            await asyncio.sleep(0.5)
            back = [
                await load.ask("recover", group=group, index=i, missed=sizes.missed) for i in range(sizes.recoveries)
            ]
            whole = [one["ms"] for one in back if one["recovered"] and one["got"] == sizes.missed]
            figures[f"{others} ms"] = statistics.median(whole) if whole else None
            figures[f"{others} failed"] = len(back) - len(whole)
            await load.ask("cut", group=group)
    return figures


async def storm(bench: Bench, peer: Peer) -> Figures:
    """All clients of a node cut at once, until the last is back; recovered, where the peer can.

    Meanwhile two others, of a load process of their own, go on: one sends an event to the other every 5 ms, and
    some to the room of those that are away.
    """
    figures = Figures()
    for count in bench.sizes.storms:
        figures |= {f"{count} {figure}": value for figure, value in (await _storm(bench, peer, count)).items()}
        if "500 ms" in figures and figures["500 ms"] and figures.get("5000 ms"):
            figures["5000 ms / 500 ms"] = (figures["5000 ms"] or 0) / figures["500 ms"]
    return figures


async def _storm(bench: Bench, peer: Peer, count: int) -> Figures:
    missed_ms = count / bench.sizes.storm_deliveries * 1000
    async with bench.running(peer, 1) as (cluster, load), Child(install.node(), "js/load.mjs") as others:
        node = cluster.nodes[0]
        await load.ask("connect", group="all", urls=cluster.urls, count=count, auth=BENCH)
        await others.ask("connect", group="a", urls=cluster.urls, count=1)
        await others.ask("connect", group="b", urls=cluster.urls, count=1, auth={"room": "aside"})
        await load.ask("watch", group="all")
        await node.ask("emit", count=1, inflight=1)
        await load.ask("arrived", group="all", count=count)
        await asyncio.sleep(1)

        async def paced(during: Awaitable[Any]) -> tuple[float, int, Any]:
            await load.ask("watch", group="all")
            await others.ask("pace", room="aside", **{"from": "a", "to": "b"}, every_ms=5)
            await others.ask("pace", room="bench", **{"from": "a", "to": "none"}, every_ms=missed_ms)
            answer = await during
            aside, away = await others.ask("paced", room="aside"), await others.ask("paced", room="bench")
            arrived = await load.ask("arrived", group="all", count=away["sent"] * count, timeout_ms=5_000)
            return percentile(aside["found"], 0.99), away["sent"] * count - arrived["count"], answer

        quiet, *_ = await paced(asyncio.sleep(bench.sizes.quiet_seconds))
        await node.ask("stall")
        before = cluster.cpu()[0]
        p99, lost, found = await paced(load.ask("storm", group="all"))
        stall, cpu = await node.ask("stall"), cluster.cpu()[0] - before
    return {
        "ms": found["ms"] if found["back"] == count else None,
        "median ms": found["median_ms"],
        "stall ms": stall["ms"],
        "stall CPU ms": stall["cpu_ms"],
        "quiet p99 ms": quiet,
        "p99 ms": p99,
        "p99 / quiet": p99 / quiet,
        "missing": count - found["back"],
        "recovered": found["recovered"] if peer.recovers else None,
        "lost": lost if peer.recovers else None,
        "CPU s": cpu,
    }


# -- nothing -------------------------------------------------------------------------------------------------
async def idle(bench: Bench, peer: Peer) -> Figures:
    """What is written with two nodes and idle clients, and how many transactions are theirs."""
    return await _idle(bench, peer, 2, bench.sizes.idle_clients)


async def idle10k(bench: Bench, peer: Peer) -> Figures:
    """The same with many clients of one node, and the memory that they take there."""
    return await _idle(bench, peer, 1, bench.sizes.many_idle_clients)


async def _idle(bench: Bench, peer: Peer, nodes: int, clients: int) -> Figures:
    sizes = bench.sizes
    connection = await asyncpg.connect(bench.backends.postgres())

    async def quiet() -> postgres.Counters:
        await connection.execute("VACUUM ANALYZE")
        # What ANALYZE wrote is looked at by the next plan, and with checksums a page's first hint is logged in full.
        await connection.execute("VACUUM pg_statistic")
        await connection.execute("CHECKPOINT")
        await asyncio.sleep(SETTLE)
        before = await postgres.counters(connection)
        await asyncio.sleep(sizes.idle_seconds)
        return await postgres.counters(connection) - before

    async def autovacuum(state: str) -> None:
        """Off meanwhile: after an ANALYZE it clears pg_statistic, a minute later and for 250 kB of WAL."""
        await connection.execute(f"ALTER SYSTEM {state}")
        await connection.execute("SELECT pg_reload_conf()")

    try:
        await autovacuum("SET autovacuum = off")
        own = await quiet()
        async with bench.running(peer, nodes) as (cluster, load):
            empty = sum(cluster.memory())
            await load.ask("connect", group="all", urls=cluster.urls, count=clients, auth=BENCH)
            used = await quiet()
            cpu = cluster.cpu()
            await asyncio.sleep(sizes.idle_seconds)
            spent = sum(b - a for a, b in zip(cpu, cluster.cpu(), strict=True)) / sizes.idle_seconds * 1000
            memory = sum(cluster.memory())
    finally:
        await autovacuum("RESET autovacuum")
        await connection.close()
    # Not the difference for WAL: none is the aim, and what autovacuum wrote before would hide what we write.
    return {
        "WAL bytes": used.wal,
        "own WAL bytes": own.wal,
        "transactions": used.transactions - own.transactions,
        "CPU ms/s": spent,
        "MB": memory,
        "kB/client": (memory - empty) / clients * 1000,
    }


Measurement = Callable[[Bench, Peer], Awaitable[Figures]]

ITEMS: dict[str, Measurement] = {
    item.__name__: item
    for item in (latency, sequential, inflight, inflight50k, fanout, recovery, storm, idle, idle10k)
}
ONLY_OURS = {"idle", "idle10k"}
EMITS = {"latency", "sequential", "inflight", "inflight50k"}
WITH_THREADS = {"latency", "sequential", "inflight", "fanout"}


def applies(item: str, peer: Peer) -> bool:
    if peer.name == "postgres":
        return item in EMITS
    if peer.threads:
        return item in WITH_THREADS
    if item in ONLY_OURS:
        return peer.name == "ours"
    if peer.name in ("ours-memory", "node-redis-streams-fsync"):  # the peers whose durability differs
        return item in EMITS
    return peer.recovers or item != "recovery"
