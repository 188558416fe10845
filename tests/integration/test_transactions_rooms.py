"""Room changes and disconnects in the application's own transaction: in effect if and when it commits."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest
import socketio

from sio_pg_adapter import (
    AsyncNamespace,
    AsyncPostgresManager,
    ConfigurationError,
    NotSerializable,
    PayloadTooLarge,
    disconnect_async,
    emit_async,
    enter_room_async,
    leave_room_async,
)
from support.asgi_client import AsgiClient
from support.waiting import until_answer

SQL = {
    "sio_enter_room(sid)": "SELECT sio_enter_room('doc', sid => $1)",
    "sio_enter_room(room)": "SELECT sio_enter_room('doc', room => 'user:' || left($1, 0))",
    "sio_leave_room(sid)": "SELECT sio_leave_room('doc', sid => $1)",
    "sio_leave_room(room)": "SELECT sio_leave_room('doc', room => 'user:' || left($1, 0))",
    "sio_close_room": "SELECT sio_close_room('doc') WHERE $1::text IS NOT NULL",
    "sio_disconnect(sid)": "SELECT sio_disconnect($1)",
    "sio_disconnect(room)": "SELECT sio_disconnect(room => 'user:' || left($1, 0))",
}
METHODS = {
    "enter_room": lambda sio, sid, app: sio.enter_room(sid, "doc", connection=app),
    "sockets_join": lambda sio, _sid, app: sio.sockets_join("user:", ["doc"], connection=app),
    "enter_room_async": lambda _sio, sid, app: enter_room_async(app, sid, "doc"),
    "enter_room_async(members)": lambda _sio, _sid, app: enter_room_async(app, room="doc", members_of="user:"),
    "leave_room": lambda sio, sid, app: sio.leave_room(sid, "doc", connection=app),
    "sockets_leave": lambda sio, _sid, app: sio.sockets_leave(["user:"], "doc", connection=app),
    "close_room": lambda sio, _sid, app: sio.close_room("doc", connection=app),
    "disconnect": lambda sio, sid, app: sio.disconnect(sid, connection=app),
    "disconnect_sockets": lambda sio, _sid, app: sio.disconnect_sockets("user:", connection=app),
}
CHANGES = {name: lambda _sio, sid, app, text=text: app.execute(text, sid) for name, text in SQL.items()} | METHODS
ENTERING = [name for name in CHANGES if "enter" in name or "join" in name]
ENDING = [name for name in CHANGES if "disconnect" in name]
LEAVING = [name for name in CHANGES if name not in ENTERING and name not in ENDING]
CLOSING = [name for name in CHANGES if "close" in name]


@pytest.fixture(autouse=True)
def both(transfer):
    """Run each test with and without the relay, except those about commits that append."""


async def moved(db):
    """Wait until the relay has moved everything that is committed."""
    await until_answer(lambda: db.fetchval("SELECT count(*) = 0 FROM sio_relay WHERE fault IS NULL"))


async def members(db):
    await moved(db)
    rows = await db.fetch("""SELECT s.sid, r.room FROM sio_sessions s JOIN sio_rooms r ON r.session = s.id
                             WHERE left_at IS NULL""")
    return {tuple(row) for row in rows}


async def records(db):
    await moved(db)
    return await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind <> 0")


async def left_behind(db):
    return await db.fetchval("SELECT (SELECT count(*) FROM sio_outbox) + (SELECT count(*) FROM sio_outbox_changes)")


# -- commit, in order, at two nodes and for sessions that are away ---------------------------------------------
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_takes_its_place_among_the_events_of_its_transaction(start_node, connect, db, change):
    """It concerns readers at another node and readers that are away, and not a bystander."""
    a, b = await start_node(), await start_node()
    app = await connect()
    async with a.client() as bystander, b.client() as reader, b.client() as away:
        for client in (reader, away):
            await a.sio.enter_room(client.sid, "user:")
            if change not in ENTERING:
                await a.sio.enter_room(client.sid, "doc")
        if change not in ENTERING:
            await a.sio.enter_room(bystander.sid, "doc")
        await a.sio.emit("x", to=away.sid)
        await away.event()
        await away.drop()

        async with app.transaction():
            await a.sio.emit("before", room="doc", connection=app)
            for client in (reader, away):
                await CHANGES[change](a.sio, client.sid, app)
            await a.sio.emit("after", room="doc", connection=app)
        assert await left_behind(db) == 0
        await b.sio.emit("later", room="doc")
        await b.sio.emit("end")

        rooms = {(client.sid, "user:") for client in (reader, away)}
        if change in ENTERING:
            expected = [["after"], ["later"]]
            rooms |= {(client.sid, "doc") for client in (reader, away)}
        else:
            expected = [["before"]]
        if change in ENDING:
            assert await reader.event() == ["before"]
            assert await reader.recv() == "1"
            assert {sid for sid, _ in await members(db)} == {bystander.sid}
            async with a.client(pid=away.pid, offset=away.offset) as again:
                assert again.sid != away.sid
            async with a.client(pid=reader.pid, offset=reader.offset) as again:
                assert again.sid != reader.sid
        else:
            assert await reader.events_until("end") == expected
            if change not in CLOSING and change not in ENTERING:
                rooms.add((bystander.sid, "doc"))
            assert await members(db) == rooms
            async with a.client(pid=away.pid, offset=away.offset) as again:
                assert again.sid == away.sid
                assert await again.events_until("end") == expected
                await b.sio.emit("live", room="doc")
                await b.sio.emit("end")
                assert await again.events_until("end") == ([["live"]] if change in ENTERING else [])
        received = [["before"]] if change in CLOSING else [["before"], ["after"], ["later"]]
        assert await bystander.events_until("end") == ([] if change in ENTERING else received)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_is_rolled_back_is_gone(start_node, connect, db, change):
    a, b = await start_node(), await start_node()
    app = await connect()
    async with b.client() as reader:
        for room in ("user:", *(["doc"] if change not in ENTERING else [])):
            await a.sio.enter_room(reader.sid, room)
        before = await members(db), await records(db)
        with contextlib.suppress(ZeroDivisionError):
            async with app.transaction():
                await CHANGES[change](a.sio, reader.sid, app)
                raise ZeroDivisionError
        async with app.transaction():
            await app.execute("SAVEPOINT one")
            await CHANGES[change](a.sio, reader.sid, app)
            await app.execute("ROLLBACK TO one")
            await a.sio.emit("e", room="doc", connection=app)
        assert (await members(db), await records(db), await left_behind(db)) == (*before, 0)
        await a.sio.emit("end")
        assert await reader.events_until("end") == ([] if change in ENTERING else [["e"]])


@pytest.mark.parametrize("change", CHANGES)
async def test_savepoints_that_are_released_keep_the_order(start_node, connect, db, change):
    a, b = await start_node(), await start_node()
    app = await connect()
    async with b.client() as reader:
        for room in ("user:", *(["doc"] if change not in ENTERING else [])):
            await a.sio.enter_room(reader.sid, room)
        async with app.transaction():
            await a.sio.emit("1", room="doc", connection=app)
            async with app.transaction():
                await a.sio.emit("2", room="doc", connection=app)
                async with app.transaction():
                    await CHANGES[change](a.sio, reader.sid, app)
                await a.sio.emit("3", room="doc", connection=app)
            await a.sio.emit("4", room="doc", connection=app)
        if change in ENDING:
            assert [await reader.event(), await reader.event(), await reader.recv()] == [["1"], ["2"], "1"]
        else:
            await a.sio.emit("end")
            expected = [["3"], ["4"]] if change in ENTERING else [["1"], ["2"]]
            assert await reader.events_until("end") == expected


@pytest.mark.parametrize("when", ["before", "between", "after", "twice"])
@pytest.mark.parametrize("change", ["sio_leave_room(sid)", "sockets_leave"])
async def test_constraints_set_immediate_leave_changes_to_the_commit_in_order(start_node, connect, db, when, change):
    node = await start_node()
    app = await connect()
    async with node.client() as reader:
        for room in ("user:", "doc"):
            await node.sio.enter_room(reader.sid, room)
        async with app.transaction():
            if when == "before":
                await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await node.sio.emit("1", room="doc", connection=app)
            if when == "between":
                await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await CHANGES[change](node.sio, reader.sid, app)
            await node.sio.emit("2", room="doc", connection=app)
            if when in ("after", "twice"):
                await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            if when == "twice":
                await app.execute("SET CONSTRAINTS ALL IMMEDIATE")
            else:
                await node.sio.emit("plain", room="doc")
        await node.sio.emit("end")
        assert await reader.events_until("end") == ([] if when == "twice" else [["plain"]]) + [["1"]]
    assert await left_behind(db) == 0


async def test_a_client_enters_and_leaves_and_goes_in_one_transaction(start_node, connect, db):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        async with app.transaction():
            for name, change in (
                ("1", "enter_room"),
                ("2", "leave_room"),
                ("3", "enter_room"),
                ("4", "sockets_leave"),
            ):
                await node.sio.emit(name, room="doc", connection=app)
                await CHANGES[change](node.sio, wire.sid, app)
                if name == "3":
                    await node.sio.enter_room(wire.sid, "user:", connection=app)
            await node.sio.emit("5", room="doc", connection=app)
            await node.sio.disconnect(wire.sid, connection=app)
            await node.sio.emit("6", to=wire.sid, connection=app)
        assert [await wire.event(), await wire.event(), await wire.recv()] == [["2"], ["4"], "1"]
    await moved(db)
    assert await db.fetchval("SELECT count(*) FROM sio_rooms") == 0


@pytest.mark.parametrize("change", ["enter_room", "leave_room", "enter_room_async(members)", "close_room"])
async def test_a_change_that_changes_nothing_keeps_memberships_as_they_are(start_node, connect, db, change):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "user:")
        if change in ENTERING:
            await node.sio.enter_room(wire.sid, "doc")
        rows = await db.fetch("SELECT * FROM sio_rooms")
        announced, offer = set(), node.manager.node.cursor.offer
        node.manager.node.cursor.offer = lambda prev, last, records: (announced.add(last), offer(prev, last, records))
        await db.execute("SELECT nextval('sio_packets_offset_seq')")  # an append that was rolled back
        await CHANGES[change](node.sio, wire.sid, app)
        assert await db.fetch("SELECT * FROM sio_rooms") == rows
        await emit_async(db, "end")
        await wire.events_until("end")
        assert announced <= {0, *(row["offset"] for row in await db.fetch("SELECT * FROM sio_packets"))}


# -- whom it reaches -------------------------------------------------------------------------------------------
async def test_the_members_are_those_at_the_commit(start_node, connect, db):
    node = await start_node()
    app = await connect()
    async with node.client() as early, node.client() as late, node.client() as former:
        for client in (early, late, former):
            await node.sio.enter_room(client.sid, "doc")
        await node.sio.enter_room(former.sid, "user:")
        async with app.transaction():
            await leave_room_async(app, room="doc", members_of="user:")
            await node.sio.enter_room(late.sid, "user:")
            await node.sio.leave_room(former.sid, "user:")
        assert {sid for sid, room in await members(db) if room == "doc"} == {early.sid, former.sid}
        await node.sio.emit("e", room="doc")
        await node.sio.emit("end")
        assert await late.events_until("end") == []
        assert await former.events_until("end") == await early.events_until("end") == [["e"]]


async def test_everybody_but_some_of_one_namespace(start_node, connect, db):
    node = await start_node()
    app = await connect()
    node.sio.on("*", print, namespace="/other")
    async with node.client() as stays, node.client() as goes, node.client("/other") as other:
        await node.sio.sockets_join(None, ["x", "y"], skip_sid=stays.sid, connection=app)
        assert await members(db) == {(goes.sid, "x"), (goes.sid, "y")}
        await node.sio.sockets_leave(None, ["x", "z"], connection=app)
        assert await members(db) == {(goes.sid, "y")}
        await node.sio.emit("e", room=["x", "y"])
        await node.sio.disconnect_sockets(None, skip_sid=[stays.sid], connection=app)
        assert [await goes.event(), await goes.recv()] == [["e"], "1"]
        await node.sio.emit("end")
        await node.sio.emit("end", namespace="/other")
        assert await stays.events_until("end") == []
        assert await other.events_until("end", "/other") == []


@pytest.mark.parametrize("recovery", [None, {"accepts": lambda _environ, _auth: False}])
@pytest.mark.parametrize("change", CHANGES)
async def test_clients_without_a_session_are_reached_by_the_record(start_node, connect, db, change, recovery):
    a, b = await start_node(), await start_node(recovery=recovery)
    app = await connect()
    async with b.client() as reader:
        assert reader.pid is None
        for room in ("user:", *(["doc"] if change not in ENTERING else [])):
            await b.sio.enter_room(reader.sid, room)
        async with app.transaction():
            await a.sio.emit("before", room="doc", connection=app)
            await CHANGES[change](a.sio, reader.sid, app)
            await a.sio.emit("after", room="doc", connection=app)
        await a.sio.emit("end")
        if change in ENDING:
            assert [await reader.recv(), await reader.recv()] == ['2["before"]', "1"]
        else:
            frames = [await reader.recv(), await reader.recv()]
            assert frames == ['2["after"]' if change in ENTERING else '2["before"]', '2["end"]']


async def test_clients_of_a_plain_server_are_reached_by_the_record(start_node, connect, pg_dsn):
    a = await start_node()
    app = await connect()
    plain = socketio.AsyncServer(
        async_mode="asgi", client_manager=AsyncPostgresManager(pg_dsn), monitor_clients=False
    )
    try:
        async with AsgiClient(plain) as wire, AsgiClient(plain) as other:
            (sid, _), (another, _) = await wire.connect(), await other.connect()
            async with app.transaction():
                await enter_room_async(app, sid, "user:")
                await enter_room_async(app, room="doc", members_of=["user:", another])
                await a.sio.emit("1", room="doc", connection=app)
                await leave_room_async(app, another, "doc")
                await a.sio.emit("2", room="doc", connection=app)
                await a.sio.sockets_leave(None, "doc", skip_sid=another, connection=app)
                await a.sio.emit("3", room="doc", connection=app)
                await disconnect_async(app, room="user:")
                await disconnect_async(app, another)
            assert [await wire.recv(), await wire.recv(), await wire.recv()] == ['2["1"]', '2["2"]', "1"]
            assert [await other.recv(), await other.recv()] == ['2["1"]', "1"]
    finally:
        await plain.shutdown()
        await plain.manager.aclose()


@pytest.mark.parametrize("change", CHANGES)
async def test_a_client_whose_connect_is_being_decided_is_reached(start_node, connect, db, change):
    """No session row is there yet, and its node's cursor passes the record before the session is stored."""
    await reach_a_connecting_client(await start_node(), await connect(), db, change, behind=False)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_client_is_reached_whose_node_stores_its_session_before_it_sees_the_change(
    start_node, connect, db, change
):
    await reach_a_connecting_client(await start_node(), await connect(), db, change, behind=True)


