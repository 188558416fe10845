"""Cases 11, 12, 86, 87: one order, for everyone, live and replayed, whatever the size or transport."""

from __future__ import annotations

import json

import pytest

from support.cluster import Cluster, in_room
from support.raw_client import RawClient, split_event


def numbered(name: str, first: int, count: int, text: str = "") -> list:
    return [(name, seq, text) for seq in range(first, first + count)]


async def test_case_11_offsets_increase_over_live_and_replay(cluster, js, room):
    """The order of the log is what a client sees that is never cut; so 'increase' is its order."""
    witness = await in_room(js, cluster.b.url, room, count=True)
    client = await in_room(js, cluster.a.url, room, count=True)
    for name, node in (("A", cluster.a), ("B", cluster.b)):
        await node.control("start_emitter", name=name, room=room)
    for url in (cluster.a.url, cluster.b.url) * 3:
        assert (await client.rejoin(url=url))["recovered"]
    sent = {
        "A": await cluster.a.control("stop_emitter", name="A"),
        "B": await cluster.b.control("stop_emitter", name="B"),
    }
    await cluster.mark(room)
    for one in (witness, client):
        await one.event("end")
        stats = await one.stats(**sent)
        assert stats["received"] == sum(sent.values())
        assert (stats["missing"], stats["repeated_offsets"], stats["without_offset"]) == (0, 0, 0)
    order = await client.same_order_as(witness)
    assert order["shared"] == sum(sent.values())
    assert (order["out_of_order"], order["offsets_differ"]) == ([], [])


async def test_all_clients_of_all_nodes_see_one_order(cluster, js, room):
    """Emits race on both nodes, to rooms that clients share in part."""
    other = room + "-other"
    both = [await js.connect(node.url, auth={"rooms": [room, other]}, count=True) for node in (cluster.a, cluster.b)]
    part = [await in_room(js, cluster.b.url, room, count=True), await in_room(js, cluster.a.url, other, count=True)]
    sent = {}
    for node in (cluster.a, cluster.b):
        for target in (room, other):
            await node.control("start_emitter", name=f"{node.url} {target}", room=target, padding=9000)
    while (await both[0].state())["count"] < 2000:
        pass  # each look is a round trip
    for node in (cluster.a, cluster.b):
        for target in (room, other):
            name = f"{node.url} {target}"
            sent[name] = await node.control("stop_emitter", name=name)
    for target in (room, other):
        await cluster.mark(target, event=f"end {target}")
    for client, targets in ((both[0], 2), (both[1], 2), (part[0], 1), (part[1], 1)):
        for _ in range(targets):
            await client.wait_for("event")
        stats = await client.stats()
        assert (stats["missing"], stats["duplicated"], stats["inverted"]) == (0, 0, 0)
    assert (await both[0].stats(**sent))["received"] == sum(sent.values())
    for first, second in ((both[0], both[1]), (both[0], part[0]), (both[1], part[1]), (part[0], both[1])):
        order = await first.same_order_as(second)
        assert order["shared"] > 0
        assert (order["out_of_order"], order["offsets_differ"]) == ([], [])


@pytest.mark.parametrize(
    "transports", [["websocket"], ["polling"], ["polling", "websocket"]], ids=["websocket", "polling", "upgrade"]
)
@pytest.mark.parametrize("version", ["4-6", "4-8"])
async def test_case_12_replay_over_each_transport(cluster, js, room, transports, version):
    client = await in_room(js, cluster.a.url, room, version=version, count=True, options={"transports": transports})
    upgrades = len(transports) > 1
    if upgrades:
        await client.wait_for("upgrade")
    missed = 600
    for turn in range(3):
        await client.away()
        for name, node in (("A", cluster.a), ("B", cluster.b)):
            items = numbered(name, turn * missed + 1, missed, "x" * 300)
            await node.control("emit_many", event="n", items=items, room=room)
        assert (await client.back())["recovered"]
        if upgrades:  # begun while the replay is being polled
            await client.wait_for("upgrade")
        await cluster.mark(room)
        await client.event("end")
    stats = await client.stats(A=3 * missed, B=3 * missed)
    assert stats["received"] == 6 * missed
    assert (stats["missing"], stats["duplicated"], stats["inverted"]) == (0, 0, 0)


async def live_and_replayed(cluster: Cluster, room: str, emit) -> list:
    """Frames of a client on node b while `emit()` runs; a replay on node a must give the same."""
    async with RawClient(cluster.b.url) as c:
        sid, pid = await c.open_namespace(rooms=[room])
        await cluster.mark(room, "begin")
        _, offset = await c.event()
        await emit()
        await cluster.mark(room)
        live = await c.recv_until_event("end")
    async with RawClient(cluster.a.url) as c:
        assert await c.open_namespace(pid=pid, offset=offset) == (sid, pid)
        assert await c.recv_until_event("end") == live
    return live


async def test_case_86_sizes_around_the_limit_of_a_notification(cluster, room):
    sizes = [
        size
        for around in (7600, 7700, 7800, 7900, 7990, 8010, 8192)
        for size in (1, around, 64_000, around + 3, 1, around + 7, 70_000)
    ]
    items = [(seq, ("x", "é", "\U0001f600")[seq % 3] * size) for seq, size in enumerate(sizes)]
    live = await live_and_replayed(
        cluster, room, lambda: cluster.a.control("emit_many", event="e", items=items, room=room)
    )
    assert [split_event(frame)[0] for frame in live] == [["e", *item] for item in items]


async def test_case_86_every_length_near_the_limit(cluster, room):
    items = [(size, "x" * size) for size in range(7_500, 8_050, 1)]
    live = await live_and_replayed(
        cluster, room, lambda: cluster.a.control("emit_many", event="e", items=items, gather=True, room=room)
    )
    assert [split_event(frame)[0][1] for frame in live] == [size for size, _ in items]


async def check_many_emits(cluster: Cluster, room: str, *, gather: bool) -> None:
    items = list(range(300))
    live = await live_and_replayed(
        cluster, room, lambda: cluster.a.control("emit_many", event="e", items=items, gather=gather, room=room)
    )
    assert [json.loads(str(frame)[1:])[1] for frame in live] == items


async def test_case_87_many_emits_of_one_task(cluster, room):
    await check_many_emits(cluster, room, gather=False)


async def test_case_87_many_emits_in_one_tick(cluster, room):
    await check_many_emits(cluster, room, gather=True)
