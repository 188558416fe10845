"""From a page to the stream: what a snapshot sees, and the events after its position, are all that was committed.

Writers change the state of documents and emit in one transaction. Clients read the state of a document with a
position, on the primary or on a hot standby, enter its room from there on any node, and lose their connection now and
then.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from integration.test_epochs import DATABASE, make_database, programs, query, standby_of
from sio_pg_adapter import emit_async
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.server import replay
from support.nodes import Node

WRITERS = 16
READERS = 8
DOCUMENTS = [f"doc {i}" for i in range(6)]
STANDBY = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on", "hot_standby_feedback": "on"}
SLOW_COMMITS = {"fsync": "on", "commit_delay": "3000", "commit_siblings": "0"}
"""A commit takes 3 ms, in which others would overtake it if the log's lock did not keep them from that."""

STATE = "SELECT sio_position() AS position, ARRAY(SELECT change FROM changes WHERE document = $1) AS changes"

__all__ = ["programs"]  # a fixture


@dataclass
class Join:
    """One client: what it read, what it received until its mark, and how often it lost its connection."""

    document: str
    read: list[int]
    received: list[int] = field(default_factory=list)
    mark: int = 0
    cuts: int = 0


class Run:
    """Writers and readers on two servers of PostgreSQL."""

    def __init__(self, nodes: list[Node], primary: str, standby: str, seed: int, joins: int) -> None:
        self.nodes = nodes
        self.random = random.Random(seed)
        self.primary, self.standby = primary, standby
        self.wanted = self.left = joins
        self.joins: list[Join] = []
        self.changes = iter(range(1, 10_000_000))
        for node in nodes:
            node.sio.on("connect", self.handler(node))

    @staticmethod
    def handler(node: Node) -> Any:
        async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
            await node.sio.enter_room(sid, auth["document"], since=auth["position"])

        return connect

    async def write(self) -> None:
        """Change documents until all clients have left. A third of the transactions is rolled back."""
        connection = await asyncpg.connect(self.primary)
        while len(self.joins) < self.wanted:
            documents = self.random.sample(DOCUMENTS, self.random.choice((1, 1, 2)))
            transaction = connection.transaction()
            await transaction.start()
            change = next(self.changes)
            events = [emit_async(connection, "change", change, room=documents)]
            events += [
                connection.execute("INSERT INTO changes VALUES ($1, $2)", document, change) for document in documents
            ]
            self.random.shuffle(events)
            for event in events:
                await event
            await asyncio.sleep(self.random.random() * 0.02)
            await (transaction.rollback() if self.random.random() < 1 / 3 else transaction.commit())
        await connection.close()

    async def read(self) -> None:
        """Have one client after another join, until there were enough."""
        primary, standby = await asyncpg.connect(self.primary), await asyncpg.connect(self.standby)
        while self.left > 0:
            self.left -= 1
            await self.join(self.random.choice((primary, standby)))
        await primary.close()
        await standby.close()

    async def snapshot(self, server: asyncpg.Connection, document: str) -> tuple[str, list[int]]:
        if self.random.random() < 0.5:
            row = await server.fetchrow(STATE, document)
            return row["position"], row["changes"]
        async with server.transaction(isolation="repeatable_read", readonly=True):
            rows = await server.fetch("SELECT change FROM changes WHERE document = $1", document)
            await asyncio.sleep(self.random.random() * 0.02)
            position = await self.random.choice(self.nodes).sio.position(connection=server)
        return position, [row["change"] for row in rows]

    async def join(self, server: asyncpg.Connection) -> None:
        document = self.random.choice(DOCUMENTS)
        position, changes = await self.snapshot(server, document)
        join = Join(document, changes)
        auth: dict[str, Any] = {"document": document, "position": position}
        for cut in range(self.random.choice((0, 1, 2)), -1, -1):
            node = self.random.choice(self.nodes)
            async with node.client(**auth) as wire:
                assert node.sio.recovered(wire.sid) == ("pid" in auth)
                if not cut:
                    join.mark = next(self.changes)
                    await self.random.choice(self.nodes).sio.emit("mark", join.mark, room=wire.sid)
                    join.received += [change for _, change in await wire.events_until("mark")]
                    wire.send("1")
                    break
                join.cuts += 1
                join.received += [(await wire.event())[1] for _ in range(self.random.choice((0, 1, 5)))]
                await wire.drop()
            auth |= {"pid": wire.pid, "offset": wire.offset or auth.get("offset")}
        self.joins.append(join)


@pytest.fixture
async def start_run(programs: Path, start_node, monkeypatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(replay, "PAGE", 7)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 100)
    with EmbeddedPostgres(settings=STANDBY | SLOW_COMMITS) as primary:
        dsn = await make_database(primary)
        owner = primary.dsn(DATABASE)
        await query(owner, "CREATE TABLE changes (document text, change bigint)")
        async with standby_of(primary, programs, STANDBY) as standby:

            async def start(seed: int, joins: int) -> Run:
                nodes = [await start_node(dsn=dsn), await start_node(dsn=dsn)]
                return Run(nodes, owner, standby.dsn(DATABASE), seed, joins)

            yield start


async def check(run: Run) -> None:
    """Compare each join with the log: its changes up to the mark are those that were read and those received."""
    log = await query(
        run.primary,
        'SELECT body, coalesce(rooms, ARRAY[room]) AS rooms FROM sio_packets WHERE kind = 0 ORDER BY "offset"',
    )
    events = [(*json.loads(row["body"]), set(row["rooms"])) for row in log]
    marks = {number: i for i, (name, number, _) in enumerate(events) if name == "mark"}
    for join in run.joins:
        upto = events[: marks[join.mark]]
        due = [number for name, number, rooms in upto if name == "change" and join.document in rooms]
        assert join.received == [change for change in due if change not in set(join.read)], join
        assert sorted(join.read + join.received) == sorted(due), join
    committed = await query(run.primary, "SELECT DISTINCT change FROM changes")
    assert {row["change"] for row in committed} == {number for name, number, _ in events if name == "change"}


@pytest.mark.parametrize(("seed", "joins"), [
    (1, 150), pytest.param(2, 2_000, marks=[pytest.mark.soak, pytest.mark.timeout(1_800)])
])  # fmt: skip
async def test_state_and_the_events_after_it_are_all_that_was_committed(start_run, seed, joins):
    run = await start_run(seed, joins)
    async with asyncio.TaskGroup() as group:
        for work in (*(run.write for _ in range(WRITERS)), *(run.read for _ in range(READERS))):
            group.create_task(work())
    assert len(run.joins) == joins
    await check(run)
    assert sum(join.cuts for join in run.joins) > joins / 2 and any(join.received for join in run.joins)
