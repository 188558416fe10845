"""The holders of sessions: presence by an advisory lock, takeovers, and what happens when a node returns."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

from integration.test_seam import Deaf
from sio_pg_adapter.local.client import State
from sio_pg_adapter.log.records import Held, Kind
from sio_pg_adapter.store.pruner import Pruned
from support.asgi_client import AsgiClient, Closed
from support.pruning import prune_once
from support.store import Store
from support.waiting import until

LISTENING = "application_name LIKE '%listen%' AND datname = current_database() AND pid <> pg_backend_pid()"


async def vanish(node) -> None:
    """The node's LISTEN connection is gone and does not come back: to the others, `kill -9`."""
    await node.manager.node.listener.close()


async def come_back(node) -> None:
    await node.manager.node.listener.start()


async def found_dead(db, dsn: str, *, since: float = 0.0) -> None:
    """Two looks, ten seconds apart; then that many seconds pass."""
    await prune_once(dsn)
    await db.execute("UPDATE sio_nodes SET missed_at = missed_at - interval '11 s'")
    await prune_once(dsn)
    await db.execute("UPDATE sio_nodes SET died_at = died_at - make_interval(secs => $1)", since)


async def nodes(db) -> list[tuple[bool, bool]]:
    """Of each node: was it missed, is it dead?"""
    rows = await db.fetch(
        "SELECT missed_at IS NOT NULL AS missed, died_at IS NOT NULL AS died FROM sio_nodes ORDER BY number"
    )
    return [(row["missed"], row["died"]) for row in rows]


# -- looks -------------------------------------------------------------------------------------------------
async def test_a_node_is_dead_when_two_looks_ten_seconds_apart_found_no_lock(start_node, db, pg_dsn):
    gone, _ = await start_node(), await start_node()
    await prune_once(pg_dsn)
    assert await nodes(db) == [(False, False), (False, False)]
    await vanish(gone)
    await prune_once(pg_dsn)
    assert await nodes(db) == [(True, False), (False, False)]
    await prune_once(pg_dsn)  # too soon to tell
    assert await nodes(db) == [(True, False), (False, False)]
    await db.execute("UPDATE sio_nodes SET missed_at = missed_at - interval '11 s'")
    await prune_once(pg_dsn)
    assert await nodes(db) == [(True, True), (False, False)]
    await come_back(gone)
    assert await nodes(db) == [(False, False), (False, False)]


async def test_a_node_that_was_missed_once_and_is_there_again_was_not_dead(start_node, db, pg_dsn):
    node = await start_node()
    await vanish(node)
    await prune_once(pg_dsn)
    await db.execute("UPDATE sio_nodes SET missed_at = missed_at - interval '11 s'")
    await come_back(node)
    await prune_once(pg_dsn)
    assert await nodes(db) == [(False, False)]


async def test_only_a_backend_of_the_nodes_own_role_shows_that_it_lives(start_node, db, pg_dsn, pg_admin):
    """Case 105: the keys of advisory locks are for all to see, and to take."""
    node = await start_node()
    role = f"stranger_{node.manager.node.id[:12]}"
    pg_admin.execute(f"CREATE ROLE {role} LOGIN")
    stranger = await asyncpg.connect(pg_dsn, user=role)
    try:
        await vanish(node)
        number = await db.fetchval("SELECT number FROM sio_nodes")
        oid = await db.fetchval("SELECT 'sio_nodes'::regclass::oid::bigint::bit(32)::integer")
        await stranger.execute("SELECT pg_advisory_lock_shared($1, $2)", oid, number)
        await found_dead(db, pg_dsn)
        assert await nodes(db) == [(True, True)]
    finally:
        await stranger.close()
        pg_admin.execute(f"DROP ROLE {role}")


