"""A primary and a hot standby. The primary is killed, stopped or silent, under load, and the standby takes over.

Then the old primary comes back as a second primary, connections break once more, and it becomes the next standby. Or
the standby falls silent, while commits wait for it.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from field.pair import Pair
from field.recoveries import refused
from field.servers import CONNECTIONS, query, terminate
from field.walk import Walk
from support.replicas import freeze, shut_down, thaw
from support.roles import node_dsn

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own

KINDS = ["kill", "kill, synchronous", "stop", "silence", "standby away"]
LOSSY = ["kill", "silence"]
"""The kinds in which the standby is behind, so that events are lost that clients have seen."""


async def retire(walk: Walk, pair: Pair, name: str) -> None:
    """Write the log of the old primary, then make it a standby."""
    await terminate(pair.standby)
    await walk.write_log(name, pair.standby.admin_dsn("app"))
    await pair.rejoin()


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
    await retire(walk, pair, f"lost {walk.done.total()}")


async def lose_standby(walk: Walk, pair: Pair) -> None:
    """The standby that commits wait for falls silent, and comes back."""
    await pair.wait_for(synchronous=True)
    freeze(pair.standby)
    await walk.broken()
    thaw(pair.standby)
    await walk.healed()


async def test_failover(seconds: float, seed: int, programs: Path) -> None:
    pair = Pair(programs)
    try:
        await pair.start()
        async with Walk(seed, lambda: pair.primary.dsn()) as walk:  # noqa: PLW0108 - it changes
            await walk.start([{"dsn": dsn} for dsn in pair.dsns])
            end = time.monotonic() + seconds
            kinds = walk.dice.sample(KINDS, len(KINDS))
            async with walk.load():
                while kinds or time.monotonic() < end:
                    kind = kinds.pop() if kinds else walk.dice.choice(KINDS)
                    walk.done[kind] += 1
                    if kind == "standby away":
                        await lose_standby(walk, pair)
                    elif kind in LOSSY:
                        async with walk.losing_commits():
                            await fail_over(walk, pair, kind)
                    else:
                        await fail_over(walk, pair, kind)
            await walk.judge(pair.primary.admin_dsn("app"))
    finally:
        pair.stop()


async def test_a_standby_is_refused_by_name(programs: Path) -> None:
    pair = Pair(programs)
    try:
        await pair.start()
        await refused("the server is a standby", dsn=node_dsn(pair.standby.dsn()))
    finally:
        pair.stop()
