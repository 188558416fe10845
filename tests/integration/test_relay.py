"""The relay: a node moves the events of transactions to the log, in order and once, whatever happens to that node."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import uuid

import asyncpg
import pytest

from sio_pg_adapter import (
    AsyncPostgresManager,
    AsyncServer,
    close_room_async,
    disconnect_async,
    emit_async,
    enter_room_async,
    migrate,
)
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.store import listener, relay
from support.node_process import NodeProcess
from support.waiting import until, until_answer

STATE = "SELECT last_value FROM sio_relay_state"
ASLEEP = 1


@pytest.fixture
async def relaying(db):
    """The relay is on before the first node starts."""
    await db.execute("SELECT sio_set_relay(true)")


def drowsy(state: int) -> bool:
    return state > 3 and state % 2 == 0


async def state_is(db, wanted) -> None:
    await until_answer(lambda: db.fetchval(STATE), wanted)


async def bodies(db) -> list[str]:
    return [row[0] for row in await db.fetch('SELECT coalesce(body, kind::text) FROM sio_packets ORDER BY "offset"')]


async def waiting(db) -> int:
    return await db.fetchval("SELECT count(*) FROM sio_relay")


class Emits:
    """Emits in transactions and without, and what each of them may know of the others.

    :ivar done: the numbers of the events, in the order in which the emits or commits have returned.
    :ivar known: how many of them had returned before each event was emitted.
    :ivar transactions: the events of each transaction.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.done: list[int] = []
        self.known: dict[int, int] = {}
        self.transactions: list[list[int]] = []

    def _next(self) -> int:
        number = len(self.known)
        self.known[number] = len(self.done)
        return number

    async def transaction(self, app) -> None:
        numbers: list[int] = []
        async with app.transaction():
            for _ in range(self.dice.randint(1, 4)):
                numbers.append(self._next())
                await emit_async(app, "e", numbers[-1])
                if self.dice.random() < 0.4:
                    await asyncio.sleep(self.dice.random() / 20)
        self.transactions.append(numbers)
        self.done.extend(numbers)

    async def direct(self, node) -> None:
        number = self._next()
        await node.sio.emit("e", number)
        self.transactions.append([number])
        self.done.append(number)

    async def go_on(self, app, nodes, times: int, *, transactions: float) -> None:
        for _ in range(times):
            is_in_transaction = self.dice.random() < transactions
            await (self.transaction(app) if is_in_transaction else self.direct(self.dice.choice(nodes)))
            pause = 0.2 if self.dice.random() < 0.03 else self.dice.random() / 100  # the relay may fall asleep
            await asyncio.sleep(pause)

    def check(self, got: list[int]) -> None:
        """Check that the log has each event once, transactions together, and causes before effects."""
        assert sorted(got) == sorted(self.known)
        at = {number: i for i, number in enumerate(got)}
        for numbers in self.transactions:
            first = at[numbers[0]]
            assert [at[number] for number in numbers] == list(range(first, first + len(numbers))), numbers
            for number in numbers:
                assert all(at[cause] < first for cause in self.done[: self.known[number]]), number


# -- waking and falling asleep -----------------------------------------------------------------------------
async def test_a_commit_neither_takes_the_logs_lock_nor_rings_while_a_node_moves(relaying, start_node, connect, db):
    node, app, ear = await start_node(), await connect(), await connect()
    heard = []
    await ear.add_listener(node.manager.database.channel, lambda *args: heard.append(args[-1]))
    async with node.client() as wire:
        await emit_async(app, "first")
        assert await wire.event() == ["first"]
        await until(lambda: "relay" in heard)
        async with app.transaction():
            await emit_async(app, "second")
            assert await app.fetchval(STATE) > 2
            heard.clear()
            async with db.transaction():
                await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
                await asyncio.wait_for(app.execute("COMMIT; BEGIN"), 20)
                assert await waiting(db) == 1
        assert await wire.event() == ["second"]
        assert "relay" not in heard
    assert await waiting(db) == 0


