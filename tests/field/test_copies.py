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

from field.servers import CONNECTIONS, make_log, query, terminate
from field.walk import Walk
from sio_pg_adapter.embedded import EmbeddedPostgres
from support.nodes import Node
from support.pgbouncer import pgbouncer
from support.proxy import Proxy
from support.replicas import REPLICATED, copy_files, copy_into, prepared, shut_down
from support.roles import node_dsn

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own


SOON = "server_login_retry = 0.5"
"""A setting of PgBouncer. By default it waits for 15 s before it connects again to a server that was away."""


class Copies:
    """A server and a copy of it, under one name, which change places."""

    def __init__(self, programs: Path, *, pooled: bool) -> None:
        self.pooled = pooled
        self.server, self.copy = prepared(REPLICATED), prepared(REPLICATED)
        self.lost = 0
        self.way = Proxy(node_dsn(self.server.dsn()))
        self._programs = programs

    async def options(self, stack: contextlib.ExitStack) -> dict[str, str]:
        """Return the options of the nodes. A pooler runs until the stack is left."""
        if not self.pooled:
            return {"dsn": self.way.dsn}
        # in a thread: it waits for an answer, which comes through the proxy
        dsn = await asyncio.to_thread(stack.enter_context, pgbouncer(self.way.dsn, "transaction", SOON))
        return {"dsn": dsn, "listen_dsn": self.way.dsn}

    async def back_up(self) -> None:
        await asyncio.to_thread(copy_into, self.copy, self.server, self._programs, standby=False)

    async def back_up_files(self) -> None:
        """As :meth:`back_up`, by files, while the server is stopped."""
        await asyncio.to_thread(shut_down, self.server)
        await asyncio.to_thread(copy_files, self.copy, self.server)
        await asyncio.to_thread(self.server.start)

    def use_copy(self) -> None:
        """From here on new connections lead to the copy."""
        self.way.lead_to(node_dsn(self.copy.dsn()))
        self.server, self.copy = self.copy, self.server

    async def retire(self, walk: Walk) -> None:
        """Write the log of the server that was used before, and stop it."""
        await terminate(self.copy)
        self.lost += 1
        await walk.write_log(f"lost {self.lost}", self.copy.admin_dsn("app"))
        await asyncio.to_thread(shut_down, self.copy)

    def stop(self) -> None:
        for server in (self.server, self.copy):
            server.stop()


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


def connections(node: Node) -> dict[str, int]:
    """Return the backends of a node's connections."""
    database, listener = node.manager.database, node.manager.node.listener
    kept = {"writer": database.writer._connection, "reader": database.reader._connection}
    return {name: c.get_server_pid() for name, c in {**kept, "listener": listener._connection}.items() if c}


async def cut(server: EmbeddedPostgres, pid: int) -> bool:
    """End a backend. Return whether the server had it."""
    [row] = await query(server.admin_dsn(), "SELECT pg_terminate_backend($1)", pid)
    return bool(row[0])


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