async def test_sessions_of_a_dead_node_run_out_from_when_it_was_found_dead(start_node, db, pg_dsn, store):
    """Case 82: no row of a session is written for it."""
    node = await start_node()
    async with node.client() as wire:
        before = await db.fetch("SELECT xmin, * FROM sio_sessions")
        await vanish(node)
        await found_dead(db, pg_dsn, since=119)
        assert await db.fetch("SELECT xmin, * FROM sio_sessions") == before
        await db.execute("UPDATE sio_nodes SET died_at = died_at - interval '2 s'")
        assert await store.claim(wire.pid) is None
        assert await prune_once(pg_dsn) == Pruned(sessions=1)


async def test_a_dead_nodes_session_recovers_until_it_has_run_out(start_node, db, pg_dsn):
    gone, here = await start_node(), await start_node()
    async with gone.client() as wire:
        await gone.sio.enter_room(wire.sid, "x")
        await gone.sio.save_session(wire.sid, {"v": 1})
        await vanish(gone)
        await found_dead(db, pg_dsn, since=100)
        await here.sio.emit("e", 1, room="x")
        async with here.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
            assert await again.event() == ["e", 1]
            assert await here.sio.get_session(wire.sid) == {"v": 1}


async def test_case_107_all_nodes_die_emits_go_on_past_the_window_a_node_starts(start_node, store, db, pg_dsn):
    """All is held until the dead nodes' sessions have run out, and that begins when they are found dead."""
    old = await start_node()
    async with old.client() as wire:
        await old.sio.emit("e", 0)
        assert await wire.event() == ["e", 0]
        await vanish(old)
        for i in range(1, 4):
            await store.emit(body=f'["e",{i}]')
        await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 day'")
        new = await start_node()
        assert await prune_once(pg_dsn) == Pruned()
        await found_dead(db, pg_dsn, since=100)
        assert await prune_once(pg_dsn) == Pruned()
        async with new.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert [await again.event() for _ in range(3)] == [["e", 1], ["e", 2], ["e", 3]]


async def test_case_107_after_the_sessions_have_run_out_the_client_is_fresh(start_node, store, db, pg_dsn):
    old = await start_node()
    async with old.client() as wire:
        await vanish(old)
        await store.emit()
        await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 day'")
        new = await start_node()
        await found_dead(db, pg_dsn, since=121)
        async with new.client(pid=wire.pid) as again:
            assert again.sid != wire.sid
        pruned = await prune_once(pg_dsn)
        assert pruned.sessions == 1 and pruned.records > 0


# -- a node that comes back ----------------------------------------------------------------------------------
async def test_a_node_that_lost_only_its_connection_takes_its_sessions_back(start_node, db, pg_dsn):
    node = await start_node()
    async with node.client() as wire:
        await vanish(node)
        await found_dead(db, pg_dsn, since=100)
        await come_back(node)
        await db.execute("UPDATE sio_nodes SET started_at = started_at - interval '1 day'")
        await prune_once(pg_dsn)
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
        await wire.drop()
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid


async def test_case_113_a_node_called_dead_closes_those_whose_sessions_ended(start_node, db, pg_dsn):
    node, pruner = await start_node(), pg_dsn
    async with node.client() as ended, AsgiClient(node.sio) as kept:
        await vanish(node)
        kept.sid, kept.pid = None, None
        await found_dead(db, pruner, since=121)
        assert (await prune_once(pruner)).sessions == 1
        await come_back(node)
        assert await ended.rest() == []
        async with node.client(pid=ended.pid) as again:
            assert again.sid != ended.sid


async def test_case_113_a_node_called_dead_closes_those_who_went_elsewhere(start_node, db, pg_dsn):
    gone, here = await start_node(), await start_node()
    async with gone.client() as wire:
        gone.manager.node.cursor._ring.clear()
        await vanish(gone)
        await found_dead(db, pg_dsn)
        async with here.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
            await come_back(gone)
            assert await wire.rest() == []
            await here.sio.emit("e")
            assert await again.event() == ["e"]


