"""Two nodes and one log: packets of all sizes keep their order, live and replayed."""

from __future__ import annotations

import asyncio
import json
import random

import asyncpg
import pytest
import socketio

from sio_pg_adapter import NotSerializable
from sio_pg_adapter.wire.outbox import Outbox
from support.asgi_client import Closed
from support.waiting import until


async def test_case_86_sizes_around_a_notification_keep_their_order(start_node):
    a, b = await start_node(), await start_node()
    sizes = [10, 7_400, 7_500, 7_590, 7_600, 7_700, 7_999, 8_000, 8_100, 70_000, 1, 7_550]
    random.Random(1).shuffle(sizes)
    async with a.client() as one, b.client() as two:
        payloads = [f"{i}:" + "x" * size for i, size in enumerate(sizes * 4)]
        for i, payload in enumerate(payloads):
            await (a, b)[i % 2].sio.emit("e", payload)
        await a.sio.emit("end")
        for wire in (one, two):
            assert [args for _, args in await wire.events_until("end")] == payloads
        await two.drop()
        await asyncio.gather(*(n.sio.emit("e", p) for n, p in zip((a, b) * len(payloads), payloads, strict=False)))
        await b.sio.emit("end")
        live = await one.events_until("end")
        async with a.client(pid=two.pid, offset=two.offset) as again:
            assert again.sid == two.sid
            assert await again.events_until("end") == live
        assert sorted(args for _, args in live) == sorted(payloads)


