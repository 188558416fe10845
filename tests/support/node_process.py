"""``NodeProcess``: a node in a process of its own, which a test starts, controls and kills.

Starting and ending are plain calls, so that a node can be a module's fixture while each test has
its own event loop. A test controls a node with `await node.control("emit", event=..., ...)`.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from support.http_request import request
from support.json_values import pack, unpack

TESTS = Path(__file__).parents[1]
START_TIMEOUT = 120.0  # seconds, on a machine that is busy with other tests
PATIENCE = 30.0  # seconds until a test that waits in vain for a node fails


class NodeError(AssertionError):
    pass


class ControlError(Exception):
    """An operation raised in the node; `kinds` names the classes of what it raised."""

    def __init__(self, kinds: list[str], message: str) -> None:
        super().__init__(f"{kinds[0]}: {message}")
        self.kinds = kinds
        self.message = message


class NodeProcess:
    def __init__(self, dsn: str, **config: Any) -> None:
        """:param config: the fields of `node_program.Config`."""
        self.config = {"dsn": dsn, **config}
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spawn(self) -> Self:
        """Start without waiting, so that several nodes start at the same time."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.node_program", json.dumps(self.config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=TESTS,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        return self

    def wait_ready(self) -> Self:
        assert self._process and self._process.stdout
        until = time.monotonic() + START_TIMEOUT
        ready, _, _ = select.select([self._process.stdout], [], [], until - time.monotonic())
        line = self._process.stdout.readline() if ready else b""
        if not line:
            problem = self.stderr()
            self.kill()
            raise NodeError(f"the node did not start:\n{problem}")
        self.port = int(json.loads(line)["port"])
        return self

    def start(self) -> Self:
        return self.spawn().wait_ready()

    def stderr(self) -> str:
        try:
            self._stderr.seek(0)
            return self._stderr.read().decode(errors="replace")
        except ValueError:  # the node was ended, maybe in another thread a moment ago
            return ""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL. Neither clients nor the database get a goodbye."""
        self._end(signal.SIGKILL)

    def terminate(self) -> str:
        """Send SIGTERM, as a deployment does. Return stderr once the process has ended."""
        return self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Send SIGSTOP. The process lives and does not answer."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> str:
        if self._process is None:
            return ""
        process, self._process = self._process, None
        process.send_signal(how)
        try:
            process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise NodeError(f"the node did not end:\n{self.stderr()}") from None
        finally:
            for pipe in (process.stdin, process.stdout):
                assert pipe
                pipe.close()
            text = self.stderr()
            self._stderr.close()
        return text

    async def control(self, op: str, **options: Any) -> Any:
        """Run an operation of node_operations.py in the node and return its value."""
        body = json.dumps({"op": op, **pack(options)}).encode()
        try:
            async with asyncio.timeout(PATIENCE):
                _, answer = await request(self.port, "POST", "/control", body)
        except (TimeoutError, OSError) as error:
            raise NodeError(f"{op} {str(options)[:300]}: {error!r}\n{self.stderr()}") from error
        result = json.loads(answer)
        if "error" in result:
            raise ControlError(result["error"], result["message"])
        return unpack(result["value"])

    async def emit(self, event: str, data: Any = None, **options: Any) -> None:
        await self.control("emit", event=event, data=data, **options)

    async def logged(self, count: int = 1, **like: Any) -> list[dict[str, Any]]:
        """Wait until the handlers have noted so many entries with these values."""
        found: list[dict[str, Any]] = await self.control("wait_log", like=like, count=count)
        return found

    async def errors(self) -> list[str]:
        found: list[str] = await self.control("errors")
        return found
