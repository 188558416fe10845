"""Events that skip the members of a room: live, for sessions that are away, and in a replay."""

from __future__ import annotations

import asyncio

import asyncpg
import psycopg
import pytest
import socketio

from integration.test_floors import expire
from sio_pg_adapter import AsyncNamespace, AsyncPostgresManager, emit, emit_async
from sio_pg_adapter.errors import NotSerializable
from sio_pg_adapter.log.records import Kind
from support.asgi_client import AsgiClient


@pytest.mark.parametrize("cut", [False, True], ids=["live", "away"])
@pytest.mark.parametrize("in_memory", [True, False], ids=["from memory", "from the table"])
async def test_replay_skips_whom_live_delivery_skipped(start_node, cut, in_memory, monkeypatch):
    """Members of the room as of each event, whatever they did before and after it."""
    if not in_memory:
        monkeypatch.setattr("sio_pg_adapter.local.recent.RECENT_RECORDS", 1)
    a, b = await start_node(), await start_node()
    async with b.client() as wire, b.client() as other:
        for sid in (wire.sid, other.sid):
            await a.sio.enter_room(sid, "r")
        await b.sio.emit("begin")
        for one in (wire, other):
            await one.events_until("begin")
        if cut:
            await wire.drop()
        await a.sio.emit("e", 1, room="r", skip_room="muted")
        await a.sio.enter_room(wire.sid, "muted")
        await b.sio.emit("e", 2, room="r", skip_room="muted")
        await b.sio.emit("e", 3, skip_room=["nobody's", "muted"])
        await a.sio.emit("e", 4, room="r", skip_room="nobody's")
        await a.sio.emit("e", 5, room=["r", wire.sid], skip_room="muted")
        await a.sio.leave_room(wire.sid, "muted")
        await b.sio.emit("e", 6, room="r", skip_room="muted")
        await b.sio.emit("e", 7, room="r", skip_room="r")
        await b.sio.emit("e", 8, room="r", skip_room=wire.sid)
        await b.sio.emit("e", 9, room="r", skip_room=["", None])
        await b.sio.emit("e", ["x" * 8_000], room="r", skip_room="muted")  # beyond a notification
        await b.sio.send("m", room="r", skip_room="r")
        await a.sio.emit("end")
        due = [["e", n] for n in (1, 4, 6, 9)] + [["e", ["x" * 8_000]]]
        assert await other.events_until("end") == [["e", n] for n in (1, 2, 3, 4, 5, 6, 8, 9)] + due[-1:]
        if not cut:
            assert await wire.events_until("end") == due
            return
        async with a.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert await again.events_until("end") == due


async def test_a_room_that_the_handler_of_a_recovery_leaves_skips_nobody_from_its_offset_on(start_node):
    """As a room that it leaves there sends nothing from its offset on."""
    node = await start_node()
    leaves: list[str] = []

    @node.sio.event
    async def connect(sid, environ):
        for room in leaves:
            await node.sio.leave_room(sid, room)

    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "muted")
        await node.sio.emit("unseen", skip_room="muted")
        await node.sio.emit("begin")
        assert await wire.events_until("begin") == []
        await wire.drop()
        await node.sio.emit("e", 1, skip_room="muted")
        await node.sio.emit("end")
        leaves.append("muted")
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert await again.events_until("end") == [["e", 1]]


async def test_a_room_entered_from_a_position_skips_from_there_on(start_node):
    node = await start_node()
    since: list[str] = []

    @node.sio.event
    async def connect(sid, environ):
        for position in since:
            await node.sio.enter_room(sid, "doc", since=position)
            await node.sio.enter_room(sid, "muted", since=position)

    since.append(await node.sio.position())
    await node.sio.emit("e", 1, room="doc", skip_room="muted")
    await node.sio.emit("e", 2, room="doc")
    async with node.client() as wire:
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["e", 2]]