async def test_a_transaction_that_will_not_ring_keeps_a_node_awake_until_it_ends(relaying, start_node, connect, db):
    """It emitted while a node moved, and commits when nobody would look any more."""
    node, app, other = await start_node(), await connect(), await connect()
    async with node.client() as wire:
        await emit_async(other, "first")
        assert await wire.event() == ["first"]
        transaction = app.transaction()
        await transaction.start()
        await emit_async(app, "late")
        assert await app.fetchval(STATE) > 2
        await state_is(db, drowsy)
        await transaction.commit()
        assert await wire.event() == ["late"]
        await state_is(db, lambda state: state == ASLEEP)
        await emit_async(app, "again")
        assert await wire.event() == ["again"]


async def test_a_commit_rings_a_node_that_is_about_to_fall_asleep(relaying, start_node, connect, db):
    node, app, other = await start_node(), await connect(), await connect()
    async with node.client() as wire:
        await emit_async(other, "first")
        assert await wire.event() == ["first"]
        transaction = app.transaction()
        await transaction.start()
        await emit_async(app, "late")
        await state_is(db, drowsy)
        await emit_async(other, "rings")
        assert await wire.event() == ["rings"]
        await state_is(db, lambda state: state > 2 and not drowsy(state))
        await state_is(db, drowsy)
        await transaction.rollback()
        await state_is(db, lambda state: state == ASLEEP)


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_an_old_snapshot_sees_that_the_relay_sleeps(relaying, start_node, connect, db, isolation):
    node, app, other = await start_node(), await connect(), await connect()
    async with node.client() as wire:
        await emit_async(other, "first")
        assert await wire.event() == ["first"]
        transaction = app.transaction(isolation=isolation)
        await transaction.start()
        await app.fetchval("SELECT count(*) FROM sio_alembic_version")
        await state_is(db, lambda state: state == ASLEEP)
        await emit_async(app, "late")
        await transaction.commit()
        assert await wire.event() == ["late"]


async def test_a_quiet_relay_does_not_poll(relaying, start_node, connect, db):
    node, app = await start_node(), await connect()
    async with node.client() as wire:
        await emit_async(app, "e")
        assert await wire.event() == ["e"]
        await state_is(db, lambda state: state == ASLEEP)
        last = "SELECT max(query_start) FROM pg_stat_activity WHERE datname = current_database() AND pid = ANY ($1)"
        idle = await db.fetchval(
            "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name ^@ 'sio_pg_adapter'"
        )
        before = await db.fetchval(last, idle)
        await asyncio.sleep(20 * relay.INTERVAL)
        assert await db.fetchval(last, idle) == before


# -- which node --------------------------------------------------------------------------------------------
async def test_another_node_goes_on_when_the_one_that_moves_is_killed(relaying, start_node, connect, db, pg_dsn):
    process = await asyncio.to_thread(NodeProcess(pg_dsn).start)
    try:
        app, late = await connect(), await connect()
        await emit_async(app, "wakes it")
        await state_is(db, lambda state: state > 2)
        node = await start_node()
        async with node.client() as wire:
            transaction = late.transaction()
            await transaction.start()
            await emit_async(late, "late")  # no ring: a node moves
            process.pause()
            await emit_async(app, "meanwhile")
        process.kill()
        async with node.client() as wire:
            await transaction.commit()
            assert await wire.event() == ["late"]
        # Not by a probe, which would leave the state as it is.
        await state_is(db, lambda state: state == ASLEEP)
        assert sorted(await bodies(db)) == ['["late"]', '["meanwhile"]', '["wakes it"]']
        assert await waiting(db) == 0
    finally:
        process.kill()


