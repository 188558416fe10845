"""The ``error_handler`` of the managers of two nodes, while their database is away and clients are connected."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from support.cluster import Cluster, in_room
from support.node_process import ControlError
from support.proxy import Proxy

KINDS = ("async", "mixed")


async def test_it_learns_that_the_database_is_away_and_back_and_clients_stay_and_recover(js, pg_dsn, kind):
    async with Proxy(pg_dsn).running() as proxy, contextlib.AsyncExitStack() as stack:
        cluster = Cluster(proxy.dsn)
        stack.callback(cluster.kill)
        await asyncio.to_thread(cluster.start, kind=kind)
        client, cut = await in_room(js, cluster.a.url, "r"), await in_room(js, cluster.b.url, "r")
        await cluster.a.emit("seen", room="r")
        await cut.event("seen")
        proxy.refuses = True
        proxy.cut()
        for node in cluster.nodes:
            await node.logged(hook="store", error="StoreUnavailable")
        await cut.away()
        with pytest.raises(ControlError, match="StoreUnavailable"):
            await cluster.a.emit("lost", room="r")
        proxy.refuses = False
        for node in cluster.nodes:
            assert [note["error"] for note in await node.logged(2, hook="store")] == ["StoreUnavailable", None]
        await cluster.b.emit("missed", room="r")
        assert (await cut.back(url=cluster.a.url))["recovered"]
        await cluster.mark("r")
        assert await client.events_until("end") == [("seen", []), ("missed", [])]
        assert await cut.events_until("end") == [("missed", [])]
        assert not [message for message in client.inbox if message["type"] == "disconnect"]
