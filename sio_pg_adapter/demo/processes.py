"""The processes of the demo: two server nodes, which restart when they are killed, and the emitter of events."""

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
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.failures import translated
from sio_pg_adapter.store.kept import Connection

from .history import KEEP, HistoryWriter, event_id

EVENTS_PER_SECOND = 10
"""The pace of the numbered events."""

_START_TIMEOUT = 30.0
"""Seconds within which a node must serve. One is normal."""

_SHOWN_LINES = 40
"""Number of lines of a node's output that are kept for an error."""


class NodeFailed(SioPgError):
    """A node ended before it served, or was not ready in time.

    :ivar output: the last lines of its output.
    """

    def __init__(self, message: str, output: str) -> None:
        super().__init__(f"{message}. Its output is above")
        self.output = output


class NodeProcess:
    """A server process that is started again when it ends."""

    def __init__(self, name: str, dsn: str, origins: tuple[str, ...], restart_after: float) -> None:
        self.name = name
        self.port = _free_port()  # stays the same after a restart, because clients know it
        self.up = asyncio.Event()
        self.output: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._restart_after = restart_after
        self._command = [sys.executable, "-m", f"{__package__}.node", name, str(self.port), *origins]
        self._env = {**os.environ, "SIO_PG_DSN": dsn}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.up.clear()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def run(self) -> None:
        """Keep the process running until cancelled.

        :raises NodeFailed: its first start failed. A later start is repeated.
        """
        if not await self._run_once():
            raise self._failure("did not start")
        while True:
            await asyncio.sleep(self._restart_after)  # long enough to be seen
            await self._run_once()

    async def started(self) -> None:
        """Wait until the node serves.

        :raises NodeFailed: it did not in time.
        """
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                await self.up.wait()
        except TimeoutError:
            raise self._failure(f"is not ready after {_START_TIMEOUT:.0f} s") from None

    async def _run_once(self) -> bool:
        served = False
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._env,
            stdin=asyncio.subprocess.PIPE,  # the node ends when it closes
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # keeps Ctrl-C in a terminal away from the node
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

    def _failure(self, text: str) -> NodeFailed:
        return NodeFailed(f"node {self.name} {text}", "".join(self.output) or f"node {self.name} printed nothing")


class Cluster:
    """Two nodes, A and B, and an emitter that sends a numbered event ``tick`` to the room ``ticker``.

    :param dsn: the DSN of a migrated database, for the owner of the tables, who emits.
    :param node_dsn: the DSN of the same database, for the role of the nodes.
    :param origins: the origins of pages that may connect to the nodes.
    :param restart_after: seconds from the end of a node to its next start.
    :param restart_database: a function that restarts PostgreSQL and returns when it serves. It runs in a thread.
    :param history: where emits are written, and the log in the end.
    :ivar head: the number of the last tick.
    :ivar database_up: ``False`` while PostgreSQL restarts.
    """

    def __init__(
        self,
        dsn: str,
        node_dsn: str,
        *,
        origins: tuple[str, ...] = (),
        restart_after: float = 3.0,
        restart_database: Callable[[], None] | None = None,
        history: HistoryWriter | None = None,
    ) -> None:
        # This process serves no clients, so each tick reaches the nodes through the log.
        self._database = Database(dsn)
        self.nodes = {name: NodeProcess(name, node_dsn, origins, restart_after) for name in "AB"}
        self.head = 0
        self.history = history
        self.database_up = True
        self._restart_database = restart_database
        self._restart_requested = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(node.run(), name=f"sio-pg demo: node {node.name}") for node in self.nodes.values()
        ]
        try:
            await self.ready()
        except BaseException:  # also when cancelled
            await self._stop()
            raise
        self._tasks.append(asyncio.create_task(self._tick(), name="sio-pg demo: ticker"))
        if self._restart_database is not None:
            restarting = self._restart_on_request(self._restart_database)
            self._tasks.append(asyncio.create_task(restarting, name="sio-pg demo: PostgreSQL"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def ready(self) -> None:
        """Wait until both nodes serve.

        :raises NodeFailed: a node failed. An error of the emitter is raised as it is.
        """
        serving = asyncio.create_task(self._all_started(), name="sio-pg demo: start")
        try:
            done, _ = await asyncio.wait({serving, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when cancelled: Ctrl-C ends the demo here while it starts
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        for task in done:
            task.result()

    async def _all_started(self) -> None:
        for node in self.nodes.values():
            await node.started()

    def other(self, name: str) -> str:
        """Return the name of the node that is not ``name``."""
        return "B" if name == "A" else "A"

    def restart_database(self) -> None:
        """Request a restart of PostgreSQL. Ignored during a restart, and without ``restart_database``."""
        if self._restart_database is not None and self.database_up:
            self.database_up = False
            self._restart_requested.set()

    async def load(self) -> dict[str, Any]:
        """Return what a page shows: the number of the last tick, and the position of the snapshot that it is from.

        :raises StoreUnavailable: during a restart.
        """
        async with self._database.connection() as connection:
            with translated("the state of a page"):
                return dict(await connection.fetchrow("SELECT n, sio_position() AS position FROM demo_ticks"))

    async def end_history(self) -> None:
        """Write the log to the history, and close it."""
        if self.history is not None:
            async with self._database.connection() as connection:
                await self.history.write_log(connection)
            self.history.close()

    async def _restart_on_request(self, restart: Callable[[], None]) -> None:
        while True:
            await self._restart_requested.wait()
            self._restart_requested.clear()
            await asyncio.to_thread(restart)
            self.database_up = True

    async def _tick(self) -> None:
        # A transaction takes the next number and emits the tick, as in an application that emits its changes. So a
        # number is taken if and only if its tick is in the log, even if a restart leaves the outcome of a commit
        # unknown. A number that a client does not get is therefore a lost event.
        database = self._database
        await database.open()
        try:
            async with database.connection() as connection:
                await connection.execute("CREATE TABLE demo_ticks AS SELECT 0::bigint AS n")
                if self.history is not None:
                    await connection.execute(KEEP)
            while True:
                with contextlib.suppress(StoreUnavailable):  # during a restart
                    async with database.connection() as connection:
                        with translated("a tick"):
                            self.head = await _emit_next(connection)
                            if self.history is not None:
                                event = event_id("tick", [{"n": self.head}])
                                self.history.write("answer", event=event, outcome="stored")
                await asyncio.sleep(1 / EVENTS_PER_SECOND)  # the pace of the demo
        finally:
            await database.close()

    async def _stop(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for task, result in zip(self._tasks, results, strict=True):
            if isinstance(result, Exception) and not isinstance(result, NodeFailed):  # which ready() raises
                print(f"{task.get_name()}: {result}", file=sys.stderr)


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
