"""Events in the application's own transaction: delivered if and when it commits, in the order of the commits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import asyncpg
import pytest

from sio_pg_adapter import emit_async, enter_room_async, leave_room_async, migrate
from sio_pg_adapter.embedded import EmbeddedPostgres
from support.waiting import until_answer

WAITING = """SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
             WHERE NOT granted AND datname = current_database()"""


@pytest.fixture(autouse=True)
def both(transfer):
    """Run each test with and without the relay, except those about commits that append."""


async def waiting(db, count=1):
    """Until so many backends of the test's database wait for a lock."""
    await until_answer(lambda: db.fetchval(WAITING), lambda backends: backends >= count)


async def left_behind(db):
    return await db.fetchval("SELECT (SELECT count(*) FROM sio_outbox) + (SELECT count(*) FROM sio_relay)")


# -- commit and rollback ---------------------------------------------------------------------------------
async def test_case_80_an_event_is_sent_if_and_when_its_transaction_commits(start_node, connect, db):
    a, b = await start_node(), await start_node()
    app = await connect()
    async with a.client() as wire, b.client() as other:
        transaction = app.transaction()
        await transaction.start()
        await a.sio.emit("gone", connection=app)
        await transaction.rollback()

        transaction = app.transaction()
        await transaction.start()
        await a.sio.emit("kept", {"id": 7}, room=wire.sid, connection=app)
        await a.sio.emit("to all", ("two", b"bytes"), skip_sid=[wire.sid, "nobody"], connection=app)
        await b.sio.emit("meanwhile")  # not held up
        assert await wire.event() == ["meanwhile"]
        assert await other.event() == ["meanwhile"]
        await transaction.commit()

        assert await wire.event() == ["kept", {"id": 7}]
        frame = await other.recv()
        assert frame.startswith('51-["to all","two",{"_placeholder":true,"num":0},"')
        assert await other.recv() == b"bytes"

        await a.manager.emit("at once", [1], connection=app)  # in autocommit
        assert await wire.event() == ["at once", [1]]
        assert await other.event() == ["at once", [1]]
    assert await left_behind(db) == 0


@pytest.mark.parametrize("rejoins", ["before", "after"])
async def test_case_68_what_was_inserted_first_and_committed_last_comes_once(start_node, connect, rejoins):
    node = await start_node()
    first, second = await connect(), await connect()
    async with node.client() as wire:
        transaction = first.transaction()
        await transaction.start()
        await node.sio.emit("A", connection=first)
        async with second.transaction():
            await node.sio.emit("B", connection=second)
        assert await wire.event() == ["B"]
        await wire.drop()
        if rejoins == "after":
            await transaction.commit()
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            if rejoins == "before":
                await transaction.commit()
            await node.sio.emit("end")
            assert await again.events_until("end") == [["A"]]


@pytest.mark.direct
async def test_case_69_neither_a_gap_nor_an_open_transaction_elsewhere_stalls(start_node, connect, db):
    node = await start_node()
    app, elsewhere = await connect(), await connect()
    open_one = elsewhere.transaction(isolation="repeatable_read")
    await open_one.start()
    await elsewhere.fetchval("SELECT count(*) FROM sio_packets")
    await node.sio.emit("never", connection=elsewhere)
    async with node.client() as wire:
        await node.sio.emit("one", connection=app)
        # Gets an offset, and loses it: a constraint fails after the event was moved, in the commit itself.
        await db.execute("""
            CREATE TABLE broken (id integer);
            CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.id < 3 THEN UPDATE broken SET id = NEW.id + 1; ELSE RAISE 'too late'; END IF; RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER broken AFTER INSERT OR UPDATE ON broken
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION broken()""")
        before = await db.fetchval("SELECT last_value FROM sio_packets_offset_seq")
        with pytest.raises(asyncpg.RaiseError, match="too late"):
            async with app.transaction():
                await node.sio.emit("rolled back", connection=app)
                await app.execute("INSERT INTO broken VALUES (0)")
        assert await db.fetchval("SELECT last_value FROM sio_packets_offset_seq") == before + 1
        await node.sio.emit("two", connection=app)
        assert await wire.event() == ["one"]
        assert await wire.event() == ["two"]
        await wire.drop()
        await node.sio.emit("three", connection=app)
        await node.sio.emit("end")
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert await again.events_until("end") == [["three"]]
    await open_one.rollback()