async def reach_a_connecting_client(node, app, db, change, *, behind):
    entered, may_go_on = asyncio.Event(), asyncio.Event()
    sids = []

    @node.sio.event
    async def connect(sid, environ, auth):
        for room in ("user:", *(["doc"] if change not in ENTERING else [])):
            await node.sio.enter_room(sid, room)
        sids.append(sid)
        entered.set()
        await may_go_on.wait()

    reading = node.manager.node.reader.range
    may_read = asyncio.Event()

    async def held_up(after, limit):
        await may_read.wait()
        return await reading(after, limit)

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        await entered.wait()
        if behind:
            node.manager.node.reader.range = held_up
        async with app.transaction():
            await CHANGES[change](node.sio, sids[0], app)
            await emit_async(app, "after", room="doc")
        if behind:
            may_go_on.set()
            await node.manager.clients.current(sids[0], "/").opened_or_failed()  # stored, or refused as kicked
            if change not in ENDING:
                await until_answer(lambda: db.fetchval("SELECT count(*) FROM sio_sessions"))
            may_read.set()
        else:
            await moved(db)
            await node.passed(await db.fetchval('SELECT max("offset") FROM sio_packets'))
            may_go_on.set()
        if change in ENDING:
            assert (await wire.recv()).startswith("4")
            await moved(db)
            assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
            return
        assert (await wire.recv()).startswith("0{")
        await node.sio.emit("end")
        assert await wire.events_until("end") == ([["after"]] if change in ENTERING else [])
        expected = {"user:", "doc"} if change in ENTERING else {"user:"}
        assert {room for _, room in await members(db)} == expected
        assert set(node.sio.rooms(sids[0])) == expected | {sids[0]}


