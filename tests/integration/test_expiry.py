"""Case 33: `on_session_expired`, in one process of the cluster, at least once and normally once."""

from __future__ import annotations

import asyncio
import uuid

import asyncpg
import pytest

from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from sio_pg_adapter.store import pruner
from sio_pg_adapter.store.pruner import Pruned
from sio_pg_adapter.store.queries import Queries
from support.nodes import Node
from support.pruning import prune_once
from support.waiting import until, until_answer

NODE = str(uuid.uuid4())
EXPIRE = "UPDATE sio_sessions SET expires_at = clock_timestamp() - interval '1 s' WHERE node IS NULL"


@pytest.fixture
def expected_errors() -> list[str]:
    return ["the handler of expired sessions failed"]


class Expired:
    """What handlers were called with, in order; `go_on` lets them return."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.called = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    def by(self, name: str):
        async def handler(sid, namespace, session):
            self.calls.append((name, sid, namespace, session))
            self.called.set()
            await self.go_on.wait()

        return handler


@pytest.fixture
async def start_with_handler(pg_dsn):
    """Start a node with a handler, which is there before its manager starts."""
    nodes = []

    async def start(expired: Expired, name: str, *, namespace: str = "*") -> Node:
        manager = AsyncPostgresManager(pg_dsn)
        sio = AsyncServer(
            client_manager=manager,
            connection_state_recovery=True,
            async_mode="asgi",
            monitor_clients=False,
            namespaces=["/", "/n"],
        )
        sio.on_session_expired(expired.by(name), namespace=namespace)
        nodes.append(sio)
        await manager.start()
        return Node(sio, manager)

    yield start
    for sio in nodes:
        await sio.shutdown()


async def leave_behind(node, namespace: str = "/", **data) -> str:
    async with node.client(namespace) as wire:
        await node.sio.save_session(wire.sid, data, namespace)
    return wire.sid


async def rows(db) -> int:
    return await db.fetchval("SELECT count(*) FROM sio_sessions")


async def test_case_33_the_handler_gets_sid_namespace_and_data_once(start_with_handler, db):
    expired = Expired()
    node = await start_with_handler(expired, "a")
    other = await start_with_handler(expired, "b")
    sid = await leave_behind(node, user=7)
    await db.execute(EXPIRE)
    pruned = await asyncio.gather(*(n.manager.node.pruner.prune() for n in (node, other) * 3))
    assert [call[1:] for call in expired.calls] == [(sid, "/", {"user": 7})]
    assert sum(p.sessions for p in pruned) == 1
    assert await rows(db) == 0
    await node.manager.node.pruner.prune()
    assert len(expired.calls) == 1


async def test_case_33_who_is_connected_or_back_in_time_is_not_told_of(start_with_handler, db):
    expired = Expired()
    node = await start_with_handler(expired, "a")
    async with node.client() as wire:
        await db.execute(EXPIRE)
        await node.manager.node.pruner.prune()
        await wire.drop()
        async with node.client(pid=wire.pid):
            await db.execute(EXPIRE)
            await node.manager.node.pruner.prune()
    assert expired.calls == []


async def test_case_33_a_node_without_a_handler_and_a_prune_by_hand_swallow_none(
    start_with_handler, start_node, db, pg_dsn
):
    expired = Expired()
    plain = await start_node()
    node = await start_with_handler(expired, "a")
    sid = await leave_behind(plain)
    await db.execute(EXPIRE)
    assert await prune_once(pg_dsn) == await plain.manager.node.pruner.prune() == Pruned()
    assert await rows(db) == 1
    assert (await node.manager.node.pruner.prune()).sessions == 1
    assert [call[1] for call in expired.calls] == [sid]


async def test_case_33_that_there_is_a_handler_is_known_after_its_node_has_gone(start_with_handler, db, pg_dsn):
    expired = Expired()
    node = await start_with_handler(expired, "a")
    sid = await leave_behind(node)
    await node.sio.shutdown()
    await db.execute(EXPIRE)
    assert await prune_once(pg_dsn) == Pruned()
    again = await start_with_handler(expired, "again")
    await again.manager.node.pruner.prune()
    assert [call[:2] for call in expired.calls] == [("again", sid)]


async def test_case_33_a_handler_of_one_namespace_leaves_the_others_alone(start_with_handler, db, pg_dsn):
    expired = Expired()
    node = await start_with_handler(expired, "a", namespace="/n")
    await leave_behind(node)
    sid = await leave_behind(node, "/n")
    await db.execute(EXPIRE)
    assert await prune_once(pg_dsn) == Pruned(sessions=1)
    await node.manager.node.pruner.prune()
    assert [call[1:3] for call in expired.calls] == [(sid, "/n")]


async def test_case_33_no_transaction_is_open_while_a_handler_runs(start_with_handler, db, superuser):
    """It may take as long as it wants: nothing waits for it, not even another pruner."""
    expired = Expired()
    expired.go_on.clear()
    node = await start_with_handler(expired, "a")
    await leave_behind(node)
    await db.execute(EXPIRE)
    pruning = asyncio.create_task(node.manager.node.pruner.prune())
    await expired.called.wait()
    idle = "state LIKE 'idle in transaction%' AND datname = current_database()"
    assert await superuser.fetchval(f"SELECT count(*) FROM pg_stat_activity WHERE {idle}") == 0
    await node.sio.emit("e")
    expired.go_on.set()
    assert (await pruning).sessions == 1


async def test_case_33_a_node_killed_half_way_another_calls_its_handler(start_with_handler, db):
    expired = Expired()
    expired.go_on.clear()
    first = await start_with_handler(expired, "first")
    sid = await leave_behind(first)
    await db.execute(EXPIRE)
    pruning = asyncio.create_task(first.manager.node.pruner.prune())
    await expired.called.wait()
    second = await start_with_handler(expired, "second")
    await second.manager.node.pruner.prune()
    assert [call[0] for call in expired.calls] == ["first"]  # that one is still at it
    await first.manager.node.listener.close()  # as if killed: its lock is gone
    expired.go_on.set()
    pruning.cancel()
    await asyncio.wait((pruning,))
    await second.manager.node.pruner.prune()
    assert expired.calls == [("first", sid, "/", {}), ("second", sid, "/", {})]
    assert await rows(db) == 0


async def test_case_33_a_session_that_is_being_told_of_cannot_come_back(start_with_handler, db):
    expired = Expired()
    expired.go_on.clear()
    node = await start_with_handler(expired, "a")
    async with node.client() as wire:
        await wire.drop()
        await db.execute(EXPIRE)
        pruning = asyncio.create_task(node.manager.node.pruner.prune())
        await expired.called.wait()
        async with node.client(pid=wire.pid) as again:
            assert again.sid != wire.sid
            expired.go_on.set()
            await pruning


async def test_case_33_of_a_dead_nodes_sessions_too(start_with_handler, db):
    expired = Expired()
    gone, node = await start_with_handler(expired, "gone"), await start_with_handler(expired, "a")
    async with gone.client() as wire:
        await gone.sio.save_session(wire.sid, {"v": 1})
        await gone.manager.node.listener.close()
        for column in ("missed_at", "died_at"):
            await node.manager.node.pruner._check_nodes()
            await db.execute(f"UPDATE sio_nodes SET {column} = {column} - interval '125 s'")
        await node.manager.node.pruner.prune()
        assert expired.calls == [("a", wire.sid, "/", {"v": 1})]


async def test_case_33_a_handler_that_raises_counts_as_called(start_with_handler, db):
    expired = Expired()
    node = await start_with_handler(expired, "a")

    async def broken(sid, namespace, session):
        expired.calls.append(sid)
        raise ValueError

    node.sio.on_session_expired(broken)
    sids = [await leave_behind(node) for _ in range(3)]
    await db.execute(EXPIRE)
    await node.manager.node.pruner.prune()
    assert sorted(expired.calls) == sorted(sids)
    assert await rows(db) == 0


async def test_case_33_ended_sessions_are_no_expired_ones(start_with_handler, db):
    expired = Expired()
    node = await start_with_handler(expired, "a")
    async with node.client() as wire, node.client() as kicked:
        wire.send("1")
        assert await node.sio.disconnect(kicked.sid) is None
        await until_answer(lambda: rows(db), lambda count: count == 0)
        await node.manager.node.pruner.prune()
    assert expired.calls == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("expire", [1]), ("take_expired", [["*"], NODE, 1]), ("delete_expired", [[1], NODE])],
)
async def test_what_ends_sessions_waits_for_the_log_before_it_locks_a_row(db, pg_dsn, name, arguments):
    """A kick locks rows under the log's lock. Rows that were locked in another order would be a deadlock."""
    other = await asyncpg.connect(pg_dsn, server_settings={"lock_timeout": "100ms"})
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await other.fetch(Queries("public")[name], *arguments)
    await other.close()


