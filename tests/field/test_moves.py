"""A node moves to another server at a chosen moment, while the one that it leaves still runs.

The other server is a copy that lacks nothing, so no client has to get a new session. Each step breaks one connection
of each node, and the rest has to follow by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from field.copies import Copies, cut
from field.servers import make_log, query
from field.walk import HEAL_WAIT, Walk
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.store.kept import is_closed

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own

NEVER = 3600.0
SOON = 0.2
"""Seconds between two probes."""


@contextlib.asynccontextmanager
async def locked(server: EmbeddedPostgres, lock: str) -> AsyncIterator[None]:
    """Hold a lock in the application's database."""
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute(f"BEGIN; LOCK TABLE {lock}")
        yield
    finally:
        await connection.close()


async def wait_for_lock(server: EmbeddedPostgres, table: str, name: str, count: int) -> None:
    """Wait until so many backends with this application_name wait for a lock on a table."""
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND relation = $1::text::regclass AND application_name = $2"
    )
    async with asyncio.timeout(HEAL_WAIT):
        while (await query(server.admin_dsn("app"), waiting, table, name))[0][0] < count:
            await asyncio.sleep(0.01)


async def cut_each(walk: Walk, server: EmbeddedPostgres, name: str) -> None:
    """Break this connection of each node, and wait until the node has seen it."""
    for node in walk.nodes:
        database, listener = node.manager.database, node.manager.node.listener
        connection = listener._connection if name == "listener" else getattr(database, name)._connection
        assert await cut(server, connection.get_server_pid())
        while not is_closed(connection):
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def moving(walk: Walk) -> AsyncIterator[None]:
    """After the block, wait until each node follows another server than before."""
    followed = [(node.manager.database.followed, node.manager.database.followed.name) for node in walk.nodes]
    yield
    async with asyncio.timeout(HEAL_WAIT):
        while not all(f.confirmed and f.name not in (None, former) for f, former in followed):
            await asyncio.sleep(0.01)


async def appends(walk: Walk, copies: Copies) -> list[int]:
    """The answer to an append comes when the node follows another server, which does not have it."""
    former = copies.server
    async with locked(former, "sio_lock IN EXCLUSIVE MODE"):
        emitting = [asyncio.create_task(walk.emit(node), name="emit") for node in walk.nodes]
        await wait_for_lock(former, "sio_lock", "sio_pg_adapter", len(emitting))
        copies.use_copy()
        async with moving(walk):
            await cut_each(walk, former, "listener")
    return await asyncio.gather(*emitting)


async def has_idle_connections(walk: Walk, copies: Copies) -> list[int]:
    """The pool of each node has idle connections, which lead to the former server."""
    for node in walk.nodes:
        async with node.manager.database.connection(), node.manager.database.connection():
            pass
    former = copies.server
    copies.use_copy()
    async with moving(walk):
        await cut_each(walk, former, "writer")
        return [await walk.emit(node) for node in walk.nodes]


async def begins_to_listen(walk: Walk, copies: Copies) -> list[int]:
    """A connection begins to listen on the former server while its node moves."""
    former = copies.server
    async with locked(former, "sio_nodes IN SHARE MODE"):
        await cut_each(walk, former, "listener")
        await wait_for_lock(former, "sio_nodes", "sio_pg_adapter listen", len(walk.nodes))
        copies.use_copy()
        async with moving(walk):
            await cut_each(walk, former, "reader")
            await cut_each(walk, former, "writer")
            return [await walk.emit(node) for node in walk.nodes]


Step = Callable[[Walk, Copies], Awaitable[list[int]]]
"""Returns the numbers of the events that it emitted."""


@pytest.mark.parametrize(
    ("step", "probes"), [(appends, NEVER), (has_idle_connections, NEVER), (begins_to_listen, SOON)]
)
async def test_moves(seed: int, programs: Path, monkeypatch: pytest.MonkeyPatch, step: Step, probes: float) -> None:
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_INTERVAL", probes)
    copies = Copies(programs, pooled=False)
    try:
        await make_log(copies.server)
        async with copies.way.running(), Walk(seed, copies.server.dsn) as walk:
            await walk.start([{"dsn": copies.way.dsn}] * 2, clients=4)
            for i, client in enumerate(walk.clients):
                client.choose = lambda i=i: walk.nodes[i % 2]
                client.drop()
            await walk.healed()
            await copies.back_up()
            await asyncio.to_thread(copies.copy.start)
            emitted = await step(walk, copies)
            async with asyncio.timeout(HEAL_WAIT):
                while not all(client.got.issuperset(emitted) for client in walk.clients):
                    await asyncio.sleep(0.01)
            await walk.judge(copies.server.admin_dsn("app"))
    finally:
        copies.stop()