@pytest.mark.parametrize("relay", [False, True])
async def test_events_of_transactions_skip_those_who_are_members_at_the_commit(start_node, pg_owner_dsn, db, relay):
    """By SQL, by a trigger, by psycopg and by asyncpg: an event before the room change, and one after it."""
    await db.execute("SELECT sio_set_relay($1)", relay)
    node = await start_node()
    connection = await asyncpg.connect(pg_owner_dsn)
    await connection.execute("""
        CREATE TABLE posts (id integer);
        CREATE FUNCTION posted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM sio_emit('posted', to_json(NEW.id), room => 'r', skip_rooms => ARRAY['muted']);
            RETURN NULL;
        END $$;
        CREATE TRIGGER posted AFTER INSERT ON posts FOR EACH ROW EXECUTE FUNCTION posted()""")
    async with node.client() as wire, node.client() as other:
        for sid in (wire.sid, other.sid):
            await node.sio.enter_room(sid, "r")
        await node.sio.emit("begin")
        await wire.events_until("begin")
        await wire.drop()
        async with connection.transaction():
            await connection.execute("INSERT INTO posts VALUES (1)")
            await connection.execute("SELECT sio_enter_room('muted', sid => $1)", wire.sid)
            await connection.execute("INSERT INTO posts VALUES (2)")
            await emit_async(connection, "posted", 3, room="r", skip_room="muted")
            await node.sio.emit("posted", 4, room="r", skip_room=["muted"], connection=connection)
            await node.sio.leave_room(wire.sid, "muted", connection=connection)
            await connection.execute("INSERT INTO posts VALUES (5)")
        with psycopg.connect(pg_owner_dsn) as sync:
            emit(sync, "posted", 6, room="r", skip_room="muted")
        await node.sio.emit("end")
        assert await other.events_until("end") == [["begin"], *(["posted", n] for n in range(1, 7))]
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert await again.events_until("end") == [["posted", n] for n in (1, 5, 6)]
        await node.sio.enter_room(other.sid, "muted")
        await connection.execute("INSERT INTO posts VALUES (7)")
        await emit_async(connection, "posted", 8, room="r", skip_room="muted")
        await emit_async(connection, "end")
        assert await other.events_until("end") == []
    await connection.close()


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_members_of_a_room_that_is_skipped_neither_move_nor_leave(start_node, db, pg_dsn, in_transaction):
    a, b = await start_node(), await start_node(recovery=None)
    app = await asyncpg.connect(pg_dsn)
    how = {"connection": app} if in_transaction else {}
    async with a.client() as here, a.client() as away, a.client() as kept, b.client() as plain, b.client() as muted:
        for wire in (kept, away):
            await a.sio.enter_room(wire.sid, "muted")
        await b.sio.enter_room(muted.sid, "muted")
        await away.drop()
        await a.sio.sockets_join(None, "x", skip_room=["muted", "nobody's"], **how)
        await a.sio.sockets_join(None, "y", **how)
        await a.sio.sockets_leave(None, "y", skip_room="muted", **how)
        rows = await db.fetch("SELECT sid, room FROM sio_rooms r JOIN sio_sessions s ON s.id = r.session"
                              " WHERE left_at IS NULL AND room <> 'muted'")  # fmt: skip
        assert {tuple(row) for row in rows} == {(here.sid, "x"), (away.sid, "y"), (kept.sid, "y")}
        await a.sio.emit("end")
        assert await plain.recv() == await muted.recv() == '2["end"]'
        assert b.sio.rooms(plain.sid) == [plain.sid, "x"] and set(b.sio.rooms(muted.sid)) == {muted.sid, "muted", "y"}
        await a.sio.disconnect_sockets(None, skip_room="muted", **how)
        assert {row["sid"] for row in await db.fetch("SELECT sid FROM sio_sessions")} == {away.sid, kept.sid}
        await a.sio.emit("last")
        assert await muted.recv() == '2["last"]'
        assert await kept.events_until("last") == [["end"]]
        assert await plain.recv() == "1"
    await app.close()


