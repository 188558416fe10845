"""Epochs of the log. Each begins for a real reason: a crash, a dump and restore, a promotion, a TRUNCATE.

Case 112: no client gets another event under an offset that it has seen. It recovers, or gets a new session.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.migrate import upgrade
from support.replicas import client_programs, copy_into, prepared
from support.roles import admit_nodes
from support.waiting import until

DATABASE = "epochs"
LAZY = {"synchronous_commit": "off", "wal_writer_delay": "10s", "bgwriter_lru_maxpages": "0", "autovacuum": "off"}


@pytest.fixture
def expected_errors() -> list[str]:
    return ["the log is another one", "retention deleted records that this node had not read"]


async def make_database(server: EmbeddedPostgres) -> str:
    """Make a migrated database, and return its DSN for nodes."""
    await query(server.admin_dsn(), f'CREATE DATABASE "{DATABASE}" OWNER app')
    await asyncio.to_thread(upgrade, server.dsn(DATABASE))
    return admit_nodes(server, DATABASE)


@pytest.fixture
def lazy_server() -> Iterator[EmbeddedPostgres]:
    """Commits are on disk some seconds later: a crash takes them back."""
    with EmbeddedPostgres(settings=LAZY) as server:
        yield server


async def query(dsn: str, sql: str, *args) -> list:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql, *args)
    finally:
        await connection.close()


async def listening_again(node, reconnects: int) -> None:
    async with asyncio.timeout(20):
        while node.manager.node.listener.reconnects == reconnects or not node.manager.node.listener.connected:
            await asyncio.sleep(0.01)


async def hold_commits(server: EmbeddedPostgres) -> int:
    """From here on no commit reaches the disk; the process that would write them."""
    await query(server.admin_dsn(), "CHECKPOINT")
    pid = (await query(server.admin_dsn(), "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"))[0][0]
    os.kill(pid, signal.SIGSTOP)
    return pid


def crash(writer: int) -> None:
    """Kill a process of PostgreSQL. The whole server then restarts from the data on disk."""
    os.kill(writer, signal.SIGKILL)


async def is_cut(node, wire) -> None:
    """The connection is closed by the server, in the way after which a client comes back."""
    assert await wire.rest() == []
    await until(lambda: node.manager.clients.current(wire.sid, "/") is None)


async def has_left(node, wire) -> None:
    """It was cut, whatever it was sent before."""
    async with asyncio.timeout(5):
        while node.manager.clients.current(wire.sid, "/") is not None:
            await asyncio.sleep(0.01)


async def packets(dsn: str) -> dict[int, str]:
    rows = await query(dsn, 'SELECT "offset", body FROM sio_packets WHERE kind = 0')
    return {row["offset"]: row["body"] for row in rows}


# -- a crash ------------------------------------------------------------------------------------------------
async def test_case_112_a_crash_that_loses_commits_issues_no_offset_twice(lazy_server, start_node):
    dsn = await make_database(lazy_server)
    node = await start_node(dsn=dsn)
    async with node.client() as wire, node.client() as away:
        await node.sio.emit("kept")
        assert await wire.event() == await away.event() == ["kept"]
        await away.drop()
        writer = await hold_commits(lazy_server)
        for i in range(5):
            await node.sio.emit("lost", i)
        assert [await wire.event() for _ in range(5)] == [["lost", i] for i in range(5)]
        before = await packets(dsn)
        reconnects = node.manager.node.listener.reconnects
        crash(writer)
        await listening_again(node, reconnects)
        after = await packets(dsn)
        assert len(after) < len(before), "nothing was lost: this test shows nothing"
        await is_cut(node, wire)
        await node.sio.emit("new")
        new = (await packets(dsn)).items() - after.items()
        assert min(offset for offset, _ in new) > max(before)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid
        async with node.client(pid=away.pid, offset=away.offset) as again:
            assert again.sid == away.sid
            assert await again.event() == ["new"]


async def test_case_112_the_writer_is_back_before_the_listener(lazy_server, start_node, monkeypatch):
    """An append begins the epoch, and the cursor moves into it, before the LISTEN connection is back."""
    dsn = await make_database(lazy_server)
    node = await start_node(dsn=dsn)
    async with node.client() as wire:
        await node.sio.emit("kept")
        await wire.event()
        writer = await hold_commits(lazy_server)
        await node.sio.enter_room(wire.sid, "lost")
        await node.sio.emit("lost")
        await wire.event()
        monkeypatch.setattr("sio_pg_adapter.store.listener.BACKOFF", (3.0,))
        reconnects = node.manager.node.listener.reconnects
        epoch = node.manager.node.cursor.offset >> EPOCH_BITS
        crash(writer)
        async with asyncio.timeout(20):
            await node.manager.node.listener._lost.wait()
        while node.manager.node.cursor.offset >> EPOCH_BITS == epoch:  # PostgreSQL takes a moment to notice
            await node.sio.emit("new", room="lost")
        assert node.manager.node.listener.reconnects == reconnects
        await listening_again(node, reconnects)
        assert not await query(dsn, "SELECT FROM sio_rooms"), "nothing was lost: this test shows nothing"
        # whatever it was sent meanwhile: it may not go on as if it were in a room that nobody knows of
        await has_left(node, wire)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid


async def test_case_112_a_session_whose_opening_was_lost_is_cut(lazy_server, start_node):
    """Its opening left no record, so the cursor alone does not show it."""
    dsn = await make_database(lazy_server)
    node = await start_node(dsn=dsn)
    await node.sio.emit("kept")
    writer = await hold_commits(lazy_server)
    async with node.client() as wire:
        reconnects = node.manager.node.listener.reconnects
        crash(writer)
        await listening_again(node, reconnects)
        assert not await query(dsn, "SELECT FROM sio_sessions"), "nothing was lost: this test shows nothing"
        await node.sio.enter_room(wire.sid, "x")
        await node.sio.emit("e", room="x")
        await has_left(node, wire)


async def test_case_112_a_client_whose_room_was_lost_is_fresh(lazy_server, start_node):
    """The last event that it got is still stored. The room that it entered after that is not."""
    dsn = await make_database(lazy_server)
    node = await start_node(dsn=dsn)
    async with node.client() as wire:
        await node.sio.emit("kept")
        await wire.event()
        writer = await hold_commits(lazy_server)
        await node.sio.enter_room(wire.sid, "x")
        reconnects = node.manager.node.listener.reconnects
        crash(writer)
        await listening_again(node, reconnects)
        assert not await query(dsn, "SELECT FROM sio_rooms"), "nothing was lost: this test shows nothing"
        await is_cut(node, wire)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid or node.sio.rooms(again.sid) == [wire.sid, "x"]


async def test_what_a_node_holds_of_a_lost_epoch_touches_no_session_of_the_new(store, db):
    """Ids of sessions are issued again after a failover, as offsets are not."""
    lost = await store.open("s", "p")
    await db.execute("DELETE FROM sio_sessions")
    await db.execute(f"SELECT setval(pg_get_serial_sequence('sio_sessions', 'id'), {lost.id}, false)")
    other = await store.open("t", "q", data='{"v":1}')
    assert isinstance(lost, Held)
    before = await db.fetch("SELECT * FROM sio_sessions")
    await store.sessions.release(lost, seconds=0.0)
    assert await db.fetch("SELECT * FROM sio_sessions") == before
    assert await store.sessions.page(lost, 0, 10) is None
    assert await store.sessions.settle(lost) is None
    assert await store.sessions.end(lost) is None
    assert await store.sessions.end(other) is not None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_case_84_a_restart_that_loses_nothing_cuts_nobody(start_node, mode):
    with EmbeddedPostgres(settings={"synchronous_commit": "on"}) as server:
        dsn = await make_database(server)
        node = await start_node(dsn=dsn)
        try:
            async with node.client() as wire:
                await node.sio.enter_room(wire.sid, "x")
                await node.sio.emit("before")
                reconnects = node.manager.node.listener.reconnects
                await asyncio.to_thread(server.restart, mode)
                await node.sio.emit("after", room="x")
                await listening_again(node, reconnects)
                assert [await wire.event(), await wire.event()] == [["before"], ["after"]]
                await wire.drop()
                await node.sio.emit("missed", room="x")
                async with node.client(pid=wire.pid, offset=wire.offset) as again:
                    assert again.sid == wire.sid
                    assert await again.event() == ["missed"]
            epochs = await query(dsn, "SELECT began_after FROM sio_epochs ORDER BY epoch")
            assert len(epochs) == 3  # before the first start, this server's, and since the restart
        finally:
            await node.sio.shutdown()


@pytest.fixture
def slow_walwriter() -> Iterator[EmbeddedPostgres]:
    """Commits are flushed, unless they ask not to be. Then the WAL writer flushes them some seconds later."""
    with EmbeddedPostgres(settings={**LAZY, "synchronous_commit": "on"}) as server:
        yield server


async def test_a_crash_loses_the_last_events_of_durability_memory_and_the_clients_that_saw_them_begin_again(
    slow_walwriter, start_node
):
    dsn = await make_database(slow_walwriter)
    node = await start_node(dsn=dsn, manager={"durability": "memory"})
    assert (await node.manager.health()).durability == "memory"
    async with node.client() as wire, node.client() as away:
        await node.sio.emit("kept")
        assert await wire.event() == await away.event() == ["kept"]
        await away.drop()
        await until(lambda: node.manager.clients.current(away.sid, "/") is None)
        writer = await hold_commits(slow_walwriter)
        await node.sio.emit("lost")
        await asyncio.gather(*(node.sio.emit("lost", i, room=[wire.sid, "x"]) for i in range(3)))
        assert [await wire.event() for _ in range(4)] == [["lost"], *(["lost", i] for i in range(3))]
        before = await packets(dsn)
        reconnects = node.manager.node.listener.reconnects
        crash(writer)
        await listening_again(node, reconnects)
        assert set(before.values()) - set((await packets(dsn)).values()) == {
            '["lost"]',
            *(f'["lost",{i}]' for i in range(3)),
        }
        await is_cut(node, wire)
        await node.sio.emit("new")
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid
        async with node.client(pid=away.pid, offset=away.offset) as again:
            assert again.sid == away.sid
            assert await again.event() == ["new"]
    await node.sio.shutdown()


async def test_durability_memory_loses_no_end_of_a_session_no_move_and_no_event_before_them(
    slow_walwriter, start_node
):
    dsn = await make_database(slow_walwriter)
    node = await start_node(dsn=dsn, manager={"durability": "memory"})
    async with node.client() as leaver, node.client() as member, node.client() as kicked, node.client() as ended:
        for wire in (leaver, member):
            await node.sio.enter_room(wire.sid, "room")
        for wire in (leaver, member, kicked):
            await wire.drop()
        await until(lambda: sum(1 for _ in node.manager.clients) == 1)
        writer = await hold_commits(slow_walwriter)
        await node.sio.emit("kept")
        await node.sio.leave_room(leaver.sid, "room")
        await node.sio.save_session(member.sid, {"n": 1})
        await node.sio.disconnect(kicked.sid)
        ended.send("1")
        await until(lambda: sum(1 for _ in node.manager.clients) == 0)
        reconnects = node.manager.node.listener.reconnects
        crash(writer)
        await listening_again(node, reconnects)
        assert '["kept"]' in (await packets(dsn)).values()
        for wire in (kicked, ended):
            async with node.client(pid=wire.pid, offset=wire.offset) as again:
                assert again.sid != wire.sid
        async with node.client(pid=leaver.pid, offset=leaver.offset) as again:
            assert again.sid == leaver.sid and "room" not in node.sio.rooms(leaver.sid)
        async with node.client(pid=member.pid, offset=member.offset) as again:
            assert again.sid == member.sid and await node.sio.get_session(member.sid) == {"n": 1}
    await node.sio.shutdown()


# -- a backup -------------------------------------------------------------------------------------------------
NEWER = "SET transaction_timeout = 0;"
"""What pg_restore begins with from version 17 on, and servers before 17 refuse."""


@pytest.fixture
def programs() -> Iterator[Path]:
    with client_programs() as path:
        yield path


def run(program: Path, *args: str) -> None:
    done = subprocess.run([program, *args], check=False, capture_output=True, cwd="/", text=True)
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 0 or (len(errors) == 1 and NEWER in done.stderr), done.stderr


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        yield server


async def restore(server: EmbeddedPostgres, programs: Path, dump: str) -> None:
    """Into a new database of the same name, as after an accident."""
    await query(server.admin_dsn(), f'DROP DATABASE "{DATABASE}" WITH (FORCE)')
    await query(server.admin_dsn(), f'CREATE DATABASE "{DATABASE}" OWNER app')
    await asyncio.to_thread(run, programs / "pg_restore", "-d", server.dsn(DATABASE), dump)


async def test_case_112_a_restored_dump_begins_another_epoch(server, programs, start_node, tmp_path):
    dsn = await make_database(server)
    dump = str(tmp_path / "dump")
    node = await start_node(dsn=dsn)
    async with node.client() as wire, node.client() as away:
        await node.sio.emit("in the backup")
        assert await wire.event() == await away.event() == ["in the backup"]
        await away.drop()
        await asyncio.to_thread(run, programs / "pg_dump", "-Fc", "-f", dump, server.dsn(DATABASE))
        await node.sio.emit("lost")
        await wire.event()
        before = await packets(dsn)
        reconnects = node.manager.node.listener.reconnects
        await restore(server, programs, dump)
        await listening_again(node, reconnects)
        await is_cut(node, wire)
        await node.sio.emit("new")
        assert max(await packets(dsn)) > max(before)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid
        async with node.client(pid=away.pid, offset=away.offset) as again:
            assert again.sid == away.sid
            assert await again.event() == ["new"]
    await node.sio.shutdown()


async def test_case_112_a_dump_restored_twice_counts_the_same_epochs_under_other_keys(
    server, programs, start_node, tmp_path
):
    """Offsets of the first restoration are foreign to the second, though their numbers are not."""
    dsn = await make_database(server)
    dump = str(tmp_path / "dump")
    first = await start_node(dsn=dsn)
    async with first.client() as wire:
        await wire.drop()
        await asyncio.to_thread(run, programs / "pg_dump", "-Fc", "-f", dump, server.dsn(DATABASE))
        await first.sio.shutdown()
        numbers = []
        for _ in range(2):
            await restore(server, programs, dump)
            node = await start_node(dsn=dsn)
            await node.sio.emit("e", 1)
            await node.sio.emit("e", 2)
            numbers.append(max(await packets(dsn)))
            async with node.client(pid=wire.pid, **({"offset": wire.offset} if wire.offset else {})) as again:
                if len(numbers) == 1:
                    assert again.sid == wire.sid
                    assert [await again.event(), await again.event()] == [["e", 1], ["e", 2]]
                    wire.offset = again.offset
                else:
                    assert again.sid != wire.sid
            await node.sio.shutdown()
        assert numbers[0] == numbers[1]


async def test_a_node_that_meets_a_half_restored_database_goes_on_when_it_is_whole(start_node, db, superuser):
    """Tables that are missing for a while end no loop."""
    node = await start_node()
    async with node.client() as wire:
        reconnects = node.manager.node.listener.reconnects
        await db.execute("ALTER TABLE sio_packets RENAME TO not_there_yet")
        await superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'sio_pg%' AND datname = current_database()"
        )
        node.manager.node.cursor.ring()
        async with asyncio.timeout(20):
            while node.manager.node.listener.connected:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # for tries that fail
        await db.execute("ALTER TABLE not_there_yet RENAME TO sio_packets")
        await listening_again(node, reconnects)
        await node.sio.emit("e")
        assert await wire.event() == ["e"]


async def test_a_node_whose_presence_cannot_be_stored_tries_again(start_node, db, superuser):
    node = await start_node()
    async with node.client() as wire:
        reconnects = node.manager.node.listener.reconnects
        await db.execute("ALTER TABLE sio_nodes DROP CONSTRAINT sio_nodes_pkey")
        await superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'sio_pg%listen' AND datname = current_database()"
        )
        async with asyncio.timeout(20):
            while node.manager.node.listener.connected:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # for tries that fail
        await db.execute("ALTER TABLE sio_nodes ADD PRIMARY KEY (id)")
        await listening_again(node, reconnects)
        await node.sio.emit("e")
        assert await wire.event() == ["e"]


# -- a failover ----------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def standby_of(
    primary: EmbeddedPostgres, programs: Path, settings: dict[str, str]
) -> AsyncIterator[EmbeddedPostgres]:
    standby = prepared(settings)
    try:
        await asyncio.to_thread(copy_into, standby, primary, programs, standby=True)
        await asyncio.to_thread(standby.start)
        yield standby
    finally:
        standby.stop()


async def test_case_112_a_standby_promoted_without_the_last_commits(programs, start_node, monkeypatch):
    settings = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on", "synchronous_commit": "local"}
    with EmbeddedPostgres(settings=settings) as primary:
        await make_database(primary)
        async with standby_of(primary, programs, settings) as standby:
            hosts = quote(f"{primary.host},{standby.host}", safe="")
            dsn = f"postgresql://app@/{DATABASE}?host={hosts}&port=5432,5432&target_session_attrs=primary"
            node = await start_node(dsn=dsn)
            async with node.client() as wire, node.client() as away, node.client() as roomer:
                await node.sio.emit("replicated")
                for one in (wire, away, roomer):
                    assert await one.event() == ["replicated"]
                await away.drop()
                lsn = (await query(primary.admin_dsn(), "SELECT pg_current_wal_lsn()::text"))[0][0]
                async with asyncio.timeout(30):
                    replayed = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
                    while not (await query(standby.admin_dsn(), replayed, lsn))[0][0]:
                        await asyncio.sleep(0.02)
                await query(standby.admin_dsn(), "ALTER SYSTEM SET primary_conninfo = ''")
                await query(standby.admin_dsn(), "SELECT pg_reload_conf()")
                async with asyncio.timeout(30):
                    while await query(primary.admin_dsn(), "SELECT FROM pg_stat_replication"):
                        await asyncio.sleep(0.02)
                for i in range(3):
                    await node.sio.emit("lost", i, skip_sid=roomer.sid)
                assert [await wire.event() for _ in range(3)] == [["lost", i] for i in range(3)]
                await node.sio.enter_room(roomer.sid, "lost room")
                before = await packets(primary.dsn(DATABASE))
                reconnects = node.manager.node.listener.reconnects
                primary.kill()
                await query(standby.admin_dsn(), "SELECT pg_promote()")
                await listening_again(node, reconnects)
                await is_cut(node, wire)
                assert len(await packets(standby.dsn(DATABASE))) == len(before) - 3
                await node.sio.emit("new")
                assert max(await packets(standby.dsn(DATABASE))) > max(before)
                async with node.client(pid=wire.pid, offset=wire.offset) as again:
                    assert again.sid != wire.sid
                async with node.client(pid=away.pid, offset=away.offset) as again:
                    assert again.sid == away.sid
                    assert await again.event() == ["new"]
                async with node.client(pid=roomer.pid, offset=roomer.offset) as again:
                    assert again.sid != roomer.sid
            await node.sio.shutdown()


# -- a truncated log --------------------------------------------------------------------------------------------
async def test_case_112_after_a_truncate_everybody_who_was_away_is_fresh(start_node, db):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
        before = max(row[0] for row in await db.fetch('SELECT "offset" FROM sio_packets'))
        await wire.drop()
        await db.execute("TRUNCATE sio_packets")
        await node.sio.emit("e")
        assert await db.fetchval('SELECT min("offset") FROM sio_packets') > before
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid


@pytest.mark.parametrize("own", [True, False], ids=["appends itself", "hears of it"])
async def test_case_112_after_a_truncate_nobody_stays_without_a_session(start_node, db, own):
    """The sessions are gone: a client that stayed would enter no room any more, and could not come back."""
    node, other = await start_node(), await start_node()
    async with node.client() as wire:
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
        await db.execute("TRUNCATE sio_packets")
        await (node if own else other).sio.emit("new")
        await has_left(node, wire)


# -- the sequence ---------------------------------------------------------------------------------------------
FIXES = {
    "below the epoch": "SELECT setval('sio_packets_offset_seq', 1, false)",
    "below the floor": "SELECT setval('sio_packets_offset_seq', floor - 1) FROM sio_log",
    "at the floor": "SELECT setval('sio_packets_offset_seq', floor, false) FROM sio_log",
    "above the epoch": "SELECT setval('sio_packets_offset_seq', last_value * 3) FROM sio_packets_offset_seq",
}
"""Where a script that sets all sequences leaves that of the log, which retention has emptied."""


async def emptied(db: asyncpg.Connection) -> None:
    await db.execute("UPDATE sio_packets SET created_at = '2000-01-01'")
    assert await db.fetchval("SELECT sio_trim(60, 1000)") > 0
    assert await db.fetchval("SELECT count(*) FROM sio_packets") == 0


async def emit_in_sql(node, db: asyncpg.Connection) -> None:
    await db.execute("SELECT sio_emit('e')")


async def emit_alone(node, db: asyncpg.Connection) -> None:
    await node.sio.emit("e")


async def emit_in_a_batch(node, db: asyncpg.Connection) -> None:
    await node.sio.emit("e", skip_sid="nobody")


EMITS = pytest.mark.parametrize("emit", [emit_in_sql, emit_alone, emit_in_a_batch])


async def arrives_and_recovers(node, wire) -> None:
    """The event arrives, and so does what is emitted while its client is away."""
    assert await wire.event() == ["e"]
    await wire.drop()
    await node.sio.emit("missed")
    async with node.client(pid=wire.pid, offset=wire.offset) as again:
        assert again.sid == wire.sid
        assert await again.event() == ["missed"]


@EMITS
@pytest.mark.parametrize("fix", FIXES)
async def test_a_sequence_that_was_set_in_an_emptied_log(start_node, db, fix, emit):
    node = await start_node()
    async with node.client() as wire:
        for _ in range(3):
            await node.sio.emit("e")
            assert await wire.event() == ["e"]
        await emptied(db)
        await db.execute(FIXES[fix])
        await emit(node, db)
        await arrives_and_recovers(node, wire)


@EMITS
@pytest.mark.parametrize("segment", [0, 1])
async def test_a_sequence_that_is_behind_the_log(start_node, db, segment, emit):
    """By two records, in the segment that is appended to or in the other."""
    node = await start_node()
    async with node.client() as wire:
        for _ in range(3):
            await node.sio.emit("e")
            assert await wire.event() == ["e"]
        await db.execute("SELECT setval('sio_active_segment', $1)", segment)
        await db.execute("SELECT setval('sio_packets_offset_seq', last_value - 2) FROM sio_packets_offset_seq")
        await emit(node, db)
        await arrives_and_recovers(node, wire)


async def test_a_sequence_of_the_former_epoch(start_node, db):
    """Set to the highest record after an epoch began that has none yet."""
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
        await db.execute("DELETE FROM sio_marker; SELECT sio_lock_and_check_epoch()")
        await db.execute("SELECT setval('sio_packets_offset_seq', max(\"offset\") + 1, false) FROM sio_packets")
        await node.sio.emit("e")
        await arrives_and_recovers(node, wire)


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_a_sequence_that_is_set_between_an_emit_and_its_commit(start_node, pg_dsn, db, isolation):
    """An older snapshot does not show the records that the next epoch has to follow."""
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
        await emptied(db)
        with contextlib.nullcontext() if isolation == "read_committed" else pytest.raises(asyncpg.SerializationError):
            async with db.transaction(isolation=isolation):
                await db.execute("SELECT sio_emit('e')")
                await node.sio.emit("f")
                assert await wire.event() == ["f"]
                await query(pg_dsn, "SELECT setval('sio_packets_offset_seq', 1, false)")
        if isolation == "repeatable_read":
            await emit_in_sql(node, db)
        await arrives_and_recovers(node, wire)


@pytest.mark.parametrize(
    ("isolation", "segment"), [("repeatable_read", 0), ("repeatable_read", 1), ("serializable", 0)]
)
@pytest.mark.parametrize("snapshot", ["before", "after"])
async def test_a_sequence_behind_the_log_in_a_stricter_transaction(
    start_node, pg_dsn, db, isolation, segment, snapshot
):
    """A serialization failure, and the next tries go through. So does everybody else."""
    node = await start_node()
    app = await asyncpg.connect(pg_dsn)
    set_back = "SELECT setval('sio_packets_offset_seq', last_value - 2) FROM sio_packets_offset_seq"
    tries = 0
    async with node.client() as client:
        for _ in range(3):
            await node.sio.emit("e")
            assert await client.event() == ["e"]
        while tries < 4:
            tries += 1
            with contextlib.suppress(asyncpg.SerializationError):
                async with app.transaction(isolation=isolation):
                    if snapshot == "before":
                        await app.fetch("SELECT FROM pg_class LIMIT 1")
                    if tries == 1:
                        await node.sio.emit("f")
                        assert await client.event() == ["f"]
                        await db.execute("SELECT setval('sio_active_segment', $1)", segment)
                        await db.execute(set_back)
                    await app.execute("SELECT sio_emit('e')")
                break
        assert 1 < tries < 4
        await arrives_and_recovers(node, client)
    await app.close()


async def test_an_epoch_that_an_older_snapshot_does_not_show_is_not_begun_twice(start_node, pg_dsn, db):
    """The sequence was set back after the epoch began."""
    node = await start_node()
    app = await asyncpg.connect(pg_dsn)
    async with node.client() as client:
        with pytest.raises(asyncpg.SerializationError):
            async with app.transaction(isolation="repeatable_read"):
                await app.fetch("SELECT FROM pg_class LIMIT 1")
                await db.execute("DELETE FROM sio_marker; SELECT sio_lock_and_check_epoch()")
                await db.execute("SELECT setval('sio_packets_offset_seq', 1, false)")
                await app.execute("SELECT sio_emit('e')")
        async with app.transaction(isolation="repeatable_read"):
            await app.execute("SELECT sio_emit('e')")
        await arrives_and_recovers(node, client)
    await app.close()


async def test_an_emit_reads_no_offset_that_has_not_been_taken(store, db, pg_dsn):
    """While a value is logged ahead, a SELECT from the sequence shows one that is up to 32 too high."""
    taking, stop = await asyncpg.connect(pg_dsn), asyncio.Event()

    async def take() -> None:
        while not stop.is_set():
            await taking.execute("SELECT count(nextval('sio_packets_offset_seq')) FROM generate_series(1, 20000)")

    await store.emit()
    task = asyncio.create_task(take())
    await db.execute("""
        CREATE FUNCTION pg_temp.too_high(tries integer) RETURNS bigint LANGUAGE plpgsql AS $$
        DECLARE v_last bigint; v_count integer := 0;
        BEGIN
            FOR i IN 1..tries LOOP
                v_last := sio_last_in_epoch();
                IF v_last > pg_sequence_last_value('sio_packets_offset_seq') THEN
                    v_count := v_count + 1;
                END IF;
            END LOOP;
            RETURN v_count;
        END $$""")
    assert await db.fetchval("SELECT pg_temp.too_high(200000)") == 0
    stop.set()
    await task
    await taking.close()


async def test_an_offset_is_of_this_log_if_its_epoch_has_the_key_and_did_not_end_before_it(db):
    first, second, third = 5 << EPOCH_BITS, 7 << EPOCH_BITS, 9 << EPOCH_BITS
    rows = [(9, b"c", second + 20), (7, b"b", first + 10), (5, b"a", 0)]
    await db.execute("DELETE FROM sio_epochs")
    await db.executemany("INSERT INTO sio_epochs (epoch, key, began_after) VALUES ($1, $2, $3)", rows)

    async def in_log(offset: int | None, key: bytes) -> bool:
        return await db.fetchval("SELECT sio_in_log($1, $2)", offset, key.hex())

    for offset, key in ((first, b"a"), (first + 10, b"a"), (second + 20, b"b"), (third + 10**6, b"c"), (None, b"")):
        assert await in_log(offset, key) is True
    for offset, key in (
        (first + 11, b"a"),
        (second + 21, b"b"),
        (first, b"b"),
        (second, b"a"),
        (6 << EPOCH_BITS, b"a"),
    ):
        assert await in_log(offset, key) is False


async def another_epoch(db) -> int:
    await db.execute("DELETE FROM sio_marker")
    return await new_epoch(db)


async def new_epoch(db) -> int:
    """Begin the epoch that is due, and return it. What is known of it agrees."""
    assert await db.fetchval("SELECT sio_check_epoch()") is True
    epoch = await db.fetchval("SELECT max(epoch) FROM sio_epochs")
    assert await db.fetchval("SELECT last_value FROM sio_packets_offset_seq") == epoch << EPOCH_BITS
    [marker] = await db.fetch("SELECT fingerprint = sio_fingerprint() AS here, began_at FROM sio_marker")
    assert tuple(marker) == (True, epoch << EPOCH_BITS)
    assert await db.fetchval("SELECT sio_check_epoch()") is False
    return epoch


@pytest.mark.parametrize(
    ("known", "record", "sequence", "expected"),
    [(9, 7, 8, 10), (7, 9, 8, 10), (7, 8, 9, 10), (9, None, 1, 10)],
    ids=["epochs", "records", "sequence", "no-record"],
)
async def test_an_epoch_is_above_all_that_the_database_shows_of_former_ones(db, known, record, sequence, expected):
    await db.execute("DELETE FROM sio_epochs; DELETE FROM sio_marker")
    await db.executemany("INSERT INTO sio_epochs (epoch, key, began_after) VALUES ($1, 'k', 0)", [(2,), (known,)])
    if record is not None:
        insert = "INSERT INTO sio_packets_0 (\"offset\", kind, namespace, room, body) VALUES ($1, 0, '/', 'r', '[]')"
        await db.execute(insert, (record << EPOCH_BITS) + 3)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", (sequence << EPOCH_BITS) + 5)
    assert await new_epoch(db) == expected
    last = 0 if record is None else (record << EPOCH_BITS) + 3
    assert await db.fetchval("SELECT began_after FROM sio_epochs WHERE epoch = $1", expected) == last


async def test_an_epoch_goes_on_up_to_its_last_offset(db):
    epoch = await another_epoch(db)
    last = await db.fetchval("SELECT sio_last_in_epoch()")
    assert last >> EPOCH_BITS == epoch
    assert await db.fetchval("SELECT sio_check_epoch($1)", last) is False
    assert await db.fetchval("SELECT sio_check_epoch($1)", last + 1) is True  # somebody has seen a later offset


async def test_an_epoch_is_over_once_the_floor_is_above_its_offsets(db):
    await another_epoch(db)
    last = await db.fetchval("SELECT sio_last_in_epoch()")
    await db.execute("UPDATE sio_log SET floor = $1", last)
    assert await db.fetchval("SELECT sio_last_in_epoch()") == last
    await db.execute("UPDATE sio_log SET floor = $1", last + 1)
    assert await db.fetchval("SELECT sio_last_in_epoch()") is None
    await new_epoch(db)


@pytest.mark.parametrize(
    ("above", "known"), [(0, True), ((1 << EPOCH_BITS) - 2, True), ((1 << EPOCH_BITS) - 1, False)]
)
async def test_an_epoch_has_room_for_one_more_offset(db, above, known):
    epoch = await another_epoch(db)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", (epoch << EPOCH_BITS) + above)
    assert (await db.fetchval("SELECT sio_last_in_epoch()") is not None) is known


async def test_a_marker_of_another_server_or_of_a_later_epoch_does_not_count(db):
    epoch = await another_epoch(db)
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", (epoch << EPOCH_BITS) - 1)
    assert await db.fetchval("SELECT sio_last_in_epoch()") is None
    await db.execute("SELECT setval('sio_packets_offset_seq', $1)", (epoch << EPOCH_BITS) + 1)
    await db.execute("UPDATE sio_marker SET fingerprint = 'elsewhere'")
    assert await db.fetchval("SELECT sio_last_in_epoch()") is None


async def test_a_sequence_that_has_given_no_offset_yet_ends_before_its_first(db):
    begin = await another_epoch(db) << EPOCH_BITS
    await db.execute("SELECT setval('sio_packets_offset_seq', $1, false)", begin + 1)
    assert await db.fetchval("SELECT sio_last_in_epoch()") == begin
    await db.execute("SELECT setval('sio_packets_offset_seq', $1, false)", begin)
    assert await db.fetchval("SELECT sio_last_in_epoch()") is None


@pytest.mark.parametrize("segment", [0, 1])
async def test_the_sequence_is_behind_if_either_segment_has_a_later_record(db, segment):
    insert = (
        f"INSERT INTO sio_packets_{segment} (\"offset\", kind, namespace, room, body) VALUES (7, 0, '/', 'r', '[]')"
    )
    await db.execute(insert)
    assert [await db.fetchval("SELECT sio_is_behind($1)", last) for last in (6, 7, 8)] == [True, False, False]


TABLES = ("sio_packets", "sio_packet_rooms", "sio_keys", "sio_sessions", "sio_rooms", "sio_marker")


@pytest.fixture
async def contents(superuser) -> dict[str, int]:
    """How many rows the tables of the log have: records in both segments, with rooms and keys, and a session."""
    for segment in (0, 1):
        await superuser.execute("SELECT setval('sio_active_segment', $1)", segment)
        await superuser.execute("SELECT sio_emit('e', rooms => '{a,b}', key => $1)", f"k{segment}")
    await superuser.execute("""
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
        VALUES (1, 'p', '/', 's', 0, 0);
        INSERT INTO sio_rooms (session, room, joined_at, namespace) VALUES (1, 'r', 0, '/')""")
    return await counts(superuser)


async def counts(db: asyncpg.Connection) -> dict[str, int]:
    return {table: await db.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


@pytest.mark.parametrize("table", ["sio_packets_0", "sio_packets_1", "sio_packet_rooms_0", "sio_packet_rooms_1"])
@pytest.mark.parametrize("role", ["origin", "replica"])
async def test_a_truncate_leaves_nothing_of_the_log(superuser, contents, table, role):
    """No foreign key deletes rows in the replica role."""
    assert min(contents.values()) > 0
    last = await superuser.fetchval("SELECT last_value FROM sio_packets_offset_seq")
    await superuser.execute(f"SET session_replication_role = {role}")
    await superuser.execute(f"TRUNCATE {table}")
    assert await counts(superuser) == dict.fromkeys(TABLES, 0)
    assert await superuser.fetchval("SELECT floor FROM sio_log") == last


async def test_a_truncate_waits_for_the_log_and_that_of_retention_does_not(superuser, contents, connect):
    other = await connect()
    await other.execute("SET lock_timeout = '50ms'")
    async with superuser.transaction():
        await superuser.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await other.execute("TRUNCATE sio_packets_0")
        await other.execute("SET sio_pg_adapter.retention = 'on'; TRUNCATE sio_packets_0")
    assert await counts(superuser) == contents | {"sio_packets": 1}
    assert await superuser.fetchval("SELECT floor FROM sio_log") == 0
