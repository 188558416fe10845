"""Events from server to server, and questions to many clients.

A timeout of an hour is one that must not be waited for: the test would be.
"""

from __future__ import annotations

import asyncio
import json

import pytest
import socketio

from integration.test_cluster_sockets import hang
from integration.test_presence import vanish
from sio_pg_adapter import (
    AsyncNamespace,
    ConfigurationError,
    HandlerFailed,
    NoAnswer,
    NotSerializable,
    StoreUnavailable,
)
from support.waiting import until


# -- server events -------------------------------------------------------------------------------------------------
async def test_a_server_event_reaches_all_other_nodes(start_node):
    nodes = [await start_node() for _ in range(3)]
    got: asyncio.Queue = asyncio.Queue()
    for i, node in enumerate(nodes):

        @node.sio.on_server_event("news")
        async def on_news(*args, i=i):
            got.put_nowait((i, args))

        @node.sio.on_server_event
        def bare(*args, i=i):
            got.put_nowait((i, "bare", args))

    await nodes[0].sio.server_side_emit("news", 1, {"b": [b"\x00\xff"]}, None, "x" * 9_000)
    expected = (1, {"b": [b"\x00\xff"]}, None, "x" * 9_000)
    assert sorted([await got.get(), await got.get()]) == [(1, expected), (2, expected)]
    await nodes[1].sio.server_side_emit("bare")
    assert sorted([await got.get(), await got.get()]) == [(0, "bare", ()), (2, "bare", ())]
    await nodes[2].sio.server_side_emit("nobody listens to this")
    await nodes[2].sio.server_side_emit("bare", 1)
    assert sorted([await got.get(), await got.get()]) == [(0, "bare", (1,)), (1, "bare", (1,))]
    assert got.empty()


async def test_server_events_keep_the_order_in_which_they_were_sent(start_node):
    a, b = await start_node(), await start_node()
    got = []
    b.sio.on_server_event("n", got.append)
    for i in range(50):
        await a.sio.server_side_emit("n", i)
    await until(lambda: len(got) == 50)
    assert got == list(range(50))


async def test_a_call_has_the_answers_of_all_other_nodes_that_have_a_handler(start_node):
    a, b, c, _ = [await start_node() for _ in range(4)]

    @a.sio.on_server_event
    def who(*args):
        raise AssertionError("the caller is not asked")

    @b.sio.on_server_event("who")
    def of_b(data, number):
        return [data, number, b"\x00b"]

    @c.sio.on_server_event("who")
    async def of_c(data, number):
        await asyncio.sleep(0)
        return {"large": "x" * 20_000}

    assert await a.sio.server_side_call("who", b"\x01", 2) == {
        b.manager.node.id: [b"\x01", 2, b"\x00b"],
        c.manager.node.id: {"large": "x" * 20_000},
    }
    assert await b.sio.server_side_call("nobody") == {}
    assert len(a.manager.node.requests._pending) == len(b.manager.node.requests._pending) == 0


async def test_a_node_alone_has_nobody_to_ask(start_node):
    node = await start_node()
    node.sio.on_server_event("who", lambda: 1)
    await node.sio.server_side_emit("who")
    assert await node.sio.server_side_call("who") == {}


async def test_a_handler_that_raises_is_told_and_logged_and_breaks_nothing(start_node, expected_errors):
    expected_errors += ["the handler of server event 'bad' failed", "an answer to another node cannot be sent"]
    a, b, c = [await start_node() for _ in range(3)]

    @b.sio.on_server_event
    def bad(kind):
        if kind == "raise":
            raise ValueError("no good")
        return object() if kind == "no JSON" else "good"

    @c.sio.on_server_event("bad")
    async def of_c(kind):
        return "good"

    for kind, words in (("raise", "ValueError: no good"), ("no JSON", "object")):
        with pytest.raises(HandlerFailed, match=words) as error:
            await a.sio.server_side_call("bad", kind)
        assert list(error.value.errors) == [b.manager.node.id]
        assert error.value.answers == {c.manager.node.id: "good"}
    with pytest.raises(HandlerFailed, match="positional"):
        await a.sio.server_side_call("bad", 1, 2)
    await a.sio.server_side_emit("bad", "raise")
    assert await a.sio.server_side_call("bad", "x") == dict.fromkeys((b.manager.node.id, c.manager.node.id), "good")


