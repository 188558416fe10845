"""``Served``, ``uvicorn`` and ``aiohttp``: an application in a process group of its own, as a shell starts it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from support.http_request import request

TESTS = Path(__file__).parents[1]
TIMEOUT = 60.0  # seconds, for what takes five on an idle machine


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


class Served:
    """`python -m COMMAND`, for the time of an `async with`."""

    def __init__(self, dsn: str, *command: str, port: int, path: Path = TESTS, tls: bool = False, **env: str) -> None:
        """:param path: the directory to run it in."""
        self._path = path
        self.port = port
        self._tls = tls
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        self._command = (sys.executable, "-m", *command)
        self._env = {**os.environ, "SIO_PG_DSN": dsn, "PYTHONUNBUFFERED": "1", **env}

    async def __aenter__(self) -> Self:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it must not have asyncio's pipes
            self._command,
            cwd=self._path,
            env=self._env,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )
        async with asyncio.timeout(TIMEOUT):
            while not await self._answers():
                assert self._process.poll() is None, self.output()
                await asyncio.sleep(0.05)
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _answers(self) -> bool:
        try:
            return bool((await self.get("/health"))["ok"])
        except (OSError, asyncio.IncompleteReadError):
            return False

    async def get(self, path: str) -> Any:
        return json.loads((await request(self.port, "GET", path, tls=self._tls))[1])

    async def post(self, path: str) -> None:
        status, _ = await request(self.port, "POST", path, tls=self._tls)
        assert status == 200, self.output()

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    async def stop(self) -> int:
        """As a service manager does: SIGTERM to the main process; returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait, TIMEOUT)

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.stop()
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._output.close()


def uvicorn(dsn: str, app: str, *more: str) -> Served:
    port = free_port()
    # without the last one it waits for all polls to end before the application hears of the shutdown
    options = ("--port", str(port), "--ws", "websockets-sansio", "--timeout-graceful-shutdown", "1")
    command = ("uvicorn", f"support.apps.{app}:app", *options, *more)
    return Served(dsn, *command, port=port)


def aiohttp(dsn: str) -> Served:
    port = free_port()
    return Served(dsn, "support.apps.aiohttp_app", str(port), port=port)
