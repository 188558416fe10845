"""What clients send that is no packet, and answers that are none: no traceback, no deaf connection, no lost session.

That nothing is logged as an error is seen to by a fixture of all these tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from typing import Any

import msgpack
import pytest
import socketio
from engineio.async_socket import AsyncSocket

from sio_pg_adapter import NoAnswer, NotSerializable
from sio_pg_adapter.wire import upstream
from support.asgi_client import AsgiClient, Closed
from support.nodes import Node

DEEP = "[" * 990 + "]" * 990
PATIENCE = 20.0  # seconds until a test that waits in vain fails


@pytest.fixture
async def node(start_node):
    node = await start_node()

    @node.sio.event
    async def hello(sid):
        return "heard"

    yield node
    gc.collect()  # a task whose exception nobody fetched says so when it is collected


def raw(wire: AsgiClient, *messages: str | bytes) -> None:
    """Messages of Engine.IO."""
    for one in messages:
        text, data = (one, None) if isinstance(one, str) else (None, one)
        wire._in.put_nowait({"type": "websocket.receive", "text": text, "bytes": data})


async def goes_on_or_recovers(node: Node, wire: AsgiClient) -> bool:
    """Is an event of the client's heard? If not, the connection is closed. In either case its session comes back."""
    wire.send('277["hello"]')
    heard = False
    with contextlib.suppress(Closed):
        while not heard:
            heard = await wire.recv() == '377["heard"]'
    await wire.drop()
    async with node.client(pid=wire.pid) as again:
        assert again.sid == wire.sid
    return heard


BAD_BINARY = [
    ["45"],
    ["46"],
    ['450-["a"]'],
    ['4599999999-["a"]'],
    ['451-["a",{"_placeholder":true,"num":5}]', b"x"],
    ['451-["a",{"_placeholder":true,"num":"0"}]', b"x"],
    ['461-1[{"_placeholder":true,"num":9}]', b"x"],
    [f'451-["a",{DEEP}]', b"x"],
    ['451-["a",{"_placeholder":true,"num":0}]', '42["b"]'],
]
BAD = [
    *(
        "4",
        "42",
        "42{}",
        "42[]",
        "42[1]",
        "42true",
        '42[["a"]]',
        '42[{"a":1}]',
        "4x",
        "4[",
        "44",
        "47",
        "49",
        "42/ns,",
    ),
    *("40[", "40{", "431[1", "43", "431", "43[]", "431{}", "431[NaN]", "431[1e999]", f"431{DEEP}", b"x"),
    *("b!!!", "7", "9", "42" + "1" * 400 + '["a"]', "42" + "[" * 100_000, '42["a",' + "1" * 5_000 + "]"),
]


@pytest.mark.parametrize("messages", [*BAD_BINARY, *([one] for one in BAD)], ids=lambda m: repr(m[0])[:24])
async def test_what_is_no_packet_ends_the_connection_and_not_the_session(node, messages):
    async with node.client() as wire:
        raw(wire, *messages)
        assert not await goes_on_or_recovers(node, wire)
    assert node.sio._binary_packet == {}


@pytest.mark.parametrize("message", ["42", "4x", '450-["a"]', b"x", "7"])
async def test_before_its_connect_too(node, message):
    async with AsgiClient(node.sio) as wire:
        raw(wire, message)
        with pytest.raises(Closed):
            await wire.recv()


@pytest.mark.parametrize("message", ["431[1]", '42["nobody","listens"]', '42/ns,["a"]', "0", "2", "6", "41/ns"])
async def test_what_concerns_nobody_ends_nothing(node, message):
    async with node.client() as wire:
        raw(wire, message)
        assert await goes_on_or_recovers(node, wire)


async def test_an_engine_io_close_ends_the_connection_at_once(node):
    async with node.client() as wire:
        raw(wire, "1")
        with pytest.raises(Closed):
            await wire.recv()


async def test_no_part_of_what_is_no_packet_reaches_a_handler(node):
    got: list[Any] = []
    node.sio.on("a", lambda _, *args: got.append(args))
    async with node.client() as wire:
        raw(wire, '451-["a",{"_placeholder":true,"num":0}]', "41")
        with pytest.raises(Closed):
            await wire.recv()
    assert got == []


async def test_binary_parts_of_one_packet_are_bounded(node):
    node.sio.eio.max_http_buffer_size = 1_000
    async with node.client() as wire:
        raw(wire, '4500-["a"]'.replace("500", "5500"), *[b"x" * 900] * 100)
        with pytest.raises(Closed):
            await wire.recv()
    assert node.sio._binary_packet == {}