async def test_a_claim_that_the_change_overtakes_is_exact(start_node, connect, db):
    """The session is claimed, and its node has not met the claim when the change commits."""
    a, b = await start_node(), await start_node()
    app = await connect()
    async with a.client() as wire:
        for room in ("user:", "doc"):
            await a.sio.enter_room(wire.sid, room)
        await wire.drop()
        entered, may_go_on = asyncio.Event(), asyncio.Event()

        @b.sio.event
        async def connect(sid, environ, auth):
            entered.set()
            await may_go_on.wait()

        async with AsgiClient(b.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await entered.wait()
            async with app.transaction():
                await a.sio.emit("before", room="doc", connection=app)
                await leave_room_async(app, room="doc", members_of="user:")
                await a.sio.emit("after", room="doc", connection=app)
            may_go_on.set()
            assert wire.sid in await again.recv()
            await a.sio.emit("end")
            assert await again.events_until("end") == [["before"]]
            assert set(b.sio.rooms(wire.sid)) == {wire.sid, "user:"}


@pytest.mark.direct
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_right_behind_a_claim_counts_before_the_handler_runs(start_node, connect, db, change):
    """The node has met its claim, and the change with it, before it follows the session's rooms."""
    a, b = await start_node(), await start_node()
    app = await connect()
    async with a.client() as wire:
        for room in ("user:", *(["doc"] if change not in ENTERING else [])):
            await a.sio.enter_room(wire.sid, room)
        await wire.drop()
        cursor = b.manager.node.cursor
        passed = cursor.passed

        async def passed_with_the_change(offset, timeout):
            await CHANGES[change](a.sio, wire.sid, app)
            return await passed(await db.fetchval('SELECT max("offset") FROM sio_packets'), timeout)

        cursor.passed = passed_with_the_change
        handled = []
        b.sio.on("connect", lambda sid, _environ: handled.append(sid))
        async with AsgiClient(b.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            answer = await again.recv()
            cursor.passed = passed
            if change in ENDING:
                assert answer[0] in "14" and handled == []  # both end it for good
                await moved(db)
                assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
                return
            assert wire.sid in answer
            assert set(b.sio.rooms(wire.sid)) - {wire.sid} == {room for _, room in await members(db)}
            await a.sio.emit("e", room="doc")
            await a.sio.emit("end")
            assert await again.events_until("end") == ([["e"]] if change in ENTERING else [])


@pytest.mark.parametrize("behind_the_claim", [True, False])
@pytest.mark.parametrize("in_transaction", [True, False])
async def test_a_session_that_is_spared_goes_on_though_its_client_is_just_coming_back(
    start_node, connect, db, in_transaction, behind_the_claim
):
    """The client is admitted under a sid of its own, which is not spared, and claims its session then."""
    node = await start_node()
    app = await connect() if in_transaction else None
    async with node.client() as wire:
        await wire.drop()
        claim = node.manager.node.sessions.claim

        async def disconnect_the_others():
            await node.sio.disconnect_sockets(None, skip_sid=wire.sid, connection=app)
            await moved(db)
            await node.passed(await db.fetchval('SELECT coalesce(max("offset"), 0) FROM sio_packets'))

        async def claim_meanwhile(*args, **options):
            if not behind_the_claim:
                await disconnect_the_others()
            session = await claim(*args, **options)
            cursor = node.manager.node.cursor
            passed = cursor.passed

            async def passed_meanwhile(*args):
                cursor.passed = passed
                if behind_the_claim:
                    await disconnect_the_others()
                return await passed(*args)

            cursor.passed = passed_meanwhile
            return session

        node.manager.node.sessions.claim = claim_meanwhile
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            assert wire.sid in await again.recv()
            await node.sio.emit("end")
            assert await again.events_until("end") == []


async def test_disconnect_handlers_run_once_with_the_session_data(start_node, connect, db):
    a, b = await start_node(), await start_node()
    app = await connect()
    seen = []

    @b.sio.event
    async def disconnect(sid, reason):
        seen.append((sid, reason, await b.sio.get_session(sid)))

    async with b.client() as one, b.client() as two:
        for i, client in enumerate((one, two)):
            await a.sio.save_session(client.sid, {"v": i})
        await a.sio.enter_room(two.sid, "user:")
        async with app.transaction():
            await a.sio.disconnect(one.sid, connection=app)
            await a.sio.disconnect_sockets("user:", connection=app)
        assert await one.recv() == await two.recv() == "1"
        async with asyncio.timeout(20):
            while len(seen) < 2:
                await asyncio.sleep(0.01)
    reason = "server disconnect"
    assert sorted(seen) == sorted([(one.sid, reason, {"v": 0}), (two.sid, reason, {"v": 1})])


async def test_ten_thousand_members_are_one_record(start_node, connect, db):
    node = await start_node()
    app = await connect()
    await db.execute("""
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at, expires_at)
        SELECT i, int4send(i), '/', 's' || i, 0, 0, 'infinity' FROM generate_series(1, 10000) i;
        INSERT INTO sio_rooms (session, room, joined_at, namespace)
        SELECT i, r, 0, '/' FROM generate_series(1, 10000) i, unnest(ARRAY['user:', 'doc']) r""")
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "user:")
        before = await records(db)
        await leave_room_async(app, room="doc", members_of="user:")
        await enter_room_async(app, room="new", members_of="user:")
        assert await records(db) == before + 2
        await moved(db)
        assert await db.fetchval("SELECT count(*) FROM sio_rooms WHERE room = 'new'") == 10_001
        await moved(db)
        assert await db.fetchval("SELECT count(*) FROM sio_rooms WHERE room = 'doc' AND left_at IS NULL") == 0
        await disconnect_async(app, room="user:")
        assert await wire.recv() == "1"
        await moved(db)
        assert await db.fetchval("SELECT (SELECT count(*) FROM sio_rooms) + (SELECT count(*) FROM sio_sessions)") == 0


# -- refused ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_stricter_transaction_is_refused_by_name_at_the_call(start_node, connect, db, change, isolation):
    node = await start_node()
    app = await connect()
    async with node.client() as wire:
        for room in ("user:", "doc"):
            await node.sio.enter_room(wire.sid, room)
        before = await members(db), await records(db)
        with pytest.raises(asyncpg.InvalidTransactionStateError, match="READ COMMITTED"):
            async with app.transaction(isolation=isolation):
                await CHANGES[change](node.sio, wire.sid, app)
        assert (await members(db), await records(db)) == before


async def test_a_handler_does_not_change_the_client_that_it_decides_about(start_node, connect):
    node = await start_node()
    app = await connect()
    refused = []

    @node.sio.event
    async def connect(sid, environ, auth):
        for work in (node.sio.leave_room(sid, "doc", connection=app), node.sio.disconnect(sid, connection=app)):
            with pytest.raises(ConfigurationError, match="connect is being decided") as e:
                await work
            refused.append(str(e.value).partition("(")[0])
        await node.sio.leave_room("somebody else", "doc", connection=app)

    async with node.client():
        assert refused == ["leave_room", "disconnect"]


@pytest.mark.parametrize("recovered", [False, True])
async def test_a_handler_enters_what_it_read_before_a_revocation_can_commit(start_node, connect, db, recovered):
    """As in docs/permissions.md: it locks the rows, so the revocation comes behind it, and finds the client."""
    node = await start_node()
    app, other = await connect(), await connect()
    await db.execute("CREATE TABLE readers (doc text); INSERT INTO readers VALUES ('doc')")
    reads, read, may_go_on = not recovered, asyncio.Event(), asyncio.Event()

    async def revoke():
        async with other.transaction():
            await other.execute("DELETE FROM readers")
            await leave_room_async(other, room="doc", members_of="user:ada")
            await emit_async(other, "secret", room="doc")

    async def connect(sid, environ, auth):
        await node.sio.enter_room(sid, "user:ada")
        if reads:
            async with app.transaction():
                rows = await app.fetch("SELECT doc FROM readers FOR SHARE")
                read.set()
                await may_go_on.wait()
                for [doc] in rows:
                    await node.sio.enter_room(sid, doc, connection=app)
                await emit_async(app, "allowed", room="doc")

    node.sio.on("connect", connect)
    async with contextlib.AsyncExitStack() as stack:
        presented = ""
        if recovered:
            former = await stack.enter_async_context(node.client())
            await former.drop()
            presented, reads = f'{{"pid":"{former.pid}"}}', True
        wire = await stack.enter_async_context(AsgiClient(node.sio))
        wire.send(f"0{presented}")
        await read.wait()
        revoking = asyncio.create_task(revoke())
        await until_answer(lambda: db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        may_go_on.set()
        assert (await wire.recv()).startswith("0{")
        await revoking
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["allowed"]]
        assert {room for _, room in await members(db)} == {"user:ada"}


@pytest.mark.parametrize("recovery", [True, False])
async def test_the_own_room_of_another_client_is_refused(start_node, connect, db, recovery):
    node = await start_node(recovery=recovery)
    app = await connect()
    async with node.client() as one, node.client() as two:
        for work in (
            node.sio.enter_room(one.sid, two.sid, connection=app),
            node.sio.close_room(two.sid, connection=app),
            node.sio.sockets_join(one.sid, [two.sid], connection=app),
        ):
            with pytest.raises(ValueError, match="a sid room"):
                await work
        if recovery:
            for text in (
                f"sio_enter_room('{two.sid}', sid => '{one.sid}')",
                f"sio_enter_room('{two.sid}', room => 'user:')",
                f"sio_close_room('{two.sid}')",
            ):
                with pytest.raises(asyncpg.InvalidParameterValueError, match="own room of a client"):
                    await app.execute(f"SELECT {text}")
        await node.sio.enter_room(one.sid, one.sid, connection=app)  # as without connection=
        await node.sio.leave_room(one.sid, one.sid, connection=app)
        assert await records(db) == 0


@pytest.mark.direct
async def test_a_sid_that_takes_a_rooms_name_before_the_commit_fails_the_commit(start_node, connect, db):
    node = await start_node()
    app = await connect()
    node.sio.eio.generate_id = lambda: "chosen"
    async with AsgiClient(node.sio) as wire:
        with pytest.raises(asyncpg.InvalidParameterValueError, match="own room of a client"):
            async with app.transaction():
                await enter_room_async(app, "another", "chosen")
                await wire.connect()
    assert await records(db) == 0


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda sio, app: sio.enter_room("s", 7, connection=app), NotSerializable, "^room takes text"),
        (lambda sio, app: sio.enter_room("s", ["r"], connection=app), NotSerializable, "^room takes text"),
        (lambda sio, app: sio.close_room(["r"], connection=app), NotSerializable, "^room takes text"),
        (lambda sio, app: sio.enter_room(7, "r", connection=app), NotSerializable, "^sid takes text"),
        (lambda sio, app: sio.enter_room("s", "", connection=app), ConfigurationError, "^room takes a name"),
        (lambda sio, app: sio.leave_room("", "r", connection=app), ConfigurationError, "sid that is not empty"),
        (lambda sio, app: sio.leave_room(None, "r", connection=app), ConfigurationError, "as sid="),
        (lambda sio, app: sio.leave_room("s", "r", 7, connection=app), NotSerializable, "^namespace takes text"),
        (lambda sio, app: sio.close_room("x" * 513, connection=app), PayloadTooLarge, "^room has 513 bytes"),
        (lambda sio, app: sio.disconnect(7, connection=app), NotSerializable, "^sid takes text"),
        (lambda sio, app: sio.disconnect("s", ignore_queue=True, connection=app), ConfigurationError, "ignore_queue"),
        (lambda sio, app: sio.disconnect_sockets([], connection=app), ConfigurationError, "^room takes"),
        (lambda sio, app: sio.sockets_join("r", [], connection=app), ConfigurationError, "^rooms takes"),
        (lambda _sio, app: enter_room_async(app, "s"), ConfigurationError, "as room="),
        (lambda _sio, app: enter_room_async(app, room="r"), ConfigurationError, "members_of="),
        (lambda _sio, app: enter_room_async(app, "s", "r", members_of="u"), ConfigurationError, "members_of="),
        (lambda _sio, app: leave_room_async(app, room="r", members_of=[]), ConfigurationError, "^members_of takes"),
        (lambda _sio, app: leave_room_async(app, room="r", members_of=7), NotSerializable, "^members_of takes text"),
        (lambda _sio, app: disconnect_async(app), ConfigurationError, "as room="),
        (lambda _sio, app: disconnect_async(app, room=""), ConfigurationError, "^room takes"),
        (lambda _sio, app: disconnect_async(app, "s", schema="a\0"), ConfigurationError, "schema"),
        (lambda sio, _app: sio.enter_room("s", "r", connection="dsn"), ConfigurationError, "asyncpg Connection"),
        (lambda sio, _app: sio.disconnect_sockets("r", connection=7), ConfigurationError, "asyncpg Connection"),
    ],
)
async def test_a_wrong_argument_is_named_before_anything_is_stored(start_node, connect, db, call, error, says):
    node = await start_node()
    app = await connect()
    async with app.transaction():
        with pytest.raises(error, match=says):
            await call(node.sio, app)
        await app.execute("SELECT 1")  # the transaction goes on
    assert await records(db) == 0


