"""``JSServer``: the Socket.IO server of Node.js.

For example:

    async with JSServer(modules, "node", recovery={"maxDisconnectionDuration": 60_000}) as server:
        await client.connect(server.url)
        await server.emit("e", 1)
"""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any, Self

from support.js_driver import TIMEOUT, DriverError
from support.json_values import pack, unpack


class JSServer:
    def __init__(self, modules: Path, node: str, recovery: dict[str, Any] | None) -> None:
        """:param recovery: Node's option connectionStateRecovery, in its units; None: off."""
        self._argv = (node, str(modules / "server.mjs"), json.dumps({"recovery": recovery}))
        self._requests = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Any]] = {}

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=pipe)
        assert self._process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            self.url = f"http://127.0.0.1:{json.loads(await self._process.stdout.readline())['port']}"
        self._reader = asyncio.create_task(self._read(), name="jsserver")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            message = json.loads(line)
            reply = self._replies.pop(message["rid"])
            if "error" in message:
                reply.set_exception(DriverError(message["error"]))
            else:
                reply.set_result(unpack(message["value"]))
        for reply in self._replies.values():
            reply.set_exception(DriverError("the server has ended"))

    async def _command(self, command: str, **options: Any) -> Any:
        assert self._process.stdin is not None
        rid = next(self._requests)
        reply = self._replies[rid] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"cmd": command, "rid": rid, **options}).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(TIMEOUT):
            return await reply

    async def emit(self, event: str, *args: Any, **options: Any) -> None:
        """:param options: namespace, room, volatile."""
        await self._command("emit", event=event, args=pack(list(args)), **options)

    async def ask(self, event: str, *args: Any, **options: Any) -> list[Any]:
        """Return the answers of the clients."""
        answers: list[Any] = await self._command("ask", event=event, args=pack(list(args)), **options)
        return answers

    async def cut(self) -> None:
        """Close all connections as a network fault does. The clients come back."""
        await self._command("cut")

    async def disconnect(self, namespace: str = "/") -> None:
        """Disconnect all clients and end their sessions."""
        await self._command("disconnect", namespace=namespace)

    async def noted(self, count: int = 1, **like: Any) -> list[dict[str, Any]]:
        """Wait until its handlers have noted so many entries with these values."""
        found: list[dict[str, Any]] = await self._command("notes", like=like, count=count)
        return found
