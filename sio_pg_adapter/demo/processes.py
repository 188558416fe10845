"""The demo's processes: two server nodes that come back when they are killed, and what emits to clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from sio_pg_adapter.emitter import emit_async
from sio_pg_adapter.errors import SioPgError, StoreUnavailable
from sio_pg_adapter.store.database import Connection, Database
from sio_pg_adapter.store.failures import translated

EVENTS_PER_SECOND = 10
_START_TIMEOUT = 30.0  # seconds; one is usual


class NodeFailed(SioPgError):  # noqa: N818 - it says what happened, as the others of its tree
    """A node ended before it served, or did not get that far in time. The message ends in what it printed."""


class Node:
    """One server process, started again whenever it ends."""

    def __init__(self, name: str, dsn: str, origins: tuple[str, ...], restart_after: float) -> None:
        self.name = name
        self.port = _free_port()  # the same after a restart: clients know it
        self.up = asyncio.Event()
        self.output: deque[str] = deque(maxlen=40)
        self._process: asyncio.subprocess.Process | None = None
        self._restart_after = restart_after
        self._command = [sys.executable, "-m", f"{__package__}.node", name, str(self.port), *origins]
        self._env = {**os.environ, "SIO_PG_DSN": dsn}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Kill the process (SIGKILL): it says goodbye to nobody."""
        self.up.clear()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def run(self) -> None:
        """Keep the process running until cancelled.

        :raises NodeFailed: its very first start failed; a later one is tried again.
        """
        if not await self._run_once():
            raise NodeFailed(self._told(f"node {self.name} did not start"))
        while True:
            await asyncio.sleep(self._restart_after)  # so that one sees it missing
            await self._run_once()

    async def started(self) -> None:
        """Wait until it serves.

        :raises NodeFailed: not in time.
        """
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                await self.up.wait()
        except TimeoutError:
            raise NodeFailed(self._told(f"node {self.name} is not ready after {_START_TIMEOUT:.0f} s")) from None

    async def _run_once(self) -> bool:
        served = False
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._env,
            stdin=asyncio.subprocess.PIPE,  # its end tells the node that we are gone
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for us; we end the nodes
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                if line == b"ready\n":
                    served = True
                    self.up.set()
                else:
                    self.output.append(line.decode(errors="replace"))
            await process.wait()
        finally:
            self.up.clear()
            process.stdin.close()
            try:
                async with asyncio.timeout(3):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        return served

    def _told(self, what: str) -> str:
        return f"{what}; it printed:\n{''.join(self.output) or '(nothing)'}"


class Cluster:
    """Two nodes, A and B, and a numbered event ``tick`` to the room ``ticker``, several times a second.

    :param dsn: a migrated database.
    :param origins: where pages that may connect to the nodes come from.
    :param restart_after: seconds from a node's end to its next start.
    :param restart_database: what restarts PostgreSQL, and returns when it serves again; it is called in a thread.
    :ivar head: the number of the last tick.
    :ivar database_up: whether PostgreSQL is not being restarted.
    """

    def __init__(
        self,
        dsn: str,
        *,
        origins: tuple[str, ...] = (),
        restart_after: float = 3.0,
        restart_database: Callable[[], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self.nodes = {name: Node(name, dsn, origins, restart_after) for name in "AB"}
        self.head = 0
        self.database_up = True
        self._restart_database = restart_database
        self._restart_asked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(node.run(), name=f"sio-pg demo: node {node.name}") for node in self.nodes.values()
        ]
        try:
            await self.ready()
        except BaseException:
            await self._end()
            raise
        self._tasks.append(asyncio.create_task(self._tick(), name="sio-pg demo: ticker"))
        if self._restart_database is not None:
            restarting = self._restart_when_asked(self._restart_database)
            self._tasks.append(asyncio.create_task(restarting, name="sio-pg demo: PostgreSQL"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def ready(self) -> None:
        """Wait until both nodes serve.

        :raises NodeFailed: one does not, or the emitter's error where that has ended.
        """
        serving = asyncio.gather(*(node.started() for node in self.nodes.values()))
        watched: list[asyncio.Future[Any]] = [serving, *self._tasks]
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        for ended in done:
            ended.result()

    def other(self, name: str) -> str:
        """Name the node that is not ``name``."""
        return "B" if name == "A" else "A"

    def restart_database(self) -> None:
        """Have PostgreSQL restarted. Nothing happens while that is under way, or where nothing can do it."""
        if self._restart_database is not None and self.database_up:
            self.database_up = False
            self._restart_asked.set()

    async def _restart_when_asked(self, restart: Callable[[], None]) -> None:
        while True:
            await self._restart_asked.wait()
            self._restart_asked.clear()
            await asyncio.to_thread(restart)
            self.database_up = True

    async def _tick(self) -> None:
        # As an application emits what it has changed: in that transaction. So a number is taken if and only if
        # its tick is in the log, also where a restart leaves open whether a commit took place; and so a number
        # that a client does not get is a packet lost. This process serves nobody: a tick reaches the nodes by
        # the log, like everything else.
        database = Database(self._dsn, pool=None, listen_dsn=None, schema="public")
        await database.open()
        try:
            async with database.connection() as connection:
                await connection.execute("CREATE TABLE demo_ticks AS SELECT 0::bigint AS n")
            while True:
                with contextlib.suppress(StoreUnavailable):  # restarted just now
                    async with database.connection() as connection:
                        with translated("a tick"):
                            self.head = await _emit_next(connection)
                await asyncio.sleep(1 / EVENTS_PER_SECOND)
        finally:
            await database.close()

    async def _end(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
        for task, ended in zip(self._tasks, await asyncio.gather(*self._tasks, return_exceptions=True), strict=True):
            if isinstance(ended, Exception):
                print(f"{task.get_name()}: {ended}", file=sys.stderr)


async def _emit_next(connection: Connection) -> int:
    async with connection.transaction():
        n: int = await connection.fetchval("UPDATE demo_ticks SET n = n + 1 RETURNING n")
        await emit_async(connection, "tick", {"n": n}, room="ticker")
    return n


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