# -- through other classes -------------------------------------------------------------------------------------
async def test_the_methods_of_a_namespace_and_of_a_manager_without_a_server(start_node, connect, db, pg_dsn):
    node = await start_node()
    app = await connect()
    node.sio.register_namespace(AsyncNamespace("/ns"))
    namespace = node.sio.namespace_handlers["/ns"]
    writer = AsyncPostgresManager(pg_dsn, write_only=True)  # not started: the application's connection is enough
    async with node.client("/ns") as wire:
        await namespace.enter_room(wire.sid, "a", connection=app)
        await writer.enter_room(wire.sid, "/ns", "b", connection=app)
        await namespace.sockets_join("a", ["c", "d"], connection=app)
        assert await members(db) == {(wire.sid, room) for room in "abcd"}
        await namespace.leave_room(wire.sid, "a", connection=app)
        await writer.leave_room(wire.sid, "/ns", "b", connection=app)
        await namespace.sockets_leave("d", "c", connection=app)
        await writer.close_room("d", "/ns", connection=app)
        assert await members(db) == set()
        with contextlib.suppress(ZeroDivisionError):
            async with app.transaction():
                await writer.disconnect(wire.sid, "/ns", connection=app)
                await namespace.disconnect(wire.sid, connection=app)
                await namespace.disconnect_sockets(wire.sid, connection=app)
                raise ZeroDivisionError
        await node.sio.emit("end", namespace="/ns")
        assert await wire.events_until("end", "/ns") == []
        await writer.disconnect(wire.sid, "/ns", connection=app)
        assert await wire.recv() == "1/ns,"
