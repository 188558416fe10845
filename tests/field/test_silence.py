"""The network falls silent at a statement of an append, of a move and of a claim, in one direction.

No connection is closed, and no answer comes. In one case only the connection of that statement falls silent. In the
other the whole host does, and is also silent to new connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from field.servers import keep_sessions
from field.silence import Direction, Trap
from field.walk import LONG, ROOMS, Walk
from sio_pg_adapter import NoAnswer, StoreUnavailable

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own

Operation = Callable[[Walk], Awaitable[Any]]


async def append(walk: Walk) -> None:
    await walk.emit(walk.nodes[0], room=ROOMS[0])


async def append_batch(walk: Walk) -> None:
    await asyncio.gather(*(walk.emit(walk.nodes[0], room=ROOMS[:2]) for _ in range(3)))


async def move(walk: Walk) -> None:
    sid, room = walk.clients[0].sid, walk.dice.choice(ROOMS)
    await walk.nodes[0].sio.leave_room(sid, room)
    await walk.nodes[0].sio.enter_room(sid, room)


async def move_members(walk: Walk) -> None:
    await walk.nodes[0].sio.sockets_leave(ROOMS[1], ROOMS[2])
    await walk.nodes[0].sio.sockets_join(ROOMS[1], ROOMS[2])


async def claim(walk: Walk) -> None:
    client = walk.clients[0]
    client.drop()
    await walk.emit(walk.nodes[1])
    await client.connected.wait()


async def take_over(walk: Walk) -> None:
    walk.clients[0].vanish()
    await walk.emit(walk.nodes[1])
    await walk.clients[0].connected.wait()


SHORT, LONGER = [append, append_batch, move, claim], [move_members, take_over]


async def attempt(walk: Walk, operation: Operation) -> None:
    walk.done[operation.__name__] += 1
    with contextlib.suppress(StoreUnavailable, NoAnswer):
        await operation(walk)


async def fall_silent(walk: Walk, trap: Trap, operation: Operation, at: int, direction: Direction) -> None:
    whole = walk.dice.random() < 0.3
    trap.arm(at, direction, whole=whole)
    trying = asyncio.create_task(attempt(walk, operation), name=operation.__name__)
    await asyncio.wait({trying, asyncio.create_task(trap.sprung.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if whole and trap.sprung.is_set():
        walk.done["host"] += 1
        await walk.broken(walk.nodes[0])
    trap.heal()
    trap.sprung.set()
    await trying
    await walk.healed()


async def silence_listener(walk: Walk, trap: Trap) -> None:
    """The connection that listens falls silent. The node can emit, but hears nothing."""
    trap.silence_listeners()
    await walk.broken(walk.nodes[0])
    trap.heal()
    await walk.healed()


@pytest.fixture
async def trap(pg_dsn: str) -> AsyncIterator[Trap]:
    async with Trap(pg_dsn).running() as trap:
        yield trap


async def test_silence(seconds: float, seed: int, trap: Trap, pg_dsn: str, pg_owner_dsn: str) -> None:
    await keep_sessions(pg_owner_dsn)
    async with Walk(seed, lambda: pg_owner_dsn) as walk:
        await walk.start([{"dsn": trap.dsn}, {"dsn": pg_dsn}], clients=3)
        for i, client in enumerate(walk.clients[:2]):
            client.choose = lambda i=i: walk.nodes[i]
            client.drop()
        await walk.healed()
        operations = [*SHORT, *LONGER] if seconds >= LONG else SHORT
        async with walk.load(pause=0.3, transactions=False, moves=False):
            await silence_listener(walk, trap)
            for operation in operations:
                trap.arm(None)
                await attempt(walk, operation)
                for at in range(1, trap.count + 1):
                    for direction in Direction:
                        await fall_silent(walk, trap, operation, at, direction)
        await walk.judge(pg_owner_dsn)
