"""Rooms, session data and names: in effect when a call returns, on any node, and for sessions that are away."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter import AsyncNamespace, AsyncPostgresManager, NotSerializable, PayloadTooLarge, StoreUnavailable
from support.asgi_client import AsgiClient
from support.waiting import until_answer


async def sessions(db) -> int:
    return await db.fetchval("SELECT count(*) FROM sio_sessions")


# -- rooms and session data --------------------------------------------------------------------------------------
async def test_cases_18_19_rooms_and_data_are_there_before_the_handler_runs(start_node):
    a, b = await start_node(), await start_node()
    seen = []
    for node in (a, b):

        @node.sio.event
        async def connect(sid, environ, auth, sio=node.sio):
            seen.append((sorted(sio.rooms(sid)), await sio.get_session(sid)))

    async with a.client() as wire:
        await a.sio.enter_room(wire.sid, "x")
        async with a.sio.session(wire.sid) as session:
            session["v"] = 1
        await wire.drop()
        async with b.client(pid=wire.pid) as again:
            assert seen[1:] == [(sorted([wire.sid, "x"]), {"v": 1})]
            await b.sio.save_session(again.sid, {"v": 2})
            assert await a.sio.get_session(wire.sid) == {"v": 2}
            await again.drop()
        async with a.client(pid=wire.pid) as once_more:
            assert seen[2:] == [(sorted([wire.sid, "x"]), {"v": 2})] and once_more.sid == wire.sid


@pytest.mark.parametrize("room", [42, ("a", 1), b"x", "a\0", "x" * 513])
async def test_case_32_a_room_that_is_no_name_is_refused_at_the_call(start_node, room):
    node = await start_node()
    async with node.client() as wire:
        sio, sid = node.sio, wire.sid
        for call in (
            lambda: sio.enter_room(sid, room),
            lambda: sio.leave_room(sid, room),
            lambda: sio.close_room(room),
            lambda: sio.emit("e", room=room),
            lambda: sio.emit("e", to=room),
            lambda: sio.emit("e", skip_sid=room),
        ):
            with pytest.raises((NotSerializable, PayloadTooLarge)):
                await call()
        await wire.drop()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid


async def test_case_32_a_room_called_0_is_not_everybody(start_node):
    node = await start_node()
    async with node.client() as wire:
        with pytest.raises(NotSerializable):
            await node.sio.emit("e", to=0)
        await node.sio.emit("end")
        assert await wire.events_until("end") == []


async def test_case_32_a_session_that_is_not_json_is_refused_by_its_key(start_node):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.save_session(wire.sid, {"v": 1})
        with pytest.raises(NotSerializable, match=r"\['user'\]"):
            await node.sio.save_session(wire.sid, {"user": object()})
        with pytest.raises(NotSerializable, match=r"\['user'\]"):
            async with node.sio.session(wire.sid) as session:
                session["user"] = object()
        assert await node.sio.get_session(wire.sid) == {"v": 1}


async def test_case_32_a_session_saved_in_the_connect_handler_that_is_not_json(start_node, db):
    node = await start_node()
    raised = []

    @node.sio.event
    async def connect(sid, environ, auth):
        try:
            await node.sio.save_session(sid, {"user": object()})
        except NotSerializable as e:
            raised.append(str(e))

    async with node.client() as wire:
        assert raised and wire.pid is not None


async def test_case_103_entering_a_room_again_in_the_handler_keeps_what_was_missed(start_node):
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.enter_room(sid, "x")

    async with node.client() as wire:
        await wire.drop()
        await node.sio.emit("e", 1, room="x")
        async with node.client(pid=wire.pid) as again:
            assert await again.event() == ["e", 1]


async def test_case_104_leaving_a_room_in_the_handler_drops_what_was_missed_there(start_node):
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        if environ["sio_pg.recovered"]:
            await node.sio.leave_room(sid, "x")

    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        await node.sio.emit("e", 1, room="x")
        await wire.event()
        await wire.drop()
        await node.sio.emit("e", 2, room="x")
        await node.sio.emit("e", 3)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            await node.sio.emit("e", 4, room="x")
            await node.sio.emit("end")
            assert await again.events_until("end") == [["e", 3]]
            assert node.sio.rooms(again.sid) == [again.sid]


async def test_a_room_entered_left_and_entered_in_the_first_handler_is_kept(start_node):
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        if not environ["sio_pg.recovered"]:
            await node.sio.enter_room(sid, "x")
            await node.sio.leave_room(sid, "x")
            await node.sio.enter_room(sid, "x")

    async with node.client() as wire:
        await wire.drop()
        await node.sio.emit("e", room="x")
        async with node.client(pid=wire.pid) as again:
            assert await again.event() == ["e"]
            assert sorted(node.sio.rooms(again.sid)) == sorted([again.sid, "x"])


async def test_case_30_moves_of_a_session_that_is_away_from_any_node(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        for room in ("x", "y", "z"):
            await a.sio.enter_room(wire.sid, room)
        await wire.drop()
        await b.sio.emit("e", 1, room="x")
        await b.sio.leave_room(wire.sid, "x")
        await b.sio.emit("e", 2, room="x")
        await a.sio.emit("e", 3, room="new")
        await b.sio.enter_room(wire.sid, "new")
        await a.sio.emit("e", 4, room="new")
        await b.sio.close_room("y")
        await a.sio.emit("e", 5, room="y")
        await b.sio.save_session(wire.sid, {"v": 1})
        with pytest.raises(KeyError):
            await b.sio.save_session("nobody", {})
        assert sorted(await b.sio.fetch_rooms(wire.sid)) == sorted([wire.sid, "z", "new"])
        async with b.client(pid=wire.pid) as again:
            await a.sio.emit("end")
            assert await again.events_until("end") == [["e", 1], ["e", 4]]
            assert sorted(b.sio.rooms(again.sid)) == sorted([wire.sid, "z", "new"])


async def test_case_110_what_a_call_returned_from_is_in_the_row(start_node, db):
    node = await start_node()
    rooms = "SELECT room FROM sio_rooms WHERE left_at IS NULL ORDER BY room"
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        assert [r[0] for r in await db.fetch(rooms)] == ["x"]
        await node.sio.enter_room(wire.sid, "y")
        await node.sio.leave_room(wire.sid, "x")
        assert [r[0] for r in await db.fetch(rooms)] == ["y"]
        await node.sio.save_session(wire.sid, {"v": 1})
        assert await db.fetchval("SELECT data FROM sio_sessions") == '{"v":1}'
        await node.sio.disconnect(wire.sid)
        assert await sessions(db) == 0


async def test_case_114_a_class_based_namespace_with_volatile(start_node):
    node = await start_node()

    class Chat(AsyncNamespace):
        async def on_say(self, sid, data):
            await self.emit("v", data, volatile=True)
            await self.emit("e", data, to=sid)

    node.sio.register_namespace(Chat("/chat"))
    async with node.client("/chat") as wire:
        wire.send('2/chat,["say","x"]')
        assert await wire.recv() == '2/chat,["v","x",null]'
        assert await wire.event("/chat") == ["e", "x"]


async def test_case_79_a_write_only_manager_emits_and_closes(start_node, pg_dsn):
    node = await start_node()
    async with node.client() as wire:
        async with AsyncPostgresManager(pg_dsn, write_only=True) as writer:
            await writer.emit("e", (1, b"a"), room=wire.sid)
            await writer.emit("e", 2, namespace="/", skip_sid="nobody")
            await writer.emit("v", 3, volatile=True)
        assert (await wire.recv()).startswith('51-["e",1,') and await wire.recv() == b"a"
        assert await wire.event() == ["e", 2]
        assert await wire.recv() == '2["v",3]'
        with pytest.raises(StoreUnavailable, match="closed"):
            await writer.emit("e", None)


@pytest.mark.parametrize("recovery", [True, False])
async def test_the_room_of_a_client_that_connects_is_its_own(start_node, recovery):
    node = await start_node(recovery=recovery)
    entered, may_go_on = asyncio.Event(), asyncio.Event()
    newcomers = []

    async with node.client() as other:

        @node.sio.event
        async def connect(sid, environ, auth):
            newcomers.append(sid)
            entered.set()
            await may_go_on.wait()

        async with AsgiClient(node.sio) as wire:
            wire.send("0")
            await entered.wait()
            (sid,) = newcomers
            for work in (
                node.sio.enter_room(other.sid, sid),
                node.sio.sockets_join(other.sid, sid),
                node.sio.close_room(sid),
            ):
                with pytest.raises(ValueError, match="a sid room"):
                    await work
            await node.sio.emit("secret", to=sid, volatile=True)
            may_go_on.set()
            assert (await wire.recv()).startswith("0{")
            await node.sio.emit("secret", to=sid)
            await node.sio.emit("end", volatile=True)
            assert (await wire.recv()).startswith('2["secret"')
            assert (await other.recv()).startswith('2["end"')


@pytest.mark.parametrize("recovery", [True, False])
async def test_a_client_of_another_node_cannot_stay_in_the_room_of_a_sid(start_node, db, recovery):
    """The store does not know the sid while its connect is being decided, and never without a session."""
    node, elsewhere = await start_node(recovery=recovery), await start_node()
    entered, may_go_on = asyncio.Event(), asyncio.Event()
    newcomers = []

    @node.sio.event
    async def connect(sid, environ, auth):
        newcomers.append(sid)
        entered.set()
        await may_go_on.wait()

    async with elsewhere.client() as other, AsgiClient(node.sio) as client:
        client.send("0")
        await entered.wait()
        (sid,) = newcomers
        for enter in (
            lambda: elsewhere.sio.enter_room(other.sid, sid),
            lambda: elsewhere.sio.sockets_join(other.sid, sid),
            lambda: db.execute("SELECT sio_enter_room($1, sid => $2)", sid, other.sid),
            lambda: db.execute("SELECT sio_enter_room($1, room => $2)", sid, other.sid),
        ):
            await enter()
            await until_answer(lambda: elsewhere.sio.fetch_rooms(other.sid), lambda rooms: sid not in rooms)
        await elsewhere.sio.close_room(sid)
        may_go_on.set()
        assert (await client.recv()).startswith("0{")
        await node.sio.emit("secret", to=sid)
        assert (await client.recv()).startswith('2["secret"')
        await elsewhere.sio.emit("end", to=other.sid)
        assert (await other.event()) == ["end"]
