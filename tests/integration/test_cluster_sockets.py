"""Who is there, on all nodes; and rooms whose members are moved or disconnected all at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
import socketio

from integration.test_presence import vanish
from sio_pg_adapter import (
    AsyncNamespace,
    AsyncPostgresManager,
    ConfigurationError,
    NoAnswer,
    RemoteSocket,
)
from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.store.reader import LogReader
from support.asgi_client import AsgiClient
from support.waiting import until


def hang(node) -> None:
    """The node is there, and answers nothing: as one whose process is stopped."""
    node.manager.node.messages.receive = lambda *_: None


# -- server_count ----------------------------------------------------------------------------------------------
async def test_nodes_are_counted_by_the_locks_that_show_that_they_live(start_node, start_store):
    a = await start_node()
    assert await a.sio.server_count() == 1
    b, c = await start_node(), await start_node(recovery=None)
    await start_store()  # which only writes
    assert [await node.sio.server_count() for node in (a, b, c)] == [3, 3, 3]
    await c.sio.shutdown()
    assert await a.sio.server_count() == 2
    await vanish(b)
    assert await a.sio.server_count() == 1


def fields(socket: RemoteSocket) -> tuple:
    return socket.sid, socket.namespace, socket.rooms, socket.session, socket.node, socket.recovered


# -- fetch_sockets -----------------------------------------------------------------------------------------------
async def test_fetch_sockets_tells_of_all_nodes(start_node):
    a, b = await start_node(namespaces="*"), await start_node(namespaces="*")
    async with a.client() as one, b.client() as two, b.client("/ns") as other:
        await b.sio.enter_room(one.sid, "x")
        await a.sio.enter_room(two.sid, "x")
        await a.sio.enter_room(two.sid, "y")
        await a.sio.save_session(two.sid, {"user": 2})  # of another node's client: only the tables have it
        expected = [
            (one.sid, "/", (one.sid, "x"), {}, a.manager.node.id, False),
            (two.sid, "/", (two.sid, "x", "y"), {"user": 2}, b.manager.node.id, False),
        ]
        for node in (a, b):
            assert sorted(map(fields, await node.sio.fetch_sockets()), key=expected.index) == expected
            local = await node.sio.fetch_sockets(local=True)
            assert list(map(fields, local)) == [s for s in expected if s[4] == node.manager.node.id]
            assert await node.sio.fetch_sockets("y", local=True) == (local if node is b else [])
            assert {s.sid for s in await node.sio.fetch_sockets("x")} == {one.sid, two.sid}
            assert list(map(fields, await node.sio.fetch_sockets("y"))) == expected[1:]
            several = list(map(fields, await node.sio.fetch_sockets(["y", one.sid, "nobody"])))
            assert several in (expected, expected[::-1])
            assert await node.sio.fetch_sockets("nobody") == []
            assert [s.sid for s in await node.sio.fetch_sockets(namespace="/ns")] == [other.sid]


@pytest.mark.parametrize("recovery", [True, None])
async def test_the_handshake_is_that_of_the_connection_without_the_secrets_of_recovery(start_node, recovery):
    a, b = await start_node(), await start_node(recovery=recovery)
    presented = {"token": "t", "deep": [1, {"a": None}]}
    async with b.client(**presented) as wire, b.client() as bare:
        by_sid = {socket.sid: socket for socket in await a.sio.fetch_sockets()}
        handshake = by_sid[wire.sid].handshake
        assert handshake.auth == presented and by_sid[bare.sid].handshake.auth is None
        assert handshake.headers == {"host": "test", "upgrade": "websocket", "connection": "upgrade"}
        assert handshake.query == {"EIO": "4", "transport": "websocket"} and handshake.address == "127.0.0.1"
        connected_at = b.manager.clients.current(wire.sid, "/").connected_at
        assert handshake.time == datetime.fromtimestamp(connected_at, UTC)
        [same] = await b.sio.fetch_sockets(wire.sid)
        assert same.handshake == handshake
        if recovery is None:
            return
        await b.sio.emit("e")
        await wire.event()
        await wire.drop()
        async with a.client(pid=wire.pid, offset=wire.offset, **presented) as again:
            [found] = await b.sio.fetch_sockets(wire.sid)
            assert again.sid == found.sid and found.recovered
            assert found.handshake.auth == presented and found.handshake.time > handshake.time
            assert again.pid not in repr(found.handshake) and wire.offset not in repr(found.handshake)


async def test_the_methods_of_a_socket_act_on_it_wherever_it_is(start_node, db):
    a, b = await start_node(namespaces="*"), await start_node(namespaces="*")
    async with b.client("/ns") as wire, b.client("/ns") as other:
        [socket] = await a.sio.fetch_sockets(wire.sid, namespace="/ns")
        await socket.emit("e", 1)
        await socket.join("x")
        await socket.join(["y", "z"])
        await socket.leave("y")
        await socket.emit("e", 2, skip_room="x")
        await a.sio.emit("end", namespace="/ns")
        assert await wire.events_until("end", "/ns") == [["e", 1]]
        assert await other.events_until("end", "/ns") == []
        assert set(await a.sio.fetch_rooms(wire.sid, "/ns")) == {wire.sid, "x", "z"}
        await wire.drop()
        await socket.disconnect()  # its session, while it is away
        assert [row["sid"] for row in await db.fetch("SELECT sid FROM sio_sessions")] == [other.sid]


async def test_who_is_away_is_not_there_until_it_is_back(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        await a.sio.enter_room(wire.sid, "x")
        await wire.drop()
        assert await b.sio.fetch_sockets("x") == []
        async with b.client(pid=wire.pid):
            [found] = await a.sio.fetch_sockets("x")
            assert (found.sid, found.node, found.recovered) == (wire.sid, b.manager.node.id, True)


async def test_clients_without_recovery_are_told_of_with_the_session_that_json_can_hold(start_node):
    a, b = await start_node(), await start_node(recovery={"accepts": lambda *_: False})
    async with b.client() as one, b.client() as two:
        assert one.pid is None
        await b.sio.save_session(one.sid, {"v": 1})
        await b.sio.save_session(two.sid, {"v": object})
        await a.sio.enter_room(one.sid, "x")
        found = {s.sid: s for s in await a.sio.fetch_sockets()}
        assert found[one.sid].session == {"v": 1} and found[one.sid].rooms == (one.sid, "x")
        assert found[two.sid].session is None
        assert {s.sid: s.session for s in await b.sio.fetch_sockets()}[two.sid] == {"v": object}


async def test_one_that_moves_from_node_to_node_is_told_of_once_as_the_newer_claim_has_it(start_node):
    a, b, c = await start_node(), await start_node(), await start_node()
    asked, receive = [], b.manager.node.messages.receive
    async with a.client() as old:
        b.manager.node.messages.receive = asked.append
        asking = asyncio.create_task(c.sio.fetch_sockets())
        await until(lambda: [g for g in c.manager.node.requests._pending.values() if a.manager.node.id in g.answers])
        await until(lambda: asked)
        async with b.client(pid=old.pid) as new:
            receive(*asked)
            [found] = await asking
            assert (found.sid, found.node, found.recovered) == (new.sid, b.manager.node.id, True)


async def test_what_the_asker_has_seen_of_the_log_the_others_have_seen_when_they_answer(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        reading, release = asyncio.Event(), asyncio.Event()
        read = b.manager.node.reader.range

        async def held_up(after, limit):
            reading.set()
            await release.wait()
            return await read(after, limit)

        b.manager.node.reader.range = held_up
        await a.sio.enter_room(wire.sid, "x")
        await reading.wait()
        asking = asyncio.create_task(a.sio.fetch_sockets("x"))
        await until(lambda: b.manager.node.cursor._waiting)
        assert not asking.done()
        release.set()
        assert [s.sid for s in await asking] == [wire.sid]


async def test_many_sockets_are_more_than_a_notification(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        rooms = [f"{i:03}" + "x" * 200 for i in range(60)]
        for room in rooms:
            await b.sio.enter_room(wire.sid, room)
        [found] = await a.sio.fetch_sockets()
        assert found.rooms == (wire.sid, *rooms)


async def test_a_session_that_has_just_ended_is_not_there(start_node, db):
    a, b = await start_node(), await start_node()
    async with b.client() as wire, b.client() as other:
        await db.execute("DELETE FROM sio_sessions WHERE sid = $1", wire.sid)
        assert [s.sid for s in await a.sio.fetch_sockets()] == [other.sid]


async def test_a_node_that_is_just_starting_answers_when_it_has(start_node, monkeypatch):
    a = await start_node()
    starting, release, head = asyncio.Event(), asyncio.Event(), LogReader.head

    async def held_up(self):
        starting.set()
        await release.wait()
        return await head(self)

    async with a.client() as wire:
        await a.sio.emit("e")
        assert await wire.event() == ["e"]
        monkeypatch.setattr(LogReader, "head", held_up)
        start = asyncio.create_task(start_node())
        await starting.wait()
        asking = asyncio.create_task(a.sio.server_side_call("e", timeout=20))
        await until(lambda: len(a.manager.node.requests._pending))
        assert await a.sio.server_count() == 2
        release.set()
        await start
        assert await asking == {}


async def test_a_node_that_is_there_and_silent_is_named_and_the_others_are_told_of(start_node):
    a, b, c = await start_node(), await start_node(), await start_node()
    hang(c)
    async with a.client() as one, b.client() as two, c.client():
        with pytest.raises(NoAnswer, match=c.manager.node.id) as error:
            await a.sio.fetch_sockets(timeout=0.3)
        assert error.value.missing == error.value.missing_nodes == [c.manager.node.id]
        assert {s.sid for s in error.value.answers} == {one.sid, two.sid}
        assert len(a.manager.node.requests._pending) == 0


async def test_a_node_of_another_version_that_does_not_know_the_request_is_named_at_once(start_node):
    a, b = await start_node(), await start_node()
    del b.manager.node.requests._services["sockets"]
    async with a.client() as wire, b.client():
        with pytest.raises(NoAnswer) as error:
            await a.sio.fetch_sockets(timeout=3600)
        assert error.value.missing == [b.manager.node.id]
        assert [s.sid for s in error.value.answers] == [wire.sid]


async def test_a_node_that_goes_while_it_is_waited_for_is_waited_for_no_longer(start_node):
    a, b = await start_node(), await start_node()
    hang(b)
    async with a.client() as wire:
        asking = asyncio.create_task(a.sio.fetch_sockets(timeout=3600))
        await until(lambda: len(a.manager.node.requests._pending))
        await vanish(b)
        assert [s.sid for s in await asking] == [wire.sid]


@pytest.mark.parametrize("timeout", [0, -1, None, True, "5", float("inf"), float("nan")])
async def test_a_timeout_that_is_none_is_refused(start_node, timeout):
    node = await start_node()
    with pytest.raises(ConfigurationError, match="timeout"):
        await node.sio.fetch_sockets(timeout=timeout)


# -- members of rooms are moved --------------------------------------------------------------------------------------
async def test_case_30_members_enter_and_leave_those_away_too(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as here, b.client() as there, b.client() as away, a.client() as other:
        for wire in (here, there, away):
            await a.sio.enter_room(wire.sid, "x")
        await away.drop()
        await b.sio.emit("e", 1, room="y")
        await b.sio.sockets_join("x", ["y", "z"])
        await a.sio.emit("e", 2, room="y")
        await a.sio.sockets_leave("x", "y", skip_sid=there.sid)
        await b.sio.emit("e", 3, room="y")
        await b.sio.emit("e", 4, room="z")
        await a.sio.sockets_leave("x", "x")
        await a.sio.emit("e", 5, room="x")
        await a.sio.emit("end")
        async with a.client(pid=away.pid) as back:
            assert back.sid == away.sid
            for wire, due in ((here, [2, 4]), (there, [2, 3, 4]), (back, [2, 4]), (other, [])):
                assert [args for _, args in await wire.events_until("end")] == due
        assert await b.sio.fetch_rooms(here.sid) == [here.sid, "z"]
        assert sorted(await a.sio.fetch_rooms(there.sid)) == sorted([there.sid, "y", "z"])


async def test_everybody_of_a_namespace_is_moved_and_nobody_of_another(start_node):
    a, b = await start_node(namespaces="*"), await start_node(namespaces="*")
    async with a.client() as one, b.client() as two, b.client("/ns") as other:
        await b.sio.sockets_join(None, "all")
        assert await a.sio.fetch_rooms(one.sid) == [one.sid, "all"]
        assert await a.sio.fetch_rooms(two.sid) == [two.sid, "all"]
        assert await a.sio.fetch_rooms(other.sid, "/ns") == [other.sid]
        await a.sio.sockets_join(two.sid, "own")  # a sid is a room
        assert sorted(await a.sio.fetch_rooms(two.sid)) == sorted([two.sid, "all", "own"])
        assert await a.sio.fetch_rooms(one.sid) == [one.sid, "all"]


@pytest.mark.parametrize("recovery", [None, {"accepts": lambda *_: False}])
async def test_members_without_recovery_move_and_go_too(start_node, recovery):
    a, b = await start_node(recovery=recovery), await start_node(recovery=recovery)
    async with a.client() as one, b.client() as two, b.client() as other:
        for wire in (one, two):
            await a.sio.enter_room(wire.sid, "x")
        await until(lambda: "x" in b.sio.rooms(two.sid))
        await a.sio.sockets_join("x", "y")
        assert {s.sid for s in await b.sio.fetch_sockets("y")} == {one.sid, two.sid}
        await b.sio.disconnect_sockets("y")
        for wire in (one, two):
            assert await wire.recv() == "1"
        assert [s.sid for s in await a.sio.fetch_sockets()] == [other.sid]


async def test_a_plain_servers_clients_go_by_room_too(start_node, pg_dsn):
    a = await start_node(recovery=None)
    plain = socketio.AsyncServer(
        async_mode="asgi", client_manager=AsyncPostgresManager(pg_dsn), monitor_clients=False
    )
    try:
        async with AsgiClient(plain) as wire:
            sid, _ = await wire.connect()
            await plain.enter_room(sid, "x")
            await a.sio.disconnect_sockets("x")
            assert await wire.recv() == "1"
            assert await a.sio.fetch_sockets() == []
    finally:
        await plain.shutdown()
        await plain.manager.aclose()


async def test_one_whose_connect_is_being_decided_is_moved_or_goes(start_node):
    a, b = await start_node(), await start_node()
    entered, release = asyncio.Event(), asyncio.Event()
    sids = []

    @b.sio.event
    async def connect(sid, environ, auth):
        await b.sio.enter_room(sid, "x")
        sids.append(sid)
        entered.set()
        await release.wait()

    async with AsgiClient(b.sio) as wire:
        wire.send("0")
        await entered.wait()
        assert await a.sio.fetch_sockets() == await b.sio.fetch_sockets() == []
        await a.sio.sockets_join("x", "y")
        release.set()
        await wire.recv()
        assert sorted(await a.sio.fetch_rooms(sids[0])) == sorted([sids[0], "x", "y"])
    entered.clear()
    release.clear()
    async with AsgiClient(b.sio) as wire:
        wire.send("0")
        await entered.wait()
        await a.sio.disconnect_sockets("x")
        release.set()
        assert (await wire.recv()).startswith("4")  # CONNECT_ERROR, as no CONNECT came before it
        assert await a.sio.fetch_sockets() == []


async def test_it_counts_from_one_place_in_the_log(start_node, db):
    """Nothing comes in between. A client that entered earlier is moved, whichever append waits for the lock."""
    a, b = await start_node(), await start_node()
    async with a.client() as one, b.client() as two, b.client() as late:
        for wire in (one, two):
            await a.sio.enter_room(wire.sid, "x")
        transaction = db.transaction()
        await transaction.start()
        await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
        entering = asyncio.create_task(b.sio.enter_room(late.sid, "x"))
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'sio_lock'::regclass AND NOT granted"
        while await db.fetchval(waiting) < 1:
            pass
        joining = asyncio.create_task(a.sio.sockets_join("x", "y"))
        while await db.fetchval(waiting) < 2:
            pass
        emitting = asyncio.create_task(b.sio.emit("e", room="y"))
        await transaction.rollback()
        await asyncio.gather(entering, joining, emitting)
        rows = await db.fetch('SELECT kind, sid, room FROM sio_packets ORDER BY "offset" DESC LIMIT 5')
        tail = [(Kind(row["kind"]), row["sid"], row["room"]) for row in reversed(rows)]
        assert tail[0] == (Kind.ENTER, late.sid, "x")
        assert sorted(tail[1:4]) == sorted((Kind.ENTER, wire.sid, "y") for wire in (one, two, late))
        assert tail[4] == (Kind.EVENT, None, "y")
        for wire in (one, two, late):
            assert await wire.event() == ["e"]


async def test_a_room_that_is_a_clients_own_is_refused_and_nobody_moves(start_node, db):
    a, b = await start_node(), await start_node()
    async with a.client() as one, b.client() as two, b.client() as away:
        await away.drop()
        await a.sio.enter_room(one.sid, "x")
        before = await db.fetchval("SELECT count(*) FROM sio_packets")
        for sid in (two.sid, away.sid):
            with pytest.raises(ValueError, match="sid room"):
                await a.sio.sockets_join("x", ["y", sid])
        assert await db.fetchval("SELECT count(*) FROM sio_packets") == before
        assert await b.sio.fetch_rooms(one.sid) == [one.sid, "x"]
        await a.sio.enter_room(two.sid, "x")
        await a.sio.emit("end")
        assert await one.event() == ["end"]


async def test_so_is_the_own_room_of_a_client_without_recovery(start_node):
    node = await start_node(recovery=None)
    async with node.client() as one, node.client() as two:
        with pytest.raises(ValueError, match="sid room"):
            await node.sio.sockets_join(one.sid, two.sid)
        assert node.sio.rooms(one.sid) == [one.sid]


@pytest.mark.parametrize("room", ["", [], (), [""]])
async def test_a_room_without_a_name_is_refused_and_nobody_is_moved(start_node, room):
    node = await start_node()
    async with node.client() as wire:
        for work in (
            node.sio.emit("e", room=room),
            node.sio.broadcast_call("e", room=room),
            node.sio.fetch_sockets(room),
            node.sio.sockets_join(room, "x"),
            node.sio.sockets_leave(room, "x"),
            node.sio.disconnect_sockets(room),
        ):
            with pytest.raises(ConfigurationError, match="room takes one name or several, or None for everybody"):
                await work
        assert node.sio.rooms(wire.sid) == [wire.sid]
        await node.sio.emit("end")
        assert await wire.events_until("end") == []


@pytest.mark.parametrize("rooms", [None, [], "", ["", None]])
async def test_rooms_that_name_none_are_refused(start_node, rooms):
    node = await start_node()
    for work in (node.sio.sockets_join("x", rooms), node.sio.sockets_leave("x", rooms)):
        with pytest.raises(ConfigurationError, match="rooms"):
            await work


async def test_disconnect_by_room_ends_sessions_for_good_those_away_too(start_node, db):
    a, b = await start_node(), await start_node()
    gone = []

    @b.sio.event
    async def disconnect(sid, reason):
        gone.append((sid, reason))

    async with a.client() as one, b.client() as two, b.client() as away, a.client() as stays, a.client() as other:
        for wire in (one, two, away, stays):
            await a.sio.enter_room(wire.sid, "x")
        await away.drop()
        gone.clear()
        await a.sio.disconnect_sockets("x", skip_sid=stays.sid)
        assert {row["sid"] for row in await db.fetch("SELECT sid FROM sio_sessions")} == {stays.sid, other.sid}
        assert await one.recv() == await two.recv() == "1"
        await until(lambda: gone)
        assert gone == [(two.sid, "server disconnect")]
        for wire in (two, away):
            async with a.client(pid=wire.pid) as again:
                assert again.sid != wire.sid
        await b.sio.disconnect_sockets(None)
        assert await stays.recv() == await other.recv() == "1"
        assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_a_session_whose_time_is_up_is_left_to_its_expiry_handlers(start_node, db):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        await wire.drop()
        await db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp() - interval '1 s'")
        for room in ("x", wire.sid, None):
            await node.sio.disconnect_sockets(room)
        with pytest.raises(KeyError, match=wire.sid):
            await node.sio.save_session(wire.sid, {"late": True})
        assert await db.fetchval("SELECT count(*) FROM sio_sessions WHERE data = '{}'") == 1


async def test_where_nobody_is_nothing_is_written(start_node, db):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.sockets_join("nobody", ["x", "y"])
        await node.sio.sockets_leave(wire.sid, wire.sid)
        await node.sio.sockets_join(None, "x", skip_sid=wire.sid)
        await node.sio.disconnect_sockets("x")
        assert await db.fetchval("SELECT count(*) FROM sio_packets") == 0


async def test_a_silent_node_is_named_and_all_that_is_in_the_tables_has_moved(start_node, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.cluster.members.UNSTORED_WAIT", 0.3)
    a, b = await start_node(), await start_node()
    hang(b)
    async with a.client() as one, b.client() as two:
        await a.sio.enter_room(one.sid, "x")
        await a.sio.enter_room(two.sid, "x")
        with pytest.raises(NoAnswer) as error:
            await a.sio.sockets_join("x", "y")
        assert error.value.missing == [b.manager.node.id]
        await a.sio.emit("e", room="y")
        assert await one.event() == await two.event() == ["e"]


async def test_a_namespaces_methods_are_of_its_own(start_node):
    node = await start_node()

    class Chat(AsyncNamespace):
        async def on_go(self, sid):
            await self.sockets_join(None, "x")
            found = [s.sid for s in await self.fetch_sockets("x")]
            assert self.recovered(sid) is False
            await self.emit("found", found, sid, None, None, None)
            await self.emit("elsewhere", namespace="/")
            await self.sockets_leave("x", "x")
            await self.emit("rooms", await self.fetch_rooms(sid), room=sid)
            await self.disconnect_sockets(sid)

    node.sio.register_namespace(Chat("/chat"))
    async with node.client("/chat") as wire, node.client() as other:
        wire.send('2/chat,["go"]')
        assert await wire.event("/chat") == ["found", [wire.sid]]
        assert await wire.event("/chat") == ["rooms", [wire.sid]]
        assert await wire.recv() == "1/chat,"
        assert await other.event() == ["elsewhere"]
    assert Chat.fetch_sockets.__doc__ == type(node.sio).fetch_sockets.__doc__


async def terminate_who_waits(superuser) -> None:
    """End the backend that waits for a lock, as soon as one does; return when it is gone."""
    ended = (
        "SELECT pid, pg_terminate_backend(pid) FROM pg_locks "
        "WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    while not (waiting := await superuser.fetch(ended)):
        pass
    while await superuser.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", waiting[0]["pid"]):
        await superuser.execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees the view as it first saw it


async def test_a_move_whose_connection_is_lost_before_its_commit_is_done_again(start_node, db, superuser):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        async with db.transaction():
            await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            moving = asyncio.create_task(node.sio.sockets_join("x", "y"))
            await terminate_who_waits(superuser)
        await moving
        assert sorted(await node.sio.fetch_rooms(wire.sid)) == sorted([wire.sid, "x", "y"])


async def test_a_move_whose_connection_is_lost_in_its_commit_is_found_out_and_done_again(start_node, db, superuser):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        await db.execute("""
            CREATE FUNCTION wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER wait_in_commit AFTER INSERT ON sio_packets_0 DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW WHEN (NEW.room = 'y') EXECUTE FUNCTION wait_in_commit()
        """)
        await db.execute("SELECT pg_advisory_lock(77)")
        moving = asyncio.create_task(node.sio.sockets_join("x", "y"))
        await terminate_who_waits(superuser)
        await db.execute("SELECT pg_advisory_unlock(77)")
        await moving
        assert sorted(await node.sio.fetch_rooms(wire.sid)) == sorted([wire.sid, "x", "y"])


async def test_a_move_that_nobody_waits_for_any_more_leaves_the_writer_in_order(start_node):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        moving = asyncio.create_task(node.sio.sockets_join("x", "y"))
        await until(lambda: node.manager.node.writer._waiting)
        moving.cancel()
        await node.sio.emit("e", room="x")
        assert await wire.event() == ["e"]
        assert sorted(await node.sio.fetch_rooms(wire.sid)) == sorted([wire.sid, "x", "y"])