async def test_a_rolled_back_savepoint_leaves_nothing_and_the_rest_keeps_its_order(start_node, connect, db):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        async with app.transaction():
            await node.sio.emit("1", connection=app)
            with contextlib.suppress(ZeroDivisionError):
                async with app.transaction():
                    await node.sio.emit("no", connection=app)
                    async with app.transaction():
                        await node.sio.emit("nor this", connection=app)
                    raise ZeroDivisionError
            async with app.transaction():
                await node.sio.emit("2", connection=app)
            await node.sio.emit("3", connection=app)
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["1"], ["2"], ["3"]]
    assert await left_behind(db) == 0


async def test_the_events_of_a_transaction_are_not_interleaved(start_node, connect, db):
    node = await start_node()
    apps = [await connect() for _ in range(8)]

    async def work(number, app):
        for turn in range(5):
            async with app.transaction():
                for i in range(7):
                    await emit_async(app, "e", (number, turn, i))
                    await asyncio.sleep(0)

    async with node.client() as wire:
        await asyncio.gather(*(work(*each) for each in enumerate(apps)))
        await node.sio.emit("end")
        got = [tuple(e[1:]) for e in await wire.events_until("end")]
    assert len(got) == 8 * 5 * 7
    for at in range(0, len(got), 7):
        assert got[at : at + 7] == [(*got[at][:2], i) for i in range(7)]
    offsets = [r[0] for r in await db.fetch('SELECT "offset" FROM sio_packets ORDER BY 1')]
    assert offsets == list(range(offsets[0], offsets[0] + len(got) + 1))


# -- holding nobody up -----------------------------------------------------------------------------------
async def test_case_106_a_deferred_foreign_key_that_waits_holds_up_no_other_append(start_node, connect, db):
    """Nor is there a deadlock with the one it waits for, that awaits a plain emit inside its transaction."""
    node = await start_node()
    app, holder = await connect(), await connect()
    await db.execute("""
        CREATE TABLE customers (id integer PRIMARY KEY);
        CREATE TABLE orders (customer integer REFERENCES customers DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO customers VALUES (1)""")
    async with node.client() as wire:
        async with holder.transaction():
            await holder.execute("SELECT FROM customers FOR UPDATE")

            async def order():
                async with app.transaction():
                    await node.sio.emit("ordered", connection=app)  # queued before the check, and yet after it
                    await app.execute("INSERT INTO orders VALUES (1)")
                    await node.sio.emit("ordered, too", connection=app)

            ordering = asyncio.create_task(order())
            await waiting(db)
            async with asyncio.timeout(2):
                await node.sio.emit("plain")
                await node.sio.emit("of a transaction", connection=await connect())
            assert await wire.event() == ["plain"]
            assert await wire.event() == ["of a transaction"]
            assert not ordering.done()
        await ordering
        assert await wire.event() == ["ordered"]
        assert await wire.event() == ["ordered, too"]


async def test_case_106_a_plain_emit_inside_an_open_transaction_that_has_emitted(start_node, connect):
    node = await start_node()
    app = await connect()
    async with node.client() as wire, asyncio.timeout(5):
        async with app.transaction():
            await node.sio.emit("second", connection=app)
            await node.sio.emit("first")
            await node.sio.enter_room(wire.sid, "room")
        assert await wire.event() == ["first"]
        assert await wire.event() == ["second"]