async def test_a_handler_may_use_the_server(start_node):
    """It runs apart from the loops: what it awaits of them comes."""
    a, b = await start_node(), await start_node()

    @b.sio.on_server_event
    async def move(sid):
        await b.sio.enter_room(sid, "x")
        await b.sio.emit("e", room="x")
        return sorted(s.sid for s in await b.sio.fetch_sockets("x"))

    async with a.client() as wire:
        assert list((await a.sio.server_side_call("move", wire.sid)).values()) == [[wire.sid]]
        assert await wire.event() == ["e"]


async def test_a_node_that_does_not_answer_is_named_with_the_answers_that_came(start_node):
    a, b, c = [await start_node() for _ in range(3)]
    b.sio.on_server_event("who", lambda: "b")
    ended = asyncio.Event()

    @c.sio.on_server_event
    async def who():
        await ended.wait()

    with pytest.raises(NoAnswer, match=c.manager.node.id) as error:
        await a.sio.server_side_call("who", timeout=0.3)
    assert error.value.missing == error.value.missing_nodes == [c.manager.node.id]
    assert error.value.answers == {b.manager.node.id: "b"}
    assert isinstance(error.value, socketio.exceptions.TimeoutError)
    assert isinstance(error.value, TimeoutError)
    ended.set()
    assert await a.sio.server_side_call("who") == {b.manager.node.id: "b", c.manager.node.id: None}
    assert len(a.manager.node.requests._pending) == 0


async def test_a_node_that_goes_while_it_is_asked_is_left_out(start_node):
    a, b, c = [await start_node() for _ in range(3)]
    b.sio.on_server_event("who", lambda: "b")
    hang(c)
    asking = asyncio.create_task(a.sio.server_side_call("who", timeout=3600))
    await until(lambda: len(a.manager.node.requests._pending))
    await vanish(c)
    assert await asking == {b.manager.node.id: "b"}


async def test_a_call_that_is_cancelled_leaves_nothing(start_node):
    a, b = [await start_node() for _ in range(2)]
    hang(b)
    asking = asyncio.create_task(a.sio.server_side_call("who"))
    await until(lambda: len(a.manager.node.requests._pending))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert len(a.manager.node.requests._pending) == 0


async def test_a_call_ends_with_the_manager(start_node):
    a, b = [await start_node() for _ in range(2)]
    hang(b)
    asking = asyncio.create_task(a.sio.server_side_call("who", timeout=3600))
    requests = a.manager.node.requests
    await until(lambda: len(requests._pending))
    await a.sio.shutdown()
    with pytest.raises(StoreUnavailable, match="closed"):
        await asking
    assert len(requests._pending) == 0


async def test_a_node_that_stops_while_it_is_asked_is_left_out(start_node):
    a, b = [await start_node() for _ in range(2)]
    asked = asyncio.Event()

    @b.sio.on_server_event
    async def who():
        asked.set()
        await asyncio.get_running_loop().create_future()

    asking = asyncio.create_task(a.sio.server_side_call("who", timeout=3600))
    await asked.wait()
    await b.sio.shutdown()
    assert await asking == {}


@pytest.mark.parametrize("wrong", [1, "", None])
async def test_a_handler_of_no_event_is_refused(start_node, wrong):
    node = await start_node()
    with pytest.raises(ConfigurationError, match="on_server_event"):
        node.sio.on_server_event(wrong, print)
    with pytest.raises(ConfigurationError, match="on_server_event"):
        node.sio.on_server_event("name", wrong or 1)


async def test_what_has_no_json_form_is_refused_before_it_is_sent(start_node):
    node = await start_node()
    for work in (
        node.sio.server_side_emit("e", object()),
        node.sio.server_side_call("e", {"k": object()}),
        node.sio.broadcast_call("e", object()),
    ):
        with pytest.raises(NotSerializable, match="object"):
            await work


# -- broadcast_call ------------------------------------------------------------------------------------------------
async def answered(wire, answer: str | None, binary: bytes | None = None) -> str:
    """Read a question and answer it; the question without its id."""
    question = await wire.recv()
    at = question.index("[")
    head, number = question[:at].rstrip("0123456789"), question[len(question[:at].rstrip("0123456789")) : at]
    if head in ("", "/"):  # the packet's type is a digit, too
        head, number = question[0], question[1:at]
    if answer is not None:
        kind = "3" if binary is None else "61-"
        wire.send(f"{kind}{head[1:]}{number}{answer}")
        if binary is not None:
            wire.send(binary)
    return question[at:]


