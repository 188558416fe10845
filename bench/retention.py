"""The cost of deleting a million records, and who waits for it: `python bench/retention.py`.

Three ways take turns on an embedded PostgreSQL that is durable (fsync on, on disk): the batched DELETE of schema
version 2, that of version 3 for a role that may not TRUNCATE, and the segments of version 3, of which one is cut.
Meanwhile two connections append, one event per commit, and one reads the log near its head. The last figures are the
cost of segments when nothing is deleted: one append and some reads, inside the database.

CPU seconds are those of the backend that deletes. Times mean something only on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from sio_pg_adapter import embedded, migrate

DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_wal_size": "4GB",
}
WAYS = {"DELETE, version 2": "sio0002", "DELETE, version 3": "sio0003", "halves": "sio0003"}
KEEP, BATCH, ROOMS = 325.0, 2_000, 10_007
YOUNG = 20_000
BODY = "x" * 200
NONE = "'{NULL}', '{NULL}', '{NULL}'"  # of what an event may have
ONE = f"SELECT prev FROM sio_write($1, '{{0}}', '{{/}}', '{{r}}', {NONE}, ARRAY[$2], {NONE}, NULL)"
RANGE = """
    SELECT l.floor, p.* FROM sio_log l LEFT JOIN LATERAL ({}) p ON true ORDER BY p."offset"
"""
ONE_PAGE = 'SELECT * FROM {} WHERE "offset" > {} ORDER BY "offset" LIMIT {}'

Figures = dict[str, float]


def page(version: str, after: str, limit: int) -> str:
    if version == "sio0002":
        return RANGE.format(ONE_PAGE.format("sio_packets", after, limit))
    halves = [f"({ONE_PAGE.format(f'sio_packets_{half}', after, limit)})" for half in (0, 1)]
    return RANGE.format(" UNION ALL ".join(halves) + f' ORDER BY "offset" LIMIT {limit}')


async def fill(connection: asyncpg.Connection, version: str, count: int, age: float) -> None:
    half = "" if version == "sio0002" else f"_{await connection.fetchval('SELECT last_value FROM sio_half')}"
    await connection.execute(
        f"""
        INSERT INTO sio_packets{half} ("offset", kind, namespace, room, body, created_at)
        SELECT nextval('sio_packets_offset_seq'), 0, '/', 'r' || i % {ROOMS}, '{BODY}',
               clock_timestamp() - make_interval(secs => {age})
        FROM generate_series(1, {count}) i
        """
    )


@dataclass
class Load:
    """The load on the log meanwhile: the start and the milliseconds of each call."""

    dsn: str
    version: str
    waits: list[tuple[float, float]] = field(default_factory=list)
    calls: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"append": [], "read": []})

    async def append(self) -> None:
        await self._again("append", ONE, lambda: (secrets.randbits(60), BODY))

    async def read(self) -> None:
        after = "(SELECT last_value FROM sio_packets_offset_seq) - 50"
        await self._again("read", page(self.version, after, 500), lambda: ())

    async def _again(self, what: str, query: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
        connection = await asyncpg.connect(self.dsn, server_settings={"jit": "off"})
        try:
            while True:
                begun = time.perf_counter()
                await connection.fetch(query, *arguments())
                self.calls[what].append((begun, (time.perf_counter() - begun) * 1000))
        finally:
            connection.terminate()

    async def watch(self) -> None:
        """Does anybody wait for a lock, other than for the log's own, as appends do for each other?"""
        connection = await asyncpg.connect(self.dsn)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation <> 'sio_lock'::regclass"
        try:
            former = time.perf_counter()
            while True:
                found = await connection.fetchval(waiting)
                now = time.perf_counter()
                self.waits.append((now, (now - former) * 1000 if found else 0.0))
                former = now
                await asyncio.sleep(0.001)
        finally:
            connection.terminate()

    def figures(self, name: str, begun: float, ended: float) -> Figures:
        found = {f"waiting for locks {name} ms": sum(ms for at, ms in self.waits if begun < at < ended)}
        for what, calls in self.calls.items():
            took = sorted(ms for at, ms in calls if at < ended and at + ms / 1000 > begun)
            found |= {f"{what} {name} p99 ms": took[int(len(took) * 0.99)], f"{what} {name} max ms": took[-1]}
        return found


def cpu(pid: int) -> float:
    """Seconds of a process of this machine."""
    at = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(at[11]) + int(at[12])) / os.sysconf("SC_CLK_TCK")


async def forget(connection: asyncpg.Connection, version: str) -> int:
    """As the pruner does."""
    forgotten = 0
    while True:
        if version != "sio0002":
            await connection.execute("SELECT sio_turn($1)", KEEP)
        count = await connection.fetchval("SELECT sio_trim($1, $2)", KEEP, BATCH)
        if not count:
            return forgotten
        forgotten += count


