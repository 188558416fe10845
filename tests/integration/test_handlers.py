"""Connect and disconnect handlers and middlewares, at first and on recovery: what they see, may do, and refuse."""

from __future__ import annotations

import asyncio

import pytest
from socketio.exceptions import ConnectionRefusedError as Refused

from sio_pg_adapter import ConfigurationError
from support.asgi_client import AsgiClient


async def sessions(db) -> int:
    return await db.fetchval("SELECT count(*) FROM sio_sessions")


# -- handlers and middlewares ----------------------------------------------------------------------------------
@pytest.mark.parametrize("skip", [False, True])
async def test_case_20_middlewares_and_handler_on_recovery(start_node, skip):
    node = await start_node(recovery={"skip_middlewares": skip})
    calls = []

    @node.sio.use
    async def first(sid, environ, auth):
        calls.append(("first", auth))

    @node.sio.use(namespace="/")
    async def second(sid, environ, auth):
        calls.append(("second", auth))

    @node.sio.event
    async def connect(sid, environ, auth):
        calls.append(("connect", auth, environ["sio_pg.recovered"], node.sio.recovered(sid)))

    async with node.client(token="t") as wire:
        assert calls == [
            ("first", {"token": "t"}),
            ("second", {"token": "t"}),
            ("connect", {"token": "t"}, False, False),
        ]
        calls.clear()
        await wire.drop()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
    middlewares = [] if skip else [("first", None), ("second", None)]
    assert calls == [*middlewares, ("connect", None, True, True)]


@pytest.mark.parametrize("where", ["middleware", "handler", "handler returns False"])
async def test_cases_20_21_27_refused_on_recovery_ends_the_session_and_tells_nothing(start_node, db, where):
    node = await start_node()
    blocked = []

    @node.sio.use
    async def middleware(sid, environ, auth):
        if blocked and where == "middleware":
            raise Refused("no")

    @node.sio.event
    async def connect(sid, environ, auth):
        if blocked and where == "handler":
            raise Refused("no")
        return not blocked

    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        await wire.drop()
        await node.sio.emit("secret", to=wire.sid)
        blocked.append(True)
        async with AsgiClient(node.sio) as again:
            again.send(f'0{{"pid":"{wire.pid}"}}')
            answer = await again.recv()
            assert answer.startswith('4{"message"') and again.waiting() == []
        assert await sessions(db) == 0
        assert node.manager.rooms == {} and node.manager.clients.by_sid == {}
        blocked.clear()
        async with node.client(pid=wire.pid) as later:
            assert later.sid != wire.sid and later.pid != wire.pid


async def test_case_20_refused_at_first_writes_nothing(start_node, db):
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.enter_room(sid, "x")
        await node.sio.save_session(sid, {"a": 1})
        raise Refused("no")

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert await wire.recv() == '4{"message":"no"}'
    assert await sessions(db) == 0 and await db.fetchval("SELECT count(*) FROM sio_packets") == 0


async def test_case_15_a_handler_of_two_arguments(start_node):
    node = await start_node()
    flags = []

    @node.sio.event
    async def connect(sid, environ):
        flags.append(environ["sio_pg.recovered"])

    async with node.client() as wire:
        await wire.drop()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
    assert flags == [False, True]


async def test_case_70_a_handler_that_fails_leaves_no_ghost_and_the_client_may_try_again(
    start_node, db, expected_errors
):
    expected_errors.append("a connection is closed, and its client comes back")
    node = await start_node()
    broken = []

    @node.sio.event
    async def connect(sid, environ, auth):
        if broken:
            raise broken.pop()

    async with node.client() as wire:
        await wire.drop()
        for error in (KeyError("x"), TypeError("y")):
            broken.append(error)
            async with AsgiClient(node.sio) as again:
                again.send(f'0{{"pid":"{wire.pid}"}}')
                assert await again.rest() == []
        assert node.manager.rooms == {} and node.manager.clients.by_sid == {}
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid


async def test_case_70_the_connection_closes_while_the_handler_runs(start_node, db):
    node = await start_node()
    entered, go = asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def connect(sid, environ, auth):
        entered.set()
        await go.wait()

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        await entered.wait()
        wire.cut()
        go.set()
        await wire.drop()
    assert node.manager.rooms == {} and node.manager.clients.by_sid == {} and node.sio.environ == {}
    assert await db.fetchval("SELECT count(*) FROM sio_sessions WHERE node IS NOT NULL") == 0


async def test_case_74_a_broadcast_while_a_connect_is_decided(start_node):
    node = await start_node()
    entered, answers = asyncio.Event(), asyncio.Queue()

    @node.sio.event
    async def connect(sid, environ, auth):
        entered.set()
        return await answers.get()

    async with AsgiClient(node.sio) as refused, AsgiClient(node.sio) as accepted:
        refused.send("0")
        await entered.wait()
        await node.sio.emit("e", 1)
        answers.put_nowait(False)
        assert (await refused.recv()).startswith("4")
        entered.clear()
        accepted.send("0")
        await entered.wait()
        await node.sio.emit("e", 2)
        answers.put_nowait(True)
        assert (await accepted.recv()).startswith("0")
        assert await accepted.event() == ["e", 2]
        assert refused.waiting() == []


async def test_case_47_emits_in_the_connect_handler_arrive_once_behind_the_replay(start_node):
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.emit("own", environ["sio_pg.recovered"], to=sid)
        await node.sio.emit("all", environ["sio_pg.recovered"])

    async with node.client() as wire:
        assert [await wire.event(), await wire.event()] == [["own", False], ["all", False]]
        await wire.drop()
        await node.sio.emit("missed")
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            await node.sio.emit("end")
            assert await again.events_until("end") == [["missed"], ["own", True], ["all", True]]


