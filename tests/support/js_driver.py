"""``JSDriver`` and ``JSClient``: the real socket.io-client, many sockets in one Node.js process.

For example:

    async with JSDriver(modules, "node") as js:
        client = await js.connect(node.url, version="4-7", auth={"rooms": ["a"]})
        assert (await client.rejoin())["recovered"]
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from support.json_values import pack, unpack

VERSIONS = ("4-6", "4-7", "4-8")  # 4.6.0, 4.7.5 and the newest 4.8.x: see js/package.json
TIMEOUT = 20.0  # seconds until a test that waits in vain fails; no test measures by it
Message = dict[str, Any]


class DriverError(AssertionError):
    """The node process ended, or a command failed there; holds what it wrote to stderr."""


class JSClient:
    """One socket. Its messages wait in `inbox`, in order, until a test takes them."""

    def __init__(self, driver: JSDriver, name: str) -> None:
        self.name = name
        self.inbox: collections.deque[Message] = collections.deque()
        self._driver = driver
        self._news = asyncio.Condition()

    async def _put(self, message: Message) -> None:
        async with self._news:
            self.inbox.append(message)
            self._news.notify_all()

    async def take(self, wanted: Callable[[Message], bool], what: str, timeout: float = TIMEOUT) -> Message:
        """Remove and return the first message that is wanted. The others stay."""
        try:
            async with asyncio.timeout(timeout), self._news:
                while True:
                    self._driver.check()
                    for message in self.inbox:
                        if wanted(message):
                            self.inbox.remove(message)
                            return message
                    await self._news.wait()
        except TimeoutError:
            raise DriverError(
                f"{self.name}: no {what} in {timeout} s; has {list(self.inbox)[-20:]}\n{self._driver.stderr()}"
            ) from None

    async def wait_for(self, kind: str, timeout: float = TIMEOUT, **like: Any) -> Message:
        """Take the next message of a kind: connect, disconnect, connect_error, event, upgrade."""
        like["type"] = kind
        return await self.take(lambda m: like.items() <= m.items(), f"{like}", timeout)

    async def connected(self, timeout: float = TIMEOUT) -> Message:
        """The next `connect`: sid, pid, offset, recovered, transport, url."""
        return await self.wait_for("connect", timeout)

    async def refused(self, timeout: float = TIMEOUT) -> Message:
        return await self.wait_for("connect_error", timeout, final=True)

    async def event(self, name: str, timeout: float = TIMEOUT) -> Message:
        return await self.wait_for("event", timeout, name=name)

    async def events_until(self, last: str, timeout: float = TIMEOUT) -> list[tuple[str, list]]:
        """Take all events up to the one named `last`, which is not returned: (name, args).

        An offset is not part of args here: those of stored events are checked to be there, and to
        be what the client would send in a reconnect.
        """
        found: list[tuple[str, list]] = []
        while (message := await self.wait_for("event", timeout))["name"] != last:
            found.append((message["name"], stored_args(message)))
        return found

    async def do(self, command: str, **options: Any) -> Any:
        return await self._driver.command(command, id=self.name, **options)

    async def connect(self) -> Message:
        await self.do("connect")
        return await self.connected()

    async def disconnect(self) -> None:
        """The application's own `socket.disconnect()`: ends the session."""
        await self.do("disconnect")
        await self.wait_for("disconnect", reason="io client disconnect")

    async def cut(self, how: str = "drop") -> str:
        """Lose the connection and return the client's reason. The client then comes back by itself.

        drop: `engine.close()`. abort: the TCP connection is reset. silence: the old connection
        stays open and answers nothing, and the client opens a new one.
        """
        await self.do(how)
        return str((await self.wait_for("disconnect"))["reason"])

    async def rejoin(self, how: str = "drop", url: str | None = None) -> Message:
        """Lose the connection and wait for the return, to another node if an address is given."""
        if url:
            await self.move_to(url)
        await self.cut(how)
        return await self.connected()

    async def away(self, how: str = "drop") -> None:
        """Lose the connection and stay away until `back()`."""
        await self.do("reconnection", on=False)
        await self.cut(how)

    async def back(self, url: str | None = None) -> Message:
        if url:
            await self.move_to(url)
        await self.do("reconnection", on=True)
        return await self.connect()

    async def move_to(self, url: str) -> None:
        await self.do("set-url", url=url)

    async def open(self) -> None:
        """Open the connection, and join no namespace over it. Its end is a message `close`."""
        await self.do("open")

    async def stall(self) -> None:
        """Read nothing more from the websocket, until `flow`."""
        await self.do("stall")

    async def flow(self) -> None:
        await self.do("flow")

    async def emit(self, event: str, *args: Any) -> None:
        await self.do("emit", event=event, args=pack(list(args)))

    async def send(self, event: str, *args: Any) -> Any:
        """Emit by the client's queue, which sends again what is not acknowledged. Return the acknowledgement."""
        return unpack(await self.do("send", event=event, args=pack(list(args))))

    async def call(self, event: str, *args: Any) -> Any:
        """Emit, and return what the server's handler returned."""
        values = unpack(await self.do("emit", event=event, args=pack(list(args)), ack=True))
        return values[0] if len(values) == 1 else values

    async def state(self) -> Message:
        return dict(await self.do("get-state"))

    async def stats(self, **expected: int) -> Message:
        """Compare the counted events with those sent: received, duplicated, inverted, missing."""
        return dict(await self.do("stats", expected=expected))

    async def same_order_as(self, other: JSClient) -> Message:
        return dict(await self.do("compare", other=other.name))

    async def churn(self, drops: int, timeout: float = 300.0, **options: Any) -> Message:
        """Cut `drops` times, each after the return from the last one; options as in driver.mjs."""
        await self.do("churn", drops=drops, **options)
        return await self.wait_for("churned", timeout)


