"""A primary and a hot standby. The primary is killed, stopped or silent, under load, and the standby takes over.

Then the old primary comes back as a second primary, connections break once more, and it becomes the next standby.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from field.model import Log
from field.servers import CONNECTIONS, make_log, query, terminate
from field.walk import Walk
from support.replicas import REPLICATED, copy_into, freeze, prepared, shut_down, thaw

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own

KINDS = ["kill", "kill, synchronous", "stop", "silence"]
LOSSY = ["kill", "silence"]
"""The kinds in which the standby is behind, so that events are lost that clients have seen."""


class Pair:
    """A primary and its standby, which change places."""

    def __init__(self, programs: Path) -> None:
        self.primary, self.standby = prepared(REPLICATED), prepared(REPLICATED)
        self.lost: list[Log] = []
        self._programs = programs
        hosts = quote(f"{self.primary.host},{self.standby.host}", safe="")
        self.dsn = f"postgresql://app@/app?host={hosts}&port=5432,5432&target_session_attrs=primary&connect_timeout=1"

    async def start(self) -> None:
        await make_log(self.primary)
        await asyncio.to_thread(self.make_standby)

    def make_standby(self) -> None:
        copy_into(self.standby, self.primary, self._programs, standby=True)
        self.standby.start()

    def stop(self) -> None:
        for server in (self.primary, self.standby):
            server.stop()

    async def wait_for(self, synchronous: bool) -> None:
        """Wait until the standby follows. If synchronous, commits wait for it from then on."""
        name = "*" if synchronous else ""
        await query(self.primary.admin_dsn(), f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        await query(self.primary.admin_dsn(), "SELECT pg_reload_conf()")
        state = "sync" if synchronous else "async"
        async with asyncio.timeout(30):
            while [s for (s,) in await query(self.primary.admin_dsn(), "SELECT sync_state FROM pg_stat_replication"
                                             " WHERE state = 'streaming'")] != [state]:  # fmt: skip
                await asyncio.sleep(0.02)

    async def fall_behind(self) -> None:
        """The standby gets nothing more."""
        await query(self.standby.admin_dsn(), "ALTER SYSTEM SET primary_conninfo = ''")
        await query(self.standby.admin_dsn(), "SELECT pg_reload_conf()")
        async with asyncio.timeout(30):
            while await query(self.primary.admin_dsn(), "SELECT FROM pg_stat_replication"):
                await asyncio.sleep(0.02)

    async def promote(self) -> None:
        await query(self.standby.admin_dsn(), "ALTER SYSTEM SET synchronous_standby_names = ''")
        await query(self.standby.admin_dsn(), "SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary

    async def retire(self) -> None:
        """Read the log of the old primary, then make it a standby."""
        dsn = self.standby.admin_dsn()
        await query(dsn, "ALTER SYSTEM SET synchronous_standby_names = ''")
        await query(dsn, "SELECT pg_reload_conf()")
        await terminate(self.standby)
        self.lost.append(await Log.read(f"lost {len(self.lost)}", self.standby.admin_dsn("app")))
        await asyncio.to_thread(shut_down, self.standby)
        await asyncio.to_thread(self.make_standby)


async def fail_over(walk: Walk, pair: Pair, kind: str) -> None:
    await pair.wait_for(synchronous="synchronous" in kind)
    if kind in LOSSY:
        await pair.fall_behind()
    await asyncio.sleep(walk.dice.uniform(0.2, 1))
    old = pair.primary
    match kind:
        case "stop":
            await asyncio.to_thread(shut_down, old)
        case "silence":
            freeze(old)
        case _:
            await asyncio.to_thread(old.kill)
    await walk.broken()
    await walk.stays_broken(walk.dice.uniform(0, 1))
    await pair.promote()
    await walk.healed()
    # the old primary is back
    if kind == "silence":
        thaw(old)
    else:
        await asyncio.to_thread(old.start)
    for _ in range(2):
        await asyncio.sleep(walk.dice.uniform(0, 0.5))
        await query(pair.primary.admin_dsn(), f"{CONNECTIONS} AND random() < 0.5")
    await walk.healed()
    await pair.retire()


async def test_failover(seconds: float, seed: int, programs: Path) -> None:
    pair = Pair(programs)
    try:
        await pair.start()
        async with Walk(seed, lambda: pair.primary.dsn()) as walk:  # noqa: PLW0108 - it changes
            await walk.start([{"dsn": pair.dsn}] * 2)
            end = time.monotonic() + seconds
            kinds = walk.dice.sample(KINDS, len(KINDS))
            async with walk.load():
                while kinds or time.monotonic() < end:
                    kind = kinds.pop() if kinds else walk.dice.choice(KINDS)
                    walk.done[kind] += 1
                    if kind in LOSSY:
                        async with walk.losing_commits():
                            await fail_over(walk, pair, kind)
                    else:
                        await fail_over(walk, pair, kind)

            async def logs() -> list[Log]:
                return [*pair.lost, await Log.read("the log", pair.primary.admin_dsn("app"))]

            await walk.judge(logs)
    finally:
        pair.stop()
