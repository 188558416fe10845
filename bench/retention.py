"""The cost of deleting a million records, and who waits for it: `python bench/retention.py`.

Two ways take turns on an embedded PostgreSQL that is durable (fsync on, on disk): the batched DELETE of a role that
may not TRUNCATE, and the segments, of which one is truncated. Meanwhile other connections append, one event a commit,
and read the log from near its head. Then come the costs of an append and of reads inside the database, without
retention.

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
WAYS = ("DELETE", "segments")
KEEP, BATCH, ROOMS = 325.0, 2_000, 10_007
YOUNG = 20_000
BODY = "x" * 200
NONE = "'{NULL}', '{NULL}', '{NULL}'"  # of what an event may have
ONE = f"SELECT prev FROM sio_append_batch($1, '{{0}}', '{{/}}', '{{r}}', {NONE}, ARRAY[$2], {NONE}, NULL)"
RANGE = """
    SELECT l.floor, p.* FROM sio_log l LEFT JOIN LATERAL ({}) p ON true ORDER BY p."offset"
"""
ONE_PAGE = 'SELECT * FROM {} WHERE "offset" > {} ORDER BY "offset" LIMIT {}'

Figures = dict[str, float]


def page(after: str, limit: int) -> str:
    segments = [f"({ONE_PAGE.format(f'sio_packets_{segment}', after, limit)})" for segment in (0, 1)]
    return RANGE.format(" UNION ALL ".join(segments) + f' ORDER BY "offset" LIMIT {limit}')


async def fill(connection: asyncpg.Connection, count: int, age: float) -> None:
    segment = await connection.fetchval("SELECT last_value FROM sio_active_segment")
    await connection.execute(
        f"""
        INSERT INTO sio_packets_{segment} ("offset", kind, namespace, room, body, created_at)
        SELECT nextval('sio_packets_offset_seq'), 0, '/', 'r' || i % {ROOMS}, '{BODY}',
               clock_timestamp() - make_interval(secs => {age})
        FROM generate_series(1, {count}) i
        """
    )


@dataclass
class Load:
    """The load on the log meanwhile: the start and the milliseconds of each call."""

    dsn: str
    waits: list[tuple[float, float]] = field(default_factory=list)
    calls: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"append": [], "read": []})

    async def append(self) -> None:
        await self._again("append", ONE, lambda: (secrets.randbits(60), BODY))

    async def read(self) -> None:
        after = "(SELECT last_value FROM sio_packets_offset_seq) - 50"
        await self._again("read", page(after, 500), lambda: ())

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


async def forget(connection: asyncpg.Connection) -> int:
    """As the pruner does."""
    forgotten = 0
    while True:
        await connection.execute("SELECT sio_switch_segment($1)", KEEP)
        count = await connection.fetchval("SELECT sio_trim($1, $2)", KEEP, BATCH)
        if not count:
            return forgotten
        forgotten += count


async def retention(dsn: str, way: str, rows: int, seconds: float) -> Figures:
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    await fill(connection, rows, 3_600)
    if way == "DELETE":
        # What sio_may_truncate returns for a role that may not.
        await connection.execute(
            "CREATE OR REPLACE FUNCTION sio_may_truncate() RETURNS boolean LANGUAGE sql AS 'SELECT false'"
        )
    if way == "segments":
        assert await connection.fetchval("SELECT sio_switch_segment($1)", KEEP)
    await fill(connection, YOUNG, 0)
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    load = Load(dsn)
    tasks = [asyncio.create_task(work()) for work in (load.append, load.append, load.read, load.watch)]
    try:
        begun = time.perf_counter()
        await asyncio.sleep(seconds)
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        wal, spent = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn", cpu(pid)
        before = await connection.fetchval(wal)
        started = time.perf_counter()
        forgotten = await forget(connection)
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
    await connection.execute("VACUUM sio_packets_0, sio_packets_1")
    found["VACUUM s"] = time.perf_counter() - started
    await connection.close()
    return found


async def costs(dsn: str, rows: int) -> Figures:
    """CPU microseconds of one call inside the database, with both segments in use."""
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    await fill(connection, rows // 2, 3_600)
    assert await connection.fetchval("SELECT sio_switch_segment($1)", KEEP)
    await fill(connection, rows // 2, 0)
    await connection.execute("VACUUM ANALYZE")
    # The newest session is in twelve rooms of the log, two of which have a packet in the last twentieth of it.
    await connection.execute(
        "INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)"
        " VALUES (1, 'x', '/', 's', 0, 0)"
    )
    await connection.execute(
        "INSERT INTO sio_rooms SELECT 1, 'r' || i * 800, 0, NULL, '/' FROM generate_series(1, 12) i"
    )
    one = ONE.replace("$1", "i").replace("$2", f"'{BODY}'").removeprefix("SELECT")
    due = f"PERFORM sio_due(1, {rows} - {rows // 20}, 500)"
    works = {
        "sio_append_batch, CPU us": (f"PERFORM{one}", 20_000),
        "range of 20, CPU us": (
            "PERFORM " + page(f"{rows} - 20", 500).strip().removeprefix("SELECT"),
            10_000,
        ),
        "range of 500, CPU us": (
            "PERFORM " + page(f"{rows} / 4 + i", 500).strip().removeprefix("SELECT"),
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


async def fresh(server: embedded.EmbeddedPostgres) -> str:
    connection = await asyncpg.connect(server.admin_dsn())
    await connection.execute("DROP DATABASE IF EXISTS retention WITH (FORCE)")
    await connection.execute("CREATE DATABASE retention")
    await connection.close()
    dsn = server.admin_dsn("retention")
    await asyncio.to_thread(migrate.upgrade, dsn)
    return dsn


async def run(rows: int, repeats: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    embedded._in_memory = list  # noqa: SLF001 - on disk: where nothing is durable, nothing is measured
    runs: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    with embedded.EmbeddedPostgres(settings=DURABLE) as server:
        for _ in range(repeats):
            for way in WAYS:
                found = await retention(await fresh(server), way, rows, seconds)
                if way == "segments":
                    found |= await costs(await fresh(server), rows)
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
    for name in runs["segments"]:
        cells = [statistics.median(runs[way][name]) if name in runs[way] else None for way in WAYS]
        print(f"| {name} | {' | '.join('' if cell is None else f'{cell:,.4g}' for cell in cells)} |")


if __name__ == "__main__":
    main()