async def retention(dsn: str, way: str, rows: int, seconds: float) -> Figures:
    version = WAYS[way]
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    await fill(connection, version, rows, 3_600)
    if way == "DELETE, version 3":
        # What sio_may_truncate finds for a role that may not.
        await connection.execute(
            "CREATE OR REPLACE FUNCTION sio_may_truncate() RETURNS boolean LANGUAGE sql AS 'SELECT false'"
        )
    if way == "halves":
        assert await connection.fetchval("SELECT sio_turn($1)", KEEP)
    await fill(connection, version, YOUNG, 0)
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    load = Load(dsn, version)
    tasks = [asyncio.create_task(work()) for work in (load.append, load.append, load.read, load.watch)]
    try:
        begun = time.perf_counter()
        await asyncio.sleep(seconds)
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        wal, spent = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn", cpu(pid)
        before = await connection.fetchval(wal)
        started = time.perf_counter()
        forgotten = await forget(connection, version)
        ended = time.perf_counter()
        after = await connection.fetchval(wal)
        appended = sum(1 for at, _ in load.calls["append"] if started <= at < ended)
        found = {
            "s": ended - started,
            "CPU s": cpu(pid) - spent,
            "WAL MB": float(after - before) / 1e6,
            "appends meanwhile": float(appended),
            **load.figures("before", begun, started),
            **load.figures("while", started, ended),
        }
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [one for one in done if not isinstance(one, asyncio.CancelledError)]
    assert forgotten == rows and not failed, (forgotten, failed)
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    tables = "relname ~ '^sio_packets(_[01])?$'"
    size = f"SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND {tables}"
    found["MB left"] = float(await connection.fetchval(size)) / 1e6
    started = time.perf_counter()
    await connection.execute("VACUUM sio_packets" + ("" if version == "sio0002" else "_0, sio_packets_1"))
    found["VACUUM s"] = time.perf_counter() - started
    await connection.close()
    return found


async def costs(dsn: str, way: str, rows: int) -> Figures:
    """CPU microseconds of one call inside the database, with both halves in use."""
    version = WAYS[way]
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    await fill(connection, version, rows // 2, 3_600)
    if way == "halves":
        assert await connection.fetchval("SELECT sio_turn($1)", KEEP)
    await fill(connection, version, rows // 2, 0)
    await connection.execute("VACUUM ANALYZE")
    # The newest session is in twelve rooms of the log, two of which have a packet in the last twentieth of it.
    await connection.execute("INSERT INTO sio_sessions VALUES (1, 'x', '/', 's', '{}', NULL, 1, 1, 0)")
    await connection.execute(
        "INSERT INTO sio_rooms SELECT 1, 'r' || i * 800, 0, NULL, '/' FROM generate_series(1, 12) i"
    )
    one = ONE.replace("$1", "i").replace("$2", f"'{BODY}'").removeprefix("SELECT")
    due = f"PERFORM sio_due(1, {rows} - {rows // 20}, 500)"
    works = {
        "sio_write, CPU us": (f"PERFORM{one}", 20_000),
        "range of 20, CPU us": (
            "PERFORM " + page(version, f"{rows} - 20", 500).strip().removeprefix("SELECT"),
            10_000,
        ),
        "range of 500, CPU us": (
            "PERFORM " + page(version, f"{rows} / 4 + i", 500).strip().removeprefix("SELECT"),
            1_000,
        ),
        "due of 12 rooms, CPU us": (due, 2_000),
    }
    found, pid = {}, await connection.fetchval("SELECT pg_backend_pid()")
    for name, (work, count) in reversed(works.items()):
        loop = "DO $$ BEGIN FOR i IN 1..{} LOOP {}; END LOOP; END $$"
        await connection.execute(loop.format(10, work))
        begun = cpu(pid)
        await connection.execute(loop.format(count, work))
        found[name] = (cpu(pid) - begun) / count * 1e6
    await connection.close()
    return found


async def fresh(server: embedded.EmbeddedPostgres, version: str) -> str:
    connection = await asyncpg.connect(server.dsn())
    await connection.execute("DROP DATABASE IF EXISTS retention WITH (FORCE)")
    await connection.execute("CREATE DATABASE retention")
    await connection.close()
    dsn = server.dsn("retention")
    await asyncio.to_thread(migrate.upgrade, dsn, revision=version)
    return dsn


async def run(rows: int, repeats: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    embedded._in_memory = list  # noqa: SLF001 - on disk: where nothing is durable, nothing is measured
    runs: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    with embedded.EmbeddedPostgres(settings=DURABLE) as server:
        for _ in range(repeats):
            for way, version in WAYS.items():
                found = await retention(await fresh(server, version), way, rows, seconds)
                if way != "DELETE, version 3":
                    found |= await costs(await fresh(server, version), way, rows)
                for name, value in found.items():
                    runs[way].setdefault(name, []).append(value)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="150,000 or more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of appends and reads before the pass")
    parser.add_argument("--json", type=Path, help="where the figures of all repeats go")
    options = parser.parse_args()
    runs = asyncio.run(run(options.rows, options.repeats, options.seconds))
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1))
    print(f"| median of {options.repeats} | {' | '.join(WAYS)} |\n|{' --- |' * (len(WAYS) + 1)}")
    for name in runs["halves"]:
        cells = [statistics.median(runs[way][name]) if name in runs[way] else None for way in WAYS]
        print(f"| {name} | {' | '.join('' if cell is None else f'{cell:,.4g}' for cell in cells)} |")


if __name__ == "__main__":
    main()
