"""Events that clients do not take: one of them, stored, would make its clients reconnect for ever."""

from __future__ import annotations

import contextlib
import json

import pytest

from sio_pg_adapter import ConfigurationError, PayloadTooLarge, emit_async
from sio_pg_adapter.local.returns import MOST_RETURNS
from support.asgi_client import AsgiClient

RESERVED = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
PARTS = [bytes([i]) for i in range(11)]

EMITS = {
    "server": lambda node, *args: node.sio.emit(*args),
    "unstored": lambda node, *args: node.sio.emit(*args, volatile=True),
    "manager": lambda node, *args: node.manager.emit(*args),
    "call": lambda node, *args: node.sio.call(*args, to="nobody"),
    "broadcast_call": lambda node, *args: node.sio.broadcast_call(*args),
    "emit_async": lambda node, *args: emit_async(node.connection, *args),
    "connection": lambda node, *args: node.sio.emit(*args, connection=node.connection),
}

each_emit = pytest.mark.parametrize("emit", EMITS.values(), ids=EMITS)


@pytest.fixture
async def node(start_node, db):
    node = await start_node()
    node.connection = db
    return node


async def nothing_came(node, wire, db) -> None:
    assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") == 0
    await node.sio.emit("end")
    assert await wire.events_until("end") == []


@each_emit
async def test_reserved_names_are_not_emitted(node, db, emit):
    async with node.client() as wire:
        for name in RESERVED:
            with pytest.raises(ConfigurationError, match=f"'{name}' cannot be emitted"):
                await emit(node, name, 1)
        await nothing_came(node, wire, db)


@each_emit
async def test_more_than_ten_binary_values_are_not_emitted(node, db, emit):
    async with node.client() as wire:
        with pytest.raises(PayloadTooLarge, match=r"event 'e' has 11 binary values\. Clients take at most 10"):
            await emit(node, "e", {"parts": PARTS})
        await nothing_came(node, wire, db)


async def test_ten_binary_values_are_emitted(node):
    async with node.client() as wire:
        await node.sio.emit("e", PARTS[:10])
        assert (await wire.recv()).startswith('510-["e",')
        assert [await wire.recv() for _ in range(10)] == PARTS[:10]


async def test_more_than_ten_binary_values_are_not_returned_to_a_client(node, expected_errors):
    expected_errors.append("what a handler returned has 11 binary values")

    @node.sio.event
    async def ask(sid, count):
        return PARTS[:count]

    async with node.client() as wire:
        wire.send('27["ask",11]')
        wire.send('28["ask",2]')
        assert (await wire.recv()).startswith("62-8[")


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("binary", [False, True])
async def test_a_client_does_not_call_a_reserved_handler(node, name, binary):
    called = []

    async def handler(*args):
        called.append(args)

    for event in (*RESERVED, "*"):
        node.sio.on(event, handler)
    async with AsgiClient(node.sio) as wire:
        sid, _ = await wire.connect()
        (connected,) = called
        forged = json.dumps([name, {"REMOTE_USER": "root"}, {"token": "forged"}])
        wire.send("2" + forged if not binary else f'51-["{name}",{{"_placeholder":true,"num":0}}]')
        if binary:
            wire.send(b"\0")
        assert await wire.rest() == []
    assert called[0] is connected
    assert [args for args in called[1:] if args != (sid, "transport close")] == []


async def test_a_client_that_does_not_get_past_an_event_gets_a_new_session(node):
    async with node.client() as wire:
        await node.sio.emit("seen")
        await wire.event()
        await wire.drop()
        await node.sio.emit("poison")
        auth = {"pid": wire.pid, "offset": wire.offset}
        for _ in range(MOST_RETURNS):
            async with node.client(**auth) as back:
                assert back.sid == wire.sid
                assert await back.event() == ["poison"]
        async with node.client(**auth) as fresh:
            assert fresh.sid != wire.sid
            await node.sio.emit("end")
            assert await fresh.events_until("end") == []


async def test_a_client_that_missed_nothing_may_come_back_as_often_as_it_likes(node):
    async with node.client() as wire:
        await node.sio.emit("seen")
        await wire.event()
        await wire.drop()
        for _ in range(MOST_RETURNS + 2):
            async with node.client(pid=wire.pid, offset=wire.offset) as back:
                assert back.sid == wire.sid


async def test_a_client_that_may_have_received_nothing_keeps_its_session(start_node):
    """Its pings are unanswered, as over a network that lets nothing through to it."""
    node = await start_node(ping_interval=0.1, ping_timeout=0.1)
    async with node.client() as wire:
        await node.sio.emit("seen")
        await wire.event()
    await node.sio.emit("missed")
    for _ in range(MOST_RETURNS + 1):
        async with node.client(pid=wire.pid, offset=wire.offset) as back:
            assert back.sid == wire.sid
            await back.ended()


async def test_a_client_that_comes_back_before_its_connection_has_ended_keeps_its_session(start_node):
    """The network has cut it off, and the server has not noticed."""
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("seen")
        await wire.event()
    await node.sio.emit("missed")
    async with contextlib.AsyncExitStack() as connections:
        for _ in range(MOST_RETURNS + 1):
            back = await connections.enter_async_context(node.client(pid=wire.pid, offset=wire.offset))
            assert back.sid == wire.sid
