"""``Interleaving``: a namespace on two nodes in which a scenario runs under a schedule, and what is wrong in the end.

A tab is a connection of a client. It records what it gets until its connection is lost. From the log follows exactly
what each tab had to get:

- The events that its session is due above the offset that it presented, in order, none left out.
- Nothing above the claim of a newer tab, and nothing above the kick of its session.
- All of it, if it still holds the session.

When all is quiet, the store says of each session whether a tab holds it.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from sio_pg_adapter.check.log import Log, Membership, Record
from sio_pg_adapter.demo.history import number
from sio_pg_adapter.local.client import State
from sio_pg_adapter.local.handling import handled
from sio_pg_adapter.log.records import Kind
from support.asgi_client import AsgiClient, Closed
from support.nodes import Node
from support.shuffled_loop import Schedule, ShuffledLoop

Scenario = Callable[["Interleaving"], Awaitable[None]]

PATIENCE = 20.0
"""Seconds after which a schedule is stuck."""

_RECORDS = """
    SELECT "offset", kind, coalesce(rooms, ARRAY[room]) AS rooms, sid, generation, body FROM sio_packets
    WHERE "offset" > $1 AND namespace = $2 ORDER BY "offset"
"""

_SESSIONS = """
    WITH ended AS (SELECT * FROM history_sessions WHERE namespace = $1)
    SELECT id, sid, start_offset, node IS NOT NULL AS held, expires_at IS NOT NULL AS expires, false AS ended
    FROM sio_sessions WHERE namespace = $1
    UNION ALL SELECT id, sid, start_offset, false, false, true FROM ended
"""

_MEMBERSHIPS = """
    SELECT session, room, joined_at, left_at FROM sio_rooms WHERE session = ANY($1)
    UNION ALL SELECT session, room, joined_at, left_at FROM history_rooms WHERE session = ANY($1)