@pytest.mark.direct
async def test_a_wait_under_the_logs_lock_is_bounded(connect, db):
    """A constraint that is queued by another in the commit comes after the lock: its waits end in two seconds."""
    app, holder = await connect(), await connect()
    await db.execute("""
        CREATE TABLE parents (id integer PRIMARY KEY);
        CREATE TABLE a (id integer);
        CREATE TABLE b (id integer REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO parents VALUES (1);
        CREATE FUNCTION a() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN INSERT INTO a2 VALUES (1); RETURN NULL; END $$;
        CREATE TABLE a2 (id integer);
        CREATE FUNCTION a2() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN INSERT INTO b VALUES (1); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER a AFTER INSERT ON a DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION a();
        CREATE CONSTRAINT TRIGGER a2 AFTER INSERT ON a2 DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION a2()""")
    async with holder.transaction():
        await holder.execute("SELECT FROM parents FOR UPDATE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            async with asyncio.timeout(10), app.transaction():
                await emit_async(app, "x")
                await app.execute("INSERT INTO a VALUES (1)")
    assert await left_behind(db) == 0
    assert await db.fetchval("SELECT count(*) FROM sio_packets") == 0


# -- SET CONSTRAINTS, PREPARE, settings ----------------------------------------------------------------------
LOCKED = "SELECT count(*) FROM pg_locks WHERE relation = 'sio_lock'::regclass AND granted"


@pytest.mark.parametrize("when", ["before", "between", "after"])
async def test_constraints_set_immediate_leave_events_to_the_commit(start_node, connect, db, when):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        async with app.transaction():
            if when == "before":
                await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await node.sio.emit("1", connection=app)
            if when == "between":
                await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await node.sio.emit("2", connection=app)
            if when == "after":
                await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            assert await db.fetchval(LOCKED) == 0
            await node.sio.emit("plain")
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["plain"], ["1"], ["2"]]
    assert await left_behind(db) == 0


@pytest.mark.direct
async def test_constraints_set_immediate_twice_take_the_lock_and_what_follows_is_bounded(start_node, connect, db):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        async with app.transaction():
            await app.execute("SET statement_timeout = '3s'")
            await node.sio.emit("1", connection=app)
            await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            assert await db.fetchval(LOCKED) == 1
            assert await app.fetchval("SHOW lock_timeout") == "2s"
            assert await app.fetchval("SHOW statement_timeout") == "3s"  # what is stricter stays
            assert await app.fetchval("SHOW idle_in_transaction_session_timeout") == "10s"
            if app.get_server_version().major >= 17:
                assert await app.fetchval("SHOW transaction_timeout") == "20s"
            async with app.transaction():
                await node.sio.emit("2", connection=app)
            transaction = app.transaction()
            await transaction.start()
            await node.sio.emit("no", connection=app)
            await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await transaction.rollback()
            await node.sio.emit("3", connection=app)
        assert await app.fetchval("SHOW lock_timeout") == "0"
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["1"], ["2"], ["3"]]
    assert await left_behind(db) == 0


async def test_a_savepoint_with_set_constraints_in_it_may_roll_back(start_node, connect, db):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        async with app.transaction():
            await node.sio.emit("1", connection=app)
            for times in (1, 2):
                savepoint = app.transaction()
                await savepoint.start()
                for _ in range(times):
                    await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
                await savepoint.rollback()
            await node.sio.emit("2", connection=app)
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["1"], ["2"]]
    assert await left_behind(db) == 0


