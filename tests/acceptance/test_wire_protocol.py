"""Cases 1 to 7 and 16, 17: what stands on the wire, to the letter."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest

from support.cluster import in_room
from support.js_driver import VERSIONS, stored_args
from support.raw_client import RawClient, ServerClosedError, split_event


async def test_case_1_connect_is_answered_with_sid_and_pid(cluster):
    found = []
    for _ in range(2):
        async with RawClient(cluster.a.url) as c:
            await c.send("0")
            answer = str(await c.recv())
            assert answer[0] == "0"
            reply = json.loads(answer[1:])
            assert reply.keys() == {"sid", "pid"}
            found += reply.values()
    assert all(isinstance(value, str) and value for value in found)
    assert len(set(found)) == 4


async def test_case_2_without_recovery_nothing_of_it_is_seen_or_written(make_cluster):
    cluster = make_cluster(1, recovery=False)
    async with RawClient(cluster.a.url) as c:
        sid, pid = await c.open_namespace(pid="private", offset="offset", token="t")
        assert pid is None
        await cluster.a.emit("e", "world", to=sid)
        assert await c.recv() == '2["e","world"]'
    async with RawClient(cluster.a.url) as c:
        assert await c.open_namespace(pid="private") != (sid, None)
    await cluster.a.logged(2, hook="disconnect")
    cluster.a.terminate()
    with psycopg.connect(cluster.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM sio_sessions").fetchone() == (0,)


@pytest.mark.parametrize(
    ("data", "args"),
    [
        pytest.param(None, [], id="none"),
        pytest.param("world", ["world"], id="value"),
        pytest.param([1, 2], [[1, 2]], id="list"),
        pytest.param((1, {}), [1, {}], id="tuple"),
        pytest.param((), [], id="empty tuple"),
        pytest.param([], [[]], id="empty list"),
        pytest.param({"a": None}, [{"a": None}], id="object"),
        pytest.param((None, 1), [None, 1], id="tuple with None"),
    ],
)
async def test_case_3_offset_is_the_last_argument(cluster, data, args):
    async with RawClient(cluster.a.url) as c:
        sid, _ = await c.open_namespace()
        await cluster.a.emit("e", data, to=sid)
        sent, offset = await c.event()
        assert sent == ["e", *args]
        await cluster.b.emit("e", data, to=sid)
        sent, next_offset = await c.event()
        assert sent == ["e", *args]
        assert next_offset != offset


async def test_case_4_each_namespace_has_its_own_session(cluster):
    async with RawClient(cluster.a.url) as c:
        root = await c.open_namespace()
        other = await c.open_namespace("/ns")
        assert len({*root, *other}) == 4
        await cluster.a.emit("e", 1, to=root[0])
        sent, root_offset = await c.event()
        assert sent == ["e", 1]
        await cluster.b.emit("e", 2, to=other[0], namespace="/ns")
        sent, offset = await c.event("/ns")
        assert sent == ["e", 2]
        assert offset != root_offset
    async with RawClient(cluster.b.url) as c:  # each comes back by what is its own
        assert await c.open_namespace("/ns", pid=other[1], offset=offset) == other
        assert await c.open_namespace(pid=root[1], offset=root_offset) == root


async def test_case_5_attachments_stand_right_behind_their_head(cluster, room):
    data = {"deep": [b"\x00one", {"two": b"two\xff"}], "text": "t"}
    async with RawClient(cluster.a.url) as c:
        await c.open_namespace(rooms=[room])
        for node in (cluster.a, cluster.b):  # traffic that could get in between
            await node.control("start_emitter", name=node.url, room=room, interval_ms=1)
        for _ in range(20):
            await cluster.b.emit("b", data, room=room)
            head = str((await c.recv_until(lambda f: str(f).startswith("5")))[-1])
            assert [await c.recv(), await c.recv()] == [b"\x00one", b"two\xff"]
            name, body, offset = json.loads(head.removeprefix("52-"))
            holder = {"_placeholder": True}
            assert name == "b"
            assert body == {"deep": [{**holder, "num": 0}, {"two": {**holder, "num": 1}}], "text": "t"}
            assert isinstance(offset, str)


@pytest.mark.parametrize("version", VERSIONS)
async def test_case_5_js_gets_buffers_and_moves_its_offset(cluster, js, room, version):
    client = await in_room(js, cluster.a.url, room, version=version)
    await cluster.b.emit("first", 1, room=room)
    before = (await client.event("first"))["offset"]
    for node in (cluster.a, cluster.b):
        await node.emit("b", ({"x": [b"\x00\xff"]}, b"tail"), room=room)
        message = await client.event("b")
        assert stored_args(message) == [{"x": [b"\x00\xff"]}, b"tail"]
        assert message["offset"] not in {None, before}
        before = message["offset"]
    assert (await client.state())["offset"] == before


@pytest.mark.parametrize("version", VERSIONS)
async def test_case_6_calls_and_callbacks_bear_no_offset(cluster, js, room, version):
    client = await in_room(js, cluster.a.url, room, version=version, acks={"q": ["r", 1]})
    sid = (await client.state())["sid"]
    await cluster.a.emit("e", 1, room=room)
    offset = (await client.event("e"))["offset"]
    assert await cluster.a.control("call", event="q", data="last", to=sid) == ("r", 1)
    await cluster.a.control("emit_callback", event="q", data="last", to=sid)
    await cluster.a.logged(hook="callback", event="q", args=["r", 1])
    for _ in range(2):
        message = await client.event("q")
        assert message["ack"] and message["args"] == ["last"]
        assert message["offset"] == offset
    assert (await client.rejoin())["recovered"]


async def test_case_6_frame_of_a_call(cluster):
    async with RawClient(cluster.a.url) as c:
        sid, _ = await c.open_namespace()
        await cluster.a.control("emit_callback", event="q", data=1, to=sid)
        frame = str(await c.recv())
        ack_id, data = frame[1:].split("[", 1)
        assert ack_id.isdigit() and json.loads("[" + data) == ["q", 1]
        await c.send(f'3{ack_id}["r"]')
        await cluster.a.logged(hook="callback", event="q", args=["r"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["volatile", "ignore_queue"])
async def test_case_7_unstored_events_leave_the_offset_alone(cluster, js, room, version, how):
    client = await in_room(js, cluster.a.url, room, version=version)
    await cluster.a.emit("stored", 1, room=room)
    offset = (await client.event("stored"))["offset"]
    await cluster.a.emit("v", "world", room=room, **{how: True})
    await cluster.a.emit("tick", room=room, **{how: True})
    for name, args in (("v", ["world", None]), ("tick", [None])):
        message = await client.event(name)
        assert message["args"] == args
        assert message["offset"] == offset
    await client.away()
    await cluster.b.emit("missed", 2, room=room)
    back = await client.back()
    assert back["recovered"] and back["offset"] == offset
    assert stored_args(await client.event("missed")) == [2]


@pytest.mark.parametrize(
    "auth",
    [
        '"x"',
        "[1]",
        "null",
        "{}",
        '{"pid":1}',
        '{"pid":{}}',
        '{"pid":"p","offset":7}',
        '{"offset":7}',
        '{"pid":null}',
        '{"pid":["p"]}',
        '{"pid":"p","offset":null}',
        '{"pid":"p","offset":{"a":[]}}',
        '{"pid":""}',
        '{"pid":true,"offset":true}',
        "7",
        "true",
    ],
)
async def test_case_16_odd_connects_get_a_new_session_or_a_refusal(cluster, auth):
    async with RawClient(cluster.a.url) as c:
        await c.send("0" + auth)
        answer = str(await c.recv())  # not ServerClosedError, not silence
        assert answer[0] in "04"
        if answer[0] == "0":
            await cluster.b.emit("e", to=json.loads(answer[1:])["sid"])
            assert (await c.event())[0] == ["e"]
    async with RawClient(cluster.a.url) as c:  # and the node is well
        await c.open_namespace()
    # the cluster fixture checks that nothing was logged as an error


async def test_case_16_second_connect_on_one_connection_changes_nothing(cluster):
    async with RawClient(cluster.a.url) as c:
        sid, pid = await c.open_namespace()
        await c.send("0" + json.dumps({"pid": pid}))
        await cluster.b.emit("e", 1, to=sid)
        try:
            frames = await c.recv_until_event("e")
        except ServerClosedError:
            return  # as good: it comes back by itself
        assert all(str(frame).startswith("4") for frame in frames)


async def test_case_17_clients_left_out_by_accepts_see_no_offset(make_cluster):
    cluster = make_cluster(1, accepts=True)
    async with RawClient(cluster.a.url) as plain, RawClient(cluster.a.url) as modern:
        plain_sid, pid = await plain.open_namespace(plain=True, rooms=["r"])
        assert pid is None
        modern_sid, pid = await modern.open_namespace(rooms=["r"])
        assert pid is not None
        await cluster.a.emit("e", "both", room="r")
        await cluster.a.emit("v", "both", room="r", volatile=True)
        await cluster.a.emit("e", "one", to=plain_sid)
        assert [await plain.recv() for _ in range(3)] == ['2["e","both"]', '2["v","both"]', '2["e","one"]']
        assert (await modern.event())[0] == ["e", "both"]
        assert await modern.recv() == '2["v","both",null]'
        await cluster.a.emit("b", b"1", room="r")
        assert [await plain.recv(), await plain.recv()] == ['51-["b",{"_placeholder":true,"num":0}]', b"1"]
        head = str(await modern.recv())
        assert split_event(head.replace("51-", "2"))[0] == ["b", {"_placeholder": True, "num": 0}]
        assert modern_sid != plain_sid


async def test_a_second_connect_while_the_first_is_being_decided_is_not_refused(make_cluster):
    """socket.io-client's `connect()`, called while it connects, sends one: a refusal would be final for it."""
    node = make_cluster(1, connect_delay=0.5).a
    async with RawClient(node.url, transport="polling") as c:
        await asyncio.gather(c.send("0"), c.send("0"))
        assert (await c.recv()).startswith("0{")
        await node.emit("end")
        assert await c.recv_until_event("end") == []


async def test_a_second_connect_that_crossed_the_answer_is_not_refused(make_cluster):
    """As above, but it arrives when the answer is on its way to the client."""
    node = make_cluster(1).a
    async with RawClient(node.url) as c:
        await c.send("0")
        assert (await c.recv()).startswith("0{")
        await c.send("0")
        await node.emit("end")
        assert await c.recv_until_event("end") == []


async def test_a_connect_after_its_own_disconnect_is_a_new_one(make_cluster):
    """Also one that arrives while the first is being decided: over polling packets are not taken one by one."""
    node = make_cluster(1, connect_delay=0.5).a
    async with RawClient(node.url, transport="polling") as c:
        first = asyncio.create_task(c.send("0"))
        await node.logged(hook="connect")
        await c.send("1")
        await asyncio.gather(first, c.send("0"))
        assert (await c.recv()).startswith("0{")
        await node.emit("end")
        assert await c.recv_until_event("end") == []