"""


class Tab:
    """A connection of a client.

    :param after: the offset that it presents, as a number. 0 if it presents none.
    :ivar is_cut: its connection is lost, and it gets nothing more.
    :ivar is_over: the server has ended it.
    """

    def __init__(self, wire: AsgiClient, namespace: str, auth: dict[str, Any], after: int) -> None:
        self.wire = wire
        self.after = after
        self.presented_pid = auth.get("pid")
        self.sid = self.pid = ""
        self.offset: str | None = auth.get("offset")
        self.received: list[tuple[int, int]] = []
        self.is_cut = self.is_over = False
        self.settled = asyncio.Event()  # it is answered, or over
        self.news = asyncio.Event()
        self._prefix = f"{namespace},"
        self._auth = auth
        self._reading = asyncio.create_task(self._read(), name="tab reads")

    @property
    def is_open(self) -> bool:
        return bool(self.sid) and not self.is_cut and not self.is_over

    @property
    def recovered(self) -> bool:
        return bool(self.pid) and self.pid == self.presented_pid

    def cut(self) -> None:
        self.is_cut = True
        self.wire.cut()
        self.settled.set()

    def disconnect(self) -> None:
        """Leave for good. What the server sends after that does not count."""
        self.is_cut = True
        self.wire.send(f"1{self._prefix}")
        self.settled.set()

    async def ended(self) -> None:
        """Wait until the server has done all that the end of the connection takes."""
        self.cut()
        await self._reading
        await self.wire.ended()

    async def tear_down(self) -> None:
        """Cancel what still runs for the connection."""
        self._reading.cancel()
        await asyncio.gather(self._reading, self.wire.cancel(), return_exceptions=True)

    async def _read(self) -> None:
        try:
            await self.wire.__aenter__()
            self.wire.send(f"0{self._prefix}{json.dumps(self._auth)}")
            while True:
                packet = str(await self.wire.recv())
                if not self.is_cut:
                    self._take(packet[0], packet[1:].removeprefix(self._prefix))
        except Closed:
            pass
        finally:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self.settled.set()
        self.news.set()

    def _take(self, kind: str, text: str) -> None:
        match kind:
            case "0":
                reply = json.loads(text)
                self.sid, self.pid = reply["sid"], reply["pid"]
                self.settled.set()
            case "2":
                _, n, self.offset = json.loads(text)
                self.received.append((number(self.offset), n))
                self.news.set()
            case _:  # a DISCONNECT, or a refusal
                self._end()


class Interleaving:
    """A scenario under a schedule.

    :param nodes: two nodes, which are shared by all schedules.
    :param db: a connection of the owner, on which :data:`~sio_pg_adapter.demo.history.KEEP` has run.
    :ivar dice: chooses what the scenario does.
    """

    _numbers = itertools.count(1)

    def __init__(self, nodes: list[Node], db: asyncpg.Connection, seed: int) -> None:
        self.nodes = nodes
        self.dice = random.Random(seed)
        self.namespace = f"/{next(self._numbers)}"
        self.tabs: list[Tab] = []
        self.wrong: list[str] = []
        self._db = db
        self._events = itertools.count(1)
        self._generations: dict[str, int] = {}
        self._handler = self.dice.choice(["returns", "yields", "enters"])
        for node in nodes:
            node.sio.on("connect", self._connect_handler(node), namespace=self.namespace)

    async def run(self, scenario: Scenario, schedule: Schedule, patience: float = PATIENCE) -> list[str]:
        """Run a scenario under a schedule. Return what was wrong."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ShuffledLoop)
        before = await self._db.fetchval('SELECT coalesce(max("offset"), 0) FROM sio_packets')
        try:
            async with asyncio.timeout(patience):
                with loop.following(schedule):
                    await scenario(self)
                    await self._end()
                for tab in self.tabs:
                    if not tab.is_open:
                        await tab.ended()
            await self._judge(before)
        except TimeoutError:
            self.wrong.append(f"it was stuck: {[(tab.sid, tab.is_open, tab.received) for tab in self.tabs]}")
        for tab in self.tabs:
            await self._close(tab, patience)
        for node in self.nodes:
            node.sio.handlers.pop(self.namespace)
        return self.wrong

    async def _close(self, tab: Tab, patience: float) -> None:
        """Close a tab. One that does not end is torn down, so that the next schedule can run."""
        try:
            async with asyncio.timeout(patience):
                await tab.ended()
        except TimeoutError:
            self.wrong.append(f"the connection of {tab.sid or 'a tab'} does not end")
            await tab.tear_down()

    # -- what a scenario does ---------------------------------------------------------------------------------
    def any_node(self) -> Node:
        return self.dice.choice(self.nodes)

    def connect(self, former: Tab | None = None, node: Node | None = None) -> Tab:
        """Begin to connect. A tab that comes back presents what the former one has."""
        auth: dict[str, Any] = {}
        after = 0
        if former is not None:
            auth = {"pid": former.pid} | ({"offset": former.offset} if former.offset else {})
            after = number(former.offset) if former.offset else 0
        wire = AsgiClient((node or self.any_node()).sio)
        wire.patience = None
        self.tabs.append(tab := Tab(wire, self.namespace, auth, after))
        return tab

    async def connected(self, former: Tab | None = None, node: Node | None = None) -> Tab:
        tab = self.connect(former, node)
        await tab.settled.wait()
        return tab

    async def emit(self, node: Node | None = None, room: str | None = None) -> int:
        n = next(self._events)
        await (node or self.any_node()).sio.emit("e", n, namespace=self.namespace, room=room)
        return n

    async def emits(self, count: int, node: Node | None = None, rooms: tuple[str | None, ...] = (None,)) -> None:
        for _ in range(count):
            await self.emit(node, self.dice.choice(rooms))

    async def enter(self, tab: Tab, room: str) -> None:
        await self.any_node().sio.enter_room(tab.sid, room, namespace=self.namespace)

    async def leave(self, tab: Tab, room: str) -> None:
        await self.any_node().sio.leave_room(tab.sid, room, namespace=self.namespace)

    async def kick(self, tab: Tab) -> None:
        node = self.any_node()
        await node.sio.disconnect(tab.sid, namespace=self.namespace)
        client = node.manager.clients.current(tab.sid, self.namespace)
        if client is not None and not client.ended:  # one that is connecting notices at its next step
            self.wrong.append("disconnect() returned, and its node still has the client")

    def refuse_a_recovery(self) -> None:
        """Have the handler of the next connect refuse it, if that recovers a session."""
        decided = False

        def refusing(accept: Callable[[str, Any], Awaitable[None]]) -> Callable[[str, Any], Awaitable[bool]]:
            async def connect(sid: str, environ: Any) -> bool:
                nonlocal decided
                refused, decided = not decided and environ["sio_pg.recovered"], True
                await accept(sid, environ)
                return not refused

            return connect

        for node in self.nodes:
            accept = node.sio.handlers[self.namespace]["connect"]
            node.sio.on("connect", refusing(accept), namespace=self.namespace)

    async def _end(self) -> None:
        """Emit two events for everybody, and wait until all open tabs have the second."""
        for tab in self.tabs:
            await tab.settled.wait()
        last = 0
        for node in self.nodes:
            last = await self.emit(node)
        for tab in self.tabs:
            while tab.is_open and (not tab.received or tab.received[-1][1] != last):
                tab.news.clear()
                await tab.news.wait()

    def _connect_handler(self, node: Node) -> Callable[[str, Any], Awaitable[None]]:
        async def connect(sid: str, environ: Any) -> None:
            client = handled()
            assert client is not None
            self._generations[client.eio_sid] = 1 if client.held is None else client.held.generation
            if self._handler == "yields":
                await asyncio.sleep(0)
            elif self._handler == "enters":
                await node.sio.enter_room(sid, "home", namespace=self.namespace)

        return connect

    # -- the end --------------------------------------------------------------------------------------------------
    async def _judge(self, before: int) -> None:
        log = Log("log")
        claims: dict[tuple[str, int], int] = {}
        numbers: dict[int, int] = {}
        for r in await self._db.fetch(_RECORDS, before, self.namespace):
            offset, sid = r["offset"], r["sid"]
            if r["kind"] == Kind.EVENT:
                rooms = [] if "" in r["rooms"] else r["rooms"]
                numbers[offset] = json.loads(r["body"])[1]
                log.add(offset, Record(numbers[offset], self.namespace, rooms, [], [], 0))
            elif r["kind"] == Kind.KICK:
                log.kicks.setdefault(sid, offset)
            elif r["kind"] == Kind.CLAIM:
                claims[sid, r["generation"]] = offset
        rows = await self._db.fetch(_SESSIONS, self.namespace)
        sids = {row["id"]: row["sid"] for row in rows}
        for row in rows:
            log.starts[row["sid"]] = self.namespace, row["start_offset"]
        for row in await self._db.fetch(_MEMBERSHIPS, list(sids)):
            membership = Membership(row["room"], row["joined_at"], row["left_at"])
            log.memberships[sids[row["session"]]].append(membership)
        self._judge_holders(rows)
        for i, tab in enumerate(self.tabs):
            if tab.sid:
                generation = self._generations[tab.wire.eio_sid]
                newer = claims.get((tab.sid, generation + 1))
                self._judge_tab(f"tab {i}, generation {generation}", tab, log, newer, numbers)

    def _judge_tab(self, name: str, tab: Tab, log: Log, newer: int | None, numbers: dict[int, int]) -> None:
        due = log.due(tab.sid)
        after = max(tab.after if tab.recovered else 0, log.starts[tab.sid][1])
        due = due[bisect.bisect_right(due, after) :]
        if newer is not None:
            due = due[: bisect.bisect_left(due, newer)]
        expected = [(offset, numbers[offset]) for offset in due]
        if not tab.is_open:
            expected = expected[: len(tab.received)]
        if tab.received != expected:
            self.wrong.append(f"{name}: it got {tab.received}, and was due {expected}")

    def _judge_holders(self, rows: list[asyncpg.Record]) -> None:
        holders: defaultdict[str, int] = defaultdict(int)
        for tab in self.tabs:
            holders[tab.sid] += tab.is_open
        for row in rows:
            count = holders[row["sid"]]
            expires = not row["held"] and not row["ended"]
            if count != int(row["held"]) or row["expires"] != expires:
                self.wrong.append(f"{count} tabs hold a session, and the store has {dict(row)}")