async def test_case_31_what_the_disconnect_handler_does(start_node, db):
    node = await start_node()
    seen = []

    @node.sio.event
    async def disconnect(sid, reason):
        seen.append((sorted(node.sio.rooms(sid)), await node.sio.get_session(sid)))
        await node.sio.emit("own", to=sid)
        await node.sio.emit("room", room="x")
        await node.sio.leave_room(sid, "x")
        await node.sio.save_session(sid, {"v": 2})

    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        await node.sio.save_session(wire.sid, {"v": 1})
        await wire.drop()
        assert seen == [(sorted([wire.sid, "x"]), {"v": 1})]
        async with node.client(pid=wire.pid) as again:
            assert sorted(node.sio.rooms(again.sid)) == sorted([wire.sid, "x"])
            assert await node.sio.get_session(again.sid) == {"v": 2}
            assert [await again.event(), await again.event()] == [["own"], ["room"]]


# -- what the connect handler sends to its own client, in no log -----------------------------------------------------
@pytest.mark.parametrize("recovered", [False, True])
@pytest.mark.parametrize("always_connect", [False, True])
async def test_unstored_emits_of_the_connect_handler_come_behind_connect(start_node, recovered, always_connect):
    node = await start_node(always_connect=always_connect)
    answers, called = asyncio.Queue(), []

    async def ask(sid):
        called.append(await node.sio.call("called", to=sid))

    async with node.client() as first:
        await first.drop()
    tasks = []

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.emit("asked", to=sid, callback=answers.put_nowait)
        await node.sio.emit("here", 1, to=sid, ignore_queue=True)
        tasks.append(asyncio.create_task(ask(sid)))
        await asyncio.sleep(0)
        await node.sio.emit("here", 2, to=sid, ignore_queue=True)

    async with node.client(**({"pid": first.pid} if recovered else {})) as wire:
        assert (wire.sid == first.sid) is recovered
        frames = sorted([await wire.recv() for _ in range(4)])
        assert [frame[frame.index("[") :] for frame in frames if "here" in frame] == ['["here",1]', '["here",2]']
        for frame in frames:
            if "here" not in frame:
                wire.send(f"3{frame[1 : frame.index('[')]}[7]")
        assert await asyncio.wait_for(answers.get(), 20) == 7
        await asyncio.gather(*tasks)
        assert called == [7]


async def test_what_a_refused_client_was_asked_is_not_waited_for(start_node):
    node = await start_node()
    seen = []

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.emit("here", to=sid, ignore_queue=True)
        seen.append(node.manager.clients.current(sid, "/"))
        return False

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert (await wire.recv()).startswith("4{")
        assert wire.waiting() == []
    assert seen[0]._waiting == []


@pytest.mark.parametrize("always_connect", [False, True])
async def test_a_disconnect_in_the_connect_handler_is_final_for_the_client(start_node, always_connect):
    """Before the CONNECT, a DISCONNECT would leave python-socketio's clients waiting for it."""
    node = await start_node(always_connect=always_connect)

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.disconnect(sid)

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        if always_connect:
            assert (await wire.recv()).startswith('0{"sid"')
            assert await wire.recv() == "1"
        else:
            assert await wire.recv() == '4{"message":"Connection refused by server"}'


async def test_a_refusal_behind_connect_has_no_payload_which_javascript_does_not_parse(start_node):
    node = await start_node(always_connect=True)

    @node.sio.event
    async def connect(sid, environ, auth):
        raise Refused("no")

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert (await wire.recv()).startswith('0{"sid"')
        assert await wire.recv() == "1"


async def test_auth_keeps_a_pid_and_an_offset_of_the_applications_own(start_node):
    node = await start_node()
    seen = []

    @node.sio.event
    async def connect(sid, environ, auth):
        seen.append(auth)

    async with node.client(pid="product-7", offset=20):
        pass
    async with node.client() as wire:
        await node.sio.emit("e")
        await wire.event()
    async with node.client(pid=wire.pid, offset=wire.offset):
        pass
    assert seen == [{"pid": "product-7", "offset": 20}, None, None]


# -- what is logged -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("of", ["connect", "middleware"])
async def test_an_error_of_ours_in_a_handler_is_logged_with_its_traceback_and_whose_it_is(
    start_node, caplog, expected_errors, of
):
    expected_errors.append("a connection is closed, and its client comes back")
    node = await start_node(namespaces=["/chat"])
    sids = []

    async def refused(sid, environ, auth):
        sids.append(sid)
        await node.sio.enter_room(sid, "", "/chat")

    if of == "connect":
        node.sio.on("connect", refused, namespace="/chat")
    else:
        node.sio.use(refused, "/chat")
    async with AsgiClient(node.sio) as wire:
        wire.send("0/chat,")
        assert await wire.rest() == []
    (error,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert isinstance(error.exc_info[1], ConfigurationError)
    assert (
        f"{sids[0]} [/chat], in the {'connect handler' if of == 'connect' else 'middleware '}" in error.getMessage()
    )


async def test_what_a_client_sends_wrongly_is_logged_with_its_sids(start_node, caplog):
    node = await start_node(namespaces=["/", "/chat"])
    async with node.client() as wire:
        sid, _ = await wire.connect("/chat")
        wire.send("9")
        assert await wire.rest() == []
    assert f"{wire.sid} [/], {sid} [/chat]: " in caplog.text
