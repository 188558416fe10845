"""Frames that are written to the transport below a websocket, under each server that we know how to look below."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import ssl
import struct
import weakref
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import socketio
import uvicorn
from aiohttp import web

from sio_pg_adapter.local.client import QueueLimit
from sio_pg_adapter.log.records import Outgoing
from sio_pg_adapter.server.host import hang_up
from sio_pg_adapter.wire.frames import frame
from sio_pg_adapter.wire.outbox import Outbox
from sio_pg_adapter.wire.transport import UNSENT_BYTES, Cork, TrafficCounter, Wire
from support.waiting import until

PATIENCE = 20.0  # seconds until a test that waits in vain fails
HANDSHAKE = (
    "GET /socket.io/?EIO=4&transport=websocket{more} HTTP/1.1\r\nHost: t\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{deflate}\r\n"
)
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


@dataclass
class Raw:
    """A websocket as bytes: each frame with its first octet, in which the compressed ones have 0x40."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sid: str = ""
    inflate: Any = field(default_factory=lambda: zlib.decompressobj(wbits=-15))

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(PATIENCE):
            first, size = await self.reader.readexactly(2)
            if size >= 126:
                wide = "!H" if size == 126 else "!Q"
                (size,) = struct.unpack(wide, await self.reader.readexactly(struct.calcsize(wide)))
            payload = await self.reader.readexactly(size)
        if first & 0x40:
            payload = self.inflate.decompress(payload + b"\x00\x00\xff\xff")
        return first, payload

    async def text(self) -> str:
        while (payload := (await self.frame())[1]) == b"2":  # a ping of Engine.IO
            self.send("3")
        return payload.decode()

    async def event(self) -> list[Any]:
        text = await self.text()
        assert text.startswith("42"), text
        return json.loads(text[2:])

    def send(self, text: str) -> None:
        payload = text.encode()
        size = (
            struct.pack("!B", 0x80 | len(payload)) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
        )
        self.writer.write(b"\x81" + size + bytes(4) + payload)

    def send_compressed(self, payload: bytes) -> None:
        assert len(payload) < 126
        self.writer.write(struct.pack("!BB", 0xC1, 0x80 | len(payload)) + bytes(4) + payload)


@contextlib.asynccontextmanager
async def on_aiohttp(sio: socketio.AsyncServer, listening: socket.socket) -> AsyncIterator[None]:
    app = web.Application()
    sio.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    yield
    await runner.cleanup()


@contextlib.asynccontextmanager
async def on_uvicorn(sio: socketio.AsyncServer, listening: socket.socket, ws: str) -> AsyncIterator[None]:
    config = uvicorn.Config(
        socketio.ASGIApp(sio), ws=ws, lifespan="off", log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    serving = asyncio.create_task(server._serve([listening]), name="uvicorn")
    yield
    server.should_exit = True
    await serving


@pytest.fixture(params=["websockets-sansio", "websockets", "wsproto", "aiohttp"])
async def served(request, start_node):
    """A node behind a web server, and a function that connects a raw client to it."""
    kind = request.param
    node = await start_node(async_mode="aiohttp" if kind == "aiohttp" else "asgi")
    async with contextlib.AsyncExitStack() as ends:
        listening = ends.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
        port = listening.getsockname()[1]
        running = on_aiohttp(node.sio, listening) if kind == "aiohttp" else on_uvicorn(node.sio, listening, kind)
        await ends.enter_async_context(running)

        async def connect(*, deflate: bool = False, more: str = "") -> Raw:
            raw = Raw(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))
            ends.callback(raw.writer.close)
            raw.writer.write(HANDSHAKE.format(more=more, deflate=DEFLATE if deflate else "").encode())
            head = await raw.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101")
            assert (b"permessage-deflate" in head) is deflate
            return raw

        yield node, connect


async def connected(connect: Any, **options: Any) -> Raw:
    raw: Raw = await connect(**options)
    assert (await raw.text())[0] == "0"
    raw.send("40")
    raw.sid = json.loads((await raw.text())[2:])["sid"]
    return raw


