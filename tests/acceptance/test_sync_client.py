"""The synchronous Python clients on two nodes of ours, behind a connection that breaks."""

from __future__ import annotations

import asyncio
import queue
import threading
import time

import pytest

from sio_pg_adapter import Client, SimpleClient
from support.proxy import Proxy

TIMEOUT = 20.0  # seconds until a test that waits in vain fails
TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "polling"])


@pytest.fixture
async def network(cluster):
    """The client's connection to node a, or to the node that it leads to later."""
    async with Proxy(f"host=127.0.0.1 port={cluster.a.port}").running() as proxy:
        yield proxy


def url(network):
    return f"http://127.0.0.1:{network.port}"


@pytest.fixture
async def client():
    client = Client(reconnection_delay=0.02, randomization_factor=0)
    yield client
    await asyncio.to_thread(client.shutdown)


class Inbox:
    """What the handlers of a synchronous client were called with."""

    def __init__(self, client, namespace="/"):
        self._calls = queue.Queue()
        self.connects = queue.Queue()
        client.on("connect", lambda: self.connects.put(client.recovered(namespace)), namespace=namespace)
        client.on("*", lambda event, *args: self._calls.put((event, *args)), namespace=namespace)

    async def connected(self):
        return await asyncio.to_thread(self.connects.get, timeout=TIMEOUT)

    async def until(self, last):
        found = []
        while (call := await asyncio.to_thread(self._calls.get, timeout=TIMEOUT))[0] != last:
            found.append(call)
        return found


@TRANSPORTS
async def test_cuts_and_moves_between_nodes_lose_double_and_invert_nothing(cluster, room, client, network, transport):
    inbox, handed, recovered = Inbox(client), [], []

    @client.on("n")
    def on_n(i):
        time.sleep(0.001)  # the handlers lag behind
        handed.append(i)

    await asyncio.to_thread(client.connect, url(network), transports=[transport], auth={"rooms": [room]})
    assert await inbox.connected() is False
    sid = client.get_sid()
    for cut in range(8):
        items = [(i,) for i in range(cut * 100, cut * 100 + 100)]
        emitting = asyncio.create_task(cluster.b.control("emit_many", event="n", items=items, room=room))
        await asyncio.sleep(0)
        network.lead_to(f"host=127.0.0.1 port={cluster.nodes[(cut + 1) % 2].port}")
        network.cut()
        recovered.append(await inbox.connected())
        await emitting
    await cluster.mark(room)
    assert await inbox.until("end") == []
    assert handed == list(range(800))
    assert recovered == [True] * 8
    assert client.get_sid() == sid


async def test_a_blocked_handler_neither_ends_the_connection_nor_holds_up_an_answer(make_cluster, client):
    """The node pings each second and waits a second for the answer. The handler takes longer."""
    cluster, inbox = make_cluster(1, ping_interval=1, ping_timeout=1), Inbox(client)

    @client.event
    def block():
        time.sleep(3)
        return client.call("echo", b"\x00", timeout=TIMEOUT)

    await asyncio.to_thread(client.connect, cluster.a.url, transports=["websocket"])
    await inbox.connected()
    assert await cluster.a.control("call", event="block", to=client.get_sid()) == b"\x00"
    assert inbox.connects.empty()


async def test_a_kicked_client_stays_away_after_it_has_handled_what_it_received(cluster, room, client):
    handled, gone = [], threading.Event()

    @client.on("slow")
    def on_slow(i):
        time.sleep(0.02)
        handled.append(i)

    @client.event
    def disconnect(reason):
        handled.append(reason)
        gone.set()

    await asyncio.to_thread(client.connect, cluster.a.url, transports=["websocket"], auth={"rooms": [room]})
    await cluster.b.control("emit_many", event="slow", items=[(i,) for i in range(10)], room=room)
    await cluster.b.control("disconnect", sid=client.get_sid())
    assert await asyncio.to_thread(gone.wait, TIMEOUT)
    assert handled == [*range(10), client.reason.SERVER_DISCONNECT]
    await asyncio.to_thread(client.wait)
    assert not client.connected


async def test_simple_client(cluster, room, network):
    def use():
        with SimpleClient(reconnection_delay=0.02, randomization_factor=0) as simple:
            simple.connect(url(network), namespace="/ns", auth={"rooms": [room]}, transports=["websocket"])
            sid = simple.sid
            assert simple.call("echo", "x") == "x"
            away.set()
            received = simple.receive(timeout=TIMEOUT)
            return received, simple.call("echo", "y"), simple.recovered(), simple.sid == sid

    away = threading.Event()
    using = asyncio.create_task(asyncio.to_thread(use))
    await asyncio.to_thread(away.wait, TIMEOUT)
    network.refuses = True
    network.cut()
    await cluster.b.emit("missed", ("text", None), room=room, namespace="/ns")
    network.lead_to(f"host=127.0.0.1 port={cluster.b.port}")
    network.refuses = False
    assert await using == (["missed", "text", None], "y", True, True)
