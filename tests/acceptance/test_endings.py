"""Cases 23, 26, 27, 31: how a connection ends, and what may come back after it."""

from __future__ import annotations

import json

import pytest

from support.cluster import in_room
from support.js_driver import VERSIONS
from support.raw_client import RawClient

KINDS = ("async", "sync")
each_version = pytest.mark.parametrize("version", VERSIONS)


@each_version
async def test_case_23_recovers_before_it_ever_got_an_event(cluster, js, room, version):
    client = await js.connect(cluster.a.url, version=version)
    sid = (await client.state())["sid"]
    await client.call("join", room)
    await client.away()
    await cluster.b.emit("missed", 1, room=room)
    back = await client.back()
    assert back["recovered"] and back["sid"] == sid
    assert back["offset"] is None
    await cluster.mark(room)
    assert await client.events_until("end") == [("missed", [1])]


@pytest.mark.parametrize("how", ["drop", "abort", "silence"])
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_case_26_js_connection_lost(cluster, js, room, transport, how):
    client = await in_room(js, cluster.a.url, room, options={"transports": [transport]})
    sid = (await client.state())["sid"]
    await cluster.a.emit("seen", room=room)
    await client.event("seen")
    await client.away(how)
    await cluster.a.emit("missed", room=room)
    back = await client.back()
    assert back["recovered"] and back["sid"] == sid
    await cluster.mark(room)
    assert [name for name, _ in await client.events_until("end")] == ["missed"]


async def lose(c: RawClient, how: str) -> None:
    match how:
        case "close":  # of the WebSocket, or Engine.IO CLOSE over polling
            await c.close()
        case "abort":
            c.abort()
        case "ping timeout":  # reads, and answers no ping, until the server has had enough
            await c.recv_closed()
        case "poll timeout":  # has vanished between two polls
            await c.stop_reading()


@pytest.mark.parametrize(
    ("transport", "how", "reason"),
    [
        ("websocket", "close", "transport close"),
        ("websocket", "abort", "transport close"),
        ("websocket", "ping timeout", "ping timeout"),
        ("polling", "close", "client disconnect"),  # the same words as a DISCONNECT packet
        ("polling", "poll timeout", "ping timeout"),
    ],
)
async def test_case_26_reasons(make_cluster, transport, how, reason):
    patient = "timeout" not in how
    cluster = make_cluster(1, **({} if patient else {"ping_interval": 1.0, "ping_timeout": 1.0}))
    async with RawClient(cluster.a.url, transport, answer_pings=patient) as c:
        sid, pid = await c.open_namespace(rooms=["r"])
        await cluster.a.emit("seen", room="r")
        _, offset = await c.event()
        await lose(c, how)
        ended = (await cluster.a.logged(hook="disconnect", sid=sid))[0]
        assert ended["reason"] == reason
    await cluster.a.emit("missed", room="r")
    async with RawClient(cluster.a.url, transport) as c:
        assert await c.open_namespace(pid=pid, offset=offset) == (sid, pid)
        assert (await c.event())[0] == ["missed"]


async def never_again(cluster, pid: str, sid: str) -> None:
    """The old pid gives a new session, at either node and again."""
    for node in (cluster.a, cluster.b, cluster.a):
        async with RawClient(node.url) as c:
            fresh = await c.open_namespace(pid=pid)
            assert sid != fresh[0] and pid != fresh[1]


@each_version
async def test_case_27_client_disconnects(cluster, js, session_rows, version):
    client = await js.connect(cluster.a.url, version=version)
    first = await client.state()
    await client.disconnect()
    await cluster.a.logged(hook="disconnect", sid=first["sid"])
    second = await client.connect()
    assert not second["recovered"]
    assert second["sid"] != first["sid"] and second["pid"] != first["pid"]
    await never_again(cluster, first["pid"], first["sid"])
    assert session_rows(first["sid"]) == 0


@pytest.mark.parametrize("by", ["a", "b"])
async def test_case_27_server_disconnects(cluster, js, session_rows, by):
    client = await js.connect(cluster.a.url)
    first = await client.state()
    await getattr(cluster, by).control("disconnect", sid=first["sid"])
    assert (await client.wait_for("disconnect"))["reason"] == "io server disconnect"
    second = await client.connect()
    assert not second["recovered"] and second["pid"] != first["pid"]
    await never_again(cluster, first["pid"], first["sid"])
    assert session_rows(first["sid"]) == 0


@each_version
async def test_case_111_disconnected_while_it_recovers(cluster, js, user, session_rows, version):
    """JavaScript ends at the DISCONNECT. The CONNECT_ERROR behind it, which Python needs, does not reach it."""
    client = await js.connect(cluster.a.url, version=version, auth={"user": user})
    first = await client.state()
    await client.away()
    steps = [{"op": "disconnect", "sid": "$sid"}]
    await cluster.a.control("script", hook="connect", user=user, steps=steps)
    await client.do("reconnection", on=True)
    await client.do("connect")
    await client.take(lambda m: m.get("reason") == "io server disconnect", "the server's disconnect")
    await never_again(cluster, first["pid"], first["sid"])
    assert session_rows(first["sid"]) == 0