# -- scenarios ----------------------------------------------------------------------------------------------------


async def seam(run: Interleaving) -> None:
    """A replay goes live while events are emitted, and its client is cut again."""
    tab = await run.connected()
    tab.cut()
    await run.emits(2)

    async def comes_and_goes() -> None:
        last = tab
        for _ in range(2):
            last = await run.connected(last)
            last.cut()
        await run.connected(last)

    first, second = run.nodes
    await asyncio.gather(run.emits(6, first), run.emits(6, second), comes_and_goes())


async def claims(run: Interleaving) -> None:
    """Two tabs claim one session, which a third one may still hold."""
    tab = await run.connected()
    await run.emits(1)
    if run.dice.random() < 0.5:
        tab.cut()
    await asyncio.gather(
        run.emits(3), run.connected(tab, run.nodes[0]), run.connected(tab, run.dice.choice(run.nodes)), run.emits(3)
    )


async def kicks(run: Interleaving) -> None:
    """A client is disconnected for good while it comes back. Then it comes back once more."""
    tab = await run.connected()
    tab.cut()
    await run.emits(1)
    await asyncio.gather(run.emits(2), run.connected(tab), run.kick(tab), run.emits(2))
    again = await run.connected(tab)
    if again.recovered:
        run.wrong.append("a session came back that had ended")