async def test_killed_again_and_again_while_it_moves_nothing_is_lost_or_doubled(relaying, connect, db, pg_dsn):
    apps = [await connect() for _ in range(4)]
    stop = asyncio.Event()
    sent = [0] * len(apps)

    async def work(number, app):
        while not stop.is_set():
            async with app.transaction():
                for part in range(3):
                    await emit_async(app, "e", (number, sent[number], part))
            sent[number] += 1

    working = [asyncio.create_task(work(*each)) for each in enumerate(apps)]
    records = "SELECT count(*) FROM sio_packets"
    for _ in range(3):
        process = await asyncio.to_thread(NodeProcess(pg_dsn).start)
        moved = await db.fetchval(records)
        await until_answer(lambda: db.fetchval(records), lambda count, least=moved + 50: count >= least)
        process.kill()
    stop.set()
    await asyncio.gather(*working)
    process = await asyncio.to_thread(NodeProcess(pg_dsn).start)
    try:
        await until_answer(lambda: waiting(db), lambda count: count == 0)
    finally:
        process.kill()
    expected = [
        f'["e",{number},{turn},{part}]'
        for number, turns in enumerate(sent)
        for turn in range(turns)
        for part in range(3)
    ]
    got = await bodies(db)
    assert sorted(got) == sorted(expected)
    at = {body: i for i, body in enumerate(got)}
    for first, second in itertools.pairwise(expected):
        assert first.split(",")[1] != second.split(",")[1] or at[first] < at[second]


async def test_a_node_starts_however_fast_transactions_go_on(relaying, start_node, db, monkeypatch):
    """Each row that is moved leaves another one that waits."""
    monkeypatch.setattr(relay, "BATCH", 1)
    monkeypatch.setattr(relay, "MOST", 1)
    await db.execute("""
        CREATE FUNCTION goes_on() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO sio_relay (transaction, kind, namespace, room, body) VALUES (0, 0, '/', '', '["later"]');
            RETURN NULL;
        END $$;
        CREATE TRIGGER goes_on AFTER DELETE ON sio_relay FOR EACH ROW EXECUTE FUNCTION goes_on();
    """)
    for number in range(3):
        await emit_async(db, "e", number)
    await start_node()
    assert (await bodies(db))[:3] == ['["e",0]', '["e",1]', '["e",2]']
    await db.execute("DROP TRIGGER goes_on ON sio_relay")
    await until_answer(lambda: waiting(db), lambda count: count == 0)


async def test_a_crash_between_two_batches_keeps_their_order(monkeypatch, expected_errors):
    """The moves of the node are not flushed, so the crash takes the first one back."""
    expected_errors.append("the log is another one")
    monkeypatch.setattr(relay, "BATCH", 1)
    with EmbeddedPostgres(settings={"synchronous_commit": "off", "wal_writer_delay": "10000"}) as pg:
        await asyncio.to_thread(migrate.upgrade, pg.dsn(), relay=True)
        app = await asyncpg.connect(pg.dsn())
        await app.execute("SET synchronous_commit = on")
        manager = AsyncPostgresManager(pg.dsn())
        sio = AsyncServer(async_mode="asgi", client_manager=manager, monitor_clients=False)
        await manager.start()
        moves = manager.node.relay
        await app.execute("SELECT sio_lock_and_check_epoch()")
        await moves.close()  # this test moves the rows
        await emit_async(app, "cause")
        await emit_async(app, "effect")
        app.terminate()
        database, crashed = moves._database, asyncio.Event()
        writer = database.writer

        class CrashesOnce:
            """The writer's connection, after whose first move the server crashes."""

            async def __aenter__(self):
                self.connection = await writer.__aenter__()
                return self

            async def __aexit__(self, *exc):
                await writer.__aexit__(*exc)

            async def fetch(self, query, *args, timeout):
                rows = await self.connection.fetch(query, *args, timeout=timeout)
                if query == database.queries["relay_move"] and not crashed.is_set():
                    crashed.set()
                    await asyncio.to_thread(pg.restart, "immediate")
                return rows

        monkeypatch.setattr(database, "writer", CrashesOnce())
        await moves.drain()
        monkeypatch.undo()
        db = await asyncpg.connect(pg.dsn())
        await moves.drain()
        assert crashed.is_set()
        assert await bodies(db) == ['["cause"]', '["effect"]']
        await db.close()
        await sio.shutdown()