async def test_case_27_first_connect_refused_leaves_nothing(cluster, js, user, session_rows):
    steps = [{"op": "refuse", "message": "no"}]
    await cluster.a.control("script", hook="connect", user=user, steps=steps)
    client = await js.create(cluster.a.url, auth={"user": user})
    await client.do("connect")
    assert (await client.refused())["message"] == "no"
    sid = (await cluster.a.logged(hook="connect", user=user))[0]["sid"]
    assert session_rows(sid) == 0
    assert sid not in await cluster.a.control("participants")
    assert (await client.state())["pid"] is None


async def test_case_27_refused_on_recovery(cluster, js, user, session_rows):
    client = await js.connect(cluster.a.url, auth={"user": user})
    first = await client.state()
    await client.away()
    steps = [{"op": "refuse", "message": "no"}]
    await cluster.b.control("script", hook="connect", user=user, steps=steps)
    await client.move_to(cluster.b.url)
    await client.do("reconnection", on=True)
    await client.do("connect")
    assert (await client.refused())["message"] == "no"
    await never_again(cluster, first["pid"], first["sid"])
    assert session_rows(first["sid"]) == 0


async def test_case_27_disconnect_packet_by_polling_ends_the_session(cluster):
    """The reason reads 'client disconnect' here, as of an Engine.IO CLOSE, which does recover."""
    async with RawClient(cluster.a.url, "polling") as c:
        sid, pid = await c.open_namespace()
        await c.send("1")
        await cluster.a.logged(hook="disconnect", sid=sid)
    await never_again(cluster, pid, sid)


async def test_case_31_disconnect_handler_sees_and_leaves_the_whole_session(cluster, js, room, user):
    steps = [
        {"op": "emit", "event": "own", "data": "to sid", "to": "$sid"},
        {"op": "emit", "event": "own", "data": "to room", "room": room},
        {"op": "save_session", "sid": "$sid", "session": {"v": 2}},
        {"op": "leave_room", "sid": "$sid", "room": room},
    ]
    await cluster.a.control("script", hook="disconnect", user=user, steps=steps)
    client = await in_room(js, cluster.a.url, room, auth={"user": user})
    sid = (await client.state())["sid"]
    await cluster.a.control("save_session", sid=sid, session={"v": 1})
    await client.away()
    ended = (await cluster.a.logged(hook="disconnect", sid=sid))[0]
    assert ended["rooms"] == sorted([sid, room])
    assert ended["session"] == {"v": 1}
    await cluster.a.control("script", hook="disconnect", user=user, steps=[])
    back = await client.back()
    assert back["recovered"]
    note = (await cluster.a.logged(2, hook="connect", sid=sid))[-1]
    assert note["rooms"] == sorted([sid, room])  # taken when the handler started
    assert note["session"] == {"v": 2}
    await cluster.mark(room)
    assert await client.events_until("end") == [("own", ["to sid"]), ("own", ["to room"])]


async def test_case_46_event_stands_before_the_ack_and_before_the_disconnect(cluster):
    async with RawClient(cluster.a.url) as c:
        await c.open_namespace()
        emit = {"op": "emit", "event": "progress", "data": 1, "to": "$sid"}
        for ack_id in range(1, 21):
            steps = [emit, emit, {"op": "return", "value": "done"}]
            await c.send(f"2{ack_id}" + json.dumps(["run", steps]))
            assert (await c.event())[0] == ["progress", 1]
            assert (await c.event())[0] == ["progress", 1]
            assert await c.recv() == f'3{ack_id}["done"]'
        await c.send("2" + json.dumps(["run", [emit, {"op": "disconnect", "sid": "$sid"}]]))
        assert (await c.event())[0] == ["progress", 1]
        assert await c.recv() == "1"


async def test_case_47_emits_of_the_connect_handler(cluster, js, room, user):
    steps = [
        {"op": "emit", "event": "hello", "data": "sid", "to": "$sid"},
        {"op": "emit", "event": "hello", "data": "room", "room": room},
    ]
    hello = [("hello", ["sid"]), ("hello", ["room"])]
    for node in (cluster.a, cluster.b):
        await node.control("script", hook="connect", user=user, steps=steps)
    client = await js.create(cluster.a.url, auth={"user": user, "rooms": [room]})
    await client.do("connect")
    first = await client.take(lambda _: True, "first message")
    assert first["type"] == "connect"
    await cluster.mark(room)
    assert await client.events_until("end") == hello
    for node in (cluster.a, cluster.b):
        await client.away()
        await cluster.a.emit("missed", 1, room=room)
        await client.move_to(node.url)
        await client.do("reconnection", on=True)
        await client.do("connect")
        back = await client.take(lambda _: True, "first message")  # CONNECT is before everything
        assert back["type"] == "connect" and back["recovered"]
        await cluster.mark(room)
        assert await client.events_until("end") == [("missed", [1]), *hello]


async def test_case_47_frames_of_a_first_connect(cluster, room, user):
    steps = [{"op": "emit", "event": "hello", "data": i, "room": room} for i in range(5)]
    await cluster.a.control("script", hook="connect", user=user, steps=steps)
    async with RawClient(cluster.a.url) as c:
        await c.open_namespace(user=user, rooms=[room])  # CONNECT is the first frame
        assert [(await c.event())[0] for _ in steps] == [["hello", i] for i in range(5)]
        await cluster.mark(room)
        assert await c.recv_until_event("end") == []