pytestmark = [  # uvicorn's and websockets', of ws="websockets"
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `websockets` implementation is deprecated"),
]


async def test_frames_are_written_past_the_queue_and_nodelay_is_set(served):
    node, connect = served
    raw = await connected(connect)
    client = node.manager.clients.current(raw.sid, "/")
    assert client is not None
    put = client._frames_put  # by the time of the CONNECT the writer may not have begun to wait
    for n in range(20):
        await node.sio.emit("e", (n, b"\x01\x02"))
    for n in range(20):
        assert (await raw.text()).startswith(f'451-["e",{n},')
        assert await raw.frame() == (0x82, b"\x01\x02")
    assert client._frames_put == put, "a frame took the longer way"
    transport = client.connection.wire._transport
    assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_counts_what_goes_out_is_told_of_it(served):
    """As the Admin UI does, which wraps the longer way."""
    node, connect = served
    written = []
    node.manager.traffic.on_write = lambda packets, size: written.append((packets, size))
    raw = await connected(connect)
    written.clear()
    await node.sio.emit("e", b"abc")
    text, binary = await raw.frame(), await raw.frame()
    assert written == [(2, len(text[1]) + len(binary[1]) + 4)]


async def test_nothing_overtakes_what_waits_in_the_queue(served):
    node, connect = served
    raw = await connected(connect)

    @node.sio.on("question")
    async def answer(sid, n):  # its acknowledgement goes through the queue
        await node.sio.emit("before", n)
        return n

    @node.sio.on("both")
    async def both(sid, n):
        client = node.manager.clients.current(sid, "/")
        await node.sio.eio.send(client.eio_sid, f'2["queued",{n}]')  # and this tick what follows is offered directly
        node.manager.node.delivery.unstored(Outgoing("/", (sid,), (), f'["direct",{n}]', ()))

    for n in range(50):
        raw.send(f'42["both",{n}]')
        assert (await raw.event())[:2] == ["queued", n]
        assert (await raw.event())[:2] == ["direct", n]
        raw.send(f'42{n}["question",{n}]')
        assert (await raw.event())[:2] == ["before", n]
        assert await raw.text() == f"43{n}[{n}]"


@pytest.mark.parametrize("served", ["websockets-sansio", "wsproto"], indirect=True)  # those that can be held up
async def test_nothing_overtakes_what_the_writer_has_taken_out_of_the_queue(served):
    node, connect = served
    raw = await connected(connect)
    client = node.manager.clients.current(raw.sid, "/")
    assert client is not None
    writable = client.connection.wire._transport.get_protocol().writable
    writable.clear()
    await node.sio.eio.send(client.eio_sid, '2["queued"]')
    await until(client.connection.socket.queue.empty)
    await node.sio.emit("direct", to=raw.sid)
    writable.set()
    assert [(await raw.event())[0] for _ in range(2)] == ["queued", "direct"]


async def test_what_is_large_is_left_to_a_server_that_may_compress_it(served):
    node, connect = served
    raw = await connected(connect, deflate=True)
    await node.sio.emit("e", "x" * 100)
    first, payload = await raw.frame()
    assert first == 0x81 and b"xxx" in payload
    await node.sio.emit("e", "x" * 5_000)
    first, payload = await raw.frame()
    assert first == 0xC1 and b"x" * 5_000 in payload
    await node.sio.emit("e", "y")
    assert (await raw.frame())[0] == 0x81


async def test_a_client_that_takes_nothing_fills_the_queue_and_not_the_transport(served):
    node, connect = served
    raw = await connected(connect)
    client = node.manager.clients.current(raw.sid, "/")
    assert client is not None
    raw.writer.transport.pause_reading()
    sent = 0
    while client.connection.socket.queue.qsize() < 20:
        await asyncio.gather(*(node.sio.emit("e", (sent + i, "x" * 900)) for i in range(200)))
        sent += 200
    own = 512 * 1024 if node.sio.async_mode == "aiohttp" else 0  # it looks at the transport less often
    assert client.connection.wire._transport.get_write_buffer_size() <= UNSENT_BYTES + own + 2_000
    raw.writer.transport.resume_reading()
    assert [(await raw.event())[1] for _ in range(sent)] == list(range(sent))


