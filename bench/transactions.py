"""Transactions per second with an event in them: `python bench/transactions.py`.

One run compares five transactions at 1, 8, 32 and 64 connections: an order's row alone, the row with a bare
`pg_notify`, the row with a row of a second table, the row with `connection=` of this package, and the same with the
relay, where a node moves the events. The relay counts until all events are in the log. It cannot be faster than the
second row, which is all that an emit with the relay has to write. With `--messages` each transaction is one message
to the server, so that round trips and Python cost little. It uses an embedded PostgreSQL that is durable (fsync on,
on disk), or the server that SIO_PG_TEST_DSN names. The five take turns several times, so that all of them see the
same machine. The output is the medians, and three ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import asyncpg

from sio_pg_adapter import AsyncPostgresManager, embedded, migrate

CONNECTIONS = (1, 8, 32, 64)
NODE = """
import asyncio, sys
from sio_pg_adapter import AsyncPostgresManager, AsyncServer

async def main():
    manager = AsyncPostgresManager(sys.argv[1])
    AsyncServer(async_mode="asgi", client_manager=manager, connection_state_recovery=True)
    await manager.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_wal_size": "1GB"}

Work = Callable[[asyncpg.Connection, int], Awaitable[None]]
Drained = Callable[[], Awaitable[None]]
ORDER = "INSERT INTO bench_orders (customer, total) VALUES ($1, $2)"
SECOND = "INSERT INTO bench_seconds (namespace, room, body) VALUES "

manager = AsyncPostgresManager("postgresql://", write_only=True)  # connects nowhere: the connection is the caller's


# -- as an application does it: one round trip for each statement -----------------------------------------
async def order(connection: asyncpg.Connection, number: int) -> None:
    async with connection.transaction():
        await connection.execute(ORDER, f"user:{number % 1000}", number)


async def notify(connection: asyncpg.Connection, number: int) -> None:
    async with connection.transaction():
        await connection.execute(ORDER, f"user:{number % 1000}", number)
        await connection.execute("SELECT pg_notify('orders', $1)", f'["order_paid",{{"id":{number}}}]')


async def two_rows(connection: asyncpg.Connection, number: int) -> None:
    async with connection.transaction():
        await connection.execute(ORDER, f"user:{number % 1000}", number)
        body = f'["order_paid",{{"id":{number}}}]'
        await connection.execute(f"{SECOND} ($1, $2, $3)", "/", f"user:{number % 1000}", body)


async def event(connection: asyncpg.Connection, number: int) -> None:
    async with connection.transaction():
        await connection.execute(ORDER, f"user:{number % 1000}", number)
        await manager.emit("order_paid", {"id": number}, room=f"user:{number % 1000}", connection=connection)


# -- one message for each transaction: round trips and Python cost little ---------------------------------
def one_message(statement: str) -> Work:
    """:param statement: the second one of the transaction. {n} and {room} are the number and the room."""
    text = f"BEGIN; INSERT INTO bench_orders (customer, total) VALUES ('{{room}}', {{n}}); {statement}COMMIT"

    async def work(connection: asyncpg.Connection, number: int) -> None:
        await connection.execute(text.format(room=f"user:{number % 1000}", n=number))

    return work


_EMIT = """SELECT sio_emit_encoded('/', '{room}', NULL, NULL, '["order_paid",{n}]', NULL, NULL); """
_SECOND = f"""{SECOND} ('/', '{{room}}', '["order_paid",{{n}}]'); """
NAMES = ("order alone", "with pg_notify", "two rows", "direct", "relay")
STATEMENTS = dict(zip(NAMES, (order, notify, two_rows, event, event), strict=True))
MESSAGES = dict(
    zip(
        NAMES,
        map(one_message, ("", "SELECT pg_notify('orders', '[\"order_paid\",{n}]'); ", _SECOND, _EMIT, _EMIT)),
        strict=True,
    )
)


async def rate(work: Work, connections: list[asyncpg.Connection], seconds: float, drained: Drained | None) -> float:
    """Transactions per second of one kind, each connection one after the other.

    :param drained: awaited before the time is taken.
    """
    end = time.perf_counter() + seconds
    done = 0

    async def run(connection: asyncpg.Connection) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await work(connection, done)
            done += 1

    begun = time.perf_counter()
    await asyncio.gather(*map(run, connections))
    if drained is not None:
        await drained()
    return done / (time.perf_counter() - begun)


async def compare(dsn: str, seconds: float, rounds: int, works: dict[str, Work]) -> None:
    await asyncio.to_thread(migrate.upgrade, dsn, relay=False)
    connections = [await asyncpg.connect(dsn) for _ in range(max(CONNECTIONS))]
    first = connections[0]
    await first.execute(
        "CREATE TABLE IF NOT EXISTS bench_orders (id bigserial PRIMARY KEY, customer text, total bigint)"
    )
    await first.execute(
        "CREATE TABLE IF NOT EXISTS bench_seconds (id bigserial PRIMARY KEY, namespace text, room text, body text)"
    )
    listener = await asyncpg.connect(dsn)  # somebody hears both
    for channel in ("orders", await first.fetchval("SELECT channel FROM sio_log")):
        await listener.add_listener(channel, lambda *_: None)
    node = await asyncio.create_subprocess_exec(sys.executable, "-c", NODE, dsn)  # it moves the events of the relay

    async def drained() -> None:
        while await listener.fetchval("SELECT EXISTS (SELECT FROM sio_relay)"):
            await asyncio.sleep(0.005)

    async def switch(on: bool) -> None:
        await first.execute("SELECT sio_set_relay($1)", on)
        while not on and await first.fetchval("SELECT last_value FROM sio_relay_state"):
            await asyncio.sleep(0.01)

    print(await first.fetchval("SELECT version()"))
    ratios = {
        "direct/notify": ("direct", "with pg_notify"),
        "relay/order": ("relay", "order alone"),
        "two rows/order": ("two rows", "order alone"),
    }
    print(f"{'connections':>12}" + "".join(f"{name:>16}" for name in (*works, *ratios)))
    for count in CONNECTIONS:
        rates: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                relays = name == "relay"
                await switch(relays)
                rates[name].append(await rate(work, connections[:count], seconds, drained if relays else None))
        medians = "".join(f"{statistics.median(of):>16,.0f}" for of in rates.values())
        print(f"{count:>12}{medians}" + "".join(ratio(rates, *pair) for pair in ratios.values()))
    node.terminate()
    await node.wait()
    for connection in (listener, *connections):
        await connection.close()


def ratio(rates: dict[str, list[float]], ours: str, theirs: str) -> str:
    return f"{statistics.median(o / n for o, n in zip(rates[ours], rates[theirs], strict=True)):>16.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=15, help="of which the medians are taken")
    parser.add_argument("--messages", action="store_true", help="send each transaction as one message")
    options = parser.parse_args()
    works = MESSAGES if options.messages else STATEMENTS
    if dsn := os.environ.get("SIO_PG_TEST_DSN"):
        asyncio.run(compare(dsn, options.seconds, options.rounds, works))
        return
    embedded._in_memory = list  # noqa: SLF001 - where nothing is durable, there is nothing to measure
    with embedded.EmbeddedPostgres(settings=DURABLE) as pg:
        asyncio.run(compare(pg.admin_dsn(), options.seconds, options.rounds, works))


if __name__ == "__main__":
    main()
