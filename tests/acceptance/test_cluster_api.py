"""What a server asks and changes on all nodes, with the real client, and with nodes that are killed or stand still.

The timeouts are longer than a test waits for a node. A caller that waited for a killed node would fail.
"""

from __future__ import annotations

import asyncio

from support.cluster import in_room
from support.node_process import PATIENCE

KINDS = ("async", "mixed")
NEVER = 2 * PATIENCE


async def test_a_killed_node_is_neither_counted_nor_waited_for(make_cluster, js):
    a, b, c = make_cluster(3).nodes
    ids = [await node.control("node_id") for node in (a, b, c)]
    assert await a.control("server_count") == 3
    echoed = await a.control("server_side_call", event="echo", args=[b"\x00", "x" * 9_000], timeout=NEVER)
    assert echoed == {"missing": [], "answers": {key: [b"\x00", "x" * 9000] for key in ids[1:]}}

    client = await in_room(js, a.url, "r")
    lost = await in_room(js, c.url, "r")
    await lost.do("reconnection", on=False)
    sockets = {socket["sid"]: socket for socket in await b.control("fetch_sockets", room="r")}
    assert {sid: socket["node"] for sid, socket in sockets.items()} == {
        (await client.state())["sid"]: ids[0],
        (await lost.state())["sid"]: ids[2],
    }
    calling = asyncio.create_task(a.control("server_side_call", event="never", args=[], timeout=NEVER))
    await b.logged(hook="server event", event="never")
    await c.logged(hook="server event", event="never")
    for node in (b, c):  # while they are waited for
        await asyncio.to_thread(node.kill)
    assert await calling == {"missing": [], "answers": {}}
    assert await a.control("server_count") == 1
    assert [socket["node"] for socket in await a.control("fetch_sockets", room="r")] == [ids[0]]
    assert await a.control("server_side_call", event="echo", args=[], timeout=NEVER) == {"missing": [], "answers": {}}


async def test_a_node_that_stands_still_is_named(make_cluster, js):
    a, b, c = make_cluster(3).nodes
    client = await in_room(js, a.url, "r", acks={"q": [1]})
    stuck = await in_room(js, c.url, "r", acks={"q": [3]})
    ids = [await node.control("node_id") for node in (a, b, c)]
    c.pause()
    try:
        assert await a.control("server_count") == 3
        reply = await a.control("server_side_call", event="echo", args=[1], timeout=1)
        assert reply == {"missing": [ids[2]], "answers": {ids[1]: [1]}}
        reply = await b.control("broadcast_call", event="q", room="r", timeout=1)
        assert reply == {"missing": [ids[2]], "answers": {(await client.state())["sid"]: 1}}
    finally:
        c.resume()
    sid = (await stuck.state())["sid"]
    await stuck.event("q")  # the late one
    reply = await b.control("broadcast_call", event="q", room=sid)
    assert reply == {"missing": [], "answers": {sid: 3}}


async def test_case_78_all_clients_answer_and_those_of_a_killed_node_are_named(make_cluster, js):
    a, b, c = make_cluster(3).nodes
    acks = {"one": [{"a": 1}], "several": [1, "b"], "binary": [{"$bin": "AP8="}], "large": ["x" * 20_000], "none": []}
    clients = [await in_room(js, node.url, "r", acks=acks) for node in (a, b, c)]
    await js.connect(b.url)  # not in the room
    sids = [(await client.state())["sid"] for client in clients]
    values = {"one": {"a": 1}, "several": (1, "b"), "binary": b"\x00\xff", "large": "x" * 20_000, "none": None}
    for event, value in values.items():
        reply = await b.control("broadcast_call", event=event, data=b"question", room="r", timeout=NEVER)
        assert reply == {"missing": [], "answers": dict.fromkeys(sids, value)}
        for client in clients:
            assert (await client.event(event))["args"] == [{"$bin": "cXVlc3Rpb24="}]

    silent = await in_room(js, c.url, "r", acks={"*": "none"})
    unheard = (await silent.state())["sid"]
    for client in (clients[2], silent):
        await client.do("reconnection", on=False)
    calling = asyncio.create_task(a.control("broadcast_call", event="one", room="r", timeout=NEVER))
    for client in (*clients, silent):
        await client.event("one")
    await asyncio.to_thread(c.kill)
    reply = await calling
    assert {*reply["answers"], *reply["missing"]} == {*sids, unheard}
    assert reply["answers"].keys() >= set(sids[:2]) and unheard in reply["missing"]
    reply = await a.control("broadcast_call", event="one", room="r", timeout=NEVER)
    assert reply == {"missing": [], "answers": {key: {"a": 1} for key in sids[:2]}}


async def test_case_77_rooms_are_moved_and_disconnected_across_three_nodes_and_while_away(make_cluster, js):
    a, b, c = make_cluster(3).nodes
    clients = [await in_room(js, node.url, "r") for node in (a, b, c)]
    other = await js.connect(a.url)
    sids = [(await client.state())["sid"] for client in clients]
    await clients[2].away()
    await b.control("sockets_join", room="r", rooms=["x", "y"])
    await a.emit("joined", room="x")
    await c.control("sockets_leave", room="r", rooms="x")
    await a.emit("left", room="x")
    await b.emit("still", room="y")
    assert (await clients[2].back(url=a.url))["recovered"]
    await a.emit("end")
    for client in clients:
        assert await client.events_until("end") == [("joined", []), ("still", [])]
    assert await other.events_until("end") == []
    assert sorted(socket["sid"] for socket in await c.control("fetch_sockets", room="y")) == sorted(sids)

    await clients[2].away()
    await c.control("disconnect_sockets", room="y")
    for client in clients[:2]:
        assert (await client.wait_for("disconnect"))["reason"] == "io server disconnect"
    back = await clients[2].back(url=b.url)
    assert not back["recovered"] and back["sid"] not in sids
    left = {socket["sid"] for socket in await a.control("fetch_sockets")}
    assert left == {back["sid"], (await other.state())["sid"]}


async def test_the_socket_of_a_client_of_another_node(make_cluster, js):
    a, b = make_cluster(2).nodes
    client = await in_room(js, b.url, "r", auth={"token": "t"})
    sid = (await client.state())["sid"]
    await b.emit("seen", room="r")
    await client.event("seen")
    await client.cut()
    await a.emit("missed", room="r")
    assert (await client.back(url=b.url))["recovered"]
    [socket] = await a.control("fetch_sockets", room=sid)
    handshake = socket["handshake"]
    assert handshake["auth"] == {"token": "t", "rooms": ["r"]} and handshake["address"] == "127.0.0.1"
    assert handshake["query"]["EIO"] == "4" and handshake["headers"]["host"] in b.url
    await a.control("socket", sid=sid, method="emit", args=["direct", 1])
    await a.control("socket", sid=sid, method="join", args=[["x", "y"]])
    await a.control("socket", sid=sid, method="leave", args=["y"])
    await a.emit("left", room="y")
    await a.emit("joined", room="x")
    assert await client.events_until("joined") == [("missed", []), ("direct", [1])]
    await a.control("socket", sid=sid, method="disconnect", args=[])
    assert (await client.wait_for("disconnect"))["reason"] == "io server disconnect"
    [note] = await b.logged(hook="disconnecting", sid=sid, reason="server disconnect")
    assert note["rooms"] == sorted([sid, "r", "x"])