def stored_args(message: Message) -> list:
    """The arguments of an event without its offset, which must be there and be remembered."""
    *args, offset = unpack(message["args"])
    assert isinstance(offset, str) and offset == message["offset"], message
    return args


class JSDriver:
    def __init__(self, modules: Path, node: str = "node") -> None:
        """:param modules: the directory of driver.mjs, with its node_modules installed."""
        self._argv = (node, str(modules / "driver.mjs"))
        self._names = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._requests = itertools.count(1)
        self._clients: dict[str, JSClient] = {}
        self._stderr: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 28
        )
        for reader in (self._read, self._read_stderr):
            self._tasks.append(asyncio.create_task(reader(), name=f"jsdriver.{reader.__name__}"))
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(*self._tasks)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stderr(self) -> str:
        return "".join(self._stderr)

    def check(self) -> None:
        if self._process.returncode is not None:
            raise DriverError(f"node ended with {self._process.returncode}\n{self.stderr()}")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not line.endswith(b"\n"):  # it was ended while it wrote
                break
            message = json.loads(line)
            if message["type"] != "reply":
                await self._clients[message["id"]]._put(message)
            elif not (reply := self._replies.pop(message["rid"])).cancelled():
                if "error" in message:
                    reply.set_exception(DriverError(message["error"]))
                else:
                    reply.set_result(message["value"])
        await self._process.wait()
        for client in self._clients.values():  # those who wait learn that there is nothing more
            async with client._news:
                client._news.notify_all()
        for reply in self._replies.values():
            reply.cancel()

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._stderr.append(line.decode())

    async def command(self, command: str, **options: Any) -> Any:
        self.check()
        assert self._process.stdin is not None
        rid = next(self._requests)
        reply = self._replies[rid] = asyncio.get_running_loop().create_future()
        line = json.dumps({"cmd": command, "rid": rid, **options})
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(TIMEOUT):
            return await reply

    async def create(self, url: str = "", **options: Any) -> JSClient:
        """Make a client that is not connected yet.

        :param options: version, namespace, auth, auth_function (returns that value), parser
            ("msgpack"), count (numbered events are tallied, not reported), acks (event -> the list
            of answers, "echo" or "none"), on (a client: another namespace on its connection),
            options (those of socket.io-client).
        """
        if isinstance(on := options.get("on"), JSClient):
            options["on"] = on.name
        client = JSClient(self, f"client-{next(self._names)}")
        self._clients[client.name] = client
        await client.do("create", url=url, **options)
        return client

    async def connect(self, url: str = "", **options: Any) -> JSClient:
        """Make a client, connect it, and take its `connect` message."""
        client = await self.create(url, **options)
        await client.connect()
        return client
