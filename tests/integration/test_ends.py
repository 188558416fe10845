"""The end of a connection: all of it is done once, whatever else ends meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter import StoreUnavailable
from sio_pg_adapter.server import replay
from support.asgi_client import AsgiClient
from support.waiting import until


async def test_a_connection_that_drops_while_a_page_is_read_runs_its_disconnect_handler_once(start_node, monkeypatch):
    """Two find that it has ended: Engine.IO, and the replay when its page has come."""
    monkeypatch.setattr(replay, "PAGE", 5)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 3)
    node = await start_node()
    left, handling, go_on = [], asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def disconnect(sid, reason):
        left.append(sid)
        handling.set()
        await go_on.wait()

    go_on.set()
    async with node.client() as client:
        await client.drop()
        go_on.clear()
        left.clear()
        handling.clear()
        for i in range(20):
            await node.sio.emit("e", i)
        reading, release, read = asyncio.Event(), asyncio.Event(), asyncio.Event()
        page = node.manager.node.sessions.page

        async def held_up(held, after, limit):
            if node.manager.clients.current(client.sid, "/").connected:  # the second page
                reading.set()
                await release.wait()
                read.set()
            return await page(held, after, limit)

        node.manager.node.sessions.page = held_up
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{client.pid}"}}')
            await reading.wait()
            ended = node.manager.clients.current(client.sid, "/")
            again.cut()
            await handling.wait()
            release.set()
            await read.wait()
            for _ in range(200):  # turns of the loop in which a second end would run its handler
                await asyncio.sleep(0.001)
            go_on.set()
            await ended.gone.wait()
    assert left == [client.sid]


async def test_the_disconnect_handler_runs_though_the_end_cannot_be_stored(start_node, monkeypatch):
    node = await start_node()
    left = []

    @node.sio.event
    async def disconnect(sid, reason):
        left.append(sid)

    tries = []

    async def away(held):
        tries.append(held)
        raise StoreUnavailable("away")

    monkeypatch.setattr("sio_pg_adapter.server.endings.RELEASE_RETRY", 0.01)
    async with node.client() as client:
        ended = node.manager.clients.current(client.sid, "/")
        end = node.manager.node.sessions.end
        node.manager.node.sessions.end = away
        client.send("1")
        await ended.gone.wait()
        assert left == [client.sid]
        await until(lambda: len(tries) > 2)
        node.manager.node.sessions.end = end
    assert left == [client.sid]


async def test_a_replay_that_fails_closes_the_connection(start_node, monkeypatch, expected_errors):
    """A connection that stays open and is sent nothing would be worse: its client would never come back."""
    expected_errors.append("a replay broke")
    monkeypatch.setattr(replay, "PAGE", 5)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 3)
    node = await start_node()
    async with node.client() as client:
        await client.drop()
        for i in range(20):
            await node.sio.emit("e", i)
        page, pages = node.manager.node.sessions.page, []

        async def broken(held, after, limit):
            pages.append(after)
            if len(pages) > 1:
                raise KeyError("an epoch that is not known")
            return await page(held, after, limit)

        node.manager.node.sessions.page = broken
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{client.pid}"}}')
            assert (await again.recv()).startswith("0")
            await again.rest()
        node.manager.node.sessions.page = page
        async with node.client(pid=client.pid) as third:
            assert third.sid == client.sid
            assert [(await third.event())[1] for _ in range(20)] == list(range(20))


async def test_all_namespaces_of_a_connection_are_left_though_the_web_server_cancels(start_node):
    node = await start_node(namespaces="*")
    handling, go_on, left = asyncio.Event(), asyncio.Event(), []

    @node.sio.on("disconnect", namespace="*")
    async def disconnect(namespace, sid, reason):
        left.append(namespace)
        handling.set()
        await go_on.wait()

    async with AsgiClient(node.sio) as client:
        await client.connect("/a")
        await client.connect("/b")
        ending = asyncio.create_task(node.sio._handle_eio_disconnect(client.eio_sid, node.sio.reason.TRANSPORT_CLOSE))
        await handling.wait()
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        await until(lambda: len(left) == 2)
        go_on.set()
        await until(lambda: not node.manager.clients.by_sid)
        assert client.eio_sid not in node.sio.environ
