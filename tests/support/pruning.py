"""One pass of the pruner on a database of a test."""

from __future__ import annotations

from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.pruner import Pruned, prune


async def prune_once(dsn: str | None = None, *, schema: str = "public") -> Pruned:
    """Do one pass, as ``sio-pg prune`` does it."""
    database = Database(dsn, schema=schema)
    await database.open()
    try:
        return await prune(database)
    finally:
        await database.close()
