"""Sessions that the store has as a node's and that no client there holds: they are let go."""

from __future__ import annotations

import asyncio

import pytest

from support.asgi_client import AsgiClient, Closed
from support.proxy import Proxy
from support.waiting import until, until_answer

HELD = "SELECT count(*) FROM sio_sessions WHERE node IS NOT NULL"


@pytest.fixture
def be_impatient(monkeypatch):
    def set_limits():
        monkeypatch.setattr("sio_pg_adapter.store.commits.QUERY_TIMEOUT", 0.5)
        monkeypatch.setattr("sio_pg_adapter.store.database.QUERY_TIMEOUT", 0.5)
        monkeypatch.setattr("sio_pg_adapter.store.commits.GIVE_UP_AFTER", 0.2)
        monkeypatch.setattr("sio_pg_adapter.server.strays.SECOND_LOOK", 0.5)
        monkeypatch.setattr("sio_pg_adapter.server.strays.RETRY", 0.1)

    return set_limits


async def held(db, count: int) -> None:
    await until_answer(lambda: db.fetchval(HELD), lambda sessions: sessions == count)


@pytest.mark.parametrize("comes_back", [True, False], ids=["claim", "open"])
async def test_a_session_whose_answer_is_lost_for_good_is_let_go(start_node, pg_dsn, db, be_impatient, comes_back):
    async with Proxy(pg_dsn).running() as way:
        node = await start_node(dsn=way.dsn)
        async with node.client() as stays:
            async with node.client() as wire:
                pass
            await held(db, 1)
            await until(lambda: not node.manager.node.endings.leaving)
            be_impatient()
            way.mute()
            way.refuses = True
            connecting = asyncio.create_task(turned_away(node, {"pid": wire.pid} if comes_back else {}))
            await held(db, 2)  # stored, and nobody learns of it
            await connecting
            way.refuses = False
            await held(db, 1)
            assert await db.fetchval("SELECT sid FROM sio_sessions WHERE node IS NOT NULL") == stays.sid
            async with node.client(pid=wire.pid) as again:
                assert again.sid == wire.sid
        await node.sio.shutdown()


@pytest.mark.parametrize("late", [False, True], ids=["in vain", "late"])
async def test_a_claim_that_cannot_be_given_back_is_let_go_later(
    start_node, pg_dsn, db, monkeypatch, be_impatient, expected_errors, late
):
    """No client holds the session: it has missed too much, or nobody waits for the claim any more."""
    expected_errors.append("release late claim failed")
    async with Proxy(pg_dsn).running() as way:
        node = await start_node(dsn=way.dsn, recovery={"max_missed_packets": 10 if late else 1})
        async with node.client() as wire:
            pass
        await held(db, 0)
        for i in range(3):
            await node.sio.emit("e", i)
        sessions = node.manager.node.sessions
        release, failed = sessions.release, []

        async def in_an_outage(held, **times):
            sessions.release = release
            be_impatient()
            way.refuses = True
            way.cut()
            try:
                await release(held, **times)
            finally:
                failed.append(held)

        sessions.release = in_an_outage
        if late:
            monkeypatch.setattr("sio_pg_adapter.server.claiming.CLAIM_TIMEOUT", 0.2)
        async with db.transaction():
            if late:
                await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            await turned_away(node, {"pid": wire.pid})
        await until(lambda: failed)
        assert await db.fetchval(HELD) == 1
        way.refuses = False
        await held(db, 0)
        await node.sio.shutdown()


async def test_a_claim_whose_connection_is_cancelled_before_it_is_given_back_is_let_go_later(
    start_node, db, monkeypatch, be_impatient
):
    """The web server cancels it while its release waits in the line of the ends."""
    monkeypatch.setattr("sio_pg_adapter.store.sessions.ENDS_AT_ONCE", 1)
    node = await start_node(recovery={"max_missed_packets": 1})
    async with node.client() as wire:
        pass
    await held(db, 0)
    for i in range(3):
        await node.sio.emit("e", i)
    be_impatient()
    line = node.manager.node.sessions._ending
    async with AsgiClient(node.sio) as again, line:
        again.send(f'0{{"pid":"{wire.pid}"}}')
        await until(lambda: line._waiters)
        cancelling = asyncio.create_task(again.cancel())  # Engine.IO reads on, and ends with the connection
        await until(lambda: not line._waiters)
        again.cut()
        await cancelling
        assert await db.fetchval(HELD) == 1
    await held(db, 0)


async def turned_away(node, auth) -> None:
    with pytest.raises(Closed):
        async with node.client(**auth):
            pass


async def test_a_session_that_a_client_holds_stays(start_node, db, be_impatient):
    node = await start_node()
    async with node.client() as one, node.client() as two:
        be_impatient()
        strays = node.manager.node.sessions.on_unknown.__self__
        await strays.let_go()
        assert await db.fetchval(HELD) == 2
        await db.execute(
            "INSERT INTO sio_sessions (id, pid_hash, namespace, sid, node, start_offset, joined_at) "
            "SELECT 1, sha256('x'), namespace, 'stray', node, start_offset, joined_at FROM sio_sessions "
            "WHERE sid = $1",
            one.sid,
        )
        strays.suspect()
        await held(db, 2)
        assert {one.sid, two.sid} == {
            row["sid"] for row in await db.fetch("SELECT sid FROM sio_sessions WHERE node IS NOT NULL")
        }


async def test_a_stop_while_the_database_is_away_does_not_try_each_batch(start_node, pg_dsn, be_impatient):
    async with Proxy(pg_dsn).running() as way:
        node = await start_node(dsn=way.dsn)
        await node.sio.emit("e")
        be_impatient()
        way.blackhole()
        way.refuses = True
        emits = [asyncio.create_task(node.sio.emit("e", "x" * 60_000)) for _ in range(700)]  # eleven batches
        await until(lambda: node.manager.node.writer.waiting > 600)
        await node.sio.shutdown()
        outcomes = await asyncio.gather(*emits, return_exceptions=True)
        assert all(isinstance(outcome, ConnectionError) for outcome in outcomes)
        assert sum("closed while the database was away" in str(outcome) for outcome in outcomes) > 500
