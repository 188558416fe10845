"""Steps on the servers of a walk."""

from __future__ import annotations

import asyncio

import asyncpg

from sio_pg_adapter.demo.history import KEEP
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import upgrade
from support.roles import admit_nodes

CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('app', 'siopg_node')"
"""Ends the connections of nodes and of the application."""


async def query(dsn: str, sql: str, *args: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql, *args)
    finally:
        await connection.close()


async def keep_sessions(dsn: str) -> None:
    """Keep the sessions and rooms that end from now on, for the judgement."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(KEEP)
    finally:
        await connection.close()


async def make_log(server: EmbeddedPostgres) -> None:
    """Start a server with the tables of a log."""
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(upgrade, server.dsn())
    await asyncio.to_thread(admit_nodes, server)
    await keep_sessions(server.dsn())


async def terminate(server: EmbeddedPostgres) -> None:
    """End all connections of nodes and of the application, and wait until they are gone."""
    while await query(server.admin_dsn(), CONNECTIONS):
        await asyncio.sleep(0.02)
