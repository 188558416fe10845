"""``Chaos``: all faults at once, and a history of what each client received.

Clients, nodes and PostgreSQL are disturbed at random while events of every kind are emitted. ``sio-pg check`` judges
the history.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncpg

from sio_pg_adapter import emit_async
from sio_pg_adapter.check import Outcome
from sio_pg_adapter.demo.history import KEEP, HistoryWriter, event_id, number
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.store.failures import LOST
from support.js_driver import JSClient, JSDriver, Message
from support.node_process import ControlError, NodeError, NodeProcess
from support.roles import node_dsn

ROOMS = [f"room-{i}" for i in range(6)]
SETTLE = 90.0  # seconds until all must have come to rest


class ChaosClient:
    def __init__(self, client: JSClient, history: HistoryWriter) -> None:
        self.client = client
        self.history = history
        self.sid: str | None = None
        self.connected = False
        self.received = 0
        self.marks: set[str] = set()
        self.news = asyncio.Condition()
        self.task = asyncio.create_task(self._follow(), name=f"chaos {client.name}")

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
                self.sid = message["sid"]
                self.write("connected", **{key: message[key] for key in ("sid", "pid", "recovered")})
            case "disconnect":
                self.connected = False
                self.write("disconnected", reason=message["reason"])
            case "connect_error" if message["final"]:
                self.write("refused", reason=message["message"])
            case "event":
                args = message["args"]
                self.received += 1
                self.write("received", offset=number(message["offset"]), event=event_id(message["name"], args))
                if message["name"] == "end":
                    self.marks.add(args[0])

    def write(self, kind: str, **fields: Any) -> None:
        self.history.write(kind, client=self.client.name, **fields)

    async def until(self, true: Any, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout), self.news:
                await self.news.wait_for(true)
        except TimeoutError:
            return False
        return True


class Chaos:
    """A run.

    :param server: the PostgreSQL server that is restarted.
    :param dsn: the database for the nodes, also after a failover.
    :param history: where it is written.
    :param seed: the seed of the choices. The run itself also depends on the machine.
    :param kind: of the nodes: "async", "sync", or "mixed" for each in turn.
    :param fail_over: lets a standby take over and returns it, if there is one.
    """

    def __init__(
        self,
        server: EmbeddedPostgres,
        dsn: str,
        js: JSDriver,
        seed: int,
        history: HistoryWriter,
        fail_over: Callable[[], Awaitable[EmbeddedPostgres]] | None = None,
        kind: str = "async",
    ) -> None:
        self.kinds = ("async", "sync") if kind == "mixed" else (kind,)
        self.server, self.dsn, self.js, self.history = server, dsn, js, history
        self.random = random.Random(seed)
        self.nodes: list[NodeProcess] = []
        self.urls: list[str] = []
        self.clients: list[ChaosClient] = []
        self.done: dict[str, int] = collections.Counter()
        self.failed: dict[str, int] = collections.Counter()
        self.logs: list[str] = []
        self._fail_over = fail_over
        self._stop = asyncio.Event()
        self._numbers = iter(range(1, 1 << 40))

    @property
    def deliveries(self) -> int:
        """The number of events that clients have received."""
        return sum(one.received for one in self.clients)

    # -- set up ------------------------------------------------------------------------------------------------
    def _node(self, i: int, port: int = 0) -> NodeProcess:
        return NodeProcess(
            node_dsn(self.dsn),
            kind=self.kinds[i % len(self.kinds)],
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
        self.nodes = [self._node(i).spawn() for i in range(nodes)]
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
            self.clients.append(ChaosClient(client, self.history))
            await client.do("connect")
        for one in self.clients:
            assert await one.until(lambda one=one: one.connected, SETTLE)

    def _url(self) -> str:
        return self.random.choice(self.urls)

    @contextlib.asynccontextmanager
    async def database(self, dsn: str | None = None) -> Any:
        """Connect as the owner, or as another role."""
        connection = await asyncpg.connect(dsn or self.server.dsn())
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
    async def run(self, over: Coroutine[Any, Any, Any], writers: int = 1) -> None:
        """Disturb all until a coroutine returns, then wait until all clients have come to rest.

        :param over: the coroutine.
        :param writers: the number of tasks that emit in transactions of the application.
        """
        tasks = [self._emit() for _ in range(4)] + [self._write() for _ in range(writers)]
        tasks += [self._disturb(), self._break(), over]
        running = [asyncio.create_task(task, name=f"chaos {task.__name__}") for task in tasks]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        self._stop.set()
        await asyncio.gather(*running)
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
            self.failed[f"{op}: {kind}"] += 1
            return False
        return True

    async def _write(self) -> None:
        """Emit in transactions of the application, and roll some of them back."""
        while not self._stop.is_set():
            with contextlib.suppress(*LOST, asyncpg.PostgresError):
                async with self.database() as connection:
                    while not self._stop.is_set():
                        await self._transaction(connection)
                        await self._pause(0, 0.1)
            await self._pause(0.1, 0.5)  # the database is away

    async def _transaction(self, connection: asyncpg.Connection) -> None:
        n = next(self._numbers)
        self.history.write("emit", event=event_id("e", [n]))
        outcome = Outcome.NOT_STORED
        try:
            transaction = connection.transaction()
            await transaction.start()
            await emit_async(connection, "e", n, room=self.random.choice([None, *ROOMS]))
            if self.random.random() < 0.2:
                await transaction.rollback()
                return
            outcome = Outcome.UNKNOWN
            await transaction.commit()
            outcome = Outcome.STORED
        finally:
            self.history.write("answer", event=event_id("e", [n]), outcome=outcome.value)

    async def _emit_event(self, event: str, data: Any, **options: Any) -> bool:
        """Emit, and write the outcome. If it failed, the event may be in the log all the same."""
        name = event_id(event, data if isinstance(data, tuple) else [data])
        self.history.write("emit", event=name)
        stored = await self._control("emit", event=event, data=data, **options)
        self.history.write("answer", event=name, outcome="stored" if stored else "unknown")
        return stored

    def _sid(self) -> str | None:
        return self.random.choice(self.clients).sid

    async def _emit(self) -> None:
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
                    options["skip_room"] = self.random.choice([None, *ROOMS, ROOMS])
                    options["room"] = self.random.choice([None, *ROOMS])
                case "binary":
                    data = (data, self.random.randbytes(20), {"deep": [b"\x00"]})
                    options["room"] = self.random.choice(ROOMS)
                case "large":
                    data = (data, "x" * self.random.choice([7_400, 9_000, 70_000]))
                    options["room"] = self.random.choice(ROOMS)
            await self._emit_event("e", data, **options)
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
                    self.history.write("ended", sid=one.sid, by="its client")
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
            whats = {"kill": 4, "listeners": 4, "backends": 2, "restart": 2, "terminate": 2, "failover": 1}
            if self._fail_over is None:
                del whats["failover"]
            what = self.random.choices(list(whats), list(whats.values()))[0]
            self.done[what] += 1
            self.history.write("fault", what=what)
            match what:
                case "kill" | "terminate":
                    await self._replace(self.random.randrange(len(self.nodes)), what)
                case "listeners" | "backends":
                    like = "%listen" if what == "listeners" else "%"
                    # a role may end its own connections
                    async with self.database(node_dsn(self.server.dsn())) as connection:
                        await connection.execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1 "
                            "AND application_name LIKE 'sio_pg%' AND pid <> pg_backend_pid()",
                            like,
                        )
                case "restart":
                    await asyncio.to_thread(self.server.restart, "fast")
                case "failover":
                    assert self._fail_over is not None
                    self.server = await self._fail_over()

    async def _replace(self, i: int, how: str) -> None:
        node = self.nodes[i]
        if how == "kill":
            self._keep_log(node)
            await asyncio.to_thread(node.kill)
        else:
            self.logs.append(await asyncio.to_thread(node.terminate))
        await self._pause(0, 2)
        self.nodes[i] = new = self._node(i, node.port)
        await asyncio.to_thread(new.start)

    async def _settle(self) -> None:
        mark = f"mark-{time.time()}"
        async with asyncio.timeout(SETTLE):
            while not await self._emit_event("end", mark):
                await asyncio.sleep(0.1)
        await asyncio.gather(*(self._come_to_rest(one, mark) for one in self.clients))

    async def _come_to_rest(self, one: ChaosClient, mark: str) -> None:
        """Until it has the last event; a late kick leaves it disconnected, and a fresh session may not be due it."""
        if await one.until(lambda: mark in one.marks or not one.connected, SETTLE) and mark in one.marks:
            return
        if not await one.until(lambda: mark in one.marks, SETTLE / 3):
            await one.client.do("connect")
            if not await one.until(lambda: one.connected, SETTLE / 3):
                one.write("refused", reason=f"not connected in the end: {await one.client.state()}")

    async def write_log(self) -> None:
        """Write the log at the end of the history."""
        async with self.database() as connection:
            await self.history.write_log(connection)

    def report(self) -> str:
        logs = "\n".join(self.logs)
        said = collections.Counter(
            re.sub(r": \S+ \[.*\]:", ":", line)  # the client and its namespace
            for line in re.findall(
                r"a client gets a new session: .*|a session is not recovered: .*|the log is another one", logs
            )
        )
        return "\n".join(
            f"{what}: {', '.join(f'{name} {n:,}' for name, n in sorted(counts.items())) or 'nothing'}"
            for what, counts in (("disturbed", self.done), ("calls that failed", self.failed), ("nodes logged", said))
        )
