"""Connections that stay open while the server, the role or the application changes what they are good for.

Most of it closes no connection. Each node has to find out by itself, report it, and come back once the fault is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

from field.recoveries import CUT
from field.servers import keep_sessions, query
from field.walk import HEALTH_WAIT, Walk
from support.nodes import Node
from support.roles import NODE, grants

pytestmark = [pytest.mark.field, pytest.mark.timeout(0)]  # each of its waits has an end of its own

Fault = Callable[[Walk, str, str], Awaitable[None]]
"""Takes the walk, a DSN of the owner and one of a superuser."""


async def disturb_listener(node: Node, sql: str) -> None:
    """Run a statement on the connection that listens, and wait until the node has replaced it."""
    before = node.manager.node.listener.reconnects
    while True:
        try:
            await node.manager.node.listener._connection.execute(sql)
            break
        except (asyncpg.InterfaceError, AttributeError):  # the node is using it, or replacing it
            await asyncio.sleep(0.01)
    async with asyncio.timeout(HEALTH_WAIT):
        while node.manager.node.listener.reconnects == before:
            await asyncio.sleep(0.01)


async def listen_no_more(walk: Walk, owner_dsn: str, admin_dsn: str) -> None:
    await asyncio.gather(*(disturb_listener(node, "UNLISTEN *") for node in walk.nodes))


async def hold_no_lock(walk: Walk, owner_dsn: str, admin_dsn: str) -> None:
    await asyncio.gather(*(disturb_listener(node, "SELECT pg_advisory_unlock_all()") for node in walk.nodes))


async def lose_rights(walk: Walk, owner_dsn: str, admin_dsn: str) -> None:
    await query(owner_dsn, f"REVOKE INSERT ON sio_packets_0, sio_packets_1 FROM {NODE}")
    await walk.broken()
    await walk.stays_broken(0.5)
    connection = await asyncpg.connect(owner_dsn)
    try:
        await connection.execute(grants(NODE))
    finally:
        await connection.close()


async def only_read(walk: Walk, owner_dsn: str, admin_dsn: str) -> None:
    nodes = f"ALTER ROLE {NODE} IN DATABASE {conninfo_to_dict(owner_dsn)['dbname']}"
    await query(admin_dsn, f"{nodes} SET default_transaction_read_only = on")
    await query(admin_dsn, CUT)
    await walk.broken()
    await walk.stays_broken(0.5)
    await query(admin_dsn, f"{nodes} RESET default_transaction_read_only")


FAULTS: list[Fault] = [listen_no_more, hold_no_lock, lose_rights, only_read]


async def test_connections_that_are_not_fit_any_more(seconds, seed, pg_dsn, pg_owner_dsn, pg_admin_dsn):
    await keep_sessions(pg_owner_dsn)
    async with Walk(seed, lambda: pg_owner_dsn) as walk:
        await walk.start([{"dsn": pg_dsn}] * 2)
        for fault in walk.dice.sample(FAULTS, len(FAULTS)):
            walk.done[fault.__name__] += 1
            async with walk.load():
                await fault(walk, pg_owner_dsn, pg_admin_dsn)
                await walk.healed()
        await walk.judge(pg_owner_dsn)


async def test_a_session_that_holds_up_the_log(seconds, seed, pg_dsn, pg_owner_dsn):
    """Nobody emits, so only a probe can find out that nobody could."""
    await keep_sessions(pg_owner_dsn)
    async with Walk(seed, lambda: pg_owner_dsn) as walk:
        await walk.start([{"dsn": pg_dsn}] * 2)
        connection = await asyncpg.connect(pg_owner_dsn)
        try:
            await connection.execute("BEGIN; LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            await walk.broken()
            await walk.stays_broken(1)
        finally:
            await connection.close()
        async with walk.load():
            await walk.healed()
        walk.clients[0].drop()
        await walk.judge(pg_owner_dsn)


async def set_back(owner_dsn: str) -> None:
    """Set the sequence of the log as a script does that has looked in the wrong place, between two appends."""
    connection = await asyncpg.connect(owner_dsn)
    try:
        await connection.execute(
            "BEGIN; LOCK TABLE sio_lock IN EXCLUSIVE MODE;SELECT setval('sio_packets_offset_seq', 1, false); COMMIT"
        )
    finally:
        await connection.close()


async def test_a_sequence_that_is_set_back(seconds, seed, pg_dsn, pg_owner_dsn):
    """Nothing but the next append could notice, be it of one event or of a batch."""
    await keep_sessions(pg_owner_dsn)
    async with Walk(seed, lambda: pg_owner_dsn) as walk:
        await walk.start([{"dsn": pg_dsn}] * 2)
        for options in ({}, {"skip_sid": "nobody"}):
            await walk.healed()
            await set_back(pg_owner_dsn)
            n = await walk.emit(walk.nodes[0], **options)
            async with asyncio.timeout(HEALTH_WAIT):
                while not all(n in client.got for client in walk.clients):
                    await asyncio.sleep(0.01)
            walk.clients[0].drop()
        await walk.judge(pg_owner_dsn)