async def test_a_commit_that_no_node_has_moved_survives_a_crash():
    with EmbeddedPostgres(settings={"synchronous_commit": "on"}) as pg:
        await asyncio.to_thread(migrate.upgrade, pg.dsn(), relay=True)
        app = await asyncpg.connect(pg.dsn())
        await emit_async(app, "kept", key="k")
        app.terminate()
        await asyncio.to_thread(pg.restart, "immediate")
        process = await asyncio.to_thread(NodeProcess(pg.dsn()).start)
        try:
            db = await asyncpg.connect(pg.dsn())
            assert await bodies(db) == ['["kept"]']
            await db.close()
        finally:
            process.kill()


# -- order -------------------------------------------------------------------------------------------------
async def test_a_transaction_comes_after_those_whose_commits_it_knew_at_its_last_event(relaying, store, connect, db):
    app, other = await connect(), await connect()
    async with app.transaction():
        await emit_async(app, "1")
        await emit_async(other, "cause")
        await emit_async(app, "2")
    await emit_async(other, "3")
    await store.emit(body='["4"]')
    assert await bodies(db) == ['["cause"]', '["1"]', '["2"]', '["3"]', '["4"]']


@pytest.mark.parametrize("path", ["one event", "several entries", "members", "transaction"])
async def test_a_direct_append_comes_after_what_was_committed_before(relaying, store, connect, db, path):
    """No node moves: `store` only emits."""
    app = await connect()
    await store.open("s", "p")
    async with app.transaction():
        await emit_async(app, "first", room="x")
        await enter_room_async(app, "s", "x")
        await emit_async(app, "second", room="x")
    assert await waiting(db) == 3
    if path == "one event":
        await store.emit(body='["last"]')
    elif path == "several entries":
        await asyncio.gather(store.kick("s"), store.emit(body='["last"]'))
    elif path == "members":
        row = await db.fetchrow("SELECT * FROM sio_move_members(1, 2::smallint, '/', '{x}', '{}', '{}', '{}', '{x}')")
        assert len(row["offsets"]) == 1, "the member that entered in the transaction leaves"
    else:
        async with app.transaction():
            await app.execute("SELECT setval('sio_relay_state', 0)")  # this transaction emits directly
            await emit_async(app, "last")
            await app.execute("SELECT setval('sio_relay_state', 1)")
    assert (await bodies(db))[:3] == ['["first"]', "1", '["second"]']
    assert len(await bodies(db)) > 3 and await waiting(db) == 0


async def test_a_claim_finds_what_was_committed_before(relaying, start_node, connect, db, monkeypatch):
    monkeypatch.setattr(relay, "INTERVAL", 30.0)  # the node does not look in time
    node, app = await start_node(), await connect()
    async with node.client() as kicked, node.client() as wire:
        await emit_async(app, "wakes it")
        assert await kicked.event() == await wire.event() == ["wakes it"]
        await kicked.drop()
        await wire.drop()
        await app.execute("SELECT sio_disconnect(sid => $1)", kicked.sid)
        await emit_async(app, "missed")
        assert await waiting(db) == 2
        async with node.client(pid=kicked.pid, offset=kicked.offset) as again:
            assert again.sid != kicked.sid
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid and await again.event() == ["missed"]


async def test_cause_before_effect_whatever_the_path(relaying, start_node, connect):
    """Whatever began after something had been committed comes after it, on every node."""
    a, b = await start_node(), await start_node()
    emits = Emits(7)
    async with a.client() as wire, b.client() as other:
        await asyncio.gather(*[emits.go_on(await connect(), (a, b), 40, transactions=1 / 3) for _ in range(6)])
        await a.sio.emit("end")
        got = [event[1] for event in await wire.events_until("end")]
        assert got == [event[1] for event in await other.events_until("end")]
    emits.check(got)


