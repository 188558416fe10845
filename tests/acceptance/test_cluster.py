"""Cases 76 to 78: what one node can do, several can."""

from __future__ import annotations

import pytest

from support.cluster import in_room
from support.js_driver import VERSIONS
from support.node_process import ControlError

each_version = pytest.mark.parametrize("version", VERSIONS)


@each_version
async def test_case_76_recovers_on_another_node(cluster, js, room, version):
    client = await in_room(js, cluster.a.url, room, version=version)
    sid = (await client.state())["sid"]
    await cluster.a.control("save_session", sid=sid, session={"v": 1})
    await cluster.a.emit("seen", room=room)
    await client.event("seen")
    await client.away()
    expected = []
    for i, node in enumerate([cluster.a, cluster.b] * 4):
        await node.emit("all", i)
        await node.emit("room", i, room=room)
        await node.emit("direct", i, to=sid)
        await node.emit("other room", i, room=room + "x")
        await node.emit("other namespace", i, namespace="/ns")
        expected += [("all", [i]), ("room", [i]), ("direct", [i])]
    back = await client.back(url=cluster.b.url)
    assert back["recovered"] and back["sid"] == sid
    await cluster.mark(room)
    assert await client.events_until("end") == expected
    note = (await cluster.b.logged(hook="connect", sid=sid))[-1]
    assert note["recovered"] and note["rooms"] == sorted([sid, room]) and note["session"] == {"v": 1}
    for node in (cluster.a, cluster.b):  # and it is live there
        await node.emit("live", room=room)
        await client.event("live")


@each_version
async def test_case_76_recovers_from_a_killed_node(make_cluster, js, version):
    cluster = make_cluster(2)
    client = await in_room(js, cluster.a.url, "r", version=version)
    sid = (await client.state())["sid"]
    assert await client.call("join", "late") == "joined"
    await cluster.a.control("save_session", sid=sid, session={"v": 1})
    await cluster.b.emit("seen", room="r")
    await client.event("seen")
    await client.do("reconnection", on=False)
    cluster.a.kill()
    await client.wait_for("disconnect")
    await cluster.b.emit("missed", 1, room="r")
    await cluster.b.emit("missed", 2, room="late")
    back = await client.back(url=cluster.b.url)
    assert back["recovered"] and back["sid"] == sid
    await cluster.b.emit("end", room="r")
    assert await client.events_until("end") == [("missed", [1]), ("missed", [2])]
    note = (await cluster.b.logged(hook="connect", sid=sid))[0]
    assert note["rooms"] == sorted([sid, "r", "late"]) and note["session"] == {"v": 1}


@each_version
async def test_what_skips_a_room_of_the_client_is_not_replayed_on_another_node(cluster, js, version):
    client = await in_room(js, cluster.a.url, "r", version=version)
    watcher = await in_room(js, cluster.b.url, "r", version=version)
    sid = (await client.state())["sid"]
    await cluster.b.control("enter_room", sid=sid, room="muted")
    await cluster.b.emit("live", 1, room="r", skip_room="muted")
    await cluster.a.emit("seen", room="r")
    assert await client.events_until("seen") == []
    await client.cut()
    await cluster.a.emit("missed", 1, room="r", skip_room="muted")
    await cluster.b.emit("missed", 2, skip_room=["others", "muted"])
    await cluster.b.control("leave_room", sid=sid, room="muted")
    await cluster.a.emit("missed", 3, room="r", skip_room="muted")
    back = await client.back(url=cluster.b.url)
    assert back["recovered"] and back["sid"] == sid
    await cluster.a.control("enter_room", sid=sid, room="muted")
    await cluster.a.emit("live", 2, skip_room="muted")
    await cluster.a.emit("end")
    assert await client.events_until("end") == [("missed", [3])]
    everything = [("live", [1]), ("seen", []), *(("missed", [n]) for n in (1, 2, 3)), ("live", [2])]
    assert await watcher.events_until("end") == everything