async def test_case_113_a_node_whose_row_was_dropped_meanwhile_was_dead_too(start_node, store, db, pg_dsn):
    """Its sessions ran out, they and the node's row were deleted: what it still holds is no session."""
    gone, other = await start_node(), await start_node()
    async with gone.client() as wire:
        await other.sio.emit("e")
        assert await wire.event() == ["e"]
        await vanish(gone)
        await found_dead(db, pg_dsn, since=3_600)
        await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 day'")
        assert (await prune_once(pg_dsn)).sessions == 1
        await store.emit(namespace="/elsewhere")  # so that there is something to prune
        await gone.passed(await gone.manager.node.reader.head())
        await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 day'")
        await prune_once(pg_dsn)
        assert len(await nodes(db)) == 1
        await come_back(gone)
        await until(lambda: gone.manager.clients.current(wire.sid, "/") is None, "the client of no session is cut")


# -- generations -----------------------------------------------------------------------------------------------
async def test_a_former_holder_that_was_not_there_writes_nothing_when_it_comes_back(start_node, store):
    """The claim did not wait for it, so there is no moment up to which it might still save."""
    gone = await start_node()
    former = Store(gone.manager)
    old = await former.open(data='{"v":1}')
    await vanish(gone)
    new = await store.claim()
    assert new.former is None
    assert await store.sessions.save("/", "s", '{"v":2}', Held(new.id, new.generation))
    assert await former.sessions.save("/", "s", '{"v":"old"}', old) is False
    assert await store.sessions.text("/", "s") == '{"v":2}'


async def test_a_late_disconnect_handler_of_a_node_that_came_back_overwrites_nothing(start_node, db, caplog):
    gone, here = await start_node(), await start_node()

    @gone.sio.event
    async def disconnect(sid, reason):
        await gone.sio.save_session(sid, {"v": "old"})

    async with gone.client() as wire:
        await gone.sio.save_session(wire.sid, {"v": 1})
        await vanish(gone)
        async with here.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
            await here.sio.save_session(wire.sid, {"v": 2})
            gone.manager.node.cursor.ring()
            await wire.rest()
            await until(lambda: not gone.manager.node.endings.leaving)
            assert await here.sio.get_session(wire.sid) == {"v": 2}
    assert caplog.text.count("a session was not saved: another connection has it by now") == 1


async def test_a_node_that_has_not_met_the_claim_yet_changes_the_session_that_was_claimed(start_node):
    """A revocation must not be lost because the client has just moved to another node."""
    former, now = await start_node(), await start_node()
    async with former.client() as client:
        await former.sio.enter_room(client.sid, "x")
        await vanish(former)
        async with now.client(pid=client.pid) as again:
            assert again.sid == client.sid
            assert former.manager.clients.current(client.sid, "/") is not None
            await former.sio.save_session(client.sid, {"v": 1})
            async with former.sio.session(client.sid) as session:
                session["w"] = 2
            await former.sio.leave_room(client.sid, "x")
            assert await now.sio.get_session(client.sid) == {"v": 1, "w": 2}
            assert await now.sio.fetch_rooms(client.sid) == [client.sid]


async def test_a_handler_that_saves_while_two_claims_wait_for_it_is_heard(start_node):
    """The second claim came before the first had settled: what the one and only holder saves still counts."""
    a, b = await start_node(), await start_node()
    called, go_on = asyncio.Event(), asyncio.Event()

    @a.sio.event
    async def disconnect(sid, reason):
        called.set()
        await go_on.wait()
        await a.sio.save_session(sid, {"v": "of the handler"})

    async with a.client() as wire, AsgiClient(b.sio) as first, AsgiClient(b.sio) as second:
        first.send(f'0{{"pid":"{wire.pid}"}}')
        await called.wait()
        second.send(f'0{{"pid":"{wire.pid}"}}')
        assert await first.rest() == []
        go_on.set()
        answer = await second.recv()
        assert wire.sid in answer
        assert await b.sio.get_session(wire.sid) == {"v": "of the handler"}


