"""The sockets that ``fetch_sockets`` returns: their methods act on a client wherever it is by then, or while it is
away."""

from __future__ import annotations

import pytest

from support.cluster import in_room

KINDS = ("async", "mixed")


async def test_local_sockets_are_those_of_the_node_that_has_the_client_now(cluster, js, room):
    clients = [await in_room(js, node.url, room) for node in (cluster.a, cluster.b)]
    sids = [(await client.state())["sid"] for client in clients]

    async def local(node) -> list[str]:
        return [socket["sid"] for socket in await node.control("fetch_sockets", room=room, local=True)]

    assert [await local(node) for node in cluster.nodes] == [[sids[0]], [sids[1]]]
    await clients[0].away()
    await cluster.a.logged(hook="disconnect", sid=sids[0])
    assert await local(cluster.a) == []
    assert (await clients[0].back(url=cluster.b.url))["recovered"]
    assert await local(cluster.a) == []
    assert sorted(await local(cluster.b)) == sorted(sids)


async def test_the_handshake_is_that_of_the_connection_that_the_client_has_now(cluster, js, room):
    client = await in_room(js, cluster.a.url, room, auth={"token": "t"})
    handshakes = []
    for node in (cluster.a, cluster.b):
        [socket] = await cluster.a.control("fetch_sockets", room=room)
        assert socket["recovered"] is (node is cluster.b) and socket["rooms"][1:] == (room,)
        handshake = socket["handshake"]
        assert handshake["auth"] == {"token": "t", "rooms": [room]} and handshake["address"] == "127.0.0.1"
        assert handshake["query"]["EIO"] == "4" and handshake["headers"]["host"] in node.url
        handshakes.append(handshake)
        assert (await client.rejoin(url=cluster.b.url))["recovered"]
    assert handshakes[0]["time"] < handshakes[1]["time"]


@pytest.mark.parametrize("of", ["a", "b"])
async def test_methods_act_on_a_client_that_is_away_and_comes_back_elsewhere(cluster, js, room, of):
    client = await in_room(js, cluster.a.url, room)
    sid, names = (await client.state())["sid"], [f"{room}-{name}" for name in "xyz"]
    node = getattr(cluster, of)
    assert [socket["sid"] for socket in await node.control("fetch_sockets", room=room)] == [sid]

    async def call(method, *args) -> None:
        await node.control("socket", sid=sid, method=method, args=list(args))

    await call("join", names[2])
    await client.away()
    await call("emit", "direct", 1)
    await call("join", names[:2])
    await call("leave", names[1])
    for name in names:
        await cluster.a.emit("to room", name, room=name)
    assert (await client.back(url=cluster.b.url))["recovered"]
    await call("emit", "direct", 2)
    await call("leave", names[2])
    await cluster.a.emit("to room", "left", room=names[2])
    await cluster.mark(room)
    assert await client.events_until("end") == [
        ("direct", [1]),
        ("to room", [names[0]]),
        ("to room", [names[2]]),
        ("direct", [2]),
    ]
    await client.away()
    await call("disconnect")
    assert not (await client.back(url=cluster.a.url))["recovered"]
