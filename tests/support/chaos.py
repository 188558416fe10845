"""``Chaos``: all faults at once, and a model of what each client must receive.

Clients, nodes and PostgreSQL are disturbed at random while events of every kind are emitted. The model is the log
itself. An emit that raised may be in it or not, and each record was due to the members of its rooms at its offset.
"""

from __future__ import annotations

import asyncio
import base64
import bisect
import collections
import contextlib
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from sio_pg_adapter.embedded import EmbeddedPostgres
from support.js_driver import JSClient, JSDriver, Message
from support.node_process import ControlError, NodeError, NodeProcess

ROOMS = [f"room-{i}" for i in range(6)]
SETTLE = 90.0  # seconds until all must have come to rest

# Sessions that end take their rooms along; the model wants to know them all the same.
KEEP = """
    CREATE TABLE chaos_sessions (LIKE sio_sessions);
    CREATE TABLE chaos_rooms (LIKE sio_rooms);
    CREATE FUNCTION chaos_keep_session() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN INSERT INTO public.chaos_sessions SELECT OLD.*; RETURN OLD; END $$;
    CREATE FUNCTION chaos_keep_room() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN INSERT INTO public.chaos_rooms SELECT OLD.*; RETURN OLD; END $$;
    CREATE TRIGGER chaos_keep BEFORE DELETE ON sio_sessions FOR EACH ROW EXECUTE FUNCTION chaos_keep_session();
    CREATE TRIGGER chaos_keep BEFORE DELETE ON sio_rooms FOR EACH ROW EXECUTE FUNCTION chaos_keep_room();
"""


def number(offset: str) -> int:
    """The number in an offset as clients have it."""
    return int.from_bytes(base64.urlsafe_b64decode(offset + "==")[:8], "big")


@dataclass
class Life:
    """The events that a client saw in one session."""

    sid: str
    pid: str
    got: list[int] = field(default_factory=list)  # offsets, in the order of arrival
    recovered: int = 0
    at: float = field(default_factory=time.time)


class ChaosClient:
    def __init__(self, client: JSClient) -> None:
        self.client = client
        self.lives: list[Life] = []
        self.connected = False
        self.refusals: list[str] = []
        self.ended: set[str] = set()  # sids that its own DISCONNECT packet ended
        self.marks: set[str] = set()
        self.state: Message = {}  # in the end
        self.news = asyncio.Condition()
        self.task = asyncio.create_task(self._follow(), name=f"chaos {client.name}")

    @property
    def sid(self) -> str | None:
        return self.lives[-1].sid if self.lives else None

    async def _follow(self) -> None:
        while True:
            message = await self.client.take(lambda _: True, "message", timeout=3600)
            async with self.news:
                self._note(message)
                self.news.notify_all()

    def _note(self, message: Message) -> None:
        match message["type"]:
            case "connect":
                self.connected = True
                if message["recovered"]:
                    assert message["sid"] == self.lives[-1].sid, "recovered, and another sid"
                    self.lives[-1].recovered += 1
                else:
                    self.lives.append(Life(message["sid"], message["pid"]))
            case "disconnect":
                self.connected = False
            case "connect_error" if message["final"]:
                self.refusals.append(message["message"])
            case "event":
                self.lives[-1].got.append(number(message["offset"]))
                if message["name"] == "end":
                    self.marks.add(message["args"][0])

    async def until(self, true: Any, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout), self.news:
                await self.news.wait_for(true)
        except TimeoutError:
            return False
        return True


@dataclass
class Verdict:
    deliveries: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    inverted: list[str] = field(default_factory=list)
    not_due: list[str] = field(default_factory=list)
    fresh: dict[str, int] = field(default_factory=collections.Counter)
    unexplained: list[str] = field(default_factory=list)
    recovered: int = 0

    @property
    def wrong(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.inverted, *self.not_due, *self.unexplained]