@pytest.mark.parametrize("seed", range(3))
async def test_nodes_that_move_rows_at_once_keep_their_order(relaying, start_node, connect, db, monkeypatch, seed):
    """Three nodes move rows that they have found at different times, while others append."""
    for name, value in {"BATCH": 2, "MOST": 7, "FLOOR_INTERVAL": 0.0, "IDLE": 0.03, "TAKEOVER": 0.05}.items():
        monkeypatch.setattr(relay, name, value)
    nodes = [await start_node() for _ in range(3)]
    emits = Emits(seed)

    async def drain():
        while True:
            await emits.dice.choice(nodes).manager.node.relay.drain()
            await asyncio.sleep(emits.dice.random() / 50)

    draining = [asyncio.create_task(drain()) for _ in range(3)]
    await asyncio.gather(*[emits.go_on(await connect(), nodes, 60, transactions=0.85) for _ in range(6)])
    for task in draining:
        task.cancel()
    await asyncio.gather(*draining, return_exceptions=True)
    await nodes[0].sio.emit("end")
    emits.check([json.loads(body)[1] for body in (await bodies(db))[:-1]])


async def test_the_floor_stays_below_an_open_transaction(relaying, start_node, connect, db, monkeypatch):
    monkeypatch.setattr(relay, "FLOOR_INTERVAL", 0.0)
    node, app, other = await start_node(), await connect(), await connect()
    async with node.client() as wire:
        transaction = app.transaction()
        await transaction.start()
        await emit_async(app, "late")
        identifier = await app.fetchval("SELECT max(id) FROM sio_relay")
        for i in range(20):
            await emit_async(other, "e", i)
            assert await wire.event() == ["e", i]
        assert await db.fetchval("SELECT last_value FROM sio_relay_floor") < identifier
        await transaction.commit()
        assert await wire.event() == ["late"]
        for i in range(20):
            await emit_async(other, "e", i)
            assert await wire.event() == ["e", i]
        async with asyncio.timeout(20):
            while await db.fetchval("SELECT last_value FROM sio_relay_floor") <= identifier:
                await emit_async(other, "more")


@pytest.mark.parametrize("server", ["the same", "another"])
async def test_the_floor_does_not_rise_on_a_server_that_gives_ids_again(relaying, store, db, monkeypatch, server):
    monkeypatch.setattr(relay, "FLOOR_INTERVAL", 0.0)
    await emit_async(db, "e")
    await store.emit()
    floor = relay.Floor(store.manager.node.database)
    await floor.rise()
    if server == "another":
        await db.execute("TRUNCATE sio_marker")
        await store.emit()
    await floor.rise()
    assert await db.fetchval("SELECT last_value FROM sio_relay_floor") == (1 if server == "the same" else 0)


async def test_the_floor_stays_below_rows_that_a_look_has_left_out(relaying, start_node, db, monkeypatch):
    for name, value in {"BATCH": 1, "MOST": 1, "FLOOR_INTERVAL": 0.0, "IDLE": 600.0}.items():
        monkeypatch.setattr(relay, name, value)
    await start_node()
    await emit_async(db, "wakes the node")
    await until_answer(lambda: bodies(db))
    await db.execute("""
        INSERT INTO sio_relay (transaction, kind, namespace, room, body)
        SELECT i, 0, '/', '', '["e"]' FROM generate_series(1, 20) i
    """)
    await until_answer(lambda: waiting(db), lambda count: count == 0)


