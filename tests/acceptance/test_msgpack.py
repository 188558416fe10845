"""Case 13: cases 1, 3, 5 and 8 with serializer="msgpack" and socket.io-msgpack-parser."""

from __future__ import annotations

import msgpack
import psycopg
import pytest

from support.cluster import in_room
from support.js_driver import VERSIONS, stored_args
from support.node_process import ControlError
from support.python_client import Inbox, quick_client
from support.raw_client import RawClient

CLUSTER = {"serializer": "msgpack"}
each_version = pytest.mark.parametrize("version", VERSIONS)


async def test_case_13_connect(cluster):
    found = []
    for _ in range(2):
        async with RawClient(cluster.a.url) as c:
            await c.send(msgpack.packb({"type": 0, "nsp": "/"}))
            answer = msgpack.unpackb(await c.recv())
            assert (answer["type"], answer["nsp"], answer["data"].keys()) == (0, "/", {"sid", "pid"})
            found += answer["data"].values()
    assert all(isinstance(value, str) and value for value in found)
    assert len(set(found)) == 4


@each_version
async def test_case_13_arguments_and_binary(cluster, js, room, version):
    client = await in_room(js, cluster.a.url, room, version=version, parser="msgpack")
    data = {"deep": [b"\x00one", {"two": b"two\xff"}]}
    before = None
    for node in (cluster.a, cluster.b):
        for emitted, args in ((None, []), ("v", ["v"]), ([1, 2], [[1, 2]]), ((1, {}), [1, {}]), (data, [data])):
            await node.emit("e", emitted, room=room)
            message = await client.event("e")
            assert stored_args(message) == args
            assert message["offset"] != before
            before = message["offset"]
    assert await client.call("echo", {"b": b"\x00"}) == {"b": b"\x00"}


@each_version
async def test_case_13_drop_and_rejoin(cluster, js, room, version):
    client = await in_room(js, cluster.a.url, room, version=version, parser="msgpack")
    first = await client.state()
    await cluster.a.emit("seen", b"\x00", room=room)
    await client.event("seen")
    await client.away()
    await cluster.b.emit("missed", {"b": [b"\x00\xff"]}, room=room)
    await cluster.b.emit("unstored", room=room, volatile=True)
    back = await client.back(cluster.b.url)
    assert (back["recovered"], back["sid"]) == (True, first["sid"])
    await cluster.mark(room)
    assert await client.events_until("end") == [("missed", [{"b": [b"\x00\xff"]}])]
    await cluster.a.emit("unstored", "x", room=room, volatile=True)
    message = await client.event("unstored")
    assert message["args"] == ["x", None]
    fresh = await in_room(js, cluster.a.url, room, version=version, parser="msgpack")
    assert (await fresh.state())["recovered"] is False


async def test_the_python_client(cluster, room):
    client = quick_client(serializer="msgpack")
    inbox = Inbox(client)
    await client.connect(cluster.a.url, auth={"rooms": [room]})
    await inbox.connected()
    sid = client.get_sid()
    await client.eio.ws.close()
    await cluster.a.logged(hook="disconnect", sid=sid)
    await cluster.b.emit("missed", ("text", b"\x00"), room=room)
    assert await inbox.connected() is True
    await cluster.mark(room)
    assert await inbox.until("end") == [("missed", "text", b"\x00")]
    await client.shutdown()


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "half of a pair: \ud800"])
async def test_what_msgpack_cannot_hold_is_refused_before_it_is_stored(cluster, js, room, value):
    client = await in_room(js, cluster.a.url, room, parser="msgpack")
    sid = (await client.state())["sid"]
    for options in ({"room": room}, {"room": room, "volatile": True}):
        with pytest.raises(ControlError, match="MsgPack") as refused:
            await cluster.b.emit("e", {"value": value}, **options)
        assert "NotSerializable" in refused.value.kinds
    with pytest.raises(ControlError, match="MsgPack"):
        await cluster.b.control("call", event="e", data={"value": value}, to=sid)
    await cluster.mark(room)
    assert await client.events_until("end") == []


async def test_what_others_emitted_and_msgpack_cannot_hold_stops_nobody(cluster, js, room):
    """The log is JSON: SQL may emit it, or a server of another serializer."""
    cluster.errors_expected = True
    client = await in_room(js, cluster.a.url, room, parser="msgpack")
    await cluster.mark(room)
    await client.event("end")
    for live in (True, False):
        if not live:
            await client.away()
        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute("SELECT sio_emit('e', %s, room => %s)", ["[18446744073709551616]", room])
        await cluster.b.emit("f", live, room=room)
        if not live:
            assert (await client.back())["recovered"]
        await cluster.mark(room)
        assert await client.events_until("end") == [("f", [live])]
    assert "msgpack" in (await cluster.a.errors())[0].lower()


@each_version
async def test_a_client_without_an_event_yet_is_recovered(cluster, js, room, version):
    """It presents an offset that is undefined, which is an extension type of msgpack."""
    client = await in_room(js, cluster.a.url, room, version=version, parser="msgpack")
    first = await client.state()
    await client.away()
    await cluster.b.emit("missed", room=room)
    back = await client.back(cluster.b.url)
    assert (back["recovered"], back["sid"]) == (True, first["sid"])
    await cluster.mark(room)
    assert await client.events_until("end") == [("missed", [])]


async def test_undefined_arguments_are_none(cluster):
    async with RawClient(cluster.a.url) as c:
        await c.send(msgpack.packb({"type": 0, "nsp": "/", "data": msgpack.ExtType(0, b"\0")}))
        assert "pid" in msgpack.unpackb(await c.recv())["data"]
        data = ["echo", msgpack.ExtType(0, b"\0"), {"deep": [msgpack.ExtType(0, b"\0"), 1]}]
        await c.send(msgpack.packb({"type": 2, "nsp": "/", "id": 1, "data": data}))
        assert msgpack.unpackb(await c.recv())["data"] == [None, {"deep": [None, 1]}]


@each_version
async def test_a_server_side_disconnect_is_one(cluster, js, version):
    client = await js.connect(cluster.a.url, version=version, parser="msgpack")
    await cluster.a.control("disconnect", sid=(await client.state())["sid"])
    assert (await client.wait_for("disconnect"))["reason"] == "io server disconnect"


@each_version
async def test_a_disconnect_in_the_connect_handler_is_final(cluster, js, user, version):
    steps = [{"op": "disconnect", "sid": "$sid"}]
    await cluster.a.control("script", hook="connect", user=user, steps=steps)
    client = await js.create(cluster.a.url, version=version, parser="msgpack", auth={"user": user})
    await client.do("connect")
    assert (await client.refused())["message"] == "Connection refused by server"
