"""The network falls silent at a statement of an append, a move, a claim and a LISTEN, in one direction.

No connection is closed, and no answer comes. In one case only the connection of that statement falls silent. In the
other the whole host does, and is also silent to new connections. A statement may arrive after all, when its node has
long made another connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from field.servers import keep_sessions
from field.silence import Direction, Trap
from field.walk import HEAL_WAIT, LONG, ROOMS, Walk
from sio_pg_adapter import NoAnswer, StoreUnavailable

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own

Operation = Callable[[Walk], Awaitable[Any]]

REMEMBERED = 3
"""How many events a node has in memory. What a client missed besides them is read from the log, in pages."""


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
    client.stay_away()
    for _ in range(REMEMBERED + 1):
        await walk.emit(walk.nodes[1])
    client.come_back()
    await client.connected.wait()


async def take_over(walk: Walk) -> None:
    walk.clients[0].vanish()
    await walk.emit(walk.nodes[1])
    await walk.clients[0].connected.wait()


async def listen(walk: Walk) -> None:
    """The node replaces its connection that listens."""
    listener = walk.nodes[0].manager.node.listener
    before = listener.reconnects
    listener.renew()
    async with asyncio.timeout(HEAL_WAIT):
        while listener.reconnects == before or not listener.connected:
            await asyncio.sleep(0.01)


PLACES = 3
"""In a short run, how many statements and directions of each operation fall silent. In a long one all of them do."""

SHORT, LONGER = [append, append_batch, move, claim, listen], [move_members, take_over]


async def attempt(walk: Walk, operation: Operation) -> None:
    walk.done[operation.__name__] += 1
    with contextlib.suppress(StoreUnavailable, NoAnswer):
        await operation(walk)


async def fall_silent(
    walk: Walk, trap: Trap, operation: Operation, at: int, direction: Direction, *, listens: bool
) -> None:
    whole = walk.dice.random() < 0.3
    trap.arm(at, direction, whole=whole, listens=listens)
    trying = asyncio.create_task(attempt(walk, operation), name=operation.__name__)
    await asyncio.wait({trying, asyncio.create_task(trap.sprung.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if whole and trap.sprung.is_set():
        walk.done["host"] += 1
        await walk.broken(walk.nodes[0])
        await move_away(walk)
    trap.heal()
    trap.sprung.set()
    async with asyncio.timeout(HEAL_WAIT):
        await trying
    trap.deliver()  # the node has done without it
    await walk.healed()


async def move_away(walk: Walk) -> None:
    """A client of the silent node goes to the other one, which takes its session over."""
    client, before = walk.clients[0], walk.clients[0].recoveries
    choose, client.choose = client.choose, lambda: walk.nodes[1]
    client.vanish()
    async with asyncio.timeout(HEAL_WAIT):
        while client.recoveries == before:
            await asyncio.sleep(0.01)
    client.choose = choose
    client.drop()


async def silence_listener(walk: Walk, trap: Trap) -> None:
    """The connection that listens falls silent. The node can emit, but hears nothing."""
    trap.silence_listeners()
    await walk.broken(walk.nodes[0])
    await move_away(walk)
    trap.heal()
    await walk.healed()


@pytest.fixture
async def trap(pg_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Trap]:
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", REMEMBERED)
    monkeypatch.setattr("sio_pg_adapter.store.sessions.CARRIED_EVENTS", 0)
    async with Trap(pg_dsn).running() as trap:
        yield trap


@pytest.mark.parametrize("given", ["dsn", "pool"])
async def test_silence(seconds: float, seed: int, trap: Trap, pg_dsn: str, pg_owner_dsn: str, given: str) -> None:
    """The connections of a pool of the application have no time limits of their own."""
    await keep_sessions(pg_owner_dsn)
    async with contextlib.AsyncExitStack() as stack:
        options: dict[str, Any] = {"dsn": trap.dsn}
        if given == "pool":
            options = {"pool": await asyncpg.create_pool(trap.dsn, min_size=0, max_size=8)}
            stack.callback(options["pool"].terminate)
        walk = await stack.enter_async_context(Walk(seed, lambda: pg_owner_dsn))
        await walk.start([options, {"dsn": pg_dsn}], clients=3)
        for i, client in enumerate(walk.clients[:2]):
            client.choose = lambda i=i: walk.nodes[i]
            client.drop()
        await walk.healed()
        operations = [*SHORT, *LONGER] if seconds >= LONG else SHORT
        async with walk.load(pause=0.3, transactions=False, moves=False):
            await silence_listener(walk, trap)
            for operation in operations:
                listens = operation is listen and given == "dsn"  # those of a pool are not told apart
                trap.arm(None, listens=listens)
                await attempt(walk, operation)
                places = list(itertools.product(range(1, trap.count + 1), Direction))
                if seconds < LONG:
                    places = walk.dice.sample(places, min(PLACES, len(places)))
                for at, direction in places:
                    await fall_silent(walk, trap, operation, at, direction, listens=listens)
        await walk.judge(pg_owner_dsn)