async def expire_one(node: Node, db: asyncpg.Connection) -> None:
    """Have a client leave, whose session expires at once."""
    async with node.client():
        pass
    await db.execute(EXPIRE)


async def test_records_expire_although_a_handler_hangs(start_with_handler, db, monkeypatch):
    """Nobody else would delete them: this is the only node."""
    monkeypatch.setattr(pruner, "INTERVAL", 0.05)
    expired = Expired()
    expired.go_on.clear()
    node = await start_with_handler(expired, "a")
    await expire_one(node, db)
    await expired.called.wait()
    await node.sio.emit("e")
    await db.execute("UPDATE sio_packets SET created_at = '2000-01-01'")
    await until_answer(lambda: db.fetchval("SELECT count(*) FROM sio_packets"), lambda count: count == 0)
    assert len(expired.calls) == 1


async def test_a_session_that_expires_while_a_handler_runs_is_next(start_with_handler, db):
    """The node looks for it at once, and not again within the minute."""
    expired = Expired()
    expired.go_on.clear()
    node = await start_with_handler(expired, "a")
    await expire_one(node, db)
    looks = node.manager.node.pruner
    looks.look_in(0.0)
    await expired.called.wait()
    await expire_one(node, db)
    looks.look_in(0.0)
    await until(looks._expired.is_set)
    assert len(expired.calls) == 1
    expired.go_on.set()
    await until(lambda: len(expired.calls) == 2)
