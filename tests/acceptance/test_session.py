"""Cases 8, 14, 15, 18 to 20, 22, 28: a session comes back as it was."""

from __future__ import annotations

import pytest

from support.cluster import in_room
from support.js_driver import VERSIONS

KINDS = ("async", "sync")
each_version = pytest.mark.parametrize("version", VERSIONS)


@each_version
@pytest.mark.parametrize("how", ["drop", "abort"])
async def test_case_8_drop_and_rejoin(cluster, js, room, version, how):
    client = await js.create(cluster.a.url, version=version, auth={"rooms": [room]})
    first = await client.connect()
    assert not first["recovered"]
    await cluster.a.emit("one", room=room)
    await client.event("one")
    back = await client.rejoin(how)
    assert back["recovered"]
    assert (back["sid"], back["pid"]) == (first["sid"], first["pid"])
    await cluster.a.emit("two", room=room)
    await client.event("two")


@each_version
async def test_case_14_auth_is_what_the_application_gave(cluster, js, user, version):
    given = {"token": "t", "user": user}
    for options, seen in (({"auth": given}, given), ({"auth_function": given}, given), ({}, None)):
        client = await js.connect(cluster.a.url, version=version, **options)
        back = await client.rejoin()
        assert back["recovered"]
        notes = await cluster.a.logged(2, hook="connect", sid=back["sid"])
        assert [note["auth"] for note in notes] == [seen, seen]
        assert [note["recovered"] for note in notes] == [False, True]


async def test_case_14_empty_auth_is_none(cluster, js):
    client = await js.connect(cluster.a.url, auth={})
    sid = (await client.rejoin())["sid"]
    notes = await cluster.a.logged(2, hook="connect", sid=sid)
    assert [note["auth"] for note in notes] == [None, None]


@each_version
async def test_case_15_connect_handler_of_two_arguments(make_cluster, js, version):
    cluster = make_cluster(1, two_argument_connect=True)
    client = await js.connect(cluster.a.url, version=version)
    sid = (await client.state())["sid"]
    await cluster.a.emit("e", to=sid)
    await client.event("e")
    back = await client.rejoin()
    assert back["recovered"] and back["sid"] == sid


@each_version
async def test_case_18_rooms_are_there_before_the_handler_runs(cluster, js, room, version):
    client = await js.connect(cluster.a.url, version=version)
    sid = (await client.state())["sid"]
    assert await client.call("join", room) == "joined"
    await cluster.b.control("enter_room", sid=sid, room=room + "2")
    assert (await client.rejoin())["recovered"]
    first, second = await cluster.a.logged(2, hook="connect", sid=sid)
    assert (first["flag"], first["recovered"], first["rooms"]) == (False, False, [sid])
    assert (second["flag"], second["recovered"]) == (True, True)
    assert second["rooms"] == sorted([sid, room, room + "2"])
    assert await cluster.a.control("rooms", sid=sid) == second["rooms"]
    assert await cluster.b.control("fetch_rooms", sid=sid) == second["rooms"]


@pytest.mark.parametrize("other_node", [False, True], ids=["same node", "other node"])
async def test_case_19_session_data_of_two_namespaces(cluster, js, other_node):
    root = await js.connect(cluster.a.url)
    other = await js.create(on=root, namespace="/ns")
    await other.connect()
    sids = {"/": (await root.state())["sid"], "/ns": (await other.state())["sid"]}
    holder, elsewhere = cluster.a, cluster.b if other_node else cluster.a
    for drop, target in enumerate((elsewhere, cluster.a, elsewhere)):
        saved = {namespace: {"v": [namespace, drop]} for namespace in sids}
        for namespace, sid in sids.items():
            await holder.control("save_session", sid=sid, session=saved[namespace], namespace=namespace)
        assert (await root.rejoin(url=target.url))["recovered"]
        assert (await other.connected())["recovered"]
        holder = target
        for namespace, sid in sids.items():
            found = await holder.control("get_session", sid=sid, namespace=namespace)
            assert found == saved[namespace]


@pytest.mark.parametrize("skip", [False, True])
async def test_case_20_middlewares_and_handler_on_recovery(make_cluster, js, skip):
    cluster = make_cluster(1, middleware=True, skip_middlewares=skip)
    client = await js.connect(cluster.a.url, auth={"user": "u"})
    sid = (await client.state())["sid"]
    assert (await client.rejoin())["recovered"]
    await cluster.a.logged(2, hook="connect", sid=sid)
    hooks = [note["hook"] for note in await cluster.a.control("log")]
    again = ["connect"] if skip else ["middleware", "connect"]
    assert hooks == ["middleware", "connect", "disconnecting", "disconnect", *again]


@pytest.mark.parametrize("hook", ["middleware", "connect"])
@pytest.mark.parametrize("skip", [False, True])
async def test_case_20_refusal_ends_the_session(make_cluster, js, hook, skip):
    cluster = make_cluster(1, middleware=True, skip_middlewares=skip)
    client = await js.connect(cluster.a.url, auth={"user": "u"})
    first = await client.state()
    await client.away()
    await cluster.a.emit("secret", to=first["sid"])
    refuse = [{"op": "refuse", "message": "blocked"}]
    await cluster.a.control("script", hook=hook, user="u", steps=refuse)
    await client.do("reconnection", on=True)
    await client.do("connect")
    if hook == "middleware" and skip:
        assert (await client.connected())["recovered"]
        return
    assert (await client.refused())["message"] == "blocked"
    assert not client.inbox  # case 21: nothing of the old session came before it
    await cluster.a.control("script", hook=hook, user="u", steps=[])
    fresh = await client.connect()
    assert not fresh["recovered"] and fresh["sid"] != first["sid"]
    assert not [m for m in client.inbox if m["type"] == "event"]


@each_version
async def test_case_22_recovered_many_times_in_a_row(cluster, js, room, version):
    client = await in_room(js, cluster.a.url, room, version=version)
    sid = (await client.state())["sid"]
    for i in range(12):
        await client.away(how=("drop", "abort", "silence")[i % 3] if i % 4 == 3 else "drop")
        await cluster.a.emit("e", i, room=room)
        back = await client.back(url=(cluster.a, cluster.b)[i % 2].url)
        assert back["recovered"] and back["sid"] == sid
        await cluster.mark(room)
        assert await client.events_until("end") == [("e", [i])]


async def test_case_28_namespaces_recover_on_their_own(cluster, js, user):
    root = await js.connect(cluster.a.url, auth={"user": user})
    other = await js.create(on=root, namespace="/ns", auth={"user": user + "-ns"})
    await other.connect()
    before = await root.state(), await other.state()
    await root.cut()
    await other.wait_for("disconnect")
    backs = await root.connected(), await other.connected()
    assert [(b["recovered"], b["sid"]) for b in backs] == [(True, s["sid"]) for s in before]
    refuse = [{"op": "refuse", "message": "blocked"}]
    await cluster.a.control("script", hook="connect", user=user + "-ns", steps=refuse)
    await root.cut()
    assert (await other.refused())["message"] == "blocked"
    back = await root.connected()
    assert back["recovered"] and back["sid"] == before[0]["sid"]
