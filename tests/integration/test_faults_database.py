"""The database away, slow, silent, or shared with strangers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from sio_pg_adapter import StoreUnavailable
from sio_pg_adapter.local.client import State
from support.asgi_client import AsgiClient, Closed
from support.proxy import Proxy
from support.waiting import until, until_waiting


@pytest.fixture
def expected_errors() -> list[str]:
    return []


@pytest.fixture
async def proxy(pg_dsn) -> AsyncIterator[Proxy]:
    async with Proxy(pg_dsn).running() as proxy:
        yield proxy


async def test_case_85_a_peer_that_falls_silent_is_found_and_nothing_is_lost(start_node, proxy, monkeypatch):
    """There is no FIN and no RST. Only a probe notices."""
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_INTERVAL", 0.5)
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_TIMEOUT", 0.5)
    monkeypatch.setattr("sio_pg_adapter.store.database.QUERY_TIMEOUT", 2.0)
    behind, other = await start_node(dsn=proxy.dsn), await start_node()
    async with behind.client() as wire:
        await other.sio.emit("e", 1)
        assert await wire.event() == ["e", 1]
        proxy.blackhole()
        for i in range(2, 6):
            await other.sio.emit("e", i)
        assert [await wire.event() for _ in range(4)] == [["e", i] for i in range(2, 6)]
        assert behind.manager.node.listener.reconnects > 0
        with contextlib.suppress(StoreUnavailable):  # the connection that writes was silenced, too
            await behind.sio.emit("e", 6)
        await behind.sio.emit("end")
        assert await wire.events_until("end") in ([["e", 6]], [])


async def test_case_85_an_emit_into_silence_raises_or_is_in_the_log(start_node, proxy, db, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.store.commits.QUERY_TIMEOUT", 1.0)
    node = await start_node(dsn=proxy.dsn)
    async with node.client() as wire:
        await node.sio.emit("e", 0)
        proxy.blackhole()
        outcomes = {}
        for i in range(1, 4):
            try:
                async with asyncio.timeout(60):
                    await node.sio.emit("e", i)
                outcomes[i] = "sent"
            except StoreUnavailable as e:
                outcomes[i] = "may be" if e.may_be_stored else "not"
        await node.sio.emit("end")
        got = [args[0] for _, *args in await wire.events_until("end")]
        count = "SELECT count(*) FROM sio_packets WHERE body = $1"
        assert got == [i for i in range(4) if await db.fetchval(count, f'["e",{i}]')]
        assert {i for i, outcome in outcomes.items() if outcome == "sent"} <= set(got)
        assert not {i for i, outcome in outcomes.items() if outcome == "not"} & set(got)


async def test_an_append_whose_answer_never_comes_is_applied_once_the_log_can_be_read(
    start_node, proxy, pg_dsn, db, monkeypatch
):
    """A node ignores its own notifications, since the answer brings the records. Without one it reads the log."""
    monkeypatch.setattr("sio_pg_adapter.store.commits.QUERY_TIMEOUT", 0.5)
    monkeypatch.setattr("sio_pg_adapter.store.database.QUERY_TIMEOUT", 0.5)
    monkeypatch.setattr("sio_pg_adapter.store.commits.GIVE_UP_AFTER", 1.0)
    node = await start_node(dsn=proxy.dsn, manager={"listen_dsn": pg_dsn})
    async with node.client() as wire:
        await node.sio.emit("e", 0)
        proxy.mute()
        proxy.refuses = True
        with pytest.raises(StoreUnavailable) as raised:
            await node.sio.emit("e", 1)
        assert raised.value.may_be_stored
        assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") == 2
        proxy.refuses = False
        assert [await wire.event() for _ in range(2)] == [["e", 0], ["e", 1]]


# -- case 57 ---------------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def locked(pg_dsn: str, table: str) -> AsyncIterator[None]:
    """Every statement that needs the table waits."""
    connection = await asyncpg.connect(pg_dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@pytest.mark.parametrize("table", ["sio_lock", "sio_sessions", "sio_packets", "sio_rooms"])
async def test_case_57_a_database_that_does_not_answer_at_rejoin(start_node, pg_dsn, table):
    """Closed within 15 s, not refused, so that the client returns by itself; and then it recovers whole."""
    node = await start_node()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        await node.sio.emit("e", 1)
        assert await wire.event() == ["e", 1]
        await wire.drop()
        await node.sio.emit("e", 2, room="x")
        async with locked(pg_dsn, table), AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}","offset":"{wire.offset}"}}')
            async with asyncio.timeout(15):
                assert await again.rest() == []
        async with asyncio.timeout(30), node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert await again.event() == ["e", 2]
            assert node.sio.rooms(wire.sid) == [wire.sid, "x"]


async def test_case_57_an_error_in_the_query_of_what_was_missed(start_node, db, expected_errors):
    expected_errors += ["appending to the log failed", "sio_pg claim failed", "a connection is closed"]
    node = await start_node()
    async with node.client() as wire:
        await wire.drop()
        await node.sio.emit("e", 1)
        await db.execute("ALTER FUNCTION sio_due RENAME TO sio_due_away")
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            async with asyncio.timeout(15):
                assert await again.rest() == []
        await db.execute("ALTER FUNCTION sio_due_away RENAME TO sio_due")
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid and await again.event() == ["e", 1]


# -- case 105 ---------------------------------------------------------------------------------------------------
async def test_case_105_a_role_without_rights_hears_nothing_and_injects_nothing(start_node, db, pg_dsn, pg_admin):
    node = await start_node()
    role = f"stranger_{node.manager.node.id[:12]}"
    pg_admin.execute(f"CREATE ROLE {role} LOGIN")
    stranger = await asyncpg.connect(pg_dsn, user=role)
    heard = []
    try:
        async with node.client() as wire:
            guesses = ["sio", "sio_log", "sio_packets", "sio_nodes", "public", "sio_pg_adapter", node.manager.node.id]
            for channel in guesses:
                await stranger.add_listener(channel, lambda *args: heard.append(args))
                await stranger.execute(
                    "SELECT pg_notify($1, $2)", channel, '0 99999 [["/",[""],[],"[\\"forged\\"]"]]'
                )
            seen = str(await stranger.fetch("SELECT * FROM pg_stat_activity, pg_locks"))
            assert node.manager.node.channel not in seen and node.manager.database.channel not in seen
            tables = [r[0] for r in await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
            for table in tables:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await stranger.fetch(f"SELECT * FROM {table}")
            for call in (
                "sio_lock_and_check_epoch()",
                "sio_kick(1, '/', 's')",
                "sio_put_record(1, 5, '/', '', NULL)",
                'sio_release(\'{"id":1,"generation":1,"seconds":0,"since":0}\')',
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await stranger.fetch(f"SELECT {call}")
            await node.sio.emit("e")
            assert await wire.event() == ["e"]
            cursor = node.manager.node.cursor.offset
            await node.sio.emit("e")
            assert await wire.event() == ["e"]
            assert node.manager.node.cursor.offset == cursor + 1
            await stranger.execute("SELECT 1")
            # its own notifications came to it, and nothing else
            assert {args[1] for args in heard} <= {stranger.get_server_pid()}
    finally:
        await stranger.close()
        pg_admin.execute(f"DROP ROLE {role}")


# -- slow consumers ----------------------------------------------------------------------------------------------
async def test_what_a_replay_sends_does_not_count_as_slow(start_node):
    """A client that missed more than may wait for a slow one is none."""
    node = await start_node(manager={"max_queued_packets": 20}, always_connect=True)
    async with node.client() as wire:
        await wire.drop()
        for i in range(100):
            await node.sio.emit("e", i)
        async with AsgiClient(node.sio) as again:
            again.stall()
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await again.held.wait()
            client = node.manager.clients.current(wire.sid, "/")
            await until(lambda: client.state is State.LIVE)
            await node.sio.emit("e", 100)
            again.flow()
            await node.sio.emit("end")
            await again.recv()
            assert [args[0] for _, *args in await again.events_until("end")] == list(range(101))


async def test_a_slow_client_is_cut_and_recovers_from_the_log(start_node):
    node = await start_node(manager={"max_queued_packets": 20})
    async with node.client() as wire:
        wire.stall()
        for i in range(100):
            await node.sio.emit("e", i)
        wire.flow()
        got = []
        with contextlib.suppress(Closed):
            while True:
                got.append((await wire.event())[1])
        assert got == list(range(len(got))) and len(got) < 100
        async with node.client(pid=wire.pid, **({"offset": wire.offset} if wire.offset else {})) as again:
            assert again.sid == wire.sid
            assert [(await again.event())[1] for _ in range(len(got), 100)] == list(range(len(got), 100))


async def test_a_node_that_vanishes_while_it_moves_members_holds_up_nobody(start_node, proxy, db, monkeypatch):
    """It vanishes while it waits for the log's lock. PostgreSQL moves and commits, or does neither."""
    monkeypatch.setattr("sio_pg_adapter.store.commits.QUERY_TIMEOUT", 4.0)
    node = await start_node(dsn=proxy.dsn)
    other = await start_node()
    async with other.client() as wire:
        transaction = db.transaction()
        await transaction.start()
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        moving = asyncio.create_task(node.sio.sockets_join(None, "x"))
        await until_waiting(db)
        proxy.refuses = True
        proxy.blackhole()
        await transaction.rollback()
        await other.sio.emit("e")
        assert await wire.event() == ["e"]
        assert "x" in await other.sio.fetch_rooms(wire.sid)
        with contextlib.suppress(StoreUnavailable):
            await moving


async def test_a_listener_that_fell_silent_is_left_without_a_goodbye(start_node, proxy, pg_dsn, monkeypatch):
    """No answer would come, and events wait for the next connection."""
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_INTERVAL", 0.2)
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_TIMEOUT", 0.5)
    goodbyes, remove_listener = [], asyncpg.Connection.remove_listener

    async def noted(self, channel, callback) -> None:
        goodbyes.append(channel)
        await remove_listener(self, channel, callback)

    node = await start_node(dsn=pg_dsn, manager={"listen_dsn": proxy.dsn})
    async with node.client() as wire:
        with monkeypatch.context() as patch:
            patch.setattr(asyncpg.Connection, "remove_listener", noted)
            proxy.blackhole()
            await until(lambda: node.manager.node.diagnosis.reconnects > 0 and node.manager.node.diagnosis.listening)
        assert not goodbyes
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
