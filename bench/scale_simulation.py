"""A small simulation of batch sizes and emit latency with 10, 100 and 1,000 nodes.

    python bench/scale_simulation.py               # measures the costs first: a minute
    python bench/scale_simulation.py --costs 900,12,15   # or takes them: see Costs

Commits that append run one after the other in a PostgreSQL server: each holds the log's lock until it is durable. A
node has one commit under way, and its next batch is everything that waits meanwhile. Nodes queue for the lock. A
busy log therefore makes its own batches larger, until the batches of all nodes are full. That is the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import random
import statistics
import time
from collections import deque
from dataclasses import dataclass

import asyncpg
from retention import BODY, DURABLE

from sio_pg_adapter import embedded, migrate

LARGEST = 500  # log.BATCH_ENTRIES
BATCH = (
    "SELECT prev FROM sio_append_batch(1, array_fill(0::smallint, $1), array_fill('/'::text, $1),"
    " array_fill('r'::text, $1), array_fill(NULL::text, $1), array_fill(NULL::text, $1), array_fill(NULL::text, $1),"
    " array_fill($2::text, $1),"
    " array_fill(NULL::bytea, $1), array_fill(NULL::uuid, $1), array_fill(NULL::text, $1), NULL)"
)


@dataclass(frozen=True)
class Costs:
    """What a commit holds the log's lock for, in microseconds: by itself, for each record, for each who hears."""

    commit: float
    record: float
    listener: float

    def of(self, records: int, nodes: int) -> float:
        return self.commit + self.record * records + self.listener * nodes


# -- measuring -------------------------------------------------------------------------------------------
async def measured() -> Costs:
    """On an embedded PostgreSQL that is durable, on disk."""
    embedded._in_memory = list  # noqa: SLF001 - in memory nothing is durable
    with embedded.EmbeddedPostgres(settings={**DURABLE, "max_connections": "200"}) as server:
        dsn = server.admin_dsn()
        await asyncio.to_thread(migrate.upgrade, dsn)
        writer = await asyncpg.connect(dsn)
        channel = await writer.fetchval("SELECT channel FROM sio_log")

        async def once(records: int, calls: int) -> float:
            """Microseconds of a commit, on one connection that does nothing else."""
            begun = time.perf_counter()
            for _ in range(calls):
                await writer.fetchval(BATCH, [records], BODY)
            return (time.perf_counter() - begun) / calls * 1e6

        async def each(records: int, calls: int) -> float:
            return statistics.median([await once(records, calls) for _ in range(9)])

        await each(1, 100)
        one, many = await each(1, 200), await each(400, 20)
        listeners = [await asyncpg.connect(dsn) for _ in range(64)]
        for listener in listeners:
            await listener.add_listener(channel, lambda *_: None)
        heard = await each(1, 100)
        for connection in (writer, *listeners):
            await connection.close()
    record = (many - one) / 399
    return Costs(max(one - record, 1.0), record, max((heard - one) / 64, 0.0))


# -- simulating ------------------------------------------------------------------------------------------
@dataclass
class Outcome:
    batch: float  # records of a commit, on average
    commits: float  # a second
    p50: float  # ms from the emit to the commit
    p99: float
    records: float  # a second that were committed


def simulate(costs: Costs, nodes: int, rate: float, seconds: float, seed: int = 1) -> Outcome:
    """Emits come at random, ``rate`` a second in all, evenly over the nodes."""
    chance = random.Random(seed)
    waiting: list[deque[float]] = [deque() for _ in range(nodes)]
    line: deque[int] = deque()  # nodes that want the lock
    in_line = [False] * nodes
    holder: int | None = None
    batch: list[float] = []
    took: list[float] = []
    sizes: list[int] = []
    events: list[tuple[float, int]] = [(chance.expovariate(rate), -1)]  # -1: an emit; else who is done
    now = 0.0

    def begin() -> None:
        nonlocal holder, batch
        if holder is None and line:
            holder = line.popleft()
            # Filled when the call is sent, which is when the node's former commit was done.
            batch = [waiting[holder].popleft() for _ in range(min(LARGEST, len(waiting[holder])))]
            heapq.heappush(events, (now + costs.of(len(batch), nodes) / 1e6, holder))

    while events and now < seconds:
        now, who = heapq.heappop(events)
        if who < 0:
            node = chance.randrange(nodes)
            if len(waiting[node]) < 100_000:  # beyond: back-pressure
                waiting[node].append(now)
            if not in_line[node]:
                in_line[node] = True
                line.append(node)
            heapq.heappush(events, (now + chance.expovariate(rate), -1))
        else:
            took += [now - at for at in batch]
            sizes.append(len(batch))
            holder = None
            in_line[who] = bool(waiting[who])
            if in_line[who]:
                line.append(who)
        begin()
    took.sort()
    return Outcome(
        statistics.fmean(sizes), len(sizes) / now, took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3,
        len(took) / now,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", help="microseconds: commit,record,listener")
    parser.add_argument("--seconds", type=float, default=5.0, help="of simulated time")
    options = parser.parse_args()
    costs = Costs(*map(float, options.costs.split(","))) if options.costs else asyncio.run(measured())
    print(f"commit {costs.commit:.0f} us, record {costs.record:.1f} us, listener {costs.listener:.1f} us\n")
    print("| nodes | emits/s | records a commit | commits/s | p50 ms | p99 ms | stored/s |\n|" + " --- |" * 7)
    for nodes in (10, 100, 1_000):
        for rate in (100, 1_000, 10_000, 50_000):
            o = simulate(costs, nodes, rate, options.seconds)
            found = f"{o.batch:.1f} | {o.commits:,.0f} | {o.p50:,.1f} | {o.p99:,.1f} | {o.records:,.0f}"
            print(f"| {nodes:,} | {rate:,} | {found} |")


if __name__ == "__main__":
    main()
