"""``Walk``: nodes and clients under load, while a scenario breaks the connections between the nodes and the log.

A scenario starts a walk, causes faults under its load, and judges the walk in the end::

    async with Walk(seed, server.dsn) as walk:
        await walk.start([{"dsn": server.dsn()}] * 2)
        async with walk.load():
            server.kill()
            await walk.broken()  # each node reports it
            server.start()
            await walk.healed()  # each node is back by itself, and all clients hear it
        await walk.judge(server.dsn())

The choices come from the seed. What happens between them depends on the machine, so a seed repeats the choices, not
the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import asyncpg

from field.client import FieldClient
from field.times import patience
from sio_pg_adapter import (
    AsyncPostgresManager,
    AsyncServer,
    ConnectionStateRecovery,
    NoAnswer,
    StoreUnavailable,
    emit_async,
)
from sio_pg_adapter.check import Outcome, Verdict, check_file
from sio_pg_adapter.demo.history import HistoryWriter, event_id
from sio_pg_adapter.store.failures import LOST
from support.nodes import Node

ROOMS = [f"room-{i}" for i in range(5)]

LONG = 60.0
"""Seconds from which a walk is a long one. In a short one, nodes notice faults sooner."""

HEALTH_WAIT = 22.0
"""Seconds within which a node reports that it is broken: 20, and 2 more for a busy machine."""

IN_A_ROW = 10
"""How often in a row a node has to report that it is broken."""

HEAL_WAIT = 60.0
"""Seconds within which a node is back once the fault is over."""


class Walk:
    """A walk.

    :param seed: the seed of all choices.
    :param app_dsn: returns the DSN for the application's own transactions.
    :ivar done: how often each step was taken.
    """

    def __init__(self, seed: int, app_dsn: Callable[[], str]) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.nodes: list[Node] = []
        self.clients: list[FieldClient] = []
        self.path = Path(tempfile.mkdtemp(prefix="walk")) / "history.jsonl"
        self.history = HistoryWriter(self.path, seed=seed)
        self._stored: set[int] = set()
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.app_dsn = app_dsn
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()
        self._disturbing = asyncio.Event()
        self._disturbing.set()
        self._log = _Tracebacks()

    async def __aenter__(self) -> Self:
        logging.getLogger("sio_pg_adapter").addHandler(self._log)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(HEAL_WAIT):
                await asyncio.gather(*(client.close() for client in self.clients))
        finally:  # nodes that go on would keep connections of a test's pool, whose end waits for them
            logging.getLogger("sio_pg_adapter").removeHandler(self._log)
            self.history.close()
            async with asyncio.timeout(HEAL_WAIT):
                for node in self.nodes:
                    await node.sio.shutdown()

    # -- nodes and clients ------------------------------------------------------------------------------------
    async def start(self, managers: list[dict[str, Any]], clients: int = 6) -> None:
        """Start a node for each dict of options of ``AsyncPostgresManager``, and clients that are connected."""
        for options in managers:
            await self.start_node(**options)
        for i in range(clients):
            rooms = self.dice.sample(ROOMS, 2)
            self.clients.append(
                FieldClient(f"client {i}", self._any_node, rooms, random.Random(self.dice.random()), self.history)
            )
        async with asyncio.timeout(HEAL_WAIT):
            for client in self.clients:
                await client.connected.wait()

    async def start_node(self, **options: Any) -> Node:
        manager = AsyncPostgresManager(**options)
        sio = AsyncServer(
            client_manager=manager,
            connection_state_recovery=ConnectionStateRecovery(
                max_disconnection_duration=3600, max_missed_packets=1_000_000
            ),
            async_mode="asgi",
            monitor_clients=False,
            ping_interval=3600,
        )

        @sio.event
        async def connect(sid: str, environ: Any, auth: Any) -> None:
            for room in auth["rooms"]:
                await sio.enter_room(sid, room)

        with patience():
            await manager.start()
        self.nodes.append(node := Node(sio, manager))
        return node

    def _any_node(self) -> Node:
        return self.dice.choice(self.nodes)

    # -- load -------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def load(
        self, pause: float = 0.03, *, moves: bool = True, transactions: bool = True
    ) -> AsyncIterator[None]:
        """Emit, move and disturb clients while the block runs.

        :param pause: the longest pause between two steps of an emitter, in seconds.
        :param moves: whether clients come, go and move.
        :param transactions: whether the application emits in transactions, too.
        """
        self._stopping.clear()
        dice = [random.Random(self.dice.random()) for _ in range(4)]
        steps = [self._emits(dice[0], pause), self._emits(dice[1], pause)]
        if moves:
            steps.append(self._moves(dice[2], pause * 2))
        if transactions:
            steps.append(self._transactions(dice[3], pause * 2))
        tasks = [asyncio.create_task(step, name=f"field {step.__name__}") for step in steps]
        try:
            yield
        finally:
            self._stopping.set()
            _, hanging = await asyncio.wait(tasks, timeout=HEAL_WAIT)
            for task in hanging:
                task.cancel()
            for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                if isinstance(result, BaseException):
                    self.wrong.append(f"{task.get_name()} ended by {type(result).__name__}: {result}")

    async def emit(self, node: Node, **options: Any) -> int:
        """Emit the next number, and record the outcome."""
        n = next(self._numbers)
        self.history.write("emit", event=event_id("e", [n]))
        data: Any = n
        if n % 25 == 0:  # too large for a notification, and sometimes for a record
            data = (n, "x" * (80_000 if n % 50 == 0 else 9_000))
        try:
            await node.sio.emit("e", data, **options)
        except StoreUnavailable as e:
            self._answer(n, Outcome.UNKNOWN if e.may_be_stored else Outcome.NOT_STORED)
            await asyncio.sleep(0)  # a node that has stopped refuses at once, and a loop of emits would stop all else
        else:
            self._answer(n, Outcome.STORED)
        return n

    def _answer(self, n: int, outcome: Outcome) -> None:
        self.history.write("answer", event=event_id("e", [n]), outcome=outcome.value)
        if outcome is Outcome.STORED:
            self._stored.add(n)

    def _options(self, dice: random.Random) -> dict[str, Any]:
        match dice.choice(["all", "room", "room", "rooms", "direct", "skip"]):
            case "room":
                return {"room": dice.choice(ROOMS)}
            case "rooms":
                return {"room": dice.sample(ROOMS, 2)}
            case "direct":
                return {"to": self._sid(dice)}
            case "skip":
                skips = {"skip_sid": [self._sid(dice)], "skip_room": dice.choice([None, *ROOMS])}
                return {**skips, "room": dice.choice([None, *ROOMS])}
        return {}

    def _sid(self, dice: random.Random) -> str:
        return dice.choice([client.sid for client in self.clients if client.sid])

    async def _pause(self, dice: random.Random, longest: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), dice.uniform(0, longest))

    async def _emits(self, dice: random.Random, pause: float) -> None:
        while not self._stopping.is_set():
            self.done["emit"] += 1
            await self.emit(dice.choice(self.nodes), **self._options(dice))
            await self._pause(dice, pause)

    async def _moves(self, dice: random.Random, pause: float) -> None:
        """Let clients come, go, change rooms, and be disconnected."""
        while not self._stopping.is_set():
            if self._disturbing.is_set():
                await self.step(dice)
            await self._pause(dice, pause)

    async def step(self, dice: random.Random) -> None:
        """Do something to a client."""
        client, node = dice.choice(self.clients), dice.choice(self.nodes)
        what = dice.choices(["drop", "vanish", "enter", "leave", "members", "close", "kick"], [8, 4, 6, 6, 1, 1, 1])[
            0
        ]
        self.done[what] += 1
        with contextlib.suppress(StoreUnavailable, NoAnswer):
            match what:
                case "drop":
                    client.drop()
                case "vanish":
                    client.vanish()
                case "enter" if client.sid:
                    await node.sio.enter_room(client.sid, dice.choice(ROOMS))
                case "leave" if client.sid:
                    await node.sio.leave_room(client.sid, dice.choice(ROOMS))
                case "members":
                    await node.sio.sockets_join(dice.choice(ROOMS), dice.choice(ROOMS))
                case "close":
                    await node.sio.close_room(dice.choice(ROOMS))
                case "kick" if client.sid:
                    await self._kick(node, client)

    async def _kick(self, node: Node, client: FieldClient) -> None:
        sid = client.sid
        try:
            await node.sio.disconnect(sid)
        except StoreUnavailable as e:
            if e.may_be_stored:
                self.history.write("ended", sid=sid, by="a disconnect() whose outcome is unknown")
            raise
        self.history.write("ended", sid=sid, by="disconnect()")

    async def _transactions(self, dice: random.Random, pause: float) -> None:
        """Emit in transactions of the application, and roll some of them back."""
        while not self._stopping.is_set():
            with contextlib.suppress(*LOST, asyncpg.PostgresError):
                connection = await asyncpg.connect(self.app_dsn(), timeout=2, command_timeout=5)
                try:
                    while not self._stopping.is_set():
                        await self.transaction(dice, connection)
                        await self._pause(dice, pause)
                finally:
                    connection.terminate()
            await self._pause(dice, 0.2)

    async def transaction(self, dice: random.Random, connection: asyncpg.Connection) -> None:
        """Emit in a transaction. Commit it, or roll it back."""
        n = next(self._numbers)
        self.done["transaction"] += 1
        self._answer(n, Outcome.NOT_STORED)  # until it may be committed
        transaction = connection.transaction()
        await transaction.start()
        await emit_async(connection, "e", n, **self._options(dice))
        if dice.random() < 0.2:
            await transaction.rollback()
            return
        self._answer(n, Outcome.UNKNOWN)
        await transaction.commit()
        self._answer(n, Outcome.STORED)

    # -- health -----------------------------------------------------------------------------------------------
    async def broken(self, *nodes: Node) -> None:
        """Wait until each of the nodes reports that it is not healthy. It must do so within :data:`HEALTH_WAIT`.

        It must do so several times in a row, because a node is behind for a moment whenever events are on their way.
        """
        for node in nodes or self.nodes:
            try:
                async with asyncio.timeout(HEALTH_WAIT):
                    said = 0
                    while said < IN_A_ROW:
                        said = 0 if (await node.manager.health()).ok else said + 1
                        await asyncio.sleep(0.02)
            except TimeoutError:
                name = f"node {self.nodes.index(node)}"
                raise AssertionError(f"{name} says that it is healthy, and it is not. {self.report()}") from None

    async def stays_broken(self, seconds: float) -> None:
        """Watch for a while. No node may report that it is healthy."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            for i, node in enumerate(self.nodes):
                assert not (await node.manager.health()).ok, (
                    f"node {i} is broken, and says it is not. {self.report()}"
                )
            await asyncio.sleep(0.02)

    async def healed(self) -> None:
        """Wait until each node reports that it is healthy, and its events reach all clients.

        Emits go on meanwhile. Clients are left alone. On a busy machine they would be dropped faster than they come
        back.
        """
        reasons: list[str] = []
        self._disturbing.clear()
        try:
            async with asyncio.timeout(HEAL_WAIT):
                while reasons := [r for node in self.nodes if (r := (await node.manager.health()).reason)]:
                    await asyncio.sleep(0.02)
                for node in self.nodes:
                    await self.mark(node)
        except TimeoutError:
            missing = [client.name for client in self.clients if not client.connected.is_set()]
            raise AssertionError(
                f"the nodes are not back: {reasons or 'their events do not arrive'}, not connected: {missing}."
                f" {self.report()}\n{await self._states()}"
            ) from None
        finally:
            self._disturbing.set()

    async def _states(self) -> str:
        """Describe the nodes and their clients, for a report."""
        lines = []
        for i, node in enumerate(self.nodes):
            clients = [f"{c.sid} {c.state.name} sent {c.sent}" for c in node.manager.clients]
            lines.append(f"node {i}: {await node.manager.health()}, clients {clients}")
        return "\n".join([*lines, *(f"{client.name}: {client.sid}" for client in self.clients)])

    async def mark(self, node: Node) -> None:
        """Emit an event for all clients, and wait until they have it.

        Once a client gets a new session, those that wait do so for the next event. The client may not be due this
        one. If it is a client of the node, the node may have left the log that has the event, which is then lost.
        """
        waiting = self.clients
        while waiting:
            sessions = [len(client.sids) for client in self.clients]
            n = await self.emit(node)
            while waiting := [client for client in waiting if n not in client.got]:
                if [len(client.sids) for client in self.clients] != sessions or n not in self._stored:
                    break
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def losing_commits(self) -> AsyncIterator[None]:
        """Allow for lost commits in this block, after which clients get new sessions."""
        self.history.write("fault", what="commits may be lost", loses=True)
        yield
        self.history.write("fault", what="no commit is lost any more", loses=False)

    # -- the end ------------------------------------------------------------------------------------------------
    async def judge(self, dsn: str) -> Verdict:
        """Wait until all is quiet, and judge.

        :param dsn: the database that is used in the end.
        """
        await self.healed()
        await self.write_log("the log", dsn)
        self.history.close()
        verdict = check_file(self.path)
        report = f"{self.report()}\n{verdict.report()}\n{self.path}"
        print(report)
        assert not verdict.findings, report
        wrong = self.wrong + self._log.lines
        assert not wrong, wrong
        assert verdict.deliveries and verdict.recoveries, report
        shutil.rmtree(self.path.parent)
        return verdict

    async def write_log(self, name: str, dsn: str) -> None:
        """Write the log of a database on which nothing is going on."""
        connection = await asyncpg.connect(dsn)
        try:
            await self.history.write_log(connection, name)
        finally:
            await connection.close()

    def report(self) -> str:
        return f"seed {self.seed}, did {dict(self.done)}"


class _Tracebacks(logging.Handler):
    """Records the log lines with a traceback. No fault of the database may cause one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.lines.append(f"{record.getMessage()}: {record.exc_info[1]!r}")