async def test_case_78_answers_of_the_clients_of_all_nodes(start_node):
    a, b, c = [await start_node() for _ in range(3)]
    async with a.client() as one, a.client() as two, b.client() as three, c.client() as four, b.client() as skipped:
        wires = (one, two, three, four)
        calling = asyncio.create_task(a.sio.broadcast_call("q", {"n": 1}, skip_sid=skipped.sid))
        frames = ('["x"]', "[]", "[1,[2]]", '[{"_placeholder":true,"num":0}]')
        for wire, frame in zip(wires, frames, strict=True):
            assert await answered(wire, frame, b"\x00" if "num" in frame else None) == '["q",{"n":1}]'
        assert await calling == {one.sid: "x", two.sid: None, three.sid: (1, [2]), four.sid: b"\x00"}
        await a.sio.emit("end")
        assert await skipped.event() == ["end"]
        for node in (a, b, c):
            assert len(node.manager.node.requests._pending) == 0
            assert not any(client.acks for client in node.manager.clients)


async def test_only_the_room_is_asked_with_large_and_binary_data(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as one, b.client() as two, b.client() as three:
        for wire in (one, two):
            await a.sio.enter_room(wire.sid, "x")
        await a.sio.enter_room(two.sid, "y")
        calling = asyncio.create_task(b.sio.broadcast_call("q", ("x" * 9_000, b"\x01"), room=["x", "y"]))
        for wire in (one, two):
            question = await wire.recv()
            assert question.startswith("51-") and "x" * 9_000 in question
            assert await wire.recv() == b"\x01"
            wire.send(f"3{question[3 : question.index('[')]}{json.dumps(['y' * 9_000])}")
        assert await calling == {one.sid: "y" * 9_000, two.sid: "y" * 9_000}
        await a.sio.emit("end")
        assert await three.event() == ["end"]


async def test_nobody_is_there(start_node):
    a, _ = await start_node(), await start_node()
    assert await a.sio.broadcast_call("q", room="x") == {}


async def test_at_the_timeout_the_error_says_who_and_has_the_answers(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as one, b.client() as two, a.client() as three, b.client() as four:
        calling = asyncio.create_task(a.sio.broadcast_call("q", timeout=1))
        for wire, frame in ((one, "[1]"), (two, "[2]"), (three, None), (four, None)):
            await answered(wire, frame)
        with pytest.raises(NoAnswer) as error:
            await calling
        assert error.value.missing == sorted([three.sid, four.sid]) and error.value.missing_nodes == []
        assert all(sid in str(error.value) for sid in error.value.missing)
        assert error.value.answers == {one.sid: 1, two.sid: 2}
        await until(lambda: not any(client.acks for node in (a, b) for client in node.manager.clients))
        assert len(a.manager.node.requests._pending) == 0


async def test_a_client_that_goes_is_not_waited_for(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as one, b.client() as two, b.client() as three:
        calling = asyncio.create_task(a.sio.broadcast_call("q", timeout=3600))
        await answered(three, "[3]")
        for wire in (one, two):
            await answered(wire, None)
            await wire.drop()
        with pytest.raises(NoAnswer) as error:
            await calling
        assert error.value.missing == sorted([one.sid, two.sid])
        assert error.value.answers == {three.sid: 3}
        async with b.client(pid=two.pid) as again:  # and the question is not replayed
            await a.sio.emit("end")
            assert await again.events_until("end") == []


async def test_a_node_that_goes_is_not_waited_for_and_its_clients_are_named(start_node):
    a, b, c = [await start_node() for _ in range(3)]
    hang(c)  # it never said whom it asked
    async with a.client() as one, b.client() as two, c.client():
        calling = asyncio.create_task(a.sio.broadcast_call("q", timeout=3600))
        await answered(one, "[1]")
        await answered(two, None)
        await until(lambda: any(len(t.asked) == 2 for t in a.manager.node.requests._pending.values()))
        await vanish(b)
        await vanish(c)
        with pytest.raises(NoAnswer) as error:
            await calling
        assert error.value.missing == [two.sid] and error.value.missing_nodes == []
        assert error.value.answers == {one.sid: 1}


async def test_the_clients_of_a_node_that_came_just_now_are_waited_for(start_node):
    """Once it has said whom it asked; what is under way then is nothing else."""
    a, b, c = [await start_node() for _ in range(3)]
    others, asked, receive = a.manager.node.requests.others, [], b.manager.node.messages.receive

    async def before_it_came():
        return await others() - {c.manager.node.id}

    a.manager.node.requests.others = before_it_came
    b.manager.node.messages.receive = asked.append
    async with c.client() as wire:
        calling = asyncio.create_task(a.sio.broadcast_call("q"))
        await until(lambda: [t for t in a.manager.node.requests._pending.values() if c.manager.node.id in t.asked])
        [tally] = a.manager.node.requests._pending.values()
        await until(lambda: asked)
        receive(*asked)
        await until(lambda: b.manager.node.id in tally.asked)
        await answered(wire, "[1]")
        assert await calling == {wire.sid: 1}


async def test_a_node_that_did_not_say_whom_it_asked_is_named(start_node):
    a, b, c = [await start_node() for _ in range(3)]
    hang(c)
    async with a.client() as one, b.client() as two:
        calling = asyncio.create_task(a.sio.broadcast_call("q", timeout=1))
        await answered(one, "[1]")
        await answered(two, None)
        with pytest.raises(NoAnswer) as error:
            await calling
        assert error.value.missing_nodes == [c.manager.node.id]
        assert error.value.missing == [c.manager.node.id, two.sid]
        assert error.value.answers == {one.sid: 1}


async def test_one_that_is_cancelled_leaves_nothing(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as one, b.client() as two:
        calling = asyncio.create_task(a.sio.broadcast_call("q", timeout=1))
        await answered(one, None)
        await answered(two, None)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert len(a.manager.node.requests._pending) == 0
        assert not any(client.acks for client in a.manager.clients)
        await until(lambda: not any(client.acks for client in b.manager.clients))


async def test_a_late_answer_fires_nothing(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        calling = asyncio.create_task(a.sio.broadcast_call("q", timeout=0.3))
        question = await wire.recv()
        with pytest.raises(NoAnswer):
            await calling
        await until(lambda: not any(client.acks for client in b.manager.clients))
        wire.send(f'3{question[1 : question.index("[")]}["late"]')
        again = asyncio.create_task(a.sio.broadcast_call("q"))
        await answered(wire, '["in time"]')
        assert await again == {wire.sid: "in time"}


async def test_a_question_to_one_that_is_being_sent_what_it_missed_comes_behind_that(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        await wire.drop()
        await b.sio.emit("e", 1)
        async with b.client(pid=wire.pid) as again:
            calling = asyncio.create_task(a.sio.broadcast_call("q"))
            assert await again.event() == ["e", 1]
            await answered(again, "[7]")
            assert await calling == {again.sid: 7}


async def test_in_order_with_the_log_as_the_asker_has_seen_it(start_node):
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        await a.sio.emit("e", 1)
        await a.sio.enter_room(wire.sid, "x")
        calling = asyncio.create_task(a.sio.broadcast_call("q", room="x"))
        assert await wire.event() == ["e", 1]
        await answered(wire, "[1]")
        assert await calling == {wire.sid: 1}


async def test_of_a_namespace(start_node):
    a, b = await start_node(namespaces="*"), await start_node(namespaces="*")

    class Chat(AsyncNamespace):
        async def on_ask(self, sid):
            await self.emit("got", await self.broadcast_call("q"), to=sid)

    a.sio.register_namespace(Chat("/chat"))
    async with b.client("/chat") as one, a.client() as other, a.client("/chat") as asking:
        asking.send('2/chat,["ask"]')
        for wire in (one, asking):
            question = await wire.recv()
            assert question.startswith("2/chat,") and question.endswith('["q"]')
            wire.send(f"3/chat,{question[7 : question.index('[')]}[1]")
        assert await asking.event("/chat") == ["got", {one.sid: 1, asking.sid: 1}]
        await a.sio.emit("end")
        assert await other.event() == ["end"]


async def test_with_handlers_in_line_it_is_refused(start_node):
    node = await start_node(async_handlers=False)
    with pytest.raises(RuntimeError, match="async_handlers"):
        await node.sio.broadcast_call("q")
