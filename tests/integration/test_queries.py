"""Every named query is one that the migrated tables take."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from sio_pg_adapter import migrate
from sio_pg_adapter.store.queries import Queries


@pytest.mark.parametrize("schema", ["public", 'we"ird; drop', "it's $$ \\"])
async def test_every_named_query_prepares(pg_owner_dsn, schema):
    if schema != "public":
        await asyncio.to_thread(migrate.upgrade, pg_owner_dsn, schema=schema)
    connection = await asyncpg.connect(pg_owner_dsn)
    try:
        queries = Queries(schema)
        for name in queries:
            await connection.prepare(queries[name])
    finally:
        await connection.close()
