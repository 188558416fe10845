"""A walk on one database, and many recoveries in a row."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from field.servers import keep_sessions, query
from field.walk import ROOMS, Walk
from sio_pg_adapter import ConfigurationError, StoreUnavailable

CUT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type = 'client backend' AND pg_has_role(usename, 'MEMBER')
"""


@contextlib.asynccontextmanager
async def walking(seed: int, dsn: str, managers: list[dict[str, Any]]) -> AsyncIterator[Walk]:
    """A walk with these nodes, which is judged after the block."""
    await keep_sessions(dsn)
    async with Walk(seed, lambda: dsn) as walk:
        await walk.start(managers, clients=4)
        yield walk
        await walk.judge(dsn)


async def recover(walk: Walk, times: int) -> None:
    """Have clients recover, as many times in all, while both nodes emit and clients move."""

    async def recover_one(i: int, dice: random.Random) -> None:
        client = walk.clients[i]
        for _ in range(times // len(walk.clients) + 1):
            before = client.recoveries
            client.choose = lambda: dice.choice(walk.nodes)
            dice.choice([client.drop, client.vanish])()
            if dice.random() < 0.5:
                await walk.nodes[0].sio.enter_room(client.sid, dice.choice(ROOMS))
                await walk.nodes[1].sio.leave_room(client.sid, dice.choice(ROOMS))
            while client.recoveries == before:
                await walk.emit(dice.choice(walk.nodes), room=dice.choice([None, *ROOMS]))

    dice = [random.Random(walk.dice.random()) for _ in walk.clients]
    async with asyncio.timeout(60 + times):
        await asyncio.gather(*(recover_one(i, one) for i, one in enumerate(dice)))


async def refused(match: str, **options: Any) -> None:
    """A node with these options of ``AsyncPostgresManager`` is refused at start, by name."""
    async with Walk(0, str) as walk:  # it stops a node that starts all the same
        with pytest.raises((ConfigurationError, StoreUnavailable), match=match):
            await walk.start_node(**options)


async def go(walk: Walk, times: int, admin_dsn: str) -> None:
    """Walk for a moment, with connections that break, then recover many times."""
    async with walk.load(pause=0.01):
        await asyncio.sleep(0.3)
        walk.done["cut"] += 1
        await query(admin_dsn, CUT)
        await asyncio.sleep(0.3)
    await walk.healed()
    await recover(walk, times)