@pytest.mark.direct
async def test_a_prepared_transaction_is_postgresqls_own_error():
    """Whatever it would append: prepared, it would hold the log's lock."""
    with EmbeddedPostgres(settings={"max_prepared_transactions": "2"}) as pg:
        await asyncio.to_thread(migrate.upgrade, pg.dsn())
        app, db = await asyncpg.connect(pg.dsn()), await asyncpg.connect(pg.dsn())
        await db.execute("""INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
                            VALUES (1, '', '/', 's', 0, 0)""")
        changing = {
            "an event": lambda: emit_async(app, "x"),
            "an event whose key is taken by then": lambda: emit_async(app, "x", key="k"),
            "a change": lambda: enter_room_async(app, "s", "r"),
            "a change that changes nothing": lambda: leave_room_async(app, "s", "other"),
        }
        for name, change in changing.items():
            await app.execute("BEGIN")
            await change()
            if "key" in name:
                await emit_async(db, "x", key="k")
            with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
                await app.execute("PREPARE TRANSACTION 'sio'")
            assert await left_behind(db) == 0
        assert await db.fetchval("SELECT count(*) FROM sio_packets") == 1
        await app.close()
        await db.close()


@pytest.mark.direct
async def test_a_commit_that_carries_an_event_is_durable(connect, db):
    """Clients will have seen it: in a trigger of the application's, that runs in the commit and after ours."""
    app = await connect()
    await db.execute("""
        CREATE TABLE seen (value text);
        CREATE TABLE t (id integer);
        CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id > 2 THEN INSERT INTO seen VALUES (current_setting('synchronous_commit'));
            ELSE UPDATE t SET id = NEW.id + 1; END IF;
            RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION t()""")
    for setting, then in (("off", "on"), ("local", "local")):
        await app.execute(f"SET synchronous_commit = {setting}; DELETE FROM t")
        async with app.transaction():
            await emit_async(app, "x")
            await app.execute("INSERT INTO t VALUES (0)")
        assert await db.fetchval("DELETE FROM seen RETURNING value") == then


# -- isolation ---------------------------------------------------------------------------------------------
ISOLATIONS = ["read_committed", "repeatable_read", "serializable"]


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_an_old_snapshot_appends_in_order(start_node, connect, isolation):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        await node.sio.emit("0")
        async with app.transaction(isolation=isolation):
            await app.fetchval("SELECT count(*) FROM pg_class")  # the snapshot
            await node.sio.emit("2", connection=app)
            await node.sio.emit("1")
        async with app.transaction(isolation=isolation):
            await node.sio.emit("3", connection=app)
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["0"], ["1"], ["2"], ["3"]]


async def test_serializable_transactions_do_not_fail_each_other(start_node, connect, db):
    """What they read of ours, none of the others writes: also after a VACUUM, when the outbox looks small."""
    node = await start_node()
    apps = [await connect() for _ in range(6)]
    await emit_async(apps[0], "first")
    await db.execute("VACUUM sio_outbox")
    met = asyncio.Barrier(len(apps))

    async def work(app):
        for _ in range(10):
            async with app.transaction(isolation="serializable"):
                await emit_async(app, "x")
                await met.wait()  # all are open at once, and have written
                await emit_async(app, "x")

    async with node.client() as wire:
        await asyncio.gather(*map(work, apps))
        await node.sio.emit("end")
        assert (await wire.events_until("end")).count(["x"]) == 120


@pytest.mark.direct
async def test_a_snapshot_older_than_an_epoch_fails_to_be_tried_again(start_node, connect, db):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        await node.sio.emit("before")
        with pytest.raises(asyncpg.SerializationError):
            async with app.transaction(isolation="repeatable_read"):
                await db.execute("DELETE FROM sio_marker")  # as a crash, or a promotion
                await app.fetchval("SELECT count(*) FROM pg_class")
                await node.sio.emit("x", connection=app)
                await node.sio.emit("plain")  # begins the epoch
        async with app.transaction(isolation="repeatable_read"):
            await node.sio.emit("x", connection=app)
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["before"], ["plain"], ["x"]]


@pytest.mark.direct
async def test_an_event_of_a_transaction_begins_an_epoch_where_one_is_due(connect, db):
    app = await connect()
    await emit_async(app, "x")
    before = await db.fetchval("SELECT max(epoch) FROM sio_epochs")
    await db.execute("DELETE FROM sio_marker")
    await emit_async(app, "y")
    assert await db.fetchval("SELECT max(epoch) FROM sio_epochs") == before + 1
    assert await db.fetchval('SELECT max("offset") >> 40 FROM sio_packets') == before + 1


