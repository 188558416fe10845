"""The server option by option: recovery on, off, for some, and under a plain python-socketio server."""

from __future__ import annotations

import socketio

from sio_pg_adapter import AsyncPostgresManager
from support.asgi_client import AsgiClient
from support.waiting import until


async def sessions(db) -> int:
    return await db.fetchval("SELECT count(*) FROM sio_sessions")


async def test_case_1_connect_and_its_answer(start_node):
    node = await start_node()
    async with node.client() as one, node.client() as two:
        assert len({one.sid, one.pid, two.sid, two.pid}) == 4
        assert all(isinstance(value, str) and value for value in (one.sid, one.pid))


async def test_case_2_recovery_off_gives_no_pid_and_writes_no_session(start_node, db):
    node = await start_node(recovery=None)
    seen = []

    @node.sio.event
    async def connect(sid, environ, auth):
        seen.append(auth)

    async with node.client(pid="p", offset="o") as wire:
        assert wire.pid is None
        await node.sio.enter_room(wire.sid, "x")
        await node.sio.emit("e", "v", room="x")
        assert await wire.recv() == '2["e","v"]'
        await node.sio.emit("v", "w", volatile=True)
        assert await wire.recv() == '2["v","w"]'
        await node.sio.save_session(wire.sid, {"any": object})
    assert seen == [{"pid": "p", "offset": "o"}]  # as upstream has it
    assert await sessions(db) == 0
    assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind NOT IN (0)") == 0


async def test_case_2_a_plain_server_with_our_manager(pg_dsn, start_node):
    node = await start_node()
    plain = socketio.AsyncServer(
        async_mode="asgi", client_manager=AsyncPostgresManager(pg_dsn), monitor_clients=False
    )
    left = []

    @plain.event
    async def connect(sid, environ):
        await plain.enter_room(sid, "x")

    @plain.event
    async def disconnect(sid, reason):
        left.append((sid, reason, plain.rooms(sid)))

    try:
        async with AsgiClient(plain) as wire:
            sid, pid = await wire.connect()
            assert pid is None
            await node.sio.emit("e", "v", room="x")
            assert await wire.recv() == '2["e","v"]'
            await plain.emit("e", 1, to=sid)
            assert await wire.recv() == '2["e",1]'
            assert sorted(plain.rooms(sid)) == sorted([sid, "x"])
            await node.sio.disconnect(sid)
            assert await wire.recv() == "1"
            await until(lambda: left)
    finally:
        await plain.manager.aclose()
        await plain.shutdown()


async def test_a_slow_client_of_a_plain_server_is_disconnected_for_good(pg_dsn, start_node):
    manager = AsyncPostgresManager(pg_dsn, max_queued_packets=20)
    plain = socketio.AsyncServer(async_mode="asgi", client_manager=manager, monitor_clients=False)
    left = []
    plain.on("connect", lambda _sid, _environ: None)
    plain.on("disconnect", lambda sid, reason: left.append((sid, reason)))
    try:
        async with AsgiClient(plain) as slow:
            sid, _ = await slow.connect()
            slow.stall()
            for i in range(50):
                await plain.emit("e", i)
            await until(lambda: left)
            slow.flow()
        assert left == [(sid, plain.reason.TRANSPORT_CLOSE)]
        assert manager.counters.cut == 1
    finally:
        await plain.manager.aclose()
        await plain.shutdown()


async def test_case_8_drop_and_rejoin(start_node):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e", 1)
        await wire.event()
        await wire.drop()
        await node.sio.emit("e", 2)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert (again.sid, again.pid) == (wire.sid, wire.pid)
            assert node.sio.recovered(again.sid)
            await node.sio.emit("e", 3)
            assert [await again.event(), await again.event()] == [["e", 2], ["e", 3]]


async def test_case_17_clients_left_out_get_neither_pid_nor_offset(start_node, db):
    asked = []

    def accepts(environ, auth):
        asked.append((environ["asgi.scope"]["type"], auth))
        return bool(auth and auth.get("new"))

    node = await start_node(recovery={"accepts": accepts})
    async with node.client() as old, node.client(new=1, offset="x" * 22) as new:
        assert old.pid is None and new.pid is not None
        await node.sio.emit("e", "a")
        await node.sio.emit("v", "a", volatile=True)
        assert [await old.recv(), await old.recv()] == ['2["e","a"]', '2["v","a"]']
        assert await new.event() == ["e", "a"] and await new.recv() == '2["v","a",null]'
        await node.sio.save_session(old.sid, {"any": object})
        assert (await node.sio.get_session(old.sid))["any"] is object
        await node.sio.enter_room(old.sid, "x")
        await node.sio.emit("e", 1, room="x")
        assert await old.recv() == '2["e",1]'
        await old.drop()
    assert asked == [("websocket", None), ("websocket", {"new": 1})]
    assert await sessions(db) == 1
