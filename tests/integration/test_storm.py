"""Many clients that come at once: they take turns, so that neither the log's lock nor the event loop is held long."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.wire.admission import Admission
from support.asgi_client import AsgiClient
from support.nodes import Node
from support.waiting import until

CLIENTS = 8


@pytest.fixture
def three_turns(monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.node.SESSIONS_AT_ONCE", 3)


def counted(owner: Any, verb: str, matches: Callable[..., bool] = lambda *_: True) -> list[int]:
    """How many calls of a method are under way, at the start of each.

    :param matches: which calls count, by their arguments.
    """
    under_way, counts = 0, []
    original = getattr(owner, verb)

    async def noted(*args, **kwargs):
        nonlocal under_way
        if not matches(*args):
            return await original(*args, **kwargs)
        under_way += 1
        counts.append(under_way)
        try:
            return await original(*args, **kwargs)
        finally:
            under_way -= 1

    setattr(owner, verb, noted)
    return counts


@contextlib.asynccontextmanager
async def arriving(node: Node, auths: list[dict[str, str]]) -> AsyncIterator[list[AsgiClient]]:
    """Connections whose CONNECT packets arrive together."""
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(AsgiClient(node.sio)) for _ in auths]
        for wire, auth in zip(wires, auths, strict=True):
            wire.send("0" + json.dumps(auth))
        yield wires


async def test_sessions_are_opened_and_claimed_by_a_few_clients_at_a_time(start_node, three_turns):
    """The batch of one commit, and what follows its answer in one turn of the loop, is as large as that."""
    node = await start_node()
    sessions = node.manager.node.sessions
    opened, claimed = counted(sessions, "open"), counted(sessions, "claim")
    async with arriving(node, [{}] * CLIENTS) as wires:
        answers = [json.loads((await wire.recv())[1:]) for wire in wires]
        await node.sio.emit("first")
        assert [await wire.event() for wire in wires] == [["first"]] * CLIENTS
        offset = wires[0].offset
    assert len(opened) == CLIENTS and max(opened) == 3
    await node.sio.emit("missed")
    async with arriving(node, [{"pid": answer["pid"], "offset": offset} for answer in answers]) as wires:
        again = [json.loads((await wire.recv())[1:]) for wire in wires]
        assert [await wire.event() for wire in wires] == [["missed"]] * CLIENTS
    assert again == answers
    assert len(claimed) == CLIENTS and max(claimed) == 3


@pytest.mark.parametrize("is_final", [False, True])
async def test_connections_that_end_at_once_are_released_a_few_at_a_time(start_node, db, monkeypatch, is_final):
    """An emit waits for one batch of their ends, and not for all of them."""
    monkeypatch.setattr("sio_pg_adapter.store.sessions.ENDS_AT_ONCE", 3)
    node = await start_node()
    kind = Kind.END if is_final else Kind.RELEASE
    async with arriving(node, [{}] * CLIENTS) as wires:
        for wire in wires:
            await wire.recv()
        ended = counted(node.manager.node.writer, "append", lambda entry: entry.kind is kind)
        for wire in wires:
            if is_final:
                wire.send("1")
            else:
                wire.cut()
        await until(lambda: len(ended) == CLIENTS and not list(node.manager.clients))
    assert max(ended) == 3
    await until(lambda: not node.manager.node.endings.leaving)
    rows = await db.fetch("SELECT expires_at FROM sio_sessions")
    assert len(rows) == (0 if is_final else CLIENTS) and all(row["expires_at"] for row in rows)


async def test_connections_that_come_at_once_begin_a_few_in_each_turn_of_the_loop(start_node, monkeypatch):
    """What comes in meanwhile, such as the event of another client, waits for few of them."""
    monkeypatch.setattr("sio_pg_adapter.wire.admission.CONNECTIONS_A_TURN", 2)
    node = await start_node()
    loop, turn, begun = asyncio.get_running_loop(), 0, []

    def count() -> None:
        nonlocal turn
        turn += 1
        ticking[0] = loop.call_soon(count)

    ticking = [loop.call_soon(count)]
    original = node.sio._handle_eio_connect

    async def noted(*args):
        begun.append(turn)
        return await original(*args)

    node.sio.eio.on("connect", noted)
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(AsgiClient(node.sio)) for _ in range(CLIENTS)))
        ticking[0].cancel()
    assert len(begun) == CLIENTS and max(Counter(begun).values()) == 2
    assert max(begun) - min(begun) <= CLIENTS  # one turn after the other, and none is left out


async def test_a_connection_that_is_gone_leaves_the_line(monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.wire.admission.CONNECTIONS_A_TURN", 1)
    admission = Admission()
    waiting = [asyncio.create_task(admission.turn()) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    await asyncio.wait(waiting)
    assert [turn.cancelled() for turn in waiting] == [False, False, True, False]


async def test_a_client_that_is_gone_before_its_turn_claims_nothing(start_node, db, three_turns, expected_errors):
    expected_errors.append("retention deleted records that this node had not read")
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("first")
        await wire.event()
    claimed, turns = counted(node.manager.node.sessions, "claim"), node.manager.node.turns
    for _ in range(3):
        await turns.acquire()
    async with arriving(node, [{"pid": wire.pid, "offset": wire.offset}]) as [late]:
        await until(lambda: list(node.manager.clients))
        await asyncio.sleep(0)  # until its turn is waited for
        node.manager.node.continuity.skipped(0)  # sends all clients away
        for _ in range(3):
            turns.release()
        assert await late.rest() == []
    assert claimed == []
    assert await db.fetchval("SELECT generation FROM sio_sessions") == 1
    async with node.client(pid=wire.pid, offset=wire.offset) as again:
        assert again.sid == wire.sid


async def test_a_kick_before_the_session_gets_its_turn_ends_the_connect(start_node, db, three_turns):
    """Nothing is stored for a client that was kicked after its handler had accepted it."""
    node = await start_node()
    sids: list[str] = []

    @node.sio.event
    async def connect(sid, environ, auth):
        sids.append(sid)

    opened, turns = counted(node.manager.node.sessions, "open"), node.manager.node.turns
    for _ in range(3):
        await turns.acquire()
    async with arriving(node, [{}]) as [wire]:
        await until(lambda: sids)
        kicking = asyncio.create_task(node.sio.disconnect(sids[0]))
        await until(lambda: any(client.ended for client in node.manager.clients) or kicking.done())
        for _ in range(3):
            turns.release()
        await kicking
        refused = json.loads((await wire.recv())[1:])
        assert refused == {"message": "Connection refused by server"}
    assert opened == []
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_rooms_and_data_of_the_time_before_its_turn_are_stored(start_node, db, three_turns):
    """They are read when the session is stored, not when its handler ended."""
    node = await start_node()
    sids: list[str] = []

    @node.sio.event
    async def connect(sid, environ, auth):
        sids.append(sid)
        await node.sio.enter_room(sid, "left")

    turns = node.manager.node.turns
    for _ in range(3):
        await turns.acquire()
    async with arriving(node, [{}]) as [wire]:
        await until(lambda: sids)
        await asyncio.sleep(0)  # until its turn is waited for
        await node.sio.enter_room(sids[0], "entered")
        await node.sio.leave_room(sids[0], "left")
        await node.sio.save_session(sids[0], {"user": 1})
        for _ in range(3):
            turns.release()
        await wire.recv()
        assert await db.fetchval("SELECT data FROM sio_sessions") == '{"user":1}'
        rooms = await db.fetch("SELECT room FROM sio_rooms WHERE left_at IS NULL")
        assert [row["room"] for row in rooms] == ["entered"]
        await node.sio.emit("e", to="entered")
        assert await wire.event() == ["e"]
