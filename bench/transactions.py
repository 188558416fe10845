"""Transactions per second with an event in them: `python bench/transactions.py`.

One run compares three transactions at 1, 8 and 32 connections: an order's row alone, the row with a bare
`pg_notify`, and the row with `connection=` of this package. It uses an embedded PostgreSQL that is durable (fsync
on, on disk), or the server that SIO_PG_TEST_DSN names. The three take turns several times, so that all of them see
the same machine. The output is the medians, and our ratio to the bare notification.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import asyncpg

from sio_pg_adapter import AsyncPostgresManager, embedded, migrate

CONNECTIONS = (1, 8, 32)
ORDER = "INSERT INTO bench_orders (customer, total) VALUES ($1, $2)"
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_wal_size": "1GB"}

Work = Callable[[asyncpg.Connection, int], Awaitable[None]]

manager = AsyncPostgresManager("postgresql://", write_only=True)  # connects nowhere: the connection is the caller's


async def order(connection: asyncpg.Connection, number: int) -> None:
    async with connection.transaction():
        await connection.execute(ORDER, f"user:{number % 1000}", number)


async def notify(connection: asyncpg.Connection, number: int) -> None:
    async with connection.transaction():
        await connection.execute(ORDER, f"user:{number % 1000}", number)
        await connection.execute("SELECT pg_notify('orders', $1)", f'["order_paid",{{"id":{number}}}]')


async def event(connection: asyncpg.Connection, number: int) -> None:
    async with connection.transaction():
        await connection.execute(ORDER, f"user:{number % 1000}", number)
        await manager.emit("order_paid", {"id": number}, room=f"user:{number % 1000}", connection=connection)


WORKS: dict[str, Work] = {"order alone": order, "with pg_notify": notify, "with connection=": event}


async def rate(work: Work, connections: list[asyncpg.Connection], seconds: float) -> float:
    """Transactions per second of one kind, each connection one after the other."""
    end = time.perf_counter() + seconds
    done = 0

    async def run(connection: asyncpg.Connection) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await work(connection, done)
            done += 1

    begun = time.perf_counter()
    await asyncio.gather(*map(run, connections))
    return done / (time.perf_counter() - begun)


async def compare(dsn: str, seconds: float, rounds: int) -> None:
    await asyncio.to_thread(migrate.upgrade, dsn)
    connections = [await asyncpg.connect(dsn) for _ in range(max(CONNECTIONS))]
    first = connections[0]
    await first.execute(
        "CREATE TABLE IF NOT EXISTS bench_orders (id bigserial PRIMARY KEY, customer text, total bigint)"
    )
    listener = await asyncpg.connect(dsn)  # somebody hears both
    for channel in ("orders", await first.fetchval("SELECT channel FROM sio_log")):
        await listener.add_listener(channel, lambda *_: None)
    print(await first.fetchval("SELECT version()"))
    print(f"{'connections':>12}" + "".join(f"{name:>18}" for name in WORKS) + f"{'ours to notify':>18}")
    for count in CONNECTIONS:
        rates: dict[str, list[float]] = {name: [] for name in WORKS}
        for _ in range(rounds):
            for name, work in WORKS.items():
                rates[name].append(await rate(work, connections[:count], seconds))
        ratio = statistics.median(
            o / n for o, n in zip(rates["with connection="], rates["with pg_notify"], strict=True)
        )
        medians = "".join(f"{statistics.median(of):>18,.0f}" for of in rates.values())
        print(f"{count:>12}{medians}{ratio:>18.2f}")
    for connection in (listener, *connections):
        await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=15, help="of which the medians are taken")
    options = parser.parse_args()
    if dsn := os.environ.get("SIO_PG_TEST_DSN"):
        asyncio.run(compare(dsn, options.seconds, options.rounds))
        return
    embedded._in_memory = list  # noqa: SLF001 - where nothing is durable, there is nothing to measure
    with embedded.EmbeddedPostgres(settings=DURABLE) as pg:
        asyncio.run(compare(pg.admin_dsn(), options.seconds, options.rounds))


if __name__ == "__main__":
    main()