class Recorded:
    """A transport that notes what is written to it."""

    def __init__(self, transport: Any, fails: bool = False) -> None:
        self._transport = transport
        self.fails = fails
        self.written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self.fails:
            raise RuntimeError("broken")
        self.written.append(data)
        self._transport.write(data)


async def of(node: Any, raw: Raw, *, fails: bool = False) -> Recorded:
    """The transport of a client whose writer waits."""
    client = node.manager.clients.current(raw.sid, "/")
    assert client is not None
    wire = client.connection.wire
    await until(lambda: wire.idle)
    wire._transport = recorded = Recorded(wire._transport, fails)
    return recorded


async def emitted_together(node, raws):
    """Emit two events at once. Those that are emitted together from then on share a commit, and so are one batch."""
    await asyncio.gather(node.sio.emit("first"), node.sio.emit("second"))
    for raw in raws:
        assert [(await raw.event())[0] for _ in range(2)] == ["first", "second"]


async def test_what_is_applied_in_one_go_is_one_write_for_each_connection(served):
    node, connect = served
    raws = [await connected(connect) for _ in range(3)]
    await emitted_together(node, raws)
    recorded = [await of(node, raw) for raw in raws]
    await asyncio.gather(*(node.sio.emit("e", n) for n in range(50)))
    for raw, transport in zip(raws, recorded, strict=True):
        assert [(await raw.event())[1] for _ in range(50)] == list(range(50))
        assert len(transport.written) == 1


async def test_what_is_queued_behind_what_is_held_does_not_overtake_it(served):
    node, connect = served
    raw = await connected(connect)
    transport = await of(node, raw)
    client = node.manager.clients.current(raw.sid, "/")
    with node.manager.cork:
        for n in range(3):
            node.manager.node.delivery.unstored(Outgoing("/", (raw.sid,), (), f'["held",{n}]', ()))
        client.connection.socket.queue.put_nowait(frame('2["queued"]'))
        node.manager.node.delivery.unstored(Outgoing("/", (raw.sid,), (), '["behind"]', ()))
        assert transport.written == []
    names = [(await raw.event())[0] for _ in range(5)]
    assert names == ["held", "held", "held", "queued", "behind"]


async def test_no_more_is_held_than_a_transport_may_take(served):
    node, connect = served
    raw = await connected(connect)
    transport = await of(node, raw)
    raw.writer.transport.pause_reading()
    size = 900  # more is left to a server that may compress it
    with node.manager.cork:
        for n in range(5_000):
            node.manager.node.delivery.unstored(Outgoing("/", (raw.sid,), (), f'["e",{n},"{"x" * size}",0]', ()))
        assert max(map(len, transport.written)) <= UNSENT_BYTES + size + 100
    assert transport.get_write_buffer_size() <= 2 * UNSENT_BYTES + size + 100
    raw.writer.transport.resume_reading()
    assert [(await raw.event())[1] for _ in range(5_000)] == list(range(5_000))


async def test_a_connection_that_breaks_while_it_is_written_to_costs_nobody_else(served, expected_errors):
    expected_errors.append("could not write to a connection")
    node, connect = served
    first, broken, last = raws = [await connected(connect) for _ in range(3)]
    await emitted_together(node, raws)
    client = node.manager.clients.current(broken.sid, "/")
    await of(node, broken, fails=True)
    await asyncio.gather(*(node.sio.emit("e", n) for n in range(20)))
    for raw in (first, last):
        assert [(await raw.event())[1] for _ in range(20)] == list(range(20))
    async with asyncio.timeout(PATIENCE):
        await client.gone.wait()


