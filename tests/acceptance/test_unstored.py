"""Events that are not stored: who gets them, and that no replay brings them."""

from __future__ import annotations

import os

import pytest

from support.cluster import in_room

MEGABYTE = os.urandom(1_000_000)  # which a compression of the websocket leaves as large


async def test_a_client_that_takes_nothing_gets_no_volatile_event_and_recovers_each_stored_one(cluster, js, room):
    client, witness = await in_room(js, cluster.a.url, room), await in_room(js, cluster.b.url, room)
    sid, stored = (await client.state())["sid"], 0

    async def volatile(number: int, *clients) -> None:
        await cluster.b.emit("volatile", number, room=room, volatile=True)
        for each in clients:
            assert (await each.event("volatile"))["args"] == [number]

    await volatile(1, client, witness)
    await client.stall()
    while await cluster.a.control("drains", sid=sid):  # until all that is in between is full
        stored += 1
        await cluster.b.emit("n", (stored, MEGABYTE), room=room)
    await volatile(2, witness)
    await client.flow()
    await cluster.mark(room, "seen")
    got = [(await client.wait_for("event")) for _ in range(stored + 1)]
    assert [message["name"] for message in got] == ["n"] * stored + ["seen"]
    await volatile(3, client, witness)
    await client.away()
    await volatile(4, witness)
    await cluster.b.emit("n", stored + 1, room=room)
    assert (await client.back(url=cluster.b.url))["recovered"]
    await cluster.mark(room)
    assert await client.events_until("end") == [("n", [stored + 1])]
    await volatile(5, client, witness)


@pytest.mark.parametrize("option", ["volatile", "ignore_queue"])
async def test_what_is_not_stored_is_not_replayed(cluster, js, room, option):
    client, witness = await in_room(js, cluster.a.url, room), await in_room(js, cluster.b.url, room)
    await cluster.b.emit("seen", room=room)
    await client.event("seen")
    await client.away()
    await cluster.b.emit("unstored", 1, room=room, **{option: True})
    await cluster.b.emit("stored", 2, room=room)
    assert (await client.back(url=cluster.b.url))["recovered"]
    await cluster.mark(room)
    assert await client.events_until("end") == [("stored", [2])]
    assert (await witness.event("unstored"))["args"] == [1]


async def test_a_connect_handler_asks_its_client_and_sends_it_what_is_not_stored(cluster, js, room, user):
    """At first, and in a recovery behind what the client missed."""
    steps = [
        {"op": "emit", "event": "hello", "data": 1, "to": "$sid", "ignore_queue": True},
        {"op": "emit_callback", "event": "ask", "data": 2, "to": "$sid"},
    ]
    for node in cluster.nodes:
        await node.control("script", hook="connect", user=user, steps=steps)
    client = await js.create(cluster.a.url, auth={"user": user, "rooms": [room]}, acks={"ask": [user]})
    await client.do("connect")

    async def names(count: int) -> list[str]:
        assert (await client.take(lambda _: True, "message"))["type"] == "connect"
        return [(await client.wait_for("event"))["name"] for _ in range(count)]

    assert await names(2) == ["hello", "ask"]
    await cluster.a.logged(hook="callback", event="ask", args=[user])
    await client.away()
    await cluster.a.emit("missed", room=room)
    await client.move_to(cluster.b.url)
    await client.do("reconnection", on=True)
    await client.do("connect")
    assert await names(3) == ["missed", "hello", "ask"]
    await cluster.b.logged(hook="callback", event="ask", args=[user])
    await cluster.mark(room)
    assert await client.events_until("end") == []
    assert (await client.state())["recovered"]