async def test_case_87_emits_of_one_tick_are_seen_in_order(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as wire, a.client() as own:
        await asyncio.gather(*(a.sio.emit("e", i) for i in range(300)))
        await a.sio.emit("end")
        for one in (wire, own):
            assert [args for _, args in await one.events_until("end")] == list(range(300))


async def test_a_node_reads_nothing_of_what_it_appends_itself(start_node):
    """The answer to an append brings its records. The notification may come earlier, and would make it read them."""
    node = await start_node()
    reads, read = [], node.manager.node.reader.range
    node.manager.node.reader.range = lambda *args: reads.append(args) or read(*args)
    async with node.client() as wire:
        await node.sio.emit("e")
        assert await wire.event() == ["e"]
        reads.clear()  # of the start
        for _ in range(10):
            await asyncio.gather(*(node.sio.emit("e", i) for i in range(300)))
        await node.sio.emit("end")
        assert len(await wire.events_until("end")) == 3_000
    assert reads == []


async def test_a_backend_is_taken_for_its_own_only_while_it_writes(start_node, db):
    """Between two batches it may be lost, and its pid be another node's."""
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("e", 1)
        assert node.manager.node.writer.backend is None
        pid = node.manager.node.writer._commits._backend[0]
        async with db.transaction():
            await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            emitting = asyncio.create_task(node.sio.emit("e", 2))
            await until(lambda: node.manager.node.writer.backend == pid)
        await emitting
        assert node.manager.node.writer.backend is None
        assert [await wire.event() for _ in range(2)] == [["e", 1], ["e", 2]]


async def test_what_another_transaction_of_the_writers_backend_notifies_is_heard(start_node, pg_dsn):
    """In an application's pool, SQL that emits may run on the backend that wrote for the node before."""
    async with asyncpg.create_pool(pg_dsn, min_size=4, max_size=4) as pool:
        node = await start_node(dsn=None, manager={"pool": pool})
        async with node.client() as wire:
            await node.sio.emit("e", 1)
            backend = node.manager.node.writer._commits._backend[0]
            await node.manager.database.writer.give_back()
            async with pool.acquire() as connection:
                assert await connection.fetchval("SELECT pg_backend_pid()") == backend
                await connection.execute("SELECT sio_emit('e', '2')")
            assert [await wire.event() for _ in range(2)] == [["e", 1], ["e", 2]]
        await node.sio.shutdown()


async def test_frames_are_made_once_for_all_who_get_an_offset_and_once_for_the_others(start_node):
    node = await start_node(recovery={"accepts": lambda _, auth: not auth})
    async with (
        node.client() as one,
        node.client() as two,
        node.client(plain=1) as three,
        node.client(plain=1) as four,
    ):
        await node.sio.emit("e", 1)
        for wire in (one, two):
            assert await wire.event() == ["e", 1]
        for wire in (three, four):
            assert await wire.recv() == '2["e",1]'
    record = node.manager.node.cursor.recent.events("/", [""], 0)[-1]
    assert sorted(record.frames) == [False, True]


async def test_two_clients_on_two_nodes_see_one_order(start_node):
    nodes = [await start_node(), await start_node()]
    async with nodes[0].client() as one, nodes[1].client() as two:
        await asyncio.gather(*(n.sio.emit("e", (i, j)) for i, n in enumerate(nodes) for j in range(150)))
        await nodes[0].sio.emit("end")
        seen = await one.events_until("end")
        assert len(seen) == 300 and await two.events_until("end") == seen


async def test_case_45_fifty_mb_and_what_follows_it(start_node):
    a, b = await start_node(), await start_node()
    big = "x" * 50_000_000
    async with b.client() as wire, a.client() as own:
        await asyncio.gather(a.sio.emit("big", big), a.sio.emit("small", 1))
        for one in (wire, own):
            (name, value), small = await one.event(), await one.event()
            assert name == "big" and value == big and small == ["small", 1]


@pytest.mark.parametrize(
    "value", ["", None, "\0", "\ud83d", "🙂", 2**53 + 1, [], {}, [None], -0.5, {"": ""}, "NaN"], ids=repr
)
async def test_case_45_odd_values_arrive_as_they_were(start_node, value):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        await a.sio.emit("e", (value,))
        assert await wire.event() == ["e", value]


@pytest.mark.parametrize(
    "value", [float("nan"), object(), {1, 2}, {("a",): 1}], ids=["NaN", "object", "set", "tuple key"]
)
async def test_case_45_what_has_no_json_form_is_refused_before_anything(start_node, db, value):
    node = await start_node()
    async with node.client() as wire:
        with pytest.raises(NotSerializable, match="event 'e'"):
            await node.sio.emit("e", {"v": value})
        with pytest.raises(NotSerializable, match="event 'e'"):
            await node.sio.emit("e", {"v": value}, volatile=True)
        await node.sio.emit("end")
        assert await wire.events_until("end") == []
    assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") == 1


async def test_a_client_that_takes_nothing_gets_no_volatile_event_and_each_stored_one(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as slow, b.client() as quick:
        slow.stall()
        await a.sio.emit("e", 0)
        await asyncio.wait_for(slow.held.wait(), 20)  # the socket's writer waits for it
        await a.sio.emit("e", 1)  # which waits in its queue
        for n in (2, 3):
            await a.sio.emit("v", n, volatile=True)
        await a.sio.emit("e", 4)
        frames = [json.loads((await quick.recv())[1:])[:2] for _ in range(5)]
        assert frames == [["e", 0], ["e", 1], ["v", 2], ["v", 3], ["e", 4]]
        slow.flow()
        assert [await slow.event() for _ in range(3)] == [["e", 0], ["e", 1], ["e", 4]]
        await a.sio.emit("v", 5, volatile=True)
        assert await slow.recv() == '2["v",5]'


async def test_cases_5_37_binary_on_both_nodes_and_replayed(start_node):
    a, b = await start_node(), await start_node()
    sent = {"a": [b"1", {"b": bytearray(b"2" * 70_000)}], "c": memoryview(b"")}
    async with b.client() as wire:
        await a.sio.emit("e", sent)
        head = await wire.recv()
        assert head.startswith('53-["e",{"a":[{"_placeholder":true,"num":0}')
        parts = [await wire.recv() for _ in range(3)]
        assert parts == [b"1", b"2" * 70_000, b""]
        await wire.drop()
        await b.sio.emit("e", sent)
        async with a.client(pid=wire.pid, offset=wire.offset) as again:
            frames = [await again.recv() for _ in range(4)]
            assert [frames[0][: len(head) - 26], *frames[1:]] == [head[: len(head) - 26], *parts]


async def test_cases_35_36_rooms_across_nodes(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as one, b.client() as two:
        await a.sio.enter_room(two.sid, "x")
        await b.sio.enter_room(one.sid, "x")
        await b.sio.enter_room(one.sid, "y")
        await a.sio.emit("e", 1, room="x")
        await b.sio.emit("e", 2, to=["x", "y"])
        await a.sio.emit("e", 3, to=one.sid)
        await b.sio.emit("e", 4, room="x", skip_sid=one.sid)
        await a.sio.emit("e", 5, skip_sid=[two.sid, "nobody"])
        await a.sio.leave_room(two.sid, "x")
        await b.sio.emit("e", 6, room="x")
        await b.sio.close_room("x")
        await a.sio.emit("e", 7, room="x")
        await b.sio.emit("end")
        assert [args for _, args in await one.events_until("end")] == [1, 2, 3, 5, 6]
        assert [args for _, args in await two.events_until("end")] == [1, 2, 4]
        assert a.sio.rooms(one.sid) == [one.sid, "y"]
        assert await a.sio.fetch_rooms(two.sid) == [two.sid]


async def test_case_78_callbacks_across_nodes(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:

        async def answer(frame: str) -> None:
            question = await wire.recv()
            assert question.startswith("2") and question.endswith('["q",1]'), question
            ack = question[1 : question.index("[")]
            wire.send(f"3{ack}{frame}")

        for frame, value in [("[7]", 7), ("[]", None), ("[1,2]", (1, 2)), (json.dumps(["x" * 9_000]), "x" * 9_000)]:
            task = asyncio.create_task(answer(frame))
            assert await a.sio.call("q", 1, to=wire.sid, timeout=20) == value
            await task
        assert not a.manager.node.callbacks._pending
        offset = wire.offset
        await wire.drop()
        async with a.client(pid=wire.pid, **({"offset": offset} if offset else {})) as again:  # none was stored
            await b.sio.emit("end")
            assert await again.events_until("end") == []


async def test_case_78_an_unknown_sid_times_out_and_leaves_nothing(start_node):
    node = await start_node()
    with pytest.raises(socketio.exceptions.TimeoutError):
        await node.sio.call("q", 1, to="nobody", timeout=0.01)
    assert not node.manager.node.callbacks._pending


async def test_case_39_volatile_crosses_nodes_in_its_place_and_is_not_kept(start_node, db):
    """Cases 7 and 39: and its last string is not taken for an offset."""
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        await a.sio.emit("e", 1)
        await a.sio.emit("v", "world", volatile=True)
        await a.sio.emit("v", b"x" * 9_000, volatile=True)
        assert await wire.event() == ["e", 1]
        assert await wire.recv() == '2["v","world",null]'
        assert (await wire.recv()).endswith('"num":0}]') and await wire.recv() == b"x" * 9_000
        await a.sio.emit("v", volatile=True, to=wire.sid)
        assert await wire.recv() == '2["v",null]'
        await b.sio.emit("v", 5, ignore_queue=True)
        assert await wire.recv() == '2["v",5]'
        assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") == 1
        offset = wire.offset
        await wire.drop()
        await a.sio.emit("v", 6, volatile=True)
        await b.sio.emit("v", 7, ignore_queue=True)
        await a.sio.emit("end")
        async with b.client(pid=wire.pid, offset=offset) as again:
            assert again.sid == wire.sid and await again.events_until("end") == []


async def test_case_38_a_question_to_one_who_is_away_is_not_replayed(start_node):
    node = await start_node()
    async with node.client() as wire:
        await wire.drop()
        with pytest.raises(socketio.exceptions.TimeoutError):
            await node.sio.call("q", to=wire.sid, timeout=0.01)
        await node.sio.emit("end")
        async with node.client(pid=wire.pid) as again:
            assert await again.events_until("end") == []


async def test_case_38_an_acknowledgement_to_one_who_is_away_is_not_replayed(start_node):
    node = await start_node()
    asked, release = asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def ask(sid):
        asked.set()
        await release.wait()
        return 1

    async with node.client() as wire:
        wire.send('25["ask"]')
        await asked.wait()
        [handler] = [t for t in asyncio.all_tasks() if "_handle_event_internal" in repr(t)]
        await wire.drop()
        release.set()
        await handler
        await node.sio.emit("end")
        async with node.client(pid=wire.pid) as again:
            assert await again.events_until("end") == []
            assert again.waiting() == []


async def test_case_46_emit_then_answer_and_emit_then_disconnect(start_node):
    node = await start_node()

    @node.sio.event
    async def ask(sid, data):
        await node.sio.emit("first", to=sid)
        return data

    @node.sio.event
    async def leave(sid):
        await node.sio.emit("last", to=sid)
        await node.sio.disconnect(sid)

    async with node.client() as wire:
        wire.send('25["ask",1]')
        assert await wire.event() == ["first"]
        assert await wire.recv() == "35[1]"
        wire.send('2["leave"]')
        assert await wire.event() == ["last"]
        assert await wire.recv() == "1"


async def test_a_client_that_takes_nothing_holds_up_nobody(start_node):
    node = await start_node()
    async with node.client() as slow, node.client() as quick:
        slow.stall()
        for i in range(50):
            await node.sio.emit("e", i)
        await node.sio.emit("end")
        assert len(await quick.events_until("end")) == 50
        slow.flow()
        assert len(await slow.events_until("end")) == 50
        await until(lambda: not slow.waiting())


async def test_one_connection_that_breaks_keeps_an_event_from_nobody_else(start_node, expected_errors):
    expected_errors.append("an event could not be sent")
    node = await start_node()
    async with node.client() as broken, node.client() as other:
        socket = node.manager.clients.current(broken.sid, "/").connection.socket

        class Once(Outbox):
            def put_nowait(self, packet):
                if self is socket.queue and packet is not None and '["e",5' in str(packet.data):
                    socket.queue = queue
                    raise RuntimeError("broken")
                queue.put_nowait(packet)

        await node.sio.emit("e", 0)
        assert await other.event() == await broken.event() == ["e", 0]
        await until(socket.queue.empty)
        queue, socket.queue = socket.queue, Once()
        await asyncio.gather(*(node.sio.emit("e", i) for i in range(1, 10)))  # the later ones are passed in one tick
        assert [await other.event() for _ in range(9)] == [["e", i] for i in range(1, 10)]
        with pytest.raises(Closed):
            while True:
                await broken.event()
        async with node.client(pid=broken.pid, offset=broken.offset) as again:
            assert again.sid == broken.sid
            assert [await again.event() for _ in range(5)] == [["e", i] for i in range(5, 10)]