async def test_members_of_rooms_that_are_skipped_stay_and_get_nothing(relaying, start_node, connect, db):
    node, app = await start_node(), await connect()
    async with node.client() as goes, node.client() as stays:
        for room in ("x", "y"):
            await node.sio.enter_room(stays.sid, room)
        await node.sio.enter_room(goes.sid, "x")
        async with app.transaction():
            await emit_async(app, "e", room="x", skip_room="y")
            await enter_room_async(app, room="z", members_of="x", skip_room="y")
            await emit_async(app, "z", room="z")
            await disconnect_async(app, room="x", skip_room="y")
        assert [await goes.event(), await goes.event(), await goes.recv()] == [["e"], ["z"], "1"]
        await node.sio.emit("end")
        assert await stays.events_until("end") == []
    assert await db.fetchval("SELECT count(*) FROM sio_relay") == 0


# -- keys --------------------------------------------------------------------------------------------------
async def test_of_two_transactions_with_one_key_one_is_stored(relaying, store, connect, db):
    first, second, third = await connect(), await connect(), await connect()
    a, b = first.transaction(), second.transaction()
    await a.start()
    await b.start()
    assert await emit_async(first, "a", key="k") is True
    assert await emit_async(second, "b", key="k") is True  # neither knows of the other
    assert await emit_async(first, "a", key="k") is False
    await b.commit()
    assert await emit_async(third, "c", key="k") is False  # committed, and not in the log yet
    await a.commit()
    await store.emit(body='["end"]')
    assert await bodies(db) == ['["a"]', '["end"]']
    assert await emit_async(third, "c", key="k") is False
    assert await db.fetchval("SELECT count(*) FROM sio_keys") == 1


# -- rows at fault -----------------------------------------------------------------------------------------
async def test_a_row_that_cannot_be_moved_stops_nothing(relaying, start_node, connect, db, expected_errors):
    expected_errors.append("rows of sio_relay cannot be moved")
    node, app = await start_node(), await connect()
    bad = "INSERT INTO sio_relay (transaction, kind, namespace, room, rooms, body) VALUES (0, $1, '/', '', $2, '[1]')"
    async with node.client() as wire:
        async with app.transaction():
            await emit_async(app, "1")
            await app.execute(bad, 99, None)
            await emit_async(app, "2")
            await app.execute(bad, 0, "no json")
            await emit_async(app, "3")
        assert [await wire.event() for _ in range(3)] == [["1"], ["2"], ["3"]]
        faults = [row[0] for row in await db.fetch("SELECT fault FROM sio_relay ORDER BY id")]
        assert len(faults) == 2 and all(faults)
        assert await node.manager.node.listener._probe()
        health = await node.manager.health()
        assert health.ok and "2 rows of sio_relay" in health.reason
        await emit_async(app, "4")
        assert await wire.event() == ["4"]


async def test_a_node_that_cannot_move_is_not_healthy_until_it_can(relaying, start_node, connect, db):
    node, app = await start_node(), await connect()
    async with node.client() as wire:
        await db.execute("ALTER FUNCTION sio_relay_append RENAME TO sio_relay_away")
        await emit_async(app, "e")
        await until(lambda: node.manager.node.relay.fault)
        health = await node.manager.health()
        assert not health.ok and "sio_relay_append" in health.reason
        await db.execute("ALTER FUNCTION sio_relay_away RENAME TO sio_relay_append")
        assert await wire.event() == ["e"]
        await until(lambda: node.manager.node.diagnosis.health().ok)


async def test_a_node_is_healthy_again_although_transactions_go_on(relaying, start_node, connect, db, monkeypatch):
    node, app, holder = await start_node(), await connect(), await connect()
    stop = asyncio.Event()

    async def work():
        while not stop.is_set():
            await emit_async(app, "e")
            await asyncio.sleep(0.05)

    working = asyncio.create_task(work())
    await until_answer(lambda: bodies(db))
    monkeypatch.setattr(relay, "QUERY_TIMEOUT", 0.5)
    async with holder.transaction():
        await holder.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        await until(lambda: node.manager.node.relay.fault)
    monkeypatch.undo()
    await until(lambda: node.manager.node.diagnosis.health().ok)
    stop.set()
    await working