async def test_a_socket_that_has_ended_holds_its_websocket_no_more(served):
    """Upstream's ping waits 25 s, and holds the socket: a storm of reconnects would pile all of it up."""
    node, connect = served
    raw = await connected(connect)
    client = node.manager.clients.current(raw.sid, "/")
    wire = weakref.ref(client.connection.wire)
    assert wire() is not None
    raw.writer.transport.abort()
    async with asyncio.timeout(PATIENCE):
        await client.gone.wait()
    await until(lambda: client.connection.wire is None)
    del raw
    await until(lambda: gc.collect() is not None and wire() is None, "an end of the wire")


async def test_a_socket_that_was_hung_up_is_forgotten_though_its_handler_takes_long(served):
    """Upstream's monitor is off in these tests: it would forget it, too."""
    node, connect = served
    going_on = asyncio.Event()

    @node.sio.event
    async def disconnect(sid, reason):
        await going_on.wait()

    raw = await connected(connect)
    client = node.manager.clients.current(raw.sid, "/")
    hanging = asyncio.create_task(hang_up(node.sio, client.eio_sid))
    assert (await raw.frame())[1] == b"6"  # NOOP
    raw.writer.transport.abort()
    await until(lambda: client.connection.wire is None)  # its websocket has ended
    await asyncio.sleep(0.1)  # and its task returns, which nothing announces
    going_on.set()
    await hanging
    assert client.connection.socket.closed and not node.sio.eio.sockets


async def test_a_packet_that_is_too_large_ends_a_connection_and_not_the_session(served):
    node, connect = served
    node.sio.eio.max_http_buffer_size = 100
    raw = await connected(connect)
    raw.send('42["e","' + "x" * 110 + '"]')
    assert await raw.reader.read(1) in (b"", b"\x88")  # its end


async def test_an_unknown_packet_ends_nothing(served):
    node, connect = served
    raw = await connected(connect)
    raw.send("0")
    raw.send("6")
    await node.sio.emit("e", 1)
    assert (await raw.event())[1] == 1


async def test_a_silent_connection_is_given_up_after_a_ping_and_its_answer(served):
    node, connect = served
    node.sio.eio.ping_interval, node.sio.eio.ping_timeout = 0.5, 0.5
    raw = await connected(connect)
    client = node.manager.clients.current(raw.sid, "/")
    async with asyncio.timeout(PATIENCE):
        await client.gone.wait()


async def test_an_upgrade_that_fails_leaves_the_poll_as_it_was(served):
    node, connect = served
    eio = node.sio.eio
    raw = await connected(connect)
    host, port = raw.writer.get_extra_info("peername")[:2]

    async def get(path: str, body: bytes | None = None) -> bytes:
        reader, writer = await asyncio.open_connection(host, port)
        verb = "GET" if body is None else "POST"
        head = f"{verb} /socket.io/?EIO=4&transport=polling{path} HTTP/1.0\r\nHost: t\r\n"
        writer.write(f"{head}Content-Length: {len(body or b'')}\r\n\r\n".encode() + (body or b""))
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        writer.close()
        return answer.partition(b"\r\n\r\n")[2]

    eio_sid = json.loads((await get(""))[1:])["sid"]
    await get(f"&sid={eio_sid}", b"40")
    assert (await get(f"&sid={eio_sid}")).startswith(b"40{")
    failing = await connect(more=f"&sid={eio_sid}")
    failing.send("2probe")
    assert await failing.text() == "3probe"
    await get(f"&sid={eio_sid}")  # a poll under way ends with NOOP
    failing.send("4nonsense")  # no upgrade after all
    assert await failing.reader.read(1) in (b"", b"\x88")  # its end
    await node.sio.emit("e", "after")
    assert b'["e","after"' in await get(f"&sid={eio_sid}")
    assert node.manager.connections.of(eio.sockets[eio_sid]).wire is None
    assert (await raw.event())[:2] == ["e", "after"]


