"""From replay to live, tick by tick: each test fails when one mechanism of the seam is taken out.

What a node hears of the log is held back here and let go at the moment that would hurt.
"""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.server import claiming
from support.asgi_client import AsgiClient, Closed
from support.waiting import until


class Deaf:
    """Hold back the rings of a node's listener for its cursor, until `hear`."""

    def __init__(self, node) -> None:
        self._cursor = node.manager.node.cursor
        self._offer, self._ring = self._cursor.offer, self._cursor.ring
        self.rings: list[tuple] = []
        self.rung = asyncio.Event()
        self._cursor.offer = self._hold
        self._cursor.ring = self.rung.set

    def _hold(self, *ring) -> None:
        self.rings.append(ring)
        self.rung.set()

    def hear(self) -> None:
        self._cursor.offer, self._cursor.ring = self._offer, self._ring
        for ring in self.rings:
            self._offer(*ring)


def around_first_page(node, before=None, after=None) -> None:
    """Do something right before, and right after, the first page of a replay is read.

    Its handler lets others run: else the claim's own answer is still good, and no page is read.
    """

    @node.sio.event
    async def connect(sid, environ, auth):
        await asyncio.sleep(0)

    page, done = node.manager.node.sessions.page, []

    async def read(*args):
        if done:
            return await page(*args)
        done.append(True)
        if before is not None:
            await before()
        result = await page(*args)
        if after is not None:
            await after()
        return result

    node.manager.node.sessions.page = read


async def test_the_tick_in_which_a_replay_goes_live(start_node):
    """One packet comes between the page and going live, one in the very next step of the loop."""
    a, b = await start_node(), await start_node()

    async def after() -> None:
        await b.sio.emit("e", 2)
        walk = a.manager.node.cursor
        await until(
            lambda: walk.offset >= b.manager.node.cursor.offset and not (walk._reading or walk._ring.is_set())
        )
        deaf = Deaf(a)
        await b.sio.emit("e", 3)
        await deaf.rung.wait()
        asyncio.get_running_loop().call_soon(deaf.hear)

    async with a.client() as wire:
        await wire.drop()
        await b.sio.emit("e", 1)
        around_first_page(a, after=after)
        async with a.client(pid=wire.pid) as again:
            await b.sio.emit("end")
            assert [args for _, args in await again.events_until("end")] == [1, 2, 3]


async def test_case_109_the_sent_mark_a_replay_reads_beyond_the_cursor(start_node):
    """The page holds what this node's cursor has not met yet: it comes by later, and must send it nobody twice."""
    a, b = await start_node(), await start_node()
    held = []

    async def before() -> None:
        held.append(Deaf(a))
        await b.emit_numbers(2, 3)
        await held[0].rung.wait()

    async with a.client() as wire, a.client() as other:
        await wire.drop()
        await b.sio.emit("e", 1)
        around_first_page(a, before=before)
        async with a.client(pid=wire.pid) as again:
            assert a.manager.node.cursor.offset < b.manager.node.cursor.offset
            held[0].hear()
            await b.sio.emit("end")
            assert [args for _, args in await again.events_until("end")] == [1, 2, 3, 4]
            assert [args for _, args in await other.events_until("end")] == [1, 2, 3, 4]


