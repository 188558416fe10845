"""A copy of the database takes over the name of the database.

A restored backup is older than the events that clients have seen. While both servers run, there are two primaries
under one name. Connections that a node opens then lead to another server than those that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from field.copies import Copies, connections, cut
from field.servers import CONNECTIONS, make_log, query
from field.walk import Walk

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own


async def restore(walk: Walk, copies: Copies) -> None:
    """The server is gone, and the backup is started in its place."""
    await copies.back_up()
    await take_over(walk, copies)


async def restore_files(walk: Walk, copies: Copies) -> None:
    """As :func:`restore`, with a backup that was made of the files of a stopped server."""
    await copies.back_up_files()
    await walk.healed()
    await take_over(walk, copies)


async def take_over(walk: Walk, copies: Copies) -> None:
    """The copy is started in the server's place."""
    await asyncio.sleep(walk.dice.uniform(0.2, 1))
    async with walk.losing_commits():
        await asyncio.to_thread(copies.server.kill)
        await walk.broken()
        copies.use_copy()
        await asyncio.to_thread(copies.server.start)
        await walk.healed()
    await asyncio.to_thread(copies.copy.start)
    await copies.retire(walk)


async def cut_one(walk: Walk, copies: Copies) -> None:
    """One connection of each node breaks. If the node has just replaced it, another one does."""
    for node in walk.nodes:
        pids = connections(node)
        for name in walk.dice.sample(sorted(pids), len(pids)):
            if await cut(copies.copy, pids[name]):
                walk.done[f"{name} cut"] += 1
                break


async def cut_behind_pooler(walk: Walk, copies: Copies) -> None:
    """The connections of PgBouncer break, and those of the nodes to PgBouncer do not."""
    await query(copies.copy.admin_dsn(), f"{CONNECTIONS} AND application_name NOT LIKE '%listen'")


async def two_primaries(walk: Walk, copies: Copies) -> None:
    """New connections lead to the copy. Some connections break, and the others stay where they are."""
    await copies.back_up()
    await asyncio.sleep(walk.dice.uniform(0.2, 1))
    await asyncio.to_thread(copies.copy.start)
    async with walk.losing_commits():
        copies.use_copy()
        await (cut_behind_pooler if copies.pooled else cut_one)(walk, copies)
        await walk.healed()
    await copies.retire(walk)


SCENARIOS = [restore, restore_files, two_primaries]


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "behind PgBouncer"])
async def test_copies(seconds: float, seed: int, programs: Path, pooled: bool) -> None:
    copies = Copies(programs, pooled=pooled)
    with contextlib.ExitStack() as stack:
        stack.callback(copies.stop)
        await make_log(copies.server)
        async with copies.way.running():
            options = await copies.options(stack)
            async with Walk(seed, lambda: copies.server.dsn()) as walk:  # noqa: PLW0108 - it changes
                await walk.start([options] * 2)
                end = time.monotonic() + seconds
                scenarios = walk.dice.sample(SCENARIOS, len(SCENARIOS))
                async with walk.load():
                    while scenarios or time.monotonic() < end:
                        scenario = scenarios.pop() if scenarios else walk.dice.choice(SCENARIOS)
                        walk.done[scenario.__name__] += 1
                        await scenario(walk, copies)
                await walk.judge(copies.server.admin_dsn("app"))
