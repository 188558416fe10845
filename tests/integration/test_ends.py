"""The end of a connection: all of it is done once, whatever else ends meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from integration.test_incoming import Polling
from integration.test_seam import Deaf
from sio_pg_adapter import StoreUnavailable
from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.server import replay
from support.asgi_client import AsgiClient
from support.waiting import until, until_waiting


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


async def test_a_client_that_disconnects_while_its_connect_is_refused_is_turned_away(start_node, db):
    """Both ends delete the session. The first answer takes it from the client while the second one is under way."""
    node = await start_node(always_connect=True)
    asked, go_on = asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def connect(sid, environ, auth):
        asked.set()
        await go_on.wait()
        return False

    client = Polling(node.sio)
    connecting = asyncio.create_task(client.connect())
    await asked.wait()
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        leaving = asyncio.create_task(client.request("POST", b"41"))
        await until_waiting(db)
        go_on.set()
        await until(lambda: node.manager.node.writer.waiting)
    assert "pid" in await connecting
    await leaving
    assert node.manager.node.counters.broken == 0
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


# -- an end that is not stored yet -------------------------------------------------------------------------------
async def test_a_session_that_ends_while_many_others_do_does_not_come_back(start_node, db, monkeypatch):
    """Ends wait in a line. A client that disconnects and connects at once must not be faster than its own end."""
    monkeypatch.setattr("sio_pg_adapter.store.sessions.ENDS_AT_ONCE", 1)
    node = await start_node()
    async with node.client() as other, node.client() as wire, AsgiClient(node.sio) as again:
        async with db.transaction():
            await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            other.cut()
            await until_waiting(db)
            ended = node.manager.clients.current(wire.sid, "/")
            wire.send("1")
            await until(lambda: ended in node.manager.node.endings.leaving.values())
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await until(lambda: node.manager.clients.of_socket(again.eio_sid, "/"))
            for _ in range(100):  # turns of the loop in which a claim would be appended
                await asyncio.sleep(0)
        answer = await again.recv()
        assert answer.startswith("0{") and wire.sid not in answer
        assert node.manager.node.sessions._ends == {}
    assert await db.fetchval("SELECT count(*) FROM sio_sessions WHERE sid = $1", wire.sid) == 0


async def test_a_client_that_disconnects_while_it_claims_ends_its_session(start_node, db):
    """It polls, so its DISCONNECT comes in another request. The claim is under way."""
    node = await start_node()
    async with node.client() as wire:
        pass
    client = Polling(node.sio)
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        connecting = asyncio.create_task(client.connect(f'{{"pid":"{wire.pid}"}}'))
        await until_waiting(db)
        assert await client.request("POST", b"41") == (200, "OK")
    await until(lambda: not node.manager.clients.by_socket and not node.manager.node.endings.leaving)
    connecting.cancel()
    async with node.client(pid=wire.pid) as again:
        assert again.sid != wire.sid


async def test_a_session_whose_end_could_not_be_stored_does_not_come_back(start_node, db, monkeypatch):
    """Its client is back before the next try to store the end."""
    monkeypatch.setattr("sio_pg_adapter.server.endings.RELEASE_RETRY", 3_600.0)
    node = await start_node()
    writer = node.manager.node.writer
    append = writer.append

    def away(entry):
        if entry.kind is Kind.END:
            raise StoreUnavailable("away")
        return append(entry)

    async with node.client() as wire:
        writer.append = away
        ended = node.manager.clients.current(wire.sid, "/")
        wire.send("1")
        await ended.gone.wait()
        writer.append = append
        async with node.client(pid=wire.pid) as again:
            assert again.sid != wire.sid
            assert node.manager.node.sessions._ends == {}
    assert await db.fetchval("SELECT count(*) FROM sio_sessions WHERE sid = $1", wire.sid) == 0


# -- a session that ends because what its client missed is lost ----------------------------------------------------
def lose_pages(node, first: int) -> tuple[asyncio.Event, asyncio.Event]:
    """Have retention delete what is on a page, and hold back the end of the session that this calls for.

    :param first: the number of the page, from 0.
    :returns: an event that is set when the session is about to end, and one that lets it end.
    """
    sessions, pages, ending, go_on = node.manager.node.sessions, [], asyncio.Event(), asyncio.Event()
    page, end = sessions.page, sessions.end

    async def read(held, after, limit):
        pages.append(after)
        return replace(await page(held, after, limit), lost=len(pages) > first)

    async def end_late(held):
        ending.set()
        await go_on.wait()
        return await end(held)

    sessions.page, sessions.end = read, end_late
    return ending, go_on


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "not heard"])
async def test_a_claim_does_not_wait_for_a_holder_whose_client_is_due_what_is_lost(start_node, monkeypatch, heard):
    """The claim came before the end, so that ends nothing. The holder may not have heard of the claim."""
    monkeypatch.setattr("sio_pg_adapter.server.claiming.TAKEOVER_WAIT", 3_600.0)
    a, b = await start_node(), await start_node()

    @a.sio.event
    async def connect(sid, environ, auth):
        await asyncio.sleep(0)  # what came with the claim is no longer certain

    async with a.client() as wire:
        await wire.drop()
        ending, go_on = lose_pages(a, 0)
        async with AsgiClient(a.sio) as first, AsgiClient(b.sio) as second:
            first.send(f'0{{"pid":"{wire.pid}"}}')
            await ending.wait()
            deaf = None if heard else Deaf(a)
            second.send(f'0{{"pid":"{wire.pid}"}}')
            await until(lambda: b.manager.node.counters.takeovers)
            if heard:
                await until(lambda: not a.manager.clients.by_socket)
            go_on.set()
            assert wire.sid in await second.recv()
            assert await first.rest() == []
            if deaf is not None:
                deaf.hear()


async def test_a_connection_that_drops_while_its_session_ends_is_no_fault(start_node, monkeypatch, db):
    monkeypatch.setattr(replay, "PAGE", 5)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 3)
    node = await start_node()
    async with node.client() as wire:
        await wire.drop()
        for i in range(20):
            await node.sio.emit("e", i)
        ending, go_on = lose_pages(node, 1)
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await ending.wait()
            ended = node.manager.clients.current(wire.sid, "/")
            again.cut()
            await ended.gone.wait()
            go_on.set()
            await again.ended()
        await until(lambda: not [task for task in node.manager.node.tasks._running if "replay" in task.get_name()])
        assert node.manager.node.counters.broken == 1
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