async def test_a_claim_does_not_wait_for_a_holder_that_has_let_go_already(start_node, monkeypatch):
    """The release was announced to the node of an earlier claim, before that one was settled."""
    monkeypatch.setattr("sio_pg_adapter.server.claiming.TAKEOVER_WAIT", 3_600.0)
    a, b, c = await start_node(), await start_node(), await start_node()
    settling, go_on = asyncio.Event(), asyncio.Event()
    settle = b.manager.node.sessions.settle

    async def settle_late(held):
        settling.set()
        await go_on.wait()
        return await settle(held)

    b.manager.node.sessions.settle = settle_late
    async with a.client() as wire, AsgiClient(b.sio) as first, AsgiClient(c.sio) as second:
        first.send(f'0{{"pid":"{wire.pid}"}}')
        await settling.wait()
        second.send(f'0{{"pid":"{wire.pid}"}}')
        assert await first.rest() == []
        go_on.set()
        assert wire.sid in await second.recv()


async def test_a_claim_does_not_wait_for_a_holder_whose_client_has_disconnected(start_node, monkeypatch):
    """The claim came before the DISCONNECT, so that ends nothing. The holder has not heard of the claim."""
    monkeypatch.setattr("sio_pg_adapter.server.claiming.TAKEOVER_WAIT", 3_600.0)
    a, b = await start_node(), await start_node()
    called = []

    @a.sio.event
    async def disconnect(sid, reason):
        await asyncio.sleep(0)
        called.append("disconnect")

    @b.sio.event
    async def connect(sid, environ, auth):
        called.append("connect")

    async with a.client() as wire, AsgiClient(b.sio) as again:
        deaf = Deaf(a)
        again.send(f'0{{"pid":"{wire.pid}"}}')
        await until(lambda: b.manager.node.counters.takeovers)
        wire.send("1")
        assert wire.sid in await again.recv()
        assert called == ["disconnect", "connect"]
        deaf.hear()


