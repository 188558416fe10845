"""Backends terminated in the middle of a stream: nothing lost, nothing twice, and an emit that fails says so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import pytest

from sio_pg_adapter import StoreUnavailable
from support.roles import NODE
from support.waiting import until_waiting

PACE = 1 / 200  # seconds between two emits: the rate of case 85
OF_NODES = f"usename = '{NODE}' AND datname = current_database()"
LISTENING = OF_NODES + " AND application_name LIKE '%listen%'"
OTHERS = OF_NODES + " AND application_name NOT LIKE '%listen%'"


async def terminate(superuser, which: str) -> int:
    return await superuser.fetchval(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {which}")


async def test_case_85_the_listeners_are_terminated_at_200_packets_a_second(start_node, db, superuser):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        ended = 0
        for i in range(300):
            await a.sio.emit("e", i)
            if i % 60 == 30:
                ended += await terminate(superuser, LISTENING)
            await asyncio.sleep(PACE)
        await a.sio.emit("end")
        assert [args for _, args in await wire.events_until("end")] == list(range(300))
    assert ended >= 5 and b.manager.node.listener.reconnects > 0


async def test_case_85_what_came_while_nobody_listened_is_read_on_reconnect(start_node, db):
    """No later ring helps: the last packet came while the LISTEN connection was away."""
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        await b.manager.node.listener._disconnect()
        await a.sio.emit("e", 1)
        b.manager.node.listener._lost.set()
        assert await wire.event() == ["e", 1]


@pytest.mark.parametrize("which", [OTHERS, OF_NODES], ids=["writers and readers", "all"])
async def test_an_emit_whose_backend_was_terminated_is_stored_once_or_raises(start_node, db, superuser, which):
    a, b = await start_node(), await start_node()
    raised = []

    async def emit(node, i: int) -> None:
        try:
            await node.sio.emit("e", i)
        except StoreUnavailable as e:
            raised.append((i, e.may_be_stored))

    async with b.client() as wire:
        emits = []
        ended = 0
        for i in range(300):
            emits.append(asyncio.create_task(emit((a, b)[i % 2], i)))
            if i % 75 == 40:
                ended += await terminate(superuser, which)
            await asyncio.sleep(PACE)
        await asyncio.gather(*emits)
        await a.sio.emit("end")
        got = [args for _, args in await wire.events_until("end")]

    rows = await db.fetch('SELECT body FROM sio_packets WHERE kind = 0 AND body LIKE \'["e",%\' ORDER BY "offset"')
    stored = [json.loads(row["body"])[1] for row in rows]
    assert ended > 0
    assert got == stored
    assert len(stored) == len(set(stored))
    unsure = {i for i, may_be_stored in raised if may_be_stored}
    surely_not = {i for i, may_be_stored in raised if not may_be_stored}
    assert not surely_not & set(stored)
    assert set(range(300)) - set(stored) <= surely_not | unsure


async def test_an_append_whose_answer_was_lost_is_not_stored_twice(start_store, db, superuser):
    """The backend commits, and dies before its answer is read: the log is asked what it holds of the batch."""
    store = await start_store()
    await store.emit(body='["before"]')
    held = await store.open()
    lost = store.lose_next_answer(superuser)
    batch = [store.emit(body='["a"]'), store.move(1, "s", "x"), store.emit(body='["b"]')]
    offsets = await asyncio.gather(*batch)
    rows = await db.fetch('SELECT "offset", kind, body FROM sio_packets ORDER BY "offset"')
    assert [row["body"] for row in rows if row["kind"] == 0] == ['["before"]', '["a"]', '["b"]']
    assert offsets == [row["offset"] for row in rows[1:]]
    assert await store.sessions.rooms("/", "s") == ["x"] and held and lost


async def test_an_append_whose_backend_does_not_end_is_left_open(start_store, db, monkeypatch):
    """A process that the system has stopped cannot be ended. The emit says so, and does not wait for ever."""
    for module in ("commits", "backends"):
        monkeypatch.setattr(f"sio_pg_adapter.store.{module}.QUERY_TIMEOUT", 0.5)
    monkeypatch.setattr("sio_pg_adapter.store.commits.GIVE_UP_AFTER", 0.2)
    store = await start_store()
    await store.emit()
    async with db.transaction():
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        emitting = asyncio.create_task(store.emit())
        pid = await until_waiting(db)
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match=f"process {pid} of the server does not end") as error:
            async with asyncio.timeout(20):
                await emitting
        assert error.value.may_be_stored
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_lost_answer_is_looked_for_above_all_that_a_process_knows(start_store, superuser):
    """The whole log would be read under its lock. In a process that only emits, no cursor moves."""
    offset = await (await start_store()).emit()
    store = await start_store()
    commits, afters = store.log._commits, []
    stored_rows = commits._stored_rows

    async def noted(connection, backend, after, batch_id):
        afters.append(after)
        return await stored_rows(connection, backend, after, batch_id)

    commits._stored_rows = noted
    for first in (True, False):
        if not first:
            await store.emit()
        await store.open(sid=f"s{first}", pid=f"p{first}")  # so that the backend is known
        store.lose_next_answer(superuser)
        await store.emit()
    assert afters == [offset, offset + 2]


async def test_an_answer_that_was_lost_after_the_log_was_exchanged_is_found(start_store, db, superuser):
    """The offsets of the former log were higher. The node follows the new one before it appends there."""
    store = await start_store()
    await store.emit()
    commits, reached = store.log._commits, [1 << 60]
    commits._cursor = lambda: reached[0]
    store.lose_next_answer(superuser)
    send_and_lose = commits._send

    async def lose_connection(connection, *args):
        commits._send = send_and_lose
        reached[0] = 0
        raise ConnectionResetError

    commits._send = lose_connection
    await store.emit(body='["once"]')
    assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE body = '[\"once\"]'") == 1


async def test_a_database_that_is_away_raises_and_says_that_nothing_was_stored(
    start_node, db, superuser, pg_admin, monkeypatch
):
    monkeypatch.setattr("sio_pg_adapter.store.commits.GIVE_UP_AFTER", 0.0)
    node = await start_node()
    name = await db.fetchval("SELECT current_database()")
    pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        await terminate(superuser, OF_NODES)
        outcomes = []
        for _ in range(3):
            try:
                await node.sio.emit("e")
            except StoreUnavailable as e:
                outcomes.append(e.may_be_stored)
        assert outcomes and outcomes[-1] is False
        assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") <= 3 - len(outcomes)
        assert (await node.manager.health()).ok is False
    finally:
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


async def test_reads_in_an_outage_say_nothing_of_what_was_stored(start_node, db, superuser, pg_admin):
    node = await start_node()
    name = await db.fetchval("SELECT current_database()")
    reads = {
        "history": lambda: node.sio.history("room"),
        "position": node.sio.position,
        "fetch_rooms": lambda: node.sio.fetch_rooms("sid"),
        "get_session": lambda: node.sio.get_session("sid"),
        "fetch_sockets": node.sio.fetch_sockets,
        "server_count": node.sio.server_count,
    }
    pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        await terminate(superuser, OF_NODES)
        for name_of_read, read in reads.items():
            with pytest.raises(StoreUnavailable) as e:
                await read()
            assert "stored" not in str(e.value), name_of_read
            assert e.value.may_be_stored is False
    finally:
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


async def test_the_node_goes_on_when_the_database_is_back(start_node, db, superuser, pg_admin):
    node = await start_node()
    name = await db.fetchval("SELECT current_database()")
    async with node.client() as wire:
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await terminate(superuser, OF_NODES)
        emit = asyncio.create_task(node.sio.emit("e", 1))
        began = time.monotonic()
        while node.manager.node.listener.connected and time.monotonic() < began + 20:
            await asyncio.sleep(0.01)
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await emit
        await node.sio.emit("e", 2)
        assert [await wire.event(), await wire.event()] == [["e", 1], ["e", 2]]