async def test_binary_of_several_parts_arrives(node):
    @node.sio.event
    async def sum_up(sid, *parts):
        return b"".join(parts)

    async with node.client() as wire:
        places = ",".join(f'{{"_placeholder":true,"num":{n}}}' for n in range(3))
        raw(wire, f'453-7["sum_up",{places}]', b"a", b"b", b"c")
        assert [await wire.recv(), await wire.recv()] == ['61-7[{"_placeholder":true,"num":0}]', b"abc"]


@pytest.mark.parametrize(
    "bad", [{"type": 2, "nsp": 5, "data": ["a"]}, {"type": 2, "nsp": "/"}, {"type": [], "nsp": "/"}, 1]
)
async def test_what_is_no_packet_of_msgpack(start_node, bad):
    node = await start_node(serializer="msgpack")
    async with AsgiClient(node.sio) as wire:
        wire.send(msgpack.packb({"type": 0, "nsp": "/", "data": None}))
        await wire.recv()
        wire.send(msgpack.packb(bad))
        with pytest.raises(Closed):
            await wire.recv()


# -- by polling ------------------------------------------------------------------------------------------------
class Polling:
    """A client that polls."""

    def __init__(self, sio: socketio.AsyncServer) -> None:
        self._app = socketio.ASGIApp(sio)
        self._query = "EIO=4&transport=polling"

    async def request(self, method: str, body: bytes = b"") -> tuple[int, str]:
        sent: list[dict[str, Any]] = []
        todo = [{"type": "http.request", "body": body, "more_body": False}]
        scope = {"type": "http", "method": method, "path": "/socket.io/", "query_string": self._query.encode()}
        scope |= {"headers": [(b"content-length", str(len(body)).encode())], "asgi": {"version": "3.0"}}

        async def receive() -> Any:
            return todo.pop()

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        async with asyncio.timeout(PATIENCE):
            await self._app(scope, receive, send)
        return sent[0]["status"], b"".join(event.get("body", b"") for event in sent).decode()

    async def connect(self, auth: str = "") -> dict[str, str]:
        _, opening = await self.request("GET")
        self._query += f"&sid={json.loads(opening[1:])['sid']}"
        assert await self.request("POST", f"40{auth}".encode()) == (200, "OK")
        connected: dict[str, str] = json.loads((await self.request("GET"))[1].split("\x1e")[0][2:])
        return connected


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"b!!!a",
        b"x",
        b"7",
        b"9",
        b"\x1e",
        b"d=",
        "b\u00e9".encode(),
        b"\x1e".join([b"3"] * 17),
        b"2",
        b"6",
        b"0",
    ],
    ids=repr,
)
async def test_a_post_of_no_packets_is_answered_and_ends_the_connection(node, expected_errors, body):
    """Upstream answers "ok", or never."""
    expected_errors.append("Invalid session")  # upstream's, of what is sent on it later
    client = Polling(node.sio)
    session = await client.connect()
    assert (await client.request("POST", body))[0] == 400
    assert (await client.request("POST", b'42["hello"]'))[0] == 400
    async with node.client(pid=session["pid"]) as again:
        assert again.sid == session["sid"]


async def test_a_post_that_is_too_large_is_answered(node):
    node.sio.eio.max_http_buffer_size = 100
    client = Polling(node.sio)
    await client.connect()
    assert (await client.request("POST", b'42["hello","' + b"x" * 100 + b'"]'))[0] == 400


async def test_what_follows_no_packet_in_a_post_is_not_taken(node):
    got: list[Any] = []
    node.sio.on("a", lambda _, *args: got.append(args))
    client = Polling(node.sio)
    await client.connect()
    await client.request("POST", b'42["a",1]\x1e42{}\x1e42["a",2]')
    async with asyncio.timeout(PATIENCE):
        while not got:
            await asyncio.sleep(0)
    assert got == [(1,)]


# -- answers ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ack", ["", "null", "[NaN]", "[1e999]", DEEP])
@pytest.mark.parametrize("how", ["call", "broadcast_call"])
async def test_an_answer_that_is_none_ends_the_connection_of_who_gave_it(start_node, ack, how):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        more = {"to": wire.sid} if how == "call" else {}
        asking = asyncio.create_task(getattr(a.sio, how)("q", timeout=2, **more))
        question = str(await wire.recv())
        wire.send("3" + question[1 : question.index("[")] + ack)
        with pytest.raises(Closed):
            await wire.recv()
        with pytest.raises((NoAnswer, socketio.exceptions.TimeoutError)):
            await asking


