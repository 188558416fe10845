"""Clients as they are: of mixed transports, slow, many, quick to send, hostile."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest

from support.cluster import in_room
from support.raw_client import RawClient


@pytest.mark.parametrize("first", ["websocket", "polling"])
async def test_cases_5_12_binary_to_clients_of_both_transports(cluster, js, room, first):
    """One event, encoded once for all: over WebSocket as it is, by polling as base64."""
    second = "polling" if first == "websocket" else "websocket"
    clients = [await in_room(js, cluster.a.url, room, options={"transports": [t]}) for t in (first, second, first)]
    for i in range(5):
        await cluster.a.emit("b", {"n": i, "data": bytes([i, 255])}, room=room)
    await cluster.mark(room)
    expected = [("b", [{"n": i, "data": bytes([i, 255])}]) for i in range(5)]
    for client in clients:
        assert await client.events_until("end") == expected
        assert not [m for m in client.inbox if m["type"] == "disconnect"]


async def test_cases_5_37_binary_replayed_to_a_client_of_another_transport(cluster, js, room):
    live = await in_room(js, cluster.a.url, room)
    client = await in_room(js, cluster.a.url, room, options={"transports": ["polling"]})
    await cluster.a.emit("seen", room=room)
    await client.event("seen")
    await client.away()
    await cluster.a.emit("b", b"\x00\xff", room=room)
    await live.event("b")
    assert (await client.back())["recovered"]
    await cluster.mark(room)
    assert await client.events_until("end") == [("b", [b"\x00\xff"])]


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_case_73_what_is_sent_right_after_connect_is_heard(cluster, transport):
    """Socket.IO clients flush what they have buffered with the CONNECT's answer, on recovery too."""
    pid, offset = None, None
    for _ in range(2):
        async with RawClient(cluster.a.url, transport) as c:
            auth = {"pid": pid, "offset": offset} if pid else {}
            _, pid = await c.open_namespace(**auth)
            await asyncio.gather(*(c.send(f"2{i}" + json.dumps(["echo", i])) for i in range(20)))
            answers = set()
            while len(answers) < 20:
                frame = await c.recv()
                if frame.startswith("3"):
                    answers.add(frame)
            assert answers == {f"3{i}[{i}]" for i in range(20)}
            await cluster.a.emit("e")
            _, offset = await c.event()
            await c.close()


async def test_case_96_the_handler_sees_whose_cookie_it_is_before_anything_is_sent(cluster, room):
    """A stolen pid under another user's token: the `connect` handler decides, and its refusal reveals nothing."""
    async with RawClient(cluster.a.url) as victim:
        sid, pid = await victim.open_namespace(user="a", rooms=[room])
        await victim.close()
        await cluster.a.logged(hook="disconnect", sid=sid)
    await cluster.a.emit("secret", room=room)
    await cluster.a.emit("secret", to=sid)
    await cluster.a.control("script", hook="connect", user="b", steps=[{"op": "refuse", "message": "not yours"}])
    async with RawClient(cluster.a.url) as thief:
        await thief.send("0" + json.dumps({"pid": pid, "user": "b"}))
        assert json.loads((await thief.recv())[1:]) == {"message": "not yours"}
        await thief.close()
        assert all("secret" not in str(frame) for frame in await thief.recv_closed())
    note = [e for e in await cluster.a.control("log") if e["hook"] == "connect" and e["sid"] == sid][-1]
    assert note["auth"] == {"user": "b"} and note["recovered"]


async def test_case_101_many_connects_and_drops_leave_what_can_be_collected(make_cluster):
    """Bounded: a row for each, gone when its time is up; nothing of them in the node."""
    cluster = make_cluster(1, window=0.5)
    before = await cluster.a.control("participants")

    async def come_and_go(i: int) -> None:
        async with RawClient(cluster.a.url) as c:
            await c.open_namespace(rooms=[f"room-{i}"])
            c.abort()

    for start in range(0, 500, 25):
        await asyncio.gather(*(come_and_go(i) for i in range(start, start + 25)))
    await cluster.a.logged(500, hook="disconnect")
    assert await cluster.a.control("participants") == before == []
    assert (await cluster.a.control("health"))["sessions"] == "0"
    with psycopg.connect(cluster.dsn, autocommit=True) as db:
        assert db.execute("SELECT count(*) FROM sio_sessions").fetchone()[0] <= 500
        db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp() - interval '1 s'")
        assert db.execute("SELECT sio_expire(1000)").fetchone()[0] == 500
        assert db.execute("SELECT count(*) FROM sio_rooms").fetchone()[0] == 0
        backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert db.execute(backends).fetchone()[0] <= 7