async def test_a_lost_connection_is_replaced_while_much_waits_too_long(
    relaying, start_node, db, superuser, monkeypatch
):
    """The node that should move rows is stuck, and each batch of the other one takes half a second."""
    monkeypatch.setattr(listener, "PROBE_INTERVAL", 0.2)
    monkeypatch.setattr(relay, "INTERVAL", 60.0)
    monkeypatch.setattr(relay, "BATCH", 1)
    node = await start_node()
    await db.execute("""
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
        CREATE TRIGGER slow AFTER DELETE ON sio_relay FOR EACH STATEMENT EXECUTE FUNCTION slow();
        INSERT INTO sio_relay (transaction, kind, namespace, room, body, created_at)
        SELECT i, 0, '/', '', '["e"]', '2000-01-01' FROM generate_series(1, 60) i
    """)
    await until_answer(lambda: bodies(db))
    await superuser.execute("""
        SELECT pg_terminate_backend(pid) FROM pg_locks
        WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """)
    await until(lambda: not node.manager.node.listener.connected)
    await until(lambda: node.manager.node.listener.connected)
    assert await waiting(db) > 0
    await db.execute("DROP TRIGGER slow ON sio_relay")


async def test_the_probe_moves_what_waits_too_long(relaying, start_node, connect, db, monkeypatch):
    """The node that the state names lives, and does nothing."""
    monkeypatch.setattr(relay, "LATE", 0.0)
    node, stuck, app = await start_node(), await start_node(), await connect()
    await stuck.manager.node.relay.close()
    number = await db.fetchval("SELECT number FROM sio_nodes WHERE id = $1", uuid.UUID(stuck.manager.node.id))
    await db.execute("SELECT setval('sio_relay_state', $1)", 3 + 2 * number)
    async with node.client() as wire:
        await emit_async(app, "e")
        assert await waiting(db) == 1
        assert await node.manager.node.listener._probe()
        assert await wire.event() == ["e"]


async def test_a_room_that_became_a_clients_own_meanwhile_is_not_entered(relaying, store, connect, db):
    app = await connect()
    async with app.transaction():
        await close_room_async(app, "s")
        await emit_async(app, "e")
    await db.execute("SELECT setval('sio_relay_state', 0)")
    await store.open("s", "p")
    await db.execute("SELECT setval('sio_relay_state', 1)")
    await store.emit(body='["end"]')
    assert await bodies(db) == ['["e"]', '["end"]']
    assert "own room" in await db.fetchval("SELECT fault FROM sio_relay")


# -- on and off --------------------------------------------------------------------------------------------
async def test_switched_while_transactions_are_open_nothing_is_lost(start_node, connect, db):
    node = await start_node()
    before, during, after = await connect(), await connect(), await connect()
    opened = []

    async def begin(app, name):
        transaction = app.transaction()
        await transaction.start()
        opened.append(transaction)
        await emit_async(app, name)

    async with node.client() as wire:
        await begin(before, "direct")
        await db.execute("SELECT sio_set_relay(true)")
        await emit_async(before, "relayed")
        await begin(during, "relayed, too")
        await db.execute("SELECT sio_set_relay(false)")
        await emit_async(during, "direct at last")
        await begin(after, "after")
        assert await waiting(after) == 0
        await opened[2].commit()
        assert await wire.event() == ["after"]
        assert await db.fetchval(STATE) == 2  # until those that relay have ended
        await opened[0].commit()
        assert sorted([await wire.event(), await wire.event()]) == [["direct"], ["relayed"]]
        await opened[1].commit()
        assert sorted([await wire.event(), await wire.event()]) == [["direct at last"], ["relayed, too"]]
        await state_is(db, lambda state: state == 0)
        assert await waiting(db) == 0


async def test_switching_twice_changes_nothing(db):
    for relay_is_on, state in ((True, 1), (True, 1), (False, 2), (False, 2), (True, 1)):
        await db.execute("SELECT sio_set_relay($1)", relay_is_on)
        assert await db.fetchval(STATE) == state
