"""Cases 63, 64, 67: a reconnect while the former connection still looks alive."""

from __future__ import annotations

import pytest

from support.cluster import in_room
from support.js_driver import VERSIONS
from support.raw_client import RawClient

KINDS = ("async", "mixed")
each_version = pytest.mark.parametrize("version", VERSIONS)
each_place = pytest.mark.parametrize("place", ["same node", "another node"])


async def hooks(node, sid: str) -> list[tuple[str, float]]:
    return [(e["hook"], e["at"]) for e in await node.control("log") if e.get("sid") == sid]


@each_place
@each_version
async def test_cases_63_64_back_before_the_server_noticed(cluster, js, room, user, version, place):
    former, new = cluster.a, cluster.a if place == "same node" else cluster.b
    client = await in_room(js, former.url, room, version=version, auth={"user": user})
    sid = (await client.state())["sid"]
    await former.control("save_session", sid=sid, session={"v": 1})
    steps = [{"op": "save_session", "sid": "$sid", "session": {"v": "of the disconnect handler"}}]
    await former.control("script", hook="disconnect", user=user, steps=steps)
    await cluster.a.emit("seen", room=room)
    await client.event("seen")
    back = await client.rejoin("silence", url=new.url)
    assert back["recovered"] and back["sid"] == sid
    (ended,) = await former.logged(hook="disconnect", sid=sid)
    assert set(ended["rooms"]) == {sid, room} and ended["session"] == {"v": 1}
    connects = [e for e in await new.control("log") if e["hook"] == "connect" and e["sid"] == sid]
    again = connects[-1]
    assert ended["at"] < again["at"]  # one machine, one monotonic clock
    assert again["session"] == {"v": "of the disconnect handler"}
    assert set(again["rooms"]) == {sid, room}
    for i, node in enumerate((cluster.a, cluster.b)):
        await node.emit("live", i, room=room)
    await cluster.mark(room)
    assert await client.events_until("end") == [("live", [0]), ("live", [1])]
    for node in (cluster.a, cluster.b):
        assert (sid in await node.control("participants")) == (node is new)
        assert [e for e in await node.control("log") if e["hook"] == "disconnect" and e["sid"] == sid] == (
            [ended] if node is former else []
        )


@each_place
async def test_cases_63_64_the_old_socket_is_closed_and_its_late_end_changes_nothing(cluster, room, place):
    former, new = cluster.a, cluster.a if place == "same node" else cluster.b
    async with RawClient(former.url) as old, RawClient(new.url) as client:
        sid, pid = await old.open_namespace(rooms=[room])
        assert await client.open_namespace(pid=pid) == (sid, pid)
        assert await old.recv_closed() == []
        await former.logged(hook="disconnect", sid=sid)
        await former.emit("e", room=room)
        assert (await client.event())[0] == ["e"]
        assert await new.control("fetch_rooms", sid=sid) == sorted([sid, room])


async def test_case_64_the_former_node_is_dead(make_cluster):
    cluster = make_cluster(2)
    async with RawClient(cluster.a.url) as old:
        sid, pid = await old.open_namespace(rooms=["r"])
        cluster.a.kill()
        await cluster.b.emit("missed", room="r")
        async with RawClient(cluster.b.url) as client:
            assert await client.open_namespace(pid=pid) == (sid, pid)
            assert (await client.event())[0] == ["missed"]


async def test_cases_64_113_the_former_node_is_stopped_and_goes_on(make_cluster):
    """Its lock is held, but it does not answer: it is waited for no longer than two seconds, and then closes."""
    cluster = make_cluster(2)
    async with RawClient(cluster.a.url) as old:
        sid, pid = await old.open_namespace(rooms=["r"])
        cluster.a.pause()
        try:
            async with RawClient(cluster.b.url) as client:
                assert await client.open_namespace(pid=pid) == (sid, pid)
                await cluster.b.control("enter_room", sid=sid, room="new")
                await cluster.b.control("save_session", sid=sid, session={"v": 2})
                cluster.a.resume()
                assert await old.recv_closed() == []
                await cluster.a.logged(hook="disconnect", sid=sid)
                await cluster.a.emit("e", room="new")
                assert (await client.event())[0] == ["e"]
                assert sid not in await cluster.a.control("participants")
                assert await cluster.b.control("get_session", sid=sid) == {"v": 2}
        finally:
            cluster.a.resume()


@each_place
async def test_case_67_a_disconnect_handler_of_five_seconds(cluster, js, room, user, place):
    former, new = cluster.a, cluster.a if place == "same node" else cluster.b
    await former.control("script", hook="disconnect", user=user, steps=[{"op": "sleep", "seconds": 5}])
    client = await in_room(js, former.url, room, auth={"user": user})
    sid = (await client.state())["sid"]
    await client.away()
    back = await client.back(url=new.url)
    assert back["recovered"] and back["sid"] == sid
    (ended,) = await former.logged(hook="disconnect", sid=sid)  # it ended after the new connection began
    await cluster.a.emit("e", 1, room=room)
    assert (await client.event("e"))["args"][0] == 1
    assert sid in await new.control("participants", room=room)
    again = (await new.logged(hook="connect", sid=sid))[-1]
    assert again["at"] < ended["at"]
