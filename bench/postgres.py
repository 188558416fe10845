"""The limits of PostgreSQL alone, through asyncpg and without this package, and its counters."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

BODY = "x" * 200
TABLE = "bench_limit"
ONE = f"WITH i AS (INSERT INTO {TABLE} (body) VALUES ($1) RETURNING id) SELECT pg_notify('{TABLE}', id::text) FROM i"
MANY = (
    f"WITH i AS (INSERT INTO {TABLE} (body) SELECT unnest($1::text[]) RETURNING id)"
    f" SELECT pg_notify('{TABLE}', max(id)::text) FROM i"
)
BATCH = 100


@contextlib.asynccontextmanager
async def _table(dsn: str) -> AsyncIterator[tuple[Any, Any]]:
    """A connection that writes, and one that listens: commits with nobody who listens are cheaper."""
    writer, listener = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        await writer.execute(
            f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} (id bigserial PRIMARY KEY, body text)"
        )
        yield writer, listener
    finally:
        await listener.close()
        await writer.execute(f"DROP TABLE IF EXISTS {TABLE}")
        await writer.close()


async def round_trips(dsn: str, count: int) -> list[float]:
    """Ms from an insert with a notification until another connection has heard it."""
    async with _table(dsn) as (writer, listener):
        heard = asyncio.Event()
        at = 0

        def on_notify(*_: Any) -> None:
            nonlocal at
            at = time.monotonic_ns()
            heard.set()

        await listener.add_listener(TABLE, on_notify)
        found = []
        for _ in range(count):
            heard.clear()
            begun = time.monotonic_ns()
            await writer.fetchval(ONE, BODY)
            await heard.wait()
            found.append((at - begun) / 1e6)
            await asyncio.sleep(0.001)
        return found


async def one_after_the_other(dsn: str, count: int) -> float:
    """Durable inserts with a notification a second, on one connection."""
    async with _table(dsn) as (writer, listener):
        await listener.add_listener(TABLE, lambda *_: None)
        begun = time.monotonic()
        for _ in range(count):
            await writer.fetchval(ONE, BODY)
        return count / (time.monotonic() - begun)


async def in_batches(dsn: str, count: int) -> float:
    """Rows a second, 100 and a notification in each commit."""
    async with _table(dsn) as (writer, listener):
        await listener.add_listener(TABLE, lambda *_: None)
        rows = [BODY] * BATCH
        begun = time.monotonic()
        for _ in range(count // BATCH):
            await writer.fetchval(MANY, rows)
        return count / (time.monotonic() - begun)


@dataclass(frozen=True)
class Counters:
    wal: int
    transactions: int

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(self.wal - earlier.wal, self.transactions - earlier.transactions)


async def counters(connection: Any) -> Counters:
    row = await connection.fetchrow(
        "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS wal, xact_commit + xact_rollback AS transactions"
        " FROM pg_stat_database WHERE datname = current_database()"
    )
    return Counters(int(row["wal"]), row["transactions"])


async def version(dsn: str) -> dict[str, Any]:
    connection = await asyncpg.connect(dsn)
    try:
        names = ("fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_sync_method")
        settings = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in names}
        return {"version": await connection.fetchval("SELECT version()"), "settings": settings}
    finally:
        await connection.close()
