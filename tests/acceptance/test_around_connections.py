"""What is around a connection: its last moments, the time to join a namespace, and namespaces that clients choose."""

from __future__ import annotations

import asyncio
import gzip
import json
import urllib.request

import pytest

from support.cluster import in_room
from support.node_process import PATIENCE

CLUSTER = {"connect_timeout": 2.0, "any_namespace": True}


@pytest.mark.parametrize("how", ["cut", "leave", "kick"])
async def test_disconnecting_has_the_rooms_and_comes_before_disconnect_on_each_node(cluster, js, room, how):
    client = await in_room(js, cluster.a.url, room)
    sid = (await client.state())["sid"]
    await cluster.b.control("enter_room", sid=sid, room=f"{room}-x")
    rooms = sorted([sid, room, f"{room}-x"])
    await cluster.b.emit("seen", room=f"{room}-x")
    await client.event("seen")

    async def hooks(node):
        await node.logged(hook="disconnect", sid=sid)
        return [
            (note["hook"], note["reason"], note["rooms"])
            for note in await node.control("log")
            if note["hook"] in ("disconnecting", "disconnect") and note["sid"] == sid
        ]

    await client.away()
    assert await hooks(cluster.a) == [(hook, "transport close", rooms) for hook in ("disconnecting", "disconnect")]
    await cluster.a.control("leave_room", sid=sid, room=f"{room}-x")
    rooms.remove(f"{room}-x")
    assert (await client.back(url=cluster.b.url))["recovered"]
    if how == "cut":
        reason = "transport close"
        await client.away()
    elif how == "leave":
        reason = "client disconnect"
        await client.disconnect()
    else:
        reason = "server disconnect"
        await cluster.a.control("disconnect", sid=sid)
    assert await hooks(cluster.b) == [(hook, reason, rooms) for hook in ("disconnecting", "disconnect")]


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("of", ["a", "b"])
async def test_a_connection_that_joins_no_namespace_in_time_is_closed(cluster, js, room, of, transport):
    node = getattr(cluster, of)
    options = {"options": {"transports": [transport]}}
    joined = await in_room(js, node.url, room, **options)
    sid = (await joined.state())["sid"]
    idle = await js.create(node.url, **options)
    await idle.do("reconnection", on=False)
    await idle.open()
    assert (await idle.wait_for("close"))["reason"] in ("transport close", "transport error")
    await cluster.mark(room)
    assert await joined.events_until("end") == []
    assert (await joined.state())["sid"] == sid
    assert not [message for message in joined.inbox if message["type"] == "disconnect"]


async def test_environ_and_transport_are_those_of_the_connection_that_the_client_has_now(cluster, js, room):
    options = {"transports": ["polling"], "extraHeaders": {"x-token": "t"}}
    client = await in_room(js, cluster.a.url, room, options=options)
    sid = (await client.state())["sid"]
    assert await cluster.a.control("connection", sid=sid, header="x-token") == ["polling", "t"]
    assert (await client.rejoin(url=cluster.b.url))["recovered"]
    assert await cluster.b.control("connection", sid=sid, header="x-token") == ["polling", "t"]
    assert (await cluster.b.control("connection", sid=sid, header="host"))[1] in cluster.b.url


def poll(url, body=None):
    request = urllib.request.Request(
        url, data=body, headers={"Accept-Encoding": "gzip", "Content-Type": "text/plain"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.headers["Content-Encoding"], response.read()


async def test_what_a_client_polls_is_compressed(cluster):
    url = f"{cluster.a.url}/socket.io/?EIO=4&transport=polling"
    _, opening = await asyncio.to_thread(poll, url)
    url += f"&sid={json.loads(opening[1:])['sid']}"
    text = "x" * 5_000
    await asyncio.to_thread(poll, url, b"40")
    assert (await asyncio.to_thread(poll, url))[0] is None  # it is short
    await asyncio.to_thread(poll, url, f'421["echo","{text}"]'.encode())
    encoding, content = await asyncio.to_thread(poll, url)
    assert encoding == "gzip" and gzip.decompress(content).decode() == f'431["{text}"]' and len(content) < 1_000


async def nothing_kept(node, namespace):
    async with asyncio.timeout(PATIENCE):
        while await node.control("kept", namespace=namespace):
            await asyncio.sleep(0.05)


async def test_what_a_node_keeps_for_a_namespace_goes_with_its_last_client(cluster, js, room):
    """The session that is away is in the database, and recovers on the other node."""
    namespace = f"/{room}"
    clients = [await js.connect(cluster.a.url, namespace=namespace) for _ in range(2)]
    sids = [(await client.state())["sid"] for client in clients]
    for client, sid in zip(clients, sids, strict=True):
        await cluster.b.control("enter_room", sid=sid, room="r", namespace=namespace)
        await cluster.a.control("save_session", sid=sid, session={"v": 1}, namespace=namespace)
        assert await cluster.a.control("call", event="q", data=1, to=sid, namespace=namespace) == 1
        await client.event("q")
    await clients[0].disconnect()
    await cluster.mark("r", "seen", namespace)
    await clients[1].event("seen")
    assert await cluster.a.control("kept", namespace=namespace) == ["clients", "rooms", "sockets"]
    await clients[1].away()
    await cluster.a.emit("missed", 1, room="r", namespace=namespace)
    assert (await clients[1].back(url=cluster.b.url))["recovered"]
    await nothing_kept(cluster.a, namespace)
    await cluster.mark("r", namespace=namespace)
    assert await clients[1].events_until("end") == [("missed", [1])]
    assert await cluster.b.control("get_session", sid=sids[1], namespace=namespace) == {"v": 1}
    await cluster.a.control("disconnect", sid=sids[1], namespace=namespace)
    await clients[1].wait_for("disconnect")
    await nothing_kept(cluster.b, namespace)
