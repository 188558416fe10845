"""A process that takes commands as JSON lines on its standard input, and answers each with a line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import install

LINE_LIMIT = 64 * 1024 * 1024
END_WAIT = 15.0  # seconds


class ChildError(Exception):
    """The output of a process that failed, or the error that it returned."""


class Child:
    """A child process, which ends when its standard input closes, even if this process is killed."""

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        self._command = command
        self._env = env or {}
        self._process: asyncio.subprocess.Process | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.hello: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    async def start(self) -> Self:
        """Start it, and wait for its first line."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": install.python_path(), **self._env},
            limit=LINE_LIMIT,
        )
        try:
            async with asyncio.timeout(30):
                self.hello = await self._line()
        except BaseException:
            await self.close()
            raise
        return self

    async def ask(self, op: str, timeout: float = 300.0, **options: Any) -> Any:
        """Have it do something; its answer.

        :param timeout: seconds.
        """
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"op": op, **options}).encode() + b"\n")
        async with asyncio.timeout(timeout):
            answer = await self._line()
        if "error" in answer:
            raise ChildError(f"{op}: {answer['error']}\n{self.stderr()}")
        return answer["value"]

    async def _line(self) -> dict[str, Any]:
        assert self._process
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise ChildError(f"{' '.join(self._command)[:200]} ended:\n{self.stderr()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-4000:]

    async def close(self) -> None:
        """End it. Safe twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        process.stdin.close()
        try:
            async with asyncio.timeout(END_WAIT):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if said := self.stderr().strip():
            lines = said.splitlines()
            print(f"  {self._command[1]} said, {len(lines)} lines, at the end: {lines[-1][:300]}", file=sys.stderr)
        self._stderr.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