async def moves(run: Interleaving) -> None:
    """A client is moved while it is away and while it comes back."""
    tab = await run.connected()
    await run.enter(tab, "x")
    await run.emits(1, rooms=("x",))
    tab.cut()

    async def changes() -> None:
        for _ in range(3):
            move = run.dice.choice([run.enter, run.leave])
            await move(tab, run.dice.choice(["x", "y"]))

    async def comes_back() -> None:
        await asyncio.sleep(0)
        await run.connected(tab)

    rooms = ("x", "y", "home", None)
    await run.leave(tab, "x")
    await run.emits(1, rooms=("x",))
    first, second = run.nodes
    await asyncio.gather(run.emits(4, first, rooms), changes(), run.emits(4, second, rooms), comes_back())


async def leaves(run: Interleaving) -> None:
    """A client leaves for good while others drop, and comes back to the same node at once."""
    node = run.any_node()
    others = [await run.connected(node=node) for _ in range(3)]
    tab = await run.connected(node=node)

    async def leaves_and_comes_back() -> None:
        for other in others:
            if run.dice.random() < 0.7:
                other.cut()
        client = node.manager.clients.current(tab.sid, run.namespace)
        tab.disconnect()
        while client is not None and client.state is not State.LEFT:
            await asyncio.sleep(0)
        again = await run.connected(tab, node)
        if again.recovered:
            run.wrong.append("a session came back that had ended")

    await asyncio.gather(run.emits(2), leaves_and_comes_back(), run.emits(2))


async def refusals(run: Interleaving) -> None:
    """One of two tabs that claim a session is refused. A third one may still hold it, and one of the two may drop."""
    tab = await run.connected()
    await run.emits(1)
    if run.dice.random() < 0.5:
        tab.cut()
    run.refuse_a_recovery()
    both = [run.connect(tab), run.connect(tab)]
    if run.dice.random() < 0.5:
        await asyncio.sleep(0)
        run.dice.choice(both).cut()
    await asyncio.gather(run.emits(3), *(one.settled.wait() for one in both), run.emits(3))
