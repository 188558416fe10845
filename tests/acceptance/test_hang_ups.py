"""Every kind of client comes back after a connection that the server has closed, over each transport."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import socketio

from support.js_driver import VERSIONS
from support.python_client import TIMEOUT, quick_client

KINDS = ("async", "mixed")
CLIENTS = [*VERSIONS, "AsyncClient of python-socketio", "Client of python-socketio", "AsyncClient"]

# python-socketio's Client leaves the socket of a websocket that the server closed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

each_client = pytest.mark.parametrize("client_kind", CLIENTS)
each_transport = pytest.mark.parametrize("transport", ["websocket", "polling"])


class Python:
    """A client of python-socketio, which notes each of its connects in the test's loop."""

    def __init__(self, kind: str) -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"reconnection_delay": 0.05, "randomization_factor": 0}
        if kind == "AsyncClient":
            self.client: Any = quick_client()
        elif kind.startswith("Async"):
            self.client = socketio.AsyncClient(**options)
        else:
            self.client = socketio.Client(**options)
        self._connects: asyncio.Queue[str] = asyncio.Queue()
        self._is_async = isinstance(self.client, socketio.AsyncClient)
        self.url = ""

        def connected() -> None:
            with contextlib.suppress(RuntimeError):  # it comes back once more after the end of its test
                loop.call_soon_threadsafe(self._connects.put_nowait, self.client.get_sid())

        self.client.on("connect", connected)

    async def run(self, method: str, *args: Any, **options: Any) -> None:
        call = getattr(self.client, method)
        await (call(*args, **options) if self._is_async else asyncio.to_thread(call, *args, **options))

    async def connect(self, url: str, transport: str) -> str:
        self.url = url
        await self.run("connect", lambda: self.url, transports=[transport], wait_timeout=10)
        return await self.connected()

    async def connected(self) -> str:
        async with asyncio.timeout(TIMEOUT):
            return await self._connects.get()

    async def move_to(self, url: str) -> None:
        self.url = url


class JavaScript:
    """A client of socket.io-client."""

    def __init__(self, js: Any, version: str) -> None:
        self._js = js
        self._version = version

    async def connect(self, url: str, transport: str) -> str:
        self._client = await self._js.connect(url, version=self._version, options={"transports": [transport]})
        return (await self._client.state())["sid"]

    async def connected(self) -> str:
        return (await self._client.connected())["sid"]

    async def move_to(self, url: str) -> None:
        await self._client.move_to(url)


@pytest.fixture
async def connect(js) -> Any:
    clients: list[Python] = []

    async def make(kind: str, url: str, transport: str) -> tuple[Any, str]:
        client: Any = JavaScript(js, kind) if kind in VERSIONS else Python(kind)
        if isinstance(client, Python):
            clients.append(client)
        return client, await client.connect(url, transport)

    yield make
    for client in clients:
        await client.run("shutdown")
    gc.collect()


Connect = Callable[[str, str, str], Awaitable[tuple[Any, str]]]


@each_client
@each_transport
async def test_a_client_that_is_hung_up_on_comes_back(cluster, connect: Connect, client_kind, transport):
    client, sid = await connect(client_kind, cluster.a.url, transport)
    await cluster.a.control("hang_up", sid=sid)
    await cluster.a.logged(hook="disconnect", sid=sid)
    await client.connected()


@pytest.mark.parametrize("client_kind", CLIENTS[-4:])
@each_transport
async def test_a_client_comes_back_from_a_node_that_stops(make_cluster, connect: Connect, client_kind, transport):
    cluster = make_cluster(2)
    client, sid = await connect(client_kind, cluster.a.url, transport)
    await client.move_to(cluster.b.url)
    stderr = await asyncio.to_thread(cluster.a.terminate)
    assert "Traceback" not in stderr, stderr
    back = await client.connected()
    assert client_kind.endswith("python-socketio") or back == sid