# -- sizes -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [100, 7_400, 7_590, 7_700, 8_100, 60_000, 66_000, 3_000_000])
@pytest.mark.parametrize("binary", [False, True])
async def test_of_any_size_live_and_replayed(start_node, connect, size, binary):
    node, other = await start_node(), await start_node()
    app = await connect()
    data = bytes(size) if binary else '"ü' * (size // 4)

    async def came(wire):
        frame = await wire.recv()
        if binary:
            assert frame.startswith('51-["big",{"_placeholder":true,"num":0},"')
            assert await wire.recv() == data
        else:
            assert data.replace('"', '\\"').replace("ü", "\\u00fc") in frame

    async with other.client() as wire, other.client() as away:
        await node.sio.emit("x")
        await wire.event()
        await away.event()
        await away.drop()
        await node.sio.emit("big", data, connection=app)
        await came(wire)
        async with node.client(pid=away.pid, offset=away.offset) as again:
            await came(again)


# -- everything at once ------------------------------------------------------------------------------------
@pytest.mark.direct
async def test_32_writers_what_is_committed_comes_in_the_order_of_the_commits(start_node, connect, db):
    """Half in transactions of random length, a third of them rolled back; at two nodes, and at a client that
    recovers in the middle. One commit is before another if it was done when the other was asked for.
    """
    a, b = await start_node(), await start_node()
    dice = random.Random(68)
    apps = [await connect() for _ in range(32)]
    commits: dict[tuple[int, int], tuple[float, float]] = {}  # (writer, turn): asked for, done
    met = asyncio.Event()

    async def write(number, app):
        for turn in range(12):
            await asyncio.sleep(dice.random() / 100)
            if turn == 8:
                await met.wait()
            if number % 2:
                asked = time.perf_counter()
                await dice.choice([a, b]).sio.emit("e", (number, turn, 0))
                commits[number, turn] = asked, time.perf_counter()
                continue
            transaction = app.transaction(isolation=dice.choice(ISOLATIONS))
            await transaction.start()
            for i in range(dice.randint(1, 4)):
                await emit_async(app, "e", (number, turn, i))
                await asyncio.sleep(dice.random() / 100)
            if dice.random() < 1 / 3:
                await transaction.rollback()
            else:
                asked = time.perf_counter()
                await transaction.commit()
                commits[number, turn] = asked, time.perf_counter()

    async def follow(wire):
        return [tuple(e[1:]) for e in await wire.events_until("end")]

    async with a.client() as one, b.client() as two, a.client() as moving:
        following = [asyncio.create_task(follow(wire)) for wire in (one, two)]
        writing = asyncio.gather(*(write(*each) for each in enumerate(apps)))
        got = [tuple((await moving.event())[1:]) for _ in range(40)]
        await moving.drop()
        events = "SELECT count(*) FROM sio_packets WHERE kind = 0"
        await until_answer(lambda: db.fetchval(events), lambda count: count >= 150)  # it misses some of them
        async with b.client(pid=moving.pid, offset=moving.offset) as again:
            assert again.sid == moving.sid
            met.set()  # and gets some of it live
            rest = asyncio.create_task(follow(again))
            await writing
            await a.sio.emit("end")
            first, second = await asyncio.gather(*following)
            got += await rest

    assert first == second == got
    assert len(first) == len(set(first))
    assert {(writer, turn) for writer, turn, _ in first} == commits.keys()
    units = list(dict.fromkeys((writer, turn) for writer, turn, _ in first))
    assert [i for _, _, i in first] == [i for unit in units for i in range(sum(e[:2] == unit for e in first))]
    latest = 0.0
    for unit in units:
        asked, done = commits[unit]
        assert done > latest, "one came before another that was committed earlier"
        latest = max(latest, asked)
    assert await left_behind(db) == 0
