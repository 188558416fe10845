"""Middlewares and listeners of events, on two nodes, before and after a recovery."""

from __future__ import annotations

import asyncio

from support.cluster import in_room

KINDS = ("async", "mixed")
CLUSTER = {"listens": True}


async def noted(node, hook, sid):
    """The events that a listener has noted for a client, in order."""
    notes = [note for note in await node.control("log") if note["hook"] == hook and note["sid"] == sid]
    return [(note["event"], note["args"][0] if note["args"] else None) for note in notes]


async def test_an_event_that_a_middleware_drops_is_neither_handled_nor_answered_nor_replayed(cluster, js, room, user):
    drop, change = [{"op": "return", "value": False}], [{"op": "return", "value": [2, room, 0]}]
    sender = await in_room(js, cluster.a.url, room, auth={"user": user})
    hearer = await in_room(js, cluster.b.url, room)
    sid = (await sender.state())["sid"]
    await cluster.a.emit("seen", room=room)
    await hearer.event("seen")
    await hearer.away()
    for node, number in ((cluster.a, 1), (cluster.b, 3)):
        await node.control("script", hook="use_event say", user=user, steps=drop)
        dropped = asyncio.create_task(sender.call("say", "bad", room))
        later = asyncio.create_task(sender.call("echo", number))
        assert await later == number
        await node.logged(hook="use_event", event="say", sid=sid, result=False)
        assert not dropped.done()
        dropped.cancel()
        await node.control("script", hook="use_event say", user=user, steps=[])
        assert await sender.call("say", number, room) is True
        assert (await sender.rejoin(url=cluster.b.url))["recovered"]
    await cluster.b.control("script", hook="use_event say", user=user, steps=change)
    assert await sender.call("say", "any", room) is True
    assert (await hearer.back(url=cluster.a.url))["recovered"]
    await cluster.mark(room)
    assert await hearer.events_until("end") == [("said", [1]), ("said", [3]), ("said", [2])]
    for node, due in (
        (cluster.a, [("say", "bad"), ("echo", 1), ("say", 1)]),
        (cluster.b, [("say", "bad"), ("echo", 3), ("say", 3), ("say", "any")]),
    ):
        assert sorted(await noted(node, "on_any", sid), key=str) == sorted(due, key=str)  # threads do not wait


async def test_listeners_of_outgoing_events_see_what_is_sent_live_and_replayed(cluster, js, room):
    client, other = await in_room(js, cluster.a.url, room), await in_room(js, cluster.b.url, room)
    sids = [(await each.state())["sid"] for each in (client, other)]
    await cluster.b.emit("live", 1, room=room)
    await cluster.b.emit("volatile", 2, room=room, volatile=True)
    await client.event("volatile")
    await client.away()
    await cluster.a.emit("missed", 3, room=room)
    assert (await client.back(url=cluster.b.url))["recovered"]
    await cluster.a.emit("unstored", 4, room=room, ignore_queue=True)  # of the other node: nobody is there
    assert await cluster.b.control("call", event="asked", data=5, to=sids[0]) == 5
    await cluster.mark(room)
    for each in (client, other):
        await each.event("end")
    for node, sid, due in (
        (cluster.a, sids[0], [("live", 1), ("volatile", 2)]),
        (cluster.b, sids[0], [("missed", 3), ("asked", 5), ("end", None)]),
        (cluster.b, sids[1], [("live", 1), ("volatile", 2), ("missed", 3), ("end", None)]),
    ):
        event, _ = due[-1]
        await node.logged(hook="on_any_outgoing", sid=sid, event=event)
        assert await noted(node, "on_any_outgoing", sid) == due
