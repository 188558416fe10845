"""The cost of one awaited emit, next to a bare insert and with steps left out: `python bench/append.py`.

The statements run in turn, so that all of them see the same machine. One process does everything and also listens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import statistics
import time
from collections.abc import Awaitable, Callable

import asyncpg
from peers import PEERS, Backends
from postgres import BODY, ONE, TABLE

from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from sio_pg_adapter.store.queries import Queries

EVENT = '["n",{"pad":"' + "x" * 180 + '"}]'
LEFT_OUT = {  # of sio_append_event, by what stands in its place
    "without the log's lock": (r"\n\s*LOCK TABLE [^;]*;", ""),
    "without the look at the epoch": (
        r"EXISTS \(\s*SELECT FROM [^()]*\.sio_marker\s+WHERE [^()]*\(\)[^()]*\)",
        "true",
    ),
}


async def variants(connection: asyncpg.Connection, schema: str) -> dict[str, str]:
    """Statements by what they are: the function, and copies of it that leave something out."""
    query = Queries(schema)["write_event"]
    body = await connection.fetchval(f"SELECT pg_get_functiondef('{schema}.sio_append_event'::regproc)")
    found = {"sio_append_event": query}
    for i, (name, (pattern, instead)) in enumerate(LEFT_OUT.items()):
        text, count = re.subn(pattern, instead, body)
        assert count == 1, name
        await connection.execute(text.replace("sio_append_event", f"sio_append_event_{i}", 1))
        found[name] = query.replace("sio_append_event", f"sio_append_event_{i}")
    return found


async def measure(dsn: str, schema: str, count: int) -> dict[str, float]:
    """Medians in us."""
    connection, listener = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    await connection.execute(
        f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} (id bigserial PRIMARY KEY, body text)"
    )
    manager = AsyncPostgresManager(dsn, schema=schema)
    sio = AsyncServer(async_mode="asgi", client_manager=manager, connection_state_recovery=True)
    await manager.start()
    await listener.add_listener(TABLE, lambda *_: None)
    carry = '[["/",["bench"],[],"' + EVENT.replace('"', '\\"') + '"]]'
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "a bare insert and notification": lambda: connection.fetchval(ONE, BODY)
    }
    for name, query in (await variants(connection, schema)).items():
        ways[name] = lambda query=query: connection.fetchval(query, 1, "/", "bench", EVENT, None, carry)
    event, keys = Queries(schema)["write_event"], itertools.count()
    ways["sio_append_event with a key"] = lambda: connection.fetchval(
        event, 1, "/", "bench", EVENT, f"key-{next(keys)}", carry
    )
    ways["sio.emit, all of it"] = lambda: sio.emit("n", {"pad": "x" * 180}, room="bench")
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(count):
        for name, way in ways.items():
            begun = time.perf_counter()
            await way()
            took[name].append((time.perf_counter() - begun) * 1e6)
    await sio.shutdown()
    await listener.close()
    await connection.execute(f"DROP TABLE {TABLE}")
    await connection.close()
    return {name: statistics.median(values[count // 10 :]) for name, values in took.items()}


async def run(backends: Backends, count: int) -> None:
    async with PEERS["ours"]._bus(backends) as bus:  # noqa: SLF001 - a schema of its own
        found = await measure(bus["dsn"], bus["schema"], count)
    bare = next(iter(found.values()))
    for name, value in found.items():
        print(f"{value:7.0f} us  {value / bare:5.2f}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--dsn", help="a PostgreSQL to use, of a superuser, instead of the embedded one")
    options = parser.parse_args()
    backends = Backends(dsn=options.dsn)
    with backends.stack:
        asyncio.run(run(backends, options.count))


if __name__ == "__main__":
    main()
