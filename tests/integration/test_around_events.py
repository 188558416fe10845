"""What sees all events, and what is around a connection: middlewares, listeners, timeouts, an absent database."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from sio_pg_adapter import AsyncNamespace, AsyncPostgresManager, AsyncServer, ConfigurationError, StoreUnavailable
from support.asgi_client import AsgiClient, Closed
from support.waiting import until


# -- incoming events -----------------------------------------------------------------------------------------------
async def test_listeners_then_middlewares_then_the_handler(start_node):
    node = await start_node(namespaces="*")
    calls: list[tuple] = []

    @node.sio.on_any
    def first(event, sid, *args):
        calls.append(("any", event, sid, *args))

    @node.sio.use_event
    async def drop(sid, event, args):
        calls.append(("drop", event, sid, *args))
        return not (args and args[0] == "bad")

    @node.sio.use_event()
    def change(sid, event, args):
        args[:] = [value * 2 for value in args]

    @node.sio.use_event("/chat")
    def elsewhere(sid, event, args):
        calls.append(("elsewhere", event))

    @node.sio.on("say")
    async def say(sid, *args):
        calls.append(("handler", *args))
        return "heard"

    async with node.client() as wire:
        wire.send('21["say","bad"]')
        wire.send('22["say","a",1]')
        assert await wire.recv() == '32["heard"]'
        sid = wire.sid
        assert sorted(calls, key=lambda call: "bad" not in call) == [
            ("any", "say", sid, "bad"),
            ("drop", "say", sid, "bad"),
            ("any", "say", sid, "a", 1),
            ("drop", "say", sid, "a", 1),
            ("handler", "aa", 2),
        ]
        calls.clear()
        wire.send('2["nobody handles it"]')
        await until(lambda: len(calls) == 2)
        assert calls == [("any", "nobody handles it", sid), ("drop", "nobody handles it", sid)]


async def test_a_middleware_that_raises_drops_the_event(start_node):
    node = await start_node(async_handlers=False)
    handled: list[str] = []

    @node.sio.use_event
    def check(sid, event, args):
        if event == "forbidden":
            raise PermissionError(event)

    @node.sio.on("*")
    def catch_all(event, sid):
        handled.append(event)

    async with node.client() as wire:
        with pytest.raises(PermissionError):
            await node.sio._handle_event(wire.eio_sid, "/", None, ["forbidden"])
        wire.send('2["allowed"]')
        await until(lambda: handled)
        assert handled == ["allowed"]


async def test_functions_of_all_namespaces_take_the_namespace_and_leave_the_admin_ui_alone(start_node):
    node = await start_node(namespaces=["/", "/chat"])
    node.sio.instrument(auth=False, mode="production", server_stats_interval=0.01)
    calls: list[tuple] = []

    @node.sio.use("*")
    async def admit(namespace, sid, environ, auth):
        calls.append(("use", namespace, sid))

    @node.sio.on_any("*")
    def listen(event, namespace, sid, *args):
        calls.append(("on_any", event, namespace, sid, *args))

    @node.sio.use_event("*")
    def drop(namespace, sid, event, args):
        return args != ["bad"]

    @node.sio.on_any_outgoing("*")
    def watch(event, namespace, sid, *args):
        calls.append(("outgoing", event, namespace, sid, *args))

    for name in ("/", "/chat"):
        node.sio.on("say", lambda _sid, *args: ("heard", *args), namespace=name)
    async with node.client("/admin") as operator, node.client("/chat") as chat, node.client() as wire:
        await operator.recv()  # a report
        operator.send('2/admin,["emit","/","e",["*"]]')
        chat.send('2/chat,1["say","bad"]')
        chat.send('2/chat,2["say","good"]')
        assert await chat.recv() == '3/chat,2["heard","good"]'
        wire.send('23["say","good"]')
        assert await wire.recv() == '33["heard","good"]'
        await node.sio.emit("e", 7, namespace="/chat")
        await until(lambda: ("outgoing", "e", "/chat", chat.sid, 7) in calls)
        due = [
            ("use", "/chat", chat.sid),
            ("use", "/", wire.sid),
            ("on_any", "say", "/chat", chat.sid, "bad"),
            ("on_any", "say", "/chat", chat.sid, "good"),
            ("on_any", "say", "/", wire.sid, "good"),
            ("outgoing", "e", "/chat", chat.sid, 7),
        ]
        assert sorted(calls, key=str) == sorted(due, key=str)


async def test_server_events_have_one_namespace(start_node):
    node = await start_node()
    with pytest.raises(ConfigurationError, match="on_server_event takes the name of one namespace"):
        node.sio.on_server_event("e", print, namespace="*")


@pytest.mark.parametrize("call", ["use_event", "on_any", "on_any_outgoing"])
async def test_what_is_no_function_is_refused(start_node, call):
    node = await start_node()
    with pytest.raises(ConfigurationError, match=f"{call}.* takes a function"):
        getattr(node.sio, call)(7)
    with pytest.raises(ConfigurationError, match="namespace"):
        getattr(node.sio, call)(print, namespace=7)


# -- outgoing events -----------------------------------------------------------------------------------------------
async def test_listeners_of_outgoing_events_see_what_each_client_is_sent(start_node, expected_errors):
    a, b = await start_node(), await start_node()
    seen: list[tuple] = []

    @b.sio.on_any_outgoing
    def broken(event, sid, *args):
        if args == (2,):
            raise ValueError("of the application")

    @b.sio.on_any_outgoing()
    async def note(event, sid, *args):
        seen.append((event, sid, *args))

    expected_errors.append("a listener of outgoing events failed")
    async with b.client() as one, b.client() as two, a.client():
        await a.sio.emit("stored", (1, b"\0", {"a": [b"\1"]}), skip_sid=two.sid)
        await until(lambda: seen)
        await b.sio.emit("volatile", 2, volatile=True)
        await b.sio.emit("here", 3, ignore_queue=True, to=two.sid)
        await b.sio.emit("asked", 4, to=one.sid, callback=print)
        await until(lambda: len(seen) == 5)
        assert seen == [
            ("stored", one.sid, 1, b"\0", {"a": [b"\1"]}),
            ("volatile", one.sid, 2),
            ("volatile", two.sid, 2),
            ("here", two.sid, 3),
            ("asked", one.sid, 4),
        ]
        seen.clear()
        await two.drop()
        await a.sio.emit("missed", 5, to=two.sid)
        async with b.client(pid=two.pid):
            await until(lambda: seen)
            assert seen == [("missed", two.sid, 5)]


# -- the end of a connection ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["drop", "leave", "kick", "takeover"])
async def test_disconnecting_comes_before_disconnect_with_the_rooms_still_there(start_node, how):
    node = await start_node()
    calls: list[tuple] = []

    @node.sio.event
    async def disconnecting(sid, reason):
        calls.append(("disconnecting", sid, reason, set(node.sio.rooms(sid))))

    @node.sio.event
    async def disconnect(sid, reason):
        calls.append(("disconnect", sid, reason))

    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        reason = {"drop": "transport close", "leave": "client disconnect", "kick": "server disconnect"}
        if how == "drop":
            await wire.drop()
        elif how == "leave":
            wire.send("1")
        elif how == "kick":
            await node.sio.disconnect(wire.sid)
        else:
            async with node.client(pid=wire.pid):
                await until(lambda: len(calls) == 2)
        await until(lambda: len(calls) >= 2)
        why = reason.get(how, "transport close")
        assert calls[:2] == [
            ("disconnecting", wire.sid, why, {wire.sid, "x"}),
            ("disconnect", wire.sid, why),
        ]


async def test_disconnecting_in_a_class_and_not_for_a_catch_all(start_node, expected_errors):
    node = await start_node(namespaces=["/", "/chat"])
    calls: list[tuple] = []
    expected_errors.append("the disconnecting handler of")

    class Chat(AsyncNamespace):
        async def on_disconnecting(self, sid, reason):
            calls.append(("disconnecting", self.rooms(sid)))
            raise ValueError("of the application")

        async def on_disconnect(self, sid, reason):
            calls.append(("disconnect",))

    node.sio.register_namespace(Chat("/chat"))
    node.sio.on("*", lambda *args: calls.append(args))
    async with node.client("/chat") as chat, node.client() as wire:
        await wire.drop()
        assert calls == []
        await chat.drop()
        assert calls == [("disconnecting", [chat.sid]), ("disconnect",)]


# -- connections that join no namespace ------------------------------------------------------------------------------
async def test_a_connection_that_joins_no_namespace_in_time_is_closed(start_node):
    node = await start_node(connect_timeout=0.1)
    async with AsgiClient(node.sio) as idle, node.client() as wire:
        with pytest.raises(Closed):
            while True:
                await idle.recv()
        await node.sio.emit("end")  # the other stays
        assert await wire.events_until("end") == []
    assert node.sio._intake._joining == {}


@pytest.mark.parametrize("value", [0, -1, "45", True, float("nan")])
def test_a_wrong_connect_timeout_is_refused(value):
    with pytest.raises(ConfigurationError, match="connect_timeout takes seconds"):
        AsyncServer(async_mode="asgi", client_manager=AsyncPostgresManager("postgresql:///x"), connect_timeout=value)


# -- an absent database ----------------------------------------------------------------------------------------------
async def test_the_error_handler_learns_once_that_the_database_is_away_and_once_that_it_is_back(
    start_node, superuser
):
    reported: list[object] = []

    async def handler(error):
        reported.append(error)

    node = await start_node(manager={"error_handler": handler})
    assert reported == []
    for _ in range(2):
        pid = node.manager.node.listener._connection.get_server_pid()
        await superuser.execute("SELECT pg_terminate_backend($1)", pid)
        await until(lambda: reported and reported[-1] is None)
        assert isinstance(reported[0], StoreUnavailable) and reported[1:] == [None]
        reported.clear()


async def test_the_error_handler_of_a_process_that_only_emits(pg_dsn, pg_admin, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.node.PROBE_INTERVAL", 0.05)
    reported: list[object] = []
    name = conninfo_to_dict(pg_dsn)["dbname"]
    async with AsyncPostgresManager(pg_dsn, write_only=True, error_handler=reported.append):
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            pg_admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            await until(lambda: reported)
        finally:
            pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await until(lambda: len(reported) == 2)
    assert isinstance(reported[0], StoreUnavailable) and reported[1] is None


async def test_an_error_handler_that_fails_is_logged_and_a_wrong_one_refused(
    start_node, superuser, expected_errors, caplog
):
    expected_errors.append("the error_handler failed")

    def handler(error):
        raise ValueError("of the application")

    node = await start_node(manager={"error_handler": handler})
    await superuser.execute(
        "SELECT pg_terminate_backend($1)", node.manager.node.listener._connection.get_server_pid()
    )
    await until(lambda: caplog.text.count("the error_handler failed") == 2)
    with pytest.raises(ConfigurationError, match="error_handler takes a function"):
        await start_node(manager={"error_handler": 7})


# -- namespaces that clients choose ----------------------------------------------------------------------------------
async def test_what_is_kept_for_a_namespace_goes_with_its_last_client(start_node):
    node = await start_node(namespaces="*")
    manager = node.manager
    for n in range(3):
        name = f"/of a client {n}"
        async with node.client(name) as wire:
            await node.sio.enter_room(wire.sid, "x", namespace=name)
            await node.sio.save_session(wire.sid, {"v": n}, namespace=name)
            wire.send(f'2{name},["said"]')
            await node.sio.emit("e", namespace=name, volatile=True)
            await node.sio.disconnect(wire.sid, namespace=name)
            await until(lambda name=name: name not in manager.clients.by_sid)
    assert not manager.clients.by_sid and not manager.clients.by_socket and not manager.clients._unsettled
    assert not manager.rooms and not manager.pending_disconnect and not manager.callbacks
    assert not node.sio._session_locks._locks