async def test_case_109_a_client_that_is_ahead_of_its_node(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        await b.emit_numbers(1, 3)
        for i in (1, 2, 3):
            assert await wire.event() == ["e", i]
        await wire.drop()
        deaf = Deaf(a)
        async with a.client(pid=wire.pid, offset=wire.offset) as again:
            deaf.hear()
            await b.sio.emit("end")
            assert await again.events_until("end") == []


async def test_the_generation_a_try_that_was_overtaken_sends_nothing(start_node, monkeypatch):
    """Its node has not even heard of the newer claim: the page itself says so."""
    monkeypatch.setattr(claiming, "TAKEOVER_WAIT", 0.05)
    a, b = await start_node(), await start_node()
    entered, go = asyncio.Event(), asyncio.Event()
    recovering = []

    @a.sio.event
    async def connect(sid, environ, auth):
        if environ["sio_pg.recovered"]:
            recovering.append(Deaf(a))
            entered.set()
            await go.wait()

    async with a.client() as wire:
        await wire.drop()
        await b.sio.emit("e", "missed")
        async with AsgiClient(a.sio) as first:
            first.send(f'0{{"pid":"{wire.pid}"}}')
            await entered.wait()
            async with b.client(pid=wire.pid) as second:
                assert second.sid == wire.sid
                assert await second.event() == ["e", "missed"]
                go.set()
                assert await first.rest() == []
                recovering[0].hear()
                await a.sio.emit("end", to=wire.sid)
                assert await second.events_until("end") == []


async def test_a_newer_claim_closes_the_older_connection(start_node, monkeypatch):
    """Cases 63 and 64: before the old connection was known to be dead; its node hears it from the log."""
    for same in (True, False):
        a = await start_node()
        b = a if same else await start_node()
        calls = []
        for name, node in {"a": a, "b": b}.items():
            if same and name == "b":
                continue

            @node.sio.event
            async def connect(sid, environ, auth, name=name, calls=calls):
                calls.append((name, "connect", environ["sio_pg.recovered"]))

            @node.sio.event
            async def disconnect(sid, reason, name=name, sio=node.sio, calls=calls):
                calls.append((name, "disconnect", sorted(sio.rooms(sid))))
                await sio.save_session(sid, {"last": 1})

        async with a.client() as wire:
            await a.sio.enter_room(wire.sid, "x")
            async with b.client(pid=wire.pid) as again:
                assert again.sid == wire.sid
                assert await wire.rest() == []
                assert await b.sio.get_session(again.sid) == {"last": 1}
                await b.sio.emit("e", 1, room="x")
                assert await again.event() == ["e", 1]
                last = "a" if same else "b"
                assert calls == [
                    ("a", "connect", False),
                    ("a", "disconnect", sorted([wire.sid, "x"])),
                    (last, "connect", True),
                ]


async def test_case_67_a_slow_disconnect_handler_is_waited_for_no_longer_than_said(start_node, monkeypatch):
    monkeypatch.setattr(claiming, "TAKEOVER_WAIT", 0.05)
    node = await start_node()
    entered, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def disconnect(sid, reason):
        if not entered.is_set():
            entered.set()
            await go.wait()
            await node.sio.save_session(sid, {"late": 1})
            ended.set()

    async with node.client() as wire:
        wire.cut()
        await entered.wait()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
            go.set()
            await ended.wait()
            await wire.drop()
            await node.sio.emit("e", to=again.sid)
            assert await again.event() == ["e"]
            assert await node.sio.get_session(again.sid) == {}
            assert node.sio.manager.is_connected(again.sid, "/")


async def test_case_71_a_late_answer_to_the_former_connection_answers_nothing(start_node):
    node = await start_node()
    fired = []
    async with node.client() as wire:
        await node.sio.emit("q", to=wire.sid, callback=lambda *args: fired.append(("old", args)))
        question = await wire.recv()
        old = question[1 : question.index("[")]
        await wire.drop()
        async with node.client(pid=wire.pid) as again:
            await node.sio.emit("q", to=wire.sid, callback=lambda *args: fired.append(("new", args)))
            question = await again.recv()
            new = question[1 : question.index("[")]
            again.send(f"3{old}[1]")
            again.send(f"3{new}[2]")
            await until(lambda: fired)
            assert fired == [("new", (2,))] and old != new


@pytest.mark.parametrize("kicker", ["same node", "other node"])
async def test_case_111_a_kick_between_claim_and_connect(start_node, db, kicker):
    a, b = await start_node(), await start_node()
    entered, go = asyncio.Event(), asyncio.Event()
    left = []

    @a.sio.event
    async def connect(sid, environ, auth):
        if environ["sio_pg.recovered"]:
            entered.set()
            await go.wait()

    @a.sio.event
    async def disconnect(sid, reason):
        left.append(sid)

    async with a.client() as wire:
        await wire.drop()
        assert left == [wire.sid]
        await b.sio.emit("e", "missed")
        async with AsgiClient(a.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await entered.wait()
            await (a if kicker == "same node" else b).sio.disconnect(wire.sid)
            await a.passed(b.manager.node.cursor.offset)
            go.set()
            frame = await again.recv()
            assert not frame.startswith(("0", "2")), frame
            assert [frame[0] for frame in again.waiting()] in ([], ["4"])  # for Python's clients
        assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
        assert a.manager.clients.by_sid == {} and a.manager.rooms == {}
        entered.clear()
        async with b.client(pid=wire.pid) as later:
            assert later.sid != wire.sid


async def test_case_111_a_kick_while_the_first_page_is_read(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        await wire.drop()
        await b.sio.emit("e", "missed")
        around_first_page(a, before=lambda: b.sio.disconnect(wire.sid))
        async with AsgiClient(a.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            try:
                frame = await again.recv()
            except Closed:
                frame = "1"
            assert not frame.startswith(("0", "2"))
