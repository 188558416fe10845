"""Clients that come late get all events: the history up to where they entered the room, and the events after it.

Writers emit all the time, on two nodes and in transactions. Clients enter the room in their connect handler or when
they ask to, and some lose their connection in between.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from sio_pg_adapter import emit_async
from support.asgi_client import AsgiClient
from support.nodes import Node

WRITERS = 6
LATECOMERS = 120
AT_ONCE = 6
ROOMS = [["r"], ["r"], ["s"], ["r", "s"], ["s", "r"]]


@dataclass
class Latecomer:
    """One client: the history it was sent, the events it received until its mark, and its lost connections."""

    history: list[int] | None = None
    received: list[int] = field(default_factory=list)
    mark: int = 0
    cuts: int = 0

    def take(self, frame: str | bytes) -> bool:
        """Take a frame. Return whether it is the mark."""
        assert isinstance(frame, str)
        if frame.startswith("31"):
            [self.history] = json.loads(frame[2:])
            return False
        name, value, *_ = json.loads(frame[1:])
        if name == "history":
            self.history = value
        elif name == "n":
            self.received.append(value)
        return bool(name == "mark" and value == self.mark)


class Run:
    """Two nodes, their writers and their latecomers."""

    def __init__(self, nodes: list[Node], dsn: str, seed: int) -> None:
        self.nodes = nodes
        self.dsn = dsn
        self.random = random.Random(seed)
        self.numbers = iter(range(1, 10_000_000))
        self.left = LATECOMERS
        self.latecomers: list[Latecomer] = []
        for node in nodes:
            self.serve(node)

    @staticmethod
    def serve(node: Node) -> None:
        sio = node.sio

        async def enter(sid: str) -> list[int]:
            position = await sio.enter_room(sid, "r")
            return [stored.args[0] for stored in await sio.history("r", until=position, limit=10_000)]

        @sio.event
        async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
            if auth and not sio.recovered(sid):
                await sio.emit("history", await enter(sid), to=sid)

        @sio.event
        async def join(sid: str) -> list[int]:
            return await enter(sid)

    async def write(self) -> None:
        """Emit until all latecomers have left, some of it in transactions, of which some are rolled back."""
        connection = await asyncpg.connect(self.dsn)
        while len(self.latecomers) < LATECOMERS:
            room = self.random.choice(ROOMS)
            if self.random.random() < 2 / 3:
                await self.random.choice(self.nodes).sio.emit("n", next(self.numbers), room=room)
                continue
            transaction = connection.transaction()
            await transaction.start()
            await emit_async(connection, "n", next(self.numbers), room=room)
            await asyncio.sleep(self.random.random() * 0.01)
            await (transaction.rollback() if self.random.random() < 1 / 3 else transaction.commit())
        await connection.close()

    async def visit(self) -> None:
        """Have one client after another come, until there were enough."""
        while self.left:
            self.left -= 1
            await self.come()

    async def come(self) -> None:
        one = Latecomer()
        auth: dict[str, Any] = {"in": "connect"} if self.random.random() < 0.5 else {}
        asks = not auth
        for cut in range(self.random.choice((0, 1, 2)), -1, -1):
            node = self.random.choice(self.nodes)
            async with node.client(**auth) as wire:
                if asks and one.history is None:
                    wire.send('21["join"]')
                while one.history is None:
                    one.take(await wire.recv())
                if not cut:
                    await self.finish(one, wire)
                    return
                one.cuts += 1
                for _ in range(self.random.choice((0, 1, 5))):
                    one.take(await wire.recv())
                await wire.drop()
            auth = {"pid": wire.pid, "offset": wire.offset or auth.get("offset")}

    async def finish(self, one: Latecomer, wire: AsgiClient) -> None:
        one.mark = next(self.numbers)
        await self.random.choice(self.nodes).sio.emit("mark", one.mark, to=wire.sid)
        while not one.take(await wire.recv()):
            pass
        self.latecomers.append(one)


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_history_and_the_events_after_it_are_all_events_once_and_in_order(
    start_node, pg_owner_dsn, db, seed
):
    run = Run([await start_node(), await start_node()], pg_owner_dsn, seed)
    async with asyncio.TaskGroup() as group:
        for work in (*(run.write for _ in range(WRITERS)), *(run.visit for _ in range(AT_ONCE))):
            group.create_task(work())
    log = await db.fetch(
        'SELECT body, coalesce(rooms, ARRAY[room]) AS rooms FROM sio_packets WHERE kind = 0 ORDER BY "offset"'
    )
    events = [(*json.loads(row["body"]), row["rooms"]) for row in log]
    marks = {value: i for i, (name, value, _) in enumerate(events) if name == "mark"}
    for one in run.latecomers:
        due = [value for name, value, rooms in events[: marks[one.mark]] if name == "n" and "r" in rooms]
        assert (one.history or []) + one.received == due, one
    assert sum(one.cuts for one in run.latecomers) > LATECOMERS / 2
    assert any(one.received for one in run.latecomers) and any(one.history for one in run.latecomers)
