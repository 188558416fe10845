"""The Python client on two nodes of ours."""

from __future__ import annotations

import asyncio

import pytest
import socketio

from sio_pg_adapter import AsyncSimpleClient
from support.python_client import Inbox, drop, hold, quick_client

TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "polling"])


@TRANSPORTS
async def test_a_drop_within_the_replay_costs_nothing_and_doubles_nothing(cluster, room, client, transport):
    inbox, drops, handed = Inbox(client), [], []

    @client.on("n")
    async def on_n(i, _text):
        handed.append(i)
        if i % 40 == 20 and i not in drops:
            drops.append(i)
            await drop(client)

    await client.connect(cluster.a.url, transports=[transport], auth={"rooms": [room]})
    await inbox.connected()
    sid, gate = client.get_sid(), hold(client)
    await drop(client)
    if transport == "polling":
        await cluster.mark(room, "wake")  # ends the poll that waits
        assert await inbox.until("wake") == []
    else:
        await cluster.a.logged(hook="disconnect", sid=sid)
    await cluster.b.control("emit_many", event="n", items=[(i, "x" * 100) for i in range(200)], room=room)
    gate.set()
    assert await inbox.connected() is True
    await cluster.mark(room)
    assert await inbox.until("end") == []
    assert handed == list(range(200))
    assert drops == [20, 60, 100, 140, 180]
    while not client.get_sid():  # a poll may have brought all events before the client came back from its last drop
        assert await inbox.connected() is True
    assert client.recovered() and client.get_sid() == sid


@TRANSPORTS
async def test_a_client_that_the_server_hangs_up_on_comes_back(cluster, room, client, transport):
    """As when it takes too little, was taken over, or its node goes down: Engine.IO's CLOSE is no goodbye."""
    inbox = Inbox(client)
    await client.connect(cluster.a.url, transports=[transport], auth={"rooms": [room]})
    await inbox.connected()
    sid, gate = client.get_sid(), hold(client, cluster.b.url)
    await cluster.a.control("hang_up", sid=sid)
    await cluster.a.logged(hook="disconnect", sid=sid)
    await cluster.a.emit("missed", "text", room=room)
    gate.set()
    assert await inbox.connected() is True
    assert client.get_sid() == sid
    await cluster.mark(room)
    assert await inbox.until("end") == [("missed", "text")]


@TRANSPORTS
async def test_a_node_that_goes_down_in_order_sends_its_clients_to_another(make_cluster, client, transport):
    cluster, inbox = make_cluster(2), Inbox(client)
    urls = iter([cluster.a.url, *[cluster.b.url] * 100])
    await client.connect(lambda: next(urls), transports=[transport], auth={"rooms": ["r"]})
    await inbox.connected()
    await cluster.a.emit("before", "text", room="r")
    await cluster.a.emit("end", room="r")
    assert await inbox.until("end") == [("before", "text")]
    sid = client.get_sid()
    await asyncio.to_thread(cluster.a.terminate)
    await cluster.b.emit("after", "text", room="r")
    assert await inbox.connected() is True
    assert client.get_sid() == sid
    await cluster.b.emit("end", room="r")
    assert await inbox.until("end") == [("after", "text")]


async def test_namespaces_binary_and_class_based_handlers(cluster, room, client):
    inboxes = {namespace: Inbox(client, namespace) for namespace in ("/", "/ns")}
    lines = []

    class Admin(socketio.AsyncClientNamespace):
        async def on_connect(self):
            lines.append(client.recovered("/admin"))

        async def on_line(self, data):
            lines.append(data)

        async def on_end(self):
            lines.append(await self.call("echo", b"\x00"))
            ended.set()

    ended = asyncio.Event()
    client.register_namespace(Admin("/admin"))
    await client.connect(cluster.a.url, auth={"rooms": [room]})
    assert [await inbox.connected() for inbox in inboxes.values()] == [False, False]
    sids, gate = dict(client.namespaces), hold(client, cluster.b.url)
    await client.eio.ws.close()
    for namespace, sid in sids.items():
        await cluster.a.logged(hook="disconnect", sid=sid)
        for node in (cluster.a, cluster.b):
            await node.emit("line", {"deep": [b"\x00\xff", namespace]}, room=room, namespace=namespace)
    gate.set()
    assert [await inbox.connected() for inbox in inboxes.values()] == [True, True]
    for namespace, inbox in inboxes.items():
        await cluster.mark(room, namespace=namespace)
        assert await inbox.until("end") == [("line", {"deep": [b"\x00\xff", namespace]})] * 2
    await cluster.mark(room, namespace="/admin")
    await asyncio.wait_for(ended.wait(), 20)
    assert lines == [False, True, *[{"deep": [b"\x00\xff", "/admin"]}] * 2, b"\x00"]
    assert client.namespaces == sids


async def test_simple_client(cluster, room):
    async with AsyncSimpleClient(reconnection_delay=0.02, randomization_factor=0) as simple:
        assert simple.recovered() is False
        await simple.connect(cluster.a.url, namespace="/ns", auth={"rooms": [room]})
        sid, gate = simple.sid, hold(simple.client, cluster.b.url)
        await simple.client.eio.ws.close()
        await cluster.a.logged(hook="disconnect", sid=sid)
        await cluster.a.emit("missed", ("text", None), room=room, namespace="/ns")
        gate.set()
        assert await simple.receive(timeout=20) == ["missed", "text", None]
        assert await simple.call("echo", "y") == "y"
        assert (simple.recovered(), simple.sid) == (True, sid)


async def test_disconnecting_does_not_wait_for_a_poll_to_end(cluster, client):
    inbox = Inbox(client)
    await client.connect(cluster.a.url, transports=["polling"])
    await inbox.connected()
    sid, polling = client.get_sid(), client.eio.read_loop_task
    await asyncio.wait_for(client.disconnect(), 15)  # the server's ping comes after 25 s
    assert polling.done()
    [note] = await cluster.a.logged(hook="disconnect", sid=sid)
    assert note["reason"] == "client disconnect"


async def test_an_answer_to_a_poll_that_breaks_off_is_a_drop():
    """As when a node is killed while it sends: upstream's read loop would end without a word."""
    handshakes = asyncio.Queue()

    async def serve(reader, writer):
        request = (await reader.readuntil(b"\r\n\r\n")).split(b" ")
        if b"sid=" not in request[1]:
            opening = b'0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(opening) + opening)
            handshakes.put_nowait(None)
        elif request[0] == b"GET":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n40{"sid":"s"}')
        await writer.drain()
        writer.close()

    client = quick_client()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connecting = asyncio.create_task(client.connect(f"http://127.0.0.1:{port}", transports="polling", retry=True))
        async with asyncio.timeout(20):
            for _ in range(3):
                await handshakes.get()
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        await client.shutdown()
    assert not client.connected


@TRANSPORTS
async def test_an_event_of_more_than_four_megabytes(cluster, room, client, transport):
    """The limit of aiohttp for a message of a websocket is 4 MiB."""
    inbox = Inbox(client)
    await client.connect(cluster.a.url, transports=[transport], auth={"rooms": [room]})
    await inbox.connected()
    await cluster.a.emit("large", "x" * 5_000_000, room=room)
    await cluster.mark(room)
    assert [(name, len(text)) for name, text in await inbox.until("end")] == [("large", 5_000_000)]
    assert inbox.connects.empty()