async def test_case_77_across_three_nodes_as_on_one(make_cluster, js):
    nodes = make_cluster(3).nodes
    clients = [await in_room(js, node.url, "r") for node in nodes]
    sids = [(await client.state())["sid"] for client in clients]
    expected: list[list[tuple[str, list]]] = [[], [], []]

    async def emit(node, event, due: list[int], **options) -> None:
        await node.emit(event, 1, **options)
        for i in due:
            expected[i].append((event, [1]))

    for n, node in enumerate(nodes):
        await emit(node, f"all {n}", [0, 1, 2])
        await emit(node, f"room {n}", [0, 1, 2], room="r")
        await emit(node, f"direct {n}", [(n + 1) % 3], to=sids[(n + 1) % 3])
        await emit(node, f"skip {n}", [i for i in range(3) if i != n], room="r", skip_sid=sids[n])
        await emit(node, f"skip two {n}", [n], skip_sid=[sid for i, sid in enumerate(sids) if i != n])
        await emit(node, f"namespace {n}", [], namespace="/other")
        await emit(node, f"sid of the namespace {n}", [], to=sids[0], namespace="/other")
    a, b, c = nodes
    await a.control("enter_room", sid=sids[2], room="x")
    await emit(b, "entered", [2], room="x")
    await c.control("enter_room", sid=sids[0], room="x")
    await emit(a, "both", [0, 2], room="x")
    await b.control("leave_room", sid=sids[0], room="x")
    await emit(c, "left", [2], room="x")
    await emit(c, "several", [0, 1, 2], to=["x", "r"])
    await b.control("close_room", room="x")
    await emit(a, "closed", [], room="x")
    assert await a.control("rooms", sid=sids[0]) == sorted([sids[0], "r"])
    assert sorted(await a.control("fetch_rooms", sid=sids[2])) == sorted([sids[2], "r"])
    await b.emit("end")
    for client, due in zip(clients, expected, strict=True):
        assert await client.events_until("end") == due
    await a.control("disconnect", sid=sids[2])
    assert (await clients[2].wait_for("disconnect"))["reason"] == "io server disconnect"


ANSWERS = {
    "one": ([{"a": 1}], {"a": 1}),
    "several": ([1, "b"], (1, "b")),
    "binary": ([{"$bin": "AP8="}], b"\x00\xff"),
    "large": (["x" * 20_000], "x" * 20_000),  # beyond a notification
    "none": ([], None),
}


@each_version
@pytest.mark.parametrize("caller", ["a", "b"])
async def test_case_78_call_and_callback(cluster, js, version, caller):
    acks = {name: answer for name, (answer, _) in ANSWERS.items()}
    client = await js.connect(cluster.a.url, version=version, acks=acks)
    sid = (await client.state())["sid"]
    node = getattr(cluster, caller)
    for name, (_, value) in ANSWERS.items():
        assert await node.control("call", event=name, data=b"question", to=sid) == value
        assert (await client.event(name))["args"] == [{"$bin": "cXVlc3Rpb24="}]
    await node.control("emit_callback", event="several", to=sid)
    await node.logged(hook="callback", event="several", args=[1, "b"])


@pytest.mark.parametrize("caller", ["a", "b"])
async def test_case_78_no_answer_is_a_timeout(cluster, js, caller):
    client = await js.connect(cluster.a.url, acks={"*": "none"})
    sid = (await client.state())["sid"]
    node = getattr(cluster, caller)
    for to in (sid, "nobody"):
        with pytest.raises(ControlError) as error:
            await node.control("call", event="q", to=to, timeout=0.3)
        assert "TimeoutError" in error.value.kinds
    await client.event("q")
    assert (await client.rejoin())["recovered"]  # nothing of it is left behind


async def test_case_78_node_of_the_client_dies(make_cluster, js):
    cluster = make_cluster(2)
    client = await js.connect(cluster.a.url, acks={"*": "none"})
    sid = (await client.state())["sid"]
    await client.do("reconnection", on=False)
    cluster.a.kill()
    await client.wait_for("disconnect")
    with pytest.raises(ControlError) as error:
        await cluster.b.control("call", event="q", to=sid, timeout=0.3)
    assert "TimeoutError" in error.value.kinds
    assert (await client.back(url=cluster.b.url))["recovered"]


async def test_case_78_a_late_answer_fires_nothing_new(cluster, js):
    """An answer goes to the callback it was asked for, also after a recovery (case 71)."""
    client = await js.connect(cluster.a.url, acks={"first": "none", "second": ["second"]})
    sid = (await client.state())["sid"]
    await cluster.b.control("emit_callback", event="first", to=sid)
    await client.event("first")
    assert (await client.rejoin())["recovered"]
    assert await cluster.b.control("call", event="second", to=sid) == "second"
    assert not [note for note in await cluster.b.control("log") if note.get("event") == "first"]