class Chaos:
    def __init__(self, server: EmbeddedPostgres, dsn: str, js: JSDriver, seed: int) -> None:
        self.server, self.dsn, self.js = server, dsn, js
        self.random = random.Random(seed)
        self.nodes: list[NodeProcess] = []
        self.urls: list[str] = []
        self.clients: list[ChaosClient] = []
        self.done: dict[str, int] = collections.Counter()
        self.emitted: dict[str, int] = collections.Counter()
        self.logs: list[str] = []
        self._stop = asyncio.Event()
        self._numbers = iter(range(1, 1 << 40))

    # -- set up ------------------------------------------------------------------------------------------------
    def _node(self, port: int = 0) -> NodeProcess:
        return NodeProcess(
            self.dsn,
            port=port,
            window=3600.0,
            max_missed_packets=1_000_000,
            ping_interval=2.0,
            ping_timeout=2.0,
            log_level="INFO",
        )

    async def start(self, clients: int, nodes: int = 2) -> None:
        async with self.database() as connection:
            await connection.execute(KEEP)
        self.nodes = [self._node().spawn() for _ in range(nodes)]
        for node in self.nodes:
            await asyncio.to_thread(node.wait_ready)
        self.urls = [node.url for node in self.nodes]  # of those that come after them, too
        for i in range(clients):
            rooms = self.random.sample(ROOMS, 2)
            transports = [["websocket"], ["websocket"], ["polling", "websocket"], ["polling"]][i % 4]
            client = await self.js.create(
                self._url(),
                auth={"rooms": rooms},
                version=("4-8", "4-7", "4-6")[i % 3],
                options={"transports": transports, "timeout": 5000},
            )
            self.clients.append(ChaosClient(client))
            await client.do("connect")
        for one in self.clients:
            assert await one.until(lambda one=one: one.connected, SETTLE)

    def _url(self) -> str:
        return self.random.choice(self.urls)

    @contextlib.asynccontextmanager
    async def database(self) -> Any:
        connection = await asyncpg.connect(self.dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def end(self) -> None:
        for one in self.clients:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in self.clients), return_exceptions=True)
        for node in self.nodes:
            if node.running:
                self._keep_log(node)
            await asyncio.to_thread(node.kill)

    def _keep_log(self, node: NodeProcess) -> None:
        self.logs.append(node.stderr())

    # -- the run -------------------------------------------------------------------------------------------------
    async def run(self, seconds: float) -> None:
        emitters = [asyncio.create_task(self._emit(i), name=f"chaos emitter {i}") for i in range(4)]
        faults = [asyncio.create_task(f(), name=f"chaos {f.__name__}") for f in (self._disturb, self._break)]
        await asyncio.wait([*emitters, *faults], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        self._stop.set()
        await asyncio.gather(*emitters, *faults)
        await self._settle()

    async def _pause(self, low: float, high: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self.random.uniform(low, high))

    async def _control(self, op: str, **options: Any) -> bool:
        """Run an operation on any node. False if node or database is away. The log shows whether it was done."""
        try:
            await self.random.choice(self.nodes).control(op, **options)
        except (ControlError, NodeError, ConnectionError, asyncio.IncompleteReadError) as e:
            kind = e.kinds[0] if isinstance(e, ControlError) else type(e).__name__
            self.emitted[f"{op}: {kind}"] += 1
            return False
        return True

    def _sid(self) -> str | None:
        return self.random.choice(self.clients).sid

    async def _emit(self, emitter: int) -> None:
        while not self._stop.is_set():
            data: Any = next(self._numbers)
            options: dict[str, Any] = {}
            what = self.random.choice(["room", "room", "rooms", "direct", "all", "skip", "binary", "large"])
            match what:
                case "room":
                    options["room"] = self.random.choice(ROOMS)
                case "rooms":
                    options["room"] = self.random.sample(ROOMS, 2)
                case "direct":
                    options["to"] = self._sid()
                case "skip":
                    options["skip_sid"] = [self._sid(), self._sid()]
                    options["room"] = self.random.choice([None, *ROOMS])
                case "binary":
                    data = (data, self.random.randbytes(20), {"deep": [b"\x00"]})
                    options["room"] = self.random.choice(ROOMS)
                case "large":
                    data = (data, "x" * self.random.choice([7_400, 9_000, 70_000]))
                    options["room"] = self.random.choice(ROOMS)
            if await self._control("emit", event="e", data=data, **options):
                self.emitted[what] += 1
            await self._pause(0, 0.05)

    async def _disturb(self) -> None:
        """Let clients come, go and change rooms."""
        while not self._stop.is_set():
            one = self.random.choice(self.clients)
            what = self.random.choices(
                ["drop", "abort", "silence", "hop", "enter", "leave", "close", "kick", "quit", "storm"],
                [6, 6, 4, 8, 8, 8, 1, 1, 1, 1],
            )[0]
            self.done[what] += 1
            match what:
                case "drop" | "abort" | "silence" | "hop":
                    await self._cut(one, what)
                case "storm":
                    hows = self.random.choices(["drop", "abort", "silence", "hop"], k=len(self.clients))
                    await asyncio.gather(*(self._cut(c, how) for c, how in zip(self.clients, hows, strict=True)))
                case "enter" | "leave" if one.sid:
                    await self._control(f"{what}_room", sid=one.sid, room=self.random.choice(ROOMS))
                case "close":
                    await self._control("close_room", room=self.random.choice(ROOMS))
                case "kick" if one.sid:
                    await self._control("disconnect", sid=one.sid)
                    asyncio.get_running_loop().call_later(0.2, asyncio.ensure_future, one.client.do("connect"))
                case "quit" if one.connected and one.sid:
                    one.ended.add(one.sid)
                    await one.client.do("disconnect")
                    await one.client.do("connect")
            await self._pause(0.02, 0.25)

    async def _cut(self, one: ChaosClient, how: str) -> None:
        if not one.connected:
            return
        if how == "hop":
            await one.client.move_to(self._url())
            how = "drop"
        await one.client.do("set-delay", ms=self.random.choice([10, 50, 300]))
        with contextlib.suppress(AssertionError):  # it has no connection at the moment
            await one.client.do(how)

    async def _break(self) -> None:
        """Kill and restart nodes and PostgreSQL."""
        while not self._stop.is_set():
            await self._pause(1, 3)
            if self._stop.is_set():
                return
            what = self.random.choices(["kill", "listeners", "backends", "restart", "terminate"], [4, 4, 2, 2, 2])[0]
            self.done[what] += 1
            match what:
                case "kill" | "terminate":
                    await self._replace(self.random.randrange(len(self.nodes)), what)
                case "listeners" | "backends":
                    like = "%listen" if what == "listeners" else "%"
                    async with self.database() as connection:
                        await connection.execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1 "
                            "AND application_name LIKE 'sio_pg%' AND pid <> pg_backend_pid()",
                            like,
                        )
                case "restart":
                    await asyncio.to_thread(self.server.restart, "fast")

    async def _replace(self, i: int, how: str) -> None:
        node = self.nodes[i]
        if how == "kill":
            self._keep_log(node)
            await asyncio.to_thread(node.kill)
        else:
            self.logs.append(await asyncio.to_thread(node.terminate))
        await self._pause(0, 2)
        self.nodes[i] = new = self._node(node.port)
        await asyncio.to_thread(new.start)

    async def _settle(self) -> None:
        mark = f"mark-{time.time()}"
        async with asyncio.timeout(SETTLE):
            while not await self._control("emit", event="end", data=mark):
                await asyncio.sleep(0.1)
        await asyncio.gather(*(self._come_to_rest(one, mark) for one in self.clients))
        for one in self.clients:
            one.state = await one.client.state()

    async def _come_to_rest(self, one: ChaosClient, mark: str) -> None:
        """Until it has the last event; a late kick leaves it disconnected, and a fresh session may not be due it."""
        if await one.until(lambda: mark in one.marks or not one.connected, SETTLE) and mark in one.marks:
            return
        if not await one.until(lambda: mark in one.marks, SETTLE / 3):
            await one.client.do("connect")
            if not await one.until(lambda: one.connected, SETTLE / 3):
                one.refusals.append(f"not connected in the end: {await one.client.state()}")

    # -- the model -----------------------------------------------------------------------------------------------
    async def judge(self) -> Verdict:
        async with self.database() as c:
            packets = await c.fetch(
                "SELECT \"offset\", coalesce(rooms, ARRAY[room]) AS rooms, coalesce(skip_sids, '{}') AS skips"
                ' FROM sio_packets WHERE kind = 0 ORDER BY "offset"'
            )
            kicked = {r["sid"] for r in await c.fetch("SELECT sid FROM sio_packets WHERE kind = 5")}
            both = "(SELECT * FROM {0} UNION ALL SELECT * FROM {1})"
            sessions = both.format("sio_sessions", "chaos_sessions")
            starts = {
                r["sid"]: r["start_offset"] for r in await c.fetch(f"SELECT sid, start_offset FROM {sessions} x")
            }
            spans: dict[str, list[tuple[str, int, int | None]]] = collections.defaultdict(list)
            for r in await c.fetch(
                f"SELECT s.sid, r.room, r.joined_at, r.left_at FROM {both.format('sio_rooms', 'chaos_rooms')} r"
                f" JOIN {both.format('sio_sessions', 'chaos_sessions')} s ON s.id = r.session"
            ):
                spans[r["sid"]].append((r["room"], r["joined_at"], r["left_at"]))
            assert await c.fetchval("SELECT floor FROM sio_log") == 0, (
                "the log was trimmed: the model knows too little"
            )
        verdict = Verdict()
        for one in self.clients:
            for i, life in enumerate(one.lives):
                last = life is one.lives[-1]
                due = [p["offset"] for p in packets if _due(p, life.sid, starts.get(life.sid), spans[life.sid])]
                self._compare(verdict, one, life, due, whole=last and life.sid not in kicked | one.ended)
                if i:
                    self._explain(verdict, one, one.lives[i - 1], kicked)
            verdict.unexplained += [f"{one.client.name} was refused: {message}" for message in one.refusals]
        return verdict

    def _compare(self, verdict: Verdict, one: ChaosClient, life: Life, due: list[int], *, whole: bool) -> None:
        where = f"{one.client.name} {life.sid}"
        verdict.deliveries += len(life.got)
        verdict.recovered += life.recovered
        due_set = set(due)
        seen: set[int] = set()
        highest = 0
        for offset in life.got:
            if offset in seen:
                verdict.doubled.append(f"{where}: {offset} doubled")
            elif offset < highest:
                verdict.inverted.append(f"{where}: {offset} after {highest}")
            if offset not in due_set:
                verdict.not_due.append(f"{where}: {offset} was not due")
            seen.add(offset)
            highest = max(highest, offset)
        upto = len(due) if whole else bisect.bisect_left(due, highest)
        lost = [offset for offset in due[:upto] if offset not in seen]
        if lost:
            gap = "it got nothing later" if lost[0] > highest else f"it got others up to {highest}"
            verdict.lost.append(f"{where}: lost {len(lost)} of {len(due)}, {lost[:10]}; {gap}; {one.state}")

    def _explain(self, verdict: Verdict, one: ChaosClient, former: Life, kicked: set[str]) -> None:
        if former.sid in kicked:
            verdict.fresh["disconnected by the server"] += 1
        elif former.sid in one.ended:
            verdict.fresh["left by itself"] += 1
        else:
            verdict.fresh["no rule"] += 1
            verdict.unexplained.append(f"{one.client.name} {former.sid}: a fresh session for no reason")

    def report(self, verdict: Verdict) -> str:
        said = collections.Counter(re.findall(r"a fresh session: .*|not recovered: .*", "\n".join(self.logs)))
        lines = [
            f"did {dict(self.done)}",
            f"emits {dict(self.emitted)}",
            f"deliveries {verdict.deliveries}, recovered {verdict.recovered} times",
            f"lost {len(verdict.lost)}, doubled {len(verdict.doubled)}, inverted {len(verdict.inverted)}",
            f"not due {len(verdict.not_due)}",
            f"fresh sessions {dict(verdict.fresh)}; the nodes said {dict(said)}",
            *verdict.wrong[:40],
        ]
        return "\n".join(lines)


def _due(packet: Any, sid: str, start: int | None, spans: list[tuple[str, int, int | None]]) -> bool:
    offset = packet["offset"]
    if start is None or offset <= start or sid in packet["skips"]:
        return False
    rooms = packet["rooms"]
    return (
        "" in rooms
        or sid in rooms
        or any(room in rooms and a < offset and (b is None or offset < b) for room, a, b in spans)
    )
