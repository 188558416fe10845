"""The Python client on Node's own server: socket.io 4.8, sessions in its memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import socketio

from sio_pg_adapter import AsyncSimpleClient
from support import nodejs
from support.js_server import JSServer
from support.python_client import Inbox, hold

RECOVERY = {"maxDisconnectionDuration": 60_000}


@pytest.fixture
async def serve(js_modules) -> AsyncIterator[Callable]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(recovery=RECOVERY) -> JSServer:
            return await stack.enter_async_context(JSServer(js_modules, nodejs.executable("node"), recovery))

        yield start


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_missed_events_come_once_and_in_order(serve, client, transport):
    server, inbox = await serve(), Inbox(client)
    await client.connect(server.url, transports=[transport], auth={"token": "t"})
    assert await inbox.connected() is False
    assert await client.call("join", "r") == "joined"
    await server.emit("first", "text", room="r")
    await server.emit("end")
    assert await inbox.until("end") == [("first", "text")]
    for cuts in (1, 2, 3):
        sid, gate = client.get_sid(), hold(client)
        await server.cut()
        await server.noted(cuts, hook="disconnect", sid=sid)
        missed = [("n", i, "text") for i in range(20)]
        for event in missed:
            await server.emit(*event, room="r")
        await server.emit("elsewhere", room="other")
        gate.set()
        assert await inbox.connected() is True
        assert client.get_sid() == sid
        await server.emit("live", None, room="r")
        await server.emit("end")
        assert await inbox.until("end") == [*missed, ("live", None)]
    notes = await server.noted(4, hook="connect")
    assert [note["recovered"] for note in notes] == [False, True, True, True]
    assert all(note["auth"] == {"token": "t"} for note in notes)


async def test_each_namespace_recovers_on_its_own(serve, client):
    server = await serve()
    inboxes = {namespace: Inbox(client, namespace) for namespace in ("/", "/a", "/b")}
    await client.connect(server.url, transports=["websocket"])
    assert [await inbox.connected() for inbox in inboxes.values()] == [False] * 3
    for namespace in ("/", "/a"):  # in /b nothing was seen: Node recovers no session without an offset
        await server.emit("e", namespace, namespace=namespace)
        await server.emit("end", namespace=namespace)
        assert await inboxes[namespace].until("end") == [("e", namespace)]
    gate = hold(client)
    await server.cut()
    await server.noted(3, hook="disconnect")
    for namespace in inboxes:
        await server.emit("missed", namespace, namespace=namespace)
    gate.set()
    assert [await inbox.connected() for inbox in inboxes.values()] == [True, True, False]
    assert [client.recovered(namespace) for namespace in inboxes] == [True, True, False]
    for namespace, inbox in inboxes.items():
        await server.emit("end", namespace=namespace)
        assert await inbox.until("end") == ([] if namespace == "/b" else [("missed", namespace)])


async def test_binary_live_and_replayed(serve, client):
    server, inbox = await serve(), Inbox(client)
    await client.connect(server.url)
    await inbox.connected()
    data = {"deep": [b"\x00one", {"two": b"two\xff"}]}
    await server.emit("live", data, b"tail")
    await server.emit("end")
    assert await inbox.until("end") == [("live", data, b"tail")]
    gate = hold(client)
    await server.cut()
    await server.noted(hook="disconnect")
    await server.emit("missed", data, b"tail")
    await server.emit("text", "text")
    gate.set()
    assert await inbox.connected() is True
    await server.emit("end")
    assert await inbox.until("end") == [("missed", data, b"tail"), ("text", "text")]


async def test_acknowledged_events_keep_all_arguments_and_move_no_offset(serve, client):
    server, inbox, asked = await serve(), Inbox(client), []
    client.on("q", lambda *args: asked.append(args) or args)
    await client.connect(server.url, transports=["websocket"])
    await inbox.connected()
    await server.emit("stored", 1)
    assert await server.ask("q", "last", "argument") == ["last"]  # Node takes the first of what is answered
    assert await server.ask("q", b"binary", None) == [b"binary"]
    assert await client.call("echo", ("x", b"y", None)) == ("x", b"y", None)
    assert asked == [("last", "argument"), (b"binary", None)]
    await server.cut()
    assert await inbox.connected() is True  # by the offset of "stored"
    await server.emit("end")
    assert await inbox.until("end") == [("stored", 1)]


async def test_a_session_that_is_over_is_not_recovered(serve, client):
    server, inbox = await serve({"maxDisconnectionDuration": 1}), Inbox(client)
    await client.connect(server.url, transports=["websocket"])
    await inbox.connected()
    await server.emit("seen", "x")
    await server.emit("end")
    await inbox.until("end")
    sid, gate = client.get_sid(), hold(client)
    await server.cut()
    [gone] = await server.noted(hook="disconnect")
    assert gone["sid"] == sid
    await server.emit("missed")
    gate.set()
    assert await inbox.connected() is False
    assert client.get_sid() != sid
    await server.emit("after", "text")
    await server.emit("end")
    assert await inbox.until("end") == [("after", "text")]


async def test_a_server_without_recovery(serve, client):
    server, inbox = await serve(recovery=None), Inbox(client)
    await client.connect(server.url)
    for _ in range(2):
        assert await inbox.connected() is False
        await server.emit("e", "text")
        await server.emit("f", None)
        await server.emit("end")
        assert await inbox.until("end") == [("e", "text"), ("f", None)]
        await server.cut()
    assert await inbox.connected() is False
    assert client.recovered() is False
    notes = await server.noted(3, hook="connect")
    assert [(note["auth"], note["presented"]) for note in notes] == [({}, None)] * 3


async def test_class_based_handlers(serve, client):
    server = await serve()
    calls, inbox = [], Inbox(client)

    class Chat(socketio.AsyncClientNamespace):
        async def on_connect(self):
            calls.append(("connect", client.recovered("/a")))

        async def on_line(self, text):
            calls.append(("line", text))
            if text == "ask":
                await self.emit("join", "r", callback=lambda answer: calls.append(("answer", answer)))

    client.register_namespace(Chat("/a"))
    await client.connect(server.url, transports=["websocket"])
    await inbox.connected()

    async def line(text):
        await server.emit("line", text, namespace="/a")
        await server.emit("end")
        await inbox.until("end")

    await line("one")
    await line("ask")
    await client.call("echo", 1)  # answered after the join
    assert calls == [("connect", False), ("line", "one"), ("line", "ask"), ("answer", "joined")]
    calls.clear()
    gate = hold(client)
    await server.cut()
    await server.noted(2, hook="disconnect")
    await server.emit("line", "missed", namespace="/a")
    gate.set()
    await inbox.connected()
    await line("two")
    assert calls == [("line", "missed"), ("connect", True), ("line", "two")]  # Node replays before CONNECT


async def test_simple_client(serve):
    server = await serve()
    async with AsyncSimpleClient(reconnection_delay=0.02, randomization_factor=0) as simple:
        await simple.connect(server.url, transports=["websocket"], namespace="/a")
        await server.emit("e", "text", namespace="/a")
        assert await simple.receive(timeout=20) == ["e", "text"]
        assert await simple.call("join", "r") == "joined"
        sid, gate = simple.sid, hold(simple.client)
        await server.cut()
        await server.noted(hook="disconnect", sid=sid)
        await server.emit("missed", "x", room="r", namespace="/a")
        gate.set()
        assert await simple.receive(timeout=20) == ["missed", "x"]
        assert await simple.call("echo", "y") == "y"  # waits until it is connected
        assert (simple.recovered(), simple.sid) == (True, sid)


async def test_a_disconnect_by_the_server_ends_the_session(serve, client):
    server, inbox = await serve(), Inbox(client)
    await client.connect(server.url, transports=["websocket"])
    await inbox.connected()
    await server.emit("e", "text")
    await server.emit("end")
    await inbox.until("end")
    sid = client.get_sid()
    await server.disconnect()
    await server.noted(hook="disconnect", sid=sid)
    await client.wait()
    await client.connect(server.url, transports=["websocket"])
    assert await inbox.connected() is False
    assert client.get_sid() != sid