async def test_a_transport_under_tls_that_was_closed_twice_takes_nothing():
    """As uvicorn closes it: with the client's close frame, and again when the connection is lost. asyncio's then has
    no buffer whose size it could tell; raised in the midst of a broadcast, that would be all others' loss."""
    contexts = [ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)]
    for context in contexts:  # without a certificate
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, w: accepted.set_result(w), "127.0.0.1", 0, ssl=contexts[0])
    host, port = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(host, port, ssl=contexts[1])
    transport = (await accepted).transport
    wire = Wire(Outbox(), transport, lambda: True, Cork(), compresses=False, traffic=TrafficCounter())
    wire.idle = True
    assert wire.write([frame("2[]")]) is True
    assert await reader.readexactly(6) == b"\x81\x04" + b"42[]"
    transport.close()
    assert wire.write([frame("2[]")]) is False
    transport.close()
    assert wire.write([frame("2[]")]) is False
    writer.close()
    server.close()
    await server.wait_closed()


def counted() -> Counter[type]:
    gc.collect()
    cancelled = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.TimerHandle) and thing.cancelled()]
    return Counter(type(thing) for thing in gc.get_objects()) - Counter(map(type, cancelled))


@pytest.mark.parametrize("served", ["websockets-sansio", "wsproto"], indirect=True)
async def test_what_an_idle_client_takes(served):
    """One task, which reads, and a timer. uvicorn adds an event and a timer. python-engineio has three tasks."""
    node, connect = served
    held = [await connected(connect) for _ in range(2)]  # which make what all share
    await until(lambda: all(client.connection.wire.idle for client in node.manager.clients))
    before, tasks = counted(), len(asyncio.all_tasks())
    held += [await connected(connect) for _ in range(10)]
    await until(lambda: all(client.connection.wire.idle for client in node.manager.clients))
    after = counted()
    assert len(asyncio.all_tasks()) - tasks == 10
    for kind, each in ((asyncio.Queue, 0), (asyncio.Event, 1), (asyncio.TimerHandle, 2), (Outbox, 1)):
        assert after[kind] - before[kind] <= 10 * each, kind
    assert len(held) == 12


@pytest.mark.parametrize("served", ["websockets-sansio"], indirect=True)
async def test_an_idle_client_keeps_no_state_of_a_compression(served):
    """Both ends may compress all the same, and each with what it compressed before."""
    node, connect = served
    raw = await connected(connect, deflate=True)
    client = node.manager.clients.current(raw.sid, "/")
    protocol = client.connection.wire._transport.get_protocol()
    [extension] = protocol.conn.extensions

    def states() -> list[str]:
        return [name for name in ("encoder", "decoder") if type(getattr(extension, name, None)).__module__ == "zlib"]

    assert states() == []
    got: list[Any] = []
    node.sio.on("e", lambda _sid, text: got.append(text))
    deflate = zlib.compressobj(wbits=-12)
    for n in range(3):
        await node.sio.emit("e", f"{n}" * 5_000)
        assert (await raw.event())[1] == f"{n}" * 5_000
        payload = deflate.compress(f"42{json.dumps(['e', 'text ' * 20])}".encode())
        raw.send_compressed(payload + deflate.flush(zlib.Z_SYNC_FLUSH)[:-4])
    await until(lambda: got == ["text " * 20] * 3)
    assert states() == ["decoder"]  # the client may refer to what it has compressed before


async def test_a_client_that_reads_nothing_is_let_go_with_its_data(served, monkeypatch):
    """An orderly close would wait for its window."""
    node, connect = served
    monkeypatch.setattr(node.manager.node.delivery, "_limit", QueueLimit(10_000, 1_000_000))
    raw = await connected(connect)
    client = node.manager.clients.current(raw.sid, "/")
    connection = client.connection
    raw.writer.transport.pause_reading()
    while connection.wire is not None:
        await node.sio.emit("e", "x" * 1_000_000)
        await asyncio.sleep(0)
    await until(lambda: client.eio_sid not in node.sio.eio.sockets)
    assert connection.wire is None and connection.socket.queue.qsize() <= 3