async def test_unstored_events_and_questions_skip_members_too(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as here, b.client() as there, b.client() as muted:
        await a.sio.enter_room(muted.sid, "muted")
        await a.sio.emit("e", 1, skip_room="muted", volatile=True)
        await b.sio.emit("e", 2, skip_room="muted", ignore_queue=True)
        calling = asyncio.create_task(a.sio.broadcast_call("q", skip_room="muted", timeout=20))
        for wire in (here, there):
            while "q" not in (frame := await wire.recv()):
                pass
            wire.send(f"3{frame[1 : frame.index('[')]}[]")
        assert (await calling).keys() == {here.sid, there.sid}
        await a.sio.emit("end")
        assert await muted.events_until("end") == []


async def test_from_a_process_that_only_emits_a_namespace_and_a_plain_server(start_node, pg_dsn):
    node = await start_node()

    class Chat(AsyncNamespace):
        async def on_shout(self, sid, text):
            await self.emit("e", text, skip_room="muted")
            await self.send(text, skip_room="muted")

    node.sio.register_namespace(Chat("/"))
    plain = socketio.AsyncServer(
        async_mode="asgi", client_manager=AsyncPostgresManager(pg_dsn), monitor_clients=False
    )
    async with (
        AsyncPostgresManager(pg_dsn, write_only=True) as writer,
        node.client() as wire,
        node.client() as muted,
        AsgiClient(plain) as other,
        AsgiClient(plain) as other_muted,
    ):
        await other.connect()
        sid, _ = await other_muted.connect()
        await plain.enter_room(sid, "muted")
        await node.sio.enter_room(muted.sid, "muted")
        await writer.emit("e", 1, skip_room="muted")
        wire.send('2["shout",2]')
        assert [await wire.event() for _ in range(3)] == [["e", 1], ["e", 2], ["message", 2]]
        await writer.emit("end", None)
        assert await muted.events_until("end") == []
        assert [await other.recv() for _ in range(4)] == ['2["e",1]', '2["e",2]', '2["message",2]', '2["end"]']
        assert await other_muted.recv() == '2["end"]'
    await plain.shutdown()
    await plain.manager.aclose()


@pytest.mark.parametrize("name", [7, ["m", 7], b"m"])
async def test_a_name_that_is_no_text_is_refused_by_the_name_of_the_argument(start_node, name):
    node = await start_node()
    calls = [
        lambda: node.sio.emit("e", skip_room=name),
        lambda: node.sio.emit("e", skip_room=name, volatile=True),
        lambda: node.sio.broadcast_call("e", skip_room=name),
        lambda: node.sio.sockets_join(None, "x", skip_room=name),
        lambda: node.sio.sockets_leave(None, "x", skip_room=name),
        lambda: node.sio.disconnect_sockets(None, skip_room=name),
    ]
    for call in calls:
        with pytest.raises(NotSerializable, match="skip_room"):
            await call()


# -- memberships that are not stored any more ---------------------------------------------------------------------
async def test_a_client_whose_membership_of_a_skipped_room_is_forgotten_gets_a_new_session(store, db):
    held = await store.open()
    await store.move(Kind.ENTER, "s", "x")
    before = await store.emit("x")
    await store.move(Kind.ENTER, "s", "muted")
    skipped = await store.emit("x", skip_rooms=("muted",))
    await store.move(Kind.LEAVE, "s", "muted")
    for _ in range(101):
        await store.move(Kind.ENTER, "s", "toggled")
        await store.emit("x", skip_rooms=("of others",))
        await store.move(Kind.LEAVE, "s", "toggled")
    await store.move(Kind.ENTER, "s", "toggled")
    assert await db.fetchval("SELECT count(*) FROM sio_rooms WHERE room = 'muted'") == 0
    assert skipped in await store.due(held, before)  # what must not happen
    assert (await store.claim(after=before)).lost is True
    assert (await store.claim(after=skipped)).lost is False


@pytest.mark.parametrize("whole", [False, True], ids=["row by row", "a segment"])
async def test_a_deleted_event_counts_as_missed_even_if_it_skipped_a_room_of_the_client(store, db, pg_dsn, whole):
    """The client's handler may leave the room as of the client's offset, and the event is due then."""
    start = await store.emit()
    await store.open(start=start)
    await store.move(Kind.ENTER, "s", "muted")
    skipped = await store.emit(skip_rooms=("muted",))
    await expire(db, pg_dsn, whole=whole)
    assert (await store.claim(after=start)).lost is True
    assert (await store.claim(after=skipped)).lost is False
