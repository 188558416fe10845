"""Long replays: page by page, behind a slow client, while the log goes on."""

from __future__ import annotations

import asyncio

from support.asgi_client import AsgiClient
from support.waiting import until


# -- long replays ----------------------------------------------------------------------------------------------
async def test_case_43_a_replay_pages_until_it_meets_the_buffer(start_node, short_pages):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        await a.sio.enter_room(wire.sid, "x")
        await wire.drop()
        await b.emit_numbers(0, 60, room="x")
        emitting = asyncio.create_task(b.emit_numbers(60, 60, room="x"))
        async with a.client(pid=wire.pid) as again:
            await a.emit_numbers(1_000, 20)
            await emitting
            await b.sio.emit("end")
            got = [args for _, args in await again.events_until("end")]
            assert [i for i in got if i < 1_000] == list(range(120))
            assert [i for i in got if i >= 1_000] == list(range(1_000, 1_020))


async def test_case_43_a_replay_waits_for_its_client_and_nobody_for_it(start_node, short_pages):
    node = await start_node()
    async with node.client() as wire, node.client() as other:
        await wire.drop()
        await node.emit_numbers(0, 50)
        async with AsgiClient(node.sio) as again:
            again.stall()
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await again.held.wait()
            await node.emit_numbers(50, 10)
            await node.sio.emit("v", 1, volatile=True)  # dropped for one that is not live
            await node.sio.emit("end")
            assert [f[0] for f in await asyncio.gather(*(other.event() for _ in range(60)))] == ["e"] * 60
            again.flow()
            assert (await again.recv()).startswith("0")
            assert [args for _, args in await again.events_until("end")] == list(range(60))


async def test_rooms_entered_and_left_during_a_replay_count_at_their_offsets(start_node, short_pages):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        await wire.drop()
        await b.emit_numbers(0, 40)
        async with AsgiClient(a.sio) as again:
            again.stall()
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await again.held.wait()
            await b.sio.emit("e", -1, room="x")
            await b.sio.enter_room(wire.sid, "x")
            await b.sio.emit("e", 40, room="x")
            await a.sio.leave_room(wire.sid, "x")
            await b.sio.emit("e", -2, room="x")
            await b.sio.enter_room(wire.sid, "y")
            again.flow()
            assert (await again.recv()).startswith("0")
            await b.sio.emit("e", 41, room="y")
            await b.sio.emit("end")
            assert [args for _, args in await again.events_until("end")] == list(range(42))
            assert sorted(a.sio.rooms(wire.sid)) == sorted([wire.sid, "y"])


async def test_answers_and_questions_wait_behind_a_replay(start_node, short_pages):
    node = await start_node()

    @node.sio.event
    async def ask(sid):
        return 5

    async with node.client() as wire:
        await wire.drop()
        await node.emit_numbers(0, 20)
        async with AsgiClient(node.sio) as again:
            again.stall()
            again.send(f'0{{"pid":"{wire.pid}"}}')
            await again.held.wait()
            question = asyncio.create_task(node.sio.call("q", to=wire.sid, timeout=20))
            again.send('27["ask"]')
            client = node.manager.clients.current(wire.sid, "/")
            await until(lambda: client._waiting)
            again.flow()
            assert (await again.recv()).startswith("0")
            assert [(await again.event())[1] for _ in range(20)] == list(range(20))
            frames = [await again.recv() for _ in range(2)]
            asked = next(f for f in frames if f.endswith('["q"]'))
            assert "37[5]" in frames
            again.send(f"3{asked[1 : asked.index('[')]}[6]")
            assert await question == 6


async def test_pages_wait_for_their_turn_and_not_at_the_pool(start_node, monkeypatch):
    node = await start_node()
    async with node.client() as wire:
        monkeypatch.setattr("sio_pg_adapter.store.database.ACQUIRE_TIMEOUT", 1.0)
        held = node.manager.clients.current(wire.sid, "/").held
        sessions, statements = node.manager.node.sessions, node.manager.database.queries._statements
        monkeypatch.setitem(statements, "page", f"SELECT page.* FROM pg_sleep(0.2), ({statements['page']}) page")
        pages = await asyncio.gather(*(sessions.page(held, 0, 10) for _ in range(40)))
        assert [page.records for page in pages] == [[]] * 40