@pytest.mark.parametrize("how", ["call", "broadcast_call"])
async def test_an_answer_with_what_looks_like_a_binary_part_is_passed_on_as_it_is(start_node, how):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        more = {"to": wire.sid} if how == "call" else {}
        asking = asyncio.create_task(getattr(a.sio, how)("q", timeout=PATIENCE, **more))
        question = str(await wire.recv())
        wire.send("3" + question[1 : question.index("[")] + '[{"_placeholder":true,"num":-1}]')
        answer = await asking
        assert (answer if how == "call" else answer[wire.sid]) == {"_placeholder": True, "num": -1}


@pytest.mark.parametrize("value", [{1}, float("nan"), {(1,): 2}, [{"_placeholder": True}, b"x"]], ids=repr)
async def test_what_a_handler_returns_and_cannot_be_sent_is_told(node, expected_errors, value, caplog):
    expected_errors.append("an event is not acknowledged: what a handler returned")
    node.sio.on("a", lambda _: value)
    async with node.client() as wire:
        wire.send('27["a"]')
        assert await goes_on_or_recovers(node, wire)
    assert "an event is not acknowledged" in caplog.text


async def test_an_event_that_cannot_be_shown_in_the_admin_ui_is_handled(start_node, monkeypatch):
    for name in ("handle_post_request", "_websocket_handler", "_send_ping"):  # the Admin UI replaces them for good
        monkeypatch.setattr(AsyncSocket, name, getattr(AsyncSocket, name))
    node = await start_node()
    node.sio.instrument(auth=False, mode="development")
    node.sio.on("a", lambda _, value: str(value))
    async with node.client() as wire:
        wire.send('27["a",NaN]')
        assert await wire.recv() == '37["nan"]'


# -- what would end each connection that gets it, again and again ------------------------------------------------
async def test_what_looks_like_a_binary_part_is_refused_beside_binary(node, db):
    """socket.io-client closes with "parse error", comes back, and is sent it again."""
    with pytest.raises(NotSerializable, match=r"event 'e': .*_placeholder"):
        await node.sio.emit("e", [{"a": [{"_placeholder": True, "num": 99}]}, b"x"])
    assert await db.fetchval("SELECT count(*) FROM sio_packets") == 0
    async with node.client() as wire:
        await node.sio.emit("e", {"_placeholder": True, "num": 99})
        assert await wire.event() == ["e", {"_placeholder": True, "num": 99}]


async def test_an_event_without_a_form_in_msgpack_is_no_part_of_a_transaction(start_node, db):
    node = await start_node(serializer="msgpack")
    for options in ({}, {"connection": db}):
        with pytest.raises(NotSerializable, match="has no form in MsgPackPacket"):
            await node.sio.emit("e", 2**70, **options)
    assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") == 0


@pytest.mark.parametrize("data", ["repeat('[', 3000) || repeat(']', 3000)", "repeat('1', 5000)"])
async def test_a_record_without_a_form_in_msgpack_is_left_out(start_node, db, expected_errors, data):
    expected_errors.append("of the log cannot be sent")
    node = await start_node(serializer="msgpack")
    async with AsgiClient(node.sio) as wire:
        wire.send(msgpack.packb({"type": 0, "nsp": "/", "data": None}))
        await wire.recv()
        await db.execute(f"SELECT sio_emit('e', ({data})::json)")
        await node.sio.emit("after")
        assert msgpack.unpackb(await wire.recv())["data"][0] == "after"


async def test_session_data_that_could_not_be_read_back_is_refused(node):
    async with node.client() as wire:
        await node.sio.save_session(wire.sid, {"a": json.loads("[" * 450 + "]" * 450)})
        with pytest.raises(NotSerializable, match=r"session: .*500 deep"):
            await node.sio.save_session(wire.sid, {"a": json.loads("[" * 600 + "]" * 600)})
        await wire.drop()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid


async def test_only_a_client_that_is_connected_may_send_binary_parts(node):
    async with AsgiClient(node.sio) as wire:
        wire.send('51-["hello",{"_placeholder":true,"num":0}]')
        assert await wire.rest() == []
    assert upstream.pending_packets(node.sio) == {}
    async with node.client("/") as wire:  # its connection has a client: other namespaces may have lost theirs
        wire.send('51-/other,["hello",{"_placeholder":true,"num":0}]')
        wire.send(b"x")
        wire.send('21["hello"]')
        assert await wire.recv() == '31["heard"]'
