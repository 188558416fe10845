"""Permissions that commit: of 200 revocations, no later event arrives, and no earlier one is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random

import asyncpg
import pytest

from sio_pg_adapter import leave_room_async
from support.asgi_client import AsgiClient, Closed
from support.nodes import Node

USERS, DOCS = range(20), range(10)
"""Each user may read each document, until all of these 200 permissions are taken away."""

TABLES = """
    CREATE TABLE permissions (name integer, doc integer, by_trigger boolean, PRIMARY KEY (name, doc));
    CREATE TABLE docs (doc integer PRIMARY KEY, version integer NOT NULL);
    INSERT INTO docs SELECT d, 0 FROM generate_series(0, 9) d;
    CREATE FUNCTION revoked() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM sio_leave_room('doc:' || OLD.doc, room => 'user:' || OLD.name);
        RETURN NULL;
    END $$;
    CREATE TRIGGER revoked AFTER DELETE ON permissions
    FOR EACH ROW WHEN (OLD.by_trigger) EXECUTE FUNCTION revoked()
"""


class Application:
    """Documents, and who may read them. A change locks the row of its document, and so does a revocation.

    :ivar due: the changes that each user was allowed to see when they were made, as the application's tables say.
    :ivar sids: the sid of each user.
    """

    def __init__(self, nodes: tuple[Node, Node], dice: random.Random) -> None:
        self.nodes = nodes
        self.dice = dice
        self.due: dict[int, set[tuple[int, int]]] = {user: set() for user in USERS}
        self.sids: dict[int, str] = {}
        self.over = False
        self.recovered = asyncio.Event()

    async def prepare(self, db: asyncpg.Connection) -> None:
        await db.execute(TABLES)
        rows = [(user, doc, self.dice.random() < 1 / 2) for user in USERS for doc in DOCS]
        await db.executemany("INSERT INTO permissions VALUES ($1, $2, $3)", rows)
        for node in self.nodes:
            self._serve(node)

    def _serve(self, node: Node) -> None:
        @node.sio.event
        async def connect(sid, environ, auth):
            if not environ["sio_pg.recovered"]:
                for room in (f"user:{auth['user']}", *(f"doc:{doc}" for doc in DOCS)):
                    await node.sio.enter_room(sid, room)

    async def change(self, node: Node, app: asyncpg.Connection) -> None:
        """Change documents, each with an event."""
        while not self.over:
            doc = self.dice.choice(DOCS)
            async with app.transaction():
                version = await app.fetchval(
                    "UPDATE docs SET version = version + 1 WHERE doc = $1 RETURNING version", doc
                )
                readers = await app.fetch("SELECT name FROM permissions WHERE doc = $1", doc)
                await node.sio.emit("changed", (doc, version), room=f"doc:{doc}", connection=app)
            for [user] in readers:
                self.due[user].add((doc, version))

    async def revoke(self, app: asyncpg.Connection) -> None:
        """Take all permissions away in random order: by a trigger, by the user's room, or by the sid."""
        permissions = [(user, doc) for user in USERS for doc in DOCS]
        self.dice.shuffle(permissions)
        for count, (user, doc) in enumerate(permissions):
            if count % 10 == 0:  # clients come back in between, however fast this is
                self.recovered.clear()
                await self.recovered.wait()
            async with app.transaction():
                await app.execute("SELECT FROM docs WHERE doc = $1 FOR UPDATE", doc)
                by_trigger = await app.fetchval(
                    "DELETE FROM permissions WHERE name = $1 AND doc = $2 RETURNING by_trigger", user, doc
                )
                if not by_trigger and user % 4 > 1:
                    await leave_room_async(app, room=f"doc:{doc}", members_of=f"user:{user}")
                elif not by_trigger:
                    await self.nodes[0].sio.leave_room(self.sids[user], f"doc:{doc}", connection=app)


class User:
    """A client of one user. Every other one drops again and again, and comes back at either node.

    :ivar received: the changes that it was sent, in order.
    """

    def __init__(self, application: Application, user: int) -> None:
        self._application = application
        self._user = user
        self._dice = random.Random(user)
        self.received: list[tuple[int, int]] = []
        self.connected = asyncio.Event()

    async def follow(self) -> None:
        """Read until the event "end"."""
        pid = offset = None
        while True:
            node = self._dice.choice(self._application.nodes)
            async with AsgiClient(node.sio) as wire:
                sid, pid = await wire.connect(user=self._user, pid=pid, offset=offset)
                if self.connected.is_set():
                    self._application.recovered.set()
                assert self._application.sids.setdefault(self._user, sid) == sid, "it was not recovered"
                self.connected.set()
                reading = asyncio.create_task(self._read(wire))
                if self._user % 2 and not self._application.over:
                    await asyncio.wait((reading,), timeout=self._dice.random() / 5)
                    await wire.drop()
                if await reading:
                    return
                offset = wire.offset or offset  # a connection without an event leaves the offset as it was
            await asyncio.sleep(self._dice.random() / 5)

    async def _read(self, wire: AsgiClient) -> bool:
        """Return whether the end came before the connection was closed."""
        try:
            while (event := await wire.event())[0] != "end":
                self.received.append(tuple(event[1:]))
        except Closed:
            return False
        return True


@pytest.mark.parametrize("seed", [13])
async def test_no_event_after_a_revocation_arrives_and_none_before_it_is_lost(start_node, pg_owner_dsn, db, seed):
    nodes = await start_node(), await start_node()
    application = Application(nodes, random.Random(seed))
    await application.prepare(db)
    users = [User(application, user) for user in USERS]
    following = [asyncio.create_task(user.follow()) for user in users]
    await asyncio.gather(*(user.connected.wait() for user in users))

    async with (
        asyncpg.create_pool(pg_owner_dsn, min_size=5, max_size=5) as pool,
        contextlib.AsyncExitStack() as stack,
    ):
        apps = [await stack.enter_async_context(pool.acquire()) for _ in range(5)]
        changing = [asyncio.create_task(application.change(nodes[i % 2], app)) for i, app in enumerate(apps[1:])]
        await application.revoke(apps[0])
        application.over = True
        await asyncio.gather(*changing)
    await nodes[0].sio.emit("end")
    await asyncio.gather(*following)

    assert sum(map(len, application.due.values())) > 200
    for user, due in zip(users, application.due.values(), strict=True):
        assert len(user.received) == len(due)
        assert set(user.received) == due
    assert await db.fetchval("SELECT count(*) FROM sio_rooms WHERE room LIKE 'doc%' AND left_at IS NULL") == 0