async def test_a_claim_does_not_wait_for_a_holder_whose_connect_is_refused(start_node, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.server.claiming.TAKEOVER_WAIT", 3_600.0)
    a, b = await start_node(), await start_node()
    deciding, go_on = asyncio.Event(), asyncio.Event()
    async with a.client() as wire:
        await wire.drop()

        @a.sio.event
        async def connect(sid, environ, auth):
            deciding.set()
            await go_on.wait()
            return False

        async with AsgiClient(a.sio) as first, AsgiClient(b.sio) as second:
            first.send(f'0{{"pid":"{wire.pid}"}}')
            await deciding.wait()
            second.send(f'0{{"pid":"{wire.pid}"}}')
            await until(lambda: b.manager.node.counters.takeovers)
            go_on.set()
            assert wire.sid in await second.recv()


async def test_one_pid_presented_many_times_at_once_is_held_by_the_last(start_node, db):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        wires = [AsgiClient(node.sio) for node in (a, b) * 5]
        for one in wires:
            await one.__aenter__()
        for one in wires:
            one.send(f'0{{"pid":"{wire.pid}"}}')
        answered = []
        for one in wires:
            try:
                answered.append((one, await one.recv()))
            except Closed:
                continue
        holders = [n.manager.clients.current(wire.sid, "/") for n in (a, b)]
        await until(lambda: sum(h is not None and h.state is State.LIVE for h in holders) == 1, "one holder")
        await a.sio.emit("e")
        got = []
        for one, answer in answered:
            assert wire.sid in answer
            try:
                got.append(await one.recv())
            except Closed:
                continue
        assert len(got) == 1
        for one in wires:
            await one.drop()
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 1


# -- ends while a claim is under way -----------------------------------------------------------------------------
async def test_case_111_a_kick_while_a_claim_waits_for_the_former_holder(start_node, db):
    a, b = await start_node(), await start_node()
    called, go_on = asyncio.Event(), asyncio.Event()

    @a.sio.event
    async def disconnect(sid, reason):
        called.set()
        await go_on.wait()

    async with a.client() as wire, AsgiClient(b.sio) as again:
        again.send(f'0{{"pid":"{wire.pid}"}}')
        await called.wait()
        await b.sio.disconnect(wire.sid)
        go_on.set()
        assert await again.recv() == "1"  # DISCONNECT, and no CONNECT before it
        assert (await again.recv()).startswith("4")
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_case_111_a_kick_while_the_connect_handler_decides(start_node, db):
    node = await start_node()
    asked, go_on = asyncio.Event(), asyncio.Event()

    async with node.client() as wire:
        await wire.drop()

        @node.sio.event
        async def connect(sid, environ, auth):
            asked.set()
            await go_on.wait()

        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await asked.wait()
            await node.sio.disconnect(wire.sid)
            go_on.set()
            assert await again.recv() == "1"  # DISCONNECT, and no CONNECT before it
            assert (await again.recv()).startswith("4")
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_case_111_a_kick_during_a_paged_replay(start_node, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.server.replay.PAGE", 5)
    monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 5)
    node = await start_node()
    async with node.client() as wire:
        await wire.drop()
        for i in range(50):
            await node.sio.emit("e", i)
        async with AsgiClient(node.sio) as again:
            again.stall()
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await again.held.wait()
            await node.sio.disconnect(wire.sid)
            again.flow()
            frames = []
            with contextlib.suppress(Closed):  # where the page was read before the cursor met the kick
                while (frame := await again.recv()) != "1":
                    frames.append(frame)
            assert len(frames) < 50


# -- stopping in order -----------------------------------------------------------------------------------------
async def test_a_disconnect_handler_that_never_ends_holds_up_a_stop_no_longer_than_said(start_node, db, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.server.endings.GOODBYE_WAIT", 0.2)
    node = await start_node()

    @node.sio.event
    async def disconnect(sid, reason):
        await asyncio.Event().wait()

    async with node.client() as wire:
        async with asyncio.timeout(15):
            await node.manager.aclose()
        assert await wire.rest() == []
    assert await nodes(db) == [(False, True)]


async def test_case_81_who_connects_to_a_node_that_is_stopping_is_told_to_come_back(start_node, db):
    """The web server may go on listening for a while: nobody is let in who would then be forgotten."""
    node, other = await start_node(), await start_node()
    leaving, go_on = asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def disconnect(sid, reason):
        leaving.set()
        await go_on.wait()

    async with node.client() as first, AsgiClient(node.sio) as late, AsgiClient(node.sio) as later:
        stopping = asyncio.create_task(node.manager.aclose())
        await leaving.wait()
        later.send(f'0{{"pid":"{first.pid}"}}')
        with pytest.raises(AssertionError):  # the websocket is refused
            async with AsgiClient(node.sio):
                pass
        go_on.set()
        await stopping
        assert await later.rest() == await late.rest() == []
    async with other.client(pid=first.pid) as again:
        assert again.sid == first.sid


async def test_a_terminated_listener_backend_costs_nobody_his_session(start_node, db, superuser):
    node = await start_node()
    async with node.client() as wire:
        reconnects = node.manager.node.listener.reconnects
        assert await superuser.fetchval(
            f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {LISTENING}"
        )
        async with asyncio.timeout(20):
            while node.manager.node.listener.reconnects == reconnects:
                await asyncio.sleep(0.01)
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
        assert await nodes(db) == [(False, False)]


@pytest.mark.parametrize("kind", [Kind.ENTER, Kind.LEAVE])
async def test_case_110_a_move_that_returned_outlives_its_node(start_node, kind):
    gone, here = await start_node(), await start_node()
    async with gone.client() as wire:
        await gone.sio.enter_room(wire.sid, "left")
        if kind is Kind.ENTER:
            await gone.sio.enter_room(wire.sid, "x")
        else:
            await gone.sio.leave_room(wire.sid, "left")
        await vanish(gone)
        async with here.client(pid=wire.pid):
            assert here.sio.rooms(wire.sid) == [wire.sid, *(["left", "x"] if kind is Kind.ENTER else [])]
