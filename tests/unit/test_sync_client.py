"""The synchronous client: its handlers, its threads, and what it shares with the asynchronous one."""

from __future__ import annotations

import inspect
import os
import threading

import pytest
import socketio

from sio_pg_adapter import sync_client
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.sync_client import Client, SimpleClient
from support.engine_wire import Wire

TIMEOUT = 10


@pytest.fixture(autouse=True)
def _wire(monkeypatch):
    monkeypatch.setattr(sync_client._Connection, "_engineio_client_class", lambda _: Wire)


@pytest.fixture
def client():
    client = Client(reconnection_delay=0.001, randomization_factor=0)
    yield client
    client.reconnection = False
    client.shutdown()


def on_loop(coroutine):
    return sync_client._loop.run(coroutine)


def connected(client, *replies, **options):
    """Connect, with `replies` as the server's answer."""

    async def answer():
        await client.eio.opened.wait()
        await client.eio.receive(*(replies or ('0{"sid":"s1","pid":"p1"}',)))

    answering = threading.Thread(target=on_loop, args=(answer(),))
    answering.start()
    client.connect("http://node", **options)
    answering.join()
    return client


def receive(client, *frames):
    on_loop(client.eio.receive(*frames))


def drop(client):
    """Break the connection, and wait until the client has sent its claims again."""

    async def dropped():
        await client.eio.drop()
        await client.eio.reopened()

    on_loop(dropped())


def test_claim_after_a_drop(client):
    calls = []
    client.on("e", lambda *args: calls.append(args))
    connected(client, auth={"token": "t"})
    assert client.recovered() is False
    receive(client, '2["e",1,"o1"]', '2["e","text",null,null]')
    drop(client)
    assert client.eio.sent == ['0{"pid":"p1","offset":"o1","token":"t"}']
    receive(client, '0{"sid":"s1","pid":"p1"}')
    client._connection.queue.settle()
    assert (calls, client.recovered(), client.get_sid()) == ([(1,), ("text", None)], True, "s1")


def test_handlers_run_one_by_one_in_the_order_of_events_and_none_is_lost_by_a_drop(client):
    calls, working, go_on = [], threading.Event(), threading.Event()

    @client.on("*")
    def on_event(event, *args):
        if event == "slow":
            working.set()
            assert go_on.wait(TIMEOUT)
        calls.append((event, *args))

    client.on("connect", lambda: calls.append(("connect", client.recovered())))
    client.on("disconnect", lambda _reason: calls.append(("disconnect",)))
    connected(client)
    receive(client, '2["slow","o1"]', *(f'2["n",{i},"o{i + 2}"]' for i in range(100)))
    assert working.wait(TIMEOUT)
    drop(client)  # the loop does not wait for the handler
    assert client.eio.sent == ['0{"pid":"p1","offset":"o101"}']
    receive(client, '0{"sid":"s2","pid":"p2"}')
    drop(client)
    receive(client, '0{"sid":"s2","pid":"p2"}')
    go_on.set()
    client._connection.queue.settle()
    assert calls == [
        ("connect", False),
        ("slow",),
        *(("n", i) for i in range(100)),
        ("disconnect",),
        ("connect", False),  # although the latest connection is recovered: this one was not
        ("disconnect",),
        ("connect", True),
    ]


def test_a_handler_can_call_the_server_and_disconnect(client):
    answers, done = [], threading.Event()

    @client.event
    def ask():
        answers.append(client.call("question", timeout=TIMEOUT))
        client.emit("question", callback=lambda answer: (answers.append(answer), done.set()))
        assert done.wait(TIMEOUT)  # callbacks have threads of their own
        client.disconnect()
        answers.append(client.connected)

    connected(client)

    async def serve():
        await client.eio.receive('2["ask","o1"]')
        for n in ("1", "2"):
            while not client.eio.sent or client.eio.sent[-1] != f'2{n}["question"]':
                await sync_client.asyncio.sleep(0.001)
            await client.eio.receive(f'3{n}["answer {n}"]')

    on_loop(serve())
    client._connection.queue.settle()
    assert answers == ["answer 1", "answer 2", False]


def test_an_event_that_asks_for_an_answer_gets_that_of_its_handler(client):
    client.on("add", lambda a, b: a + b)
    connected(client)

    async def ask():
        await client.eio.receive('27["add",1,2]')
        while client.eio.sent[-1][0] != "3":
            await sync_client.asyncio.sleep(0.001)

    on_loop(ask())
    assert client.eio.sent[-1] == "37[3]"


def test_a_handler_that_raises_is_in_nobodys_way(client, caplog):
    calls = []

    @client.event
    def connect():
        raise RuntimeError("in connect")

    @client.event
    def e(i):
        if i == 1:
            raise RuntimeError("in e")
        calls.append(i)

    connected(client)
    receive(client, '2["e",1,"o1"]', '2["e",2,"o2"]')
    client._connection.queue.settle()
    drop(client)
    assert calls == [2]
    assert client.eio.sent == ['0{"pid":"p1","offset":"o2"}']
    assert [record.message for record in caplog.records] == ["connect handler error", "e handler error"]


def test_class_based_handlers(client):
    lines = []

    class Admin(socketio.ClientNamespace):
        def on_connect(self):
            lines.append(self.client.recovered("/admin"))

        def on_line(self, text):
            lines.append(text)

    client.register_namespace(Admin("/admin"))
    connected(client, '0/admin,{"sid":"s","pid":"p"}')
    receive(client, '2/admin,["line","text","o1"]')
    client._connection.queue.settle()
    assert (lines, client.namespaces) == ([False, "text"], {"/admin": "s"})
    with pytest.raises(ValueError, match="Not a valid namespace class"):
        client.register_namespace(socketio.AsyncClientNamespace("/other"))


def test_auth_and_url_are_asked_for_outside_of_the_loop(client):
    threads = []

    def auth():
        threads.append(threading.current_thread().name)
        return {"token": "t"}

    connected(client, auth=auth)
    assert client.eio.sent == ['0{"token":"t"}']
    assert "sio_pg clients" not in threads


def test_a_client_leaves_no_thread(client):
    connected(client)
    receive(client, '2["e",1,"o1"]')
    client.disconnect()
    assert client._connection.queue._thread is None or not client._connection.queue._thread.join(TIMEOUT)
    assert [t.name for t in threading.enumerate()].count("sio_pg client handlers") == 0


def test_handlers_are_called_when_no_thread_can_be_started_any_more(client, monkeypatch):
    """Python 3.12 starts none at the end of the process, where `atexit` may call `disconnect`."""
    handled = []
    client.on("e", handled.append)
    client.on("disconnect", handled.append)
    connected(client)

    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        receive(client, '2["e",1,"o1"]')
        client.disconnect()
    assert handled == [1, client.reason.CLIENT_DISCONNECT]
    assert client._connection.queue._thread is None


def test_simple_client():
    with SimpleClient() as simple:
        assert simple.recovered() is False
        made = simple.client_class

        def client_class(*args, **kwargs):
            client = made(*args, **kwargs)
            threading.Thread(target=answer, args=(client,)).start()
            return client

        def answer(client):
            async def reply():
                await client.eio.opened.wait()
                await client.eio.receive('0{"sid":"s1","pid":"p1"}', '2["e",1,"o1"]')

            on_loop(reply())

        simple.client_class = client_class
        simple.connect("http://node")
        assert simple.connected
        assert (simple.receive(timeout=TIMEOUT), simple.sid, simple.recovered()) == (["e", 1], "s1", False)
    assert not simple.connected


def test_attributes_of_a_subclass_and_of_the_connection():
    class Mine(Client):
        retries = 0

        def __init__(self):
            super().__init__(reconnection_attempts=3)
            self.retries = 2
            self.mine = "mine"

    client = Mine()
    assert (client.retries, client.mine, client.reconnection_attempts) == (2, "mine", 3)
    client.reconnection_delay = 7
    assert client._connection.reconnection_delay == 7
    with pytest.raises(AttributeError):
        client.nothing  # noqa: B018


def test_a_session_of_requests_is_refused():
    with pytest.raises(ConfigurationError, match="takes an aiohttp"):
        Client(http_session=object())


def test_a_child_process_has_a_loop_of_its_own(client):
    connected(client)
    assert sync_client._loop._loop is not None
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writable, b"none" if sync_client._loop._loop is None else b"that of its parent")
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        assert pipe.read() == b"none"


@pytest.mark.parametrize(
    "method",
    ["connect", "wait", "emit", "send", "call", "disconnect", "shutdown", "start_background_task", "sleep"],
)
def test_methods_take_what_those_of_python_socketio_take(method):
    def names(cls):
        return list(inspect.signature(getattr(cls, method)).parameters)

    assert names(Client) == names(socketio.Client)


def test_overridden_methods_of_python_socketio():
    assert str(inspect.signature(socketio.AsyncClient._trigger_event)) == "(self, event, namespace, *args)"
    assert str(inspect.signature(socketio.AsyncClient._handle_event)) == "(self, namespace, id, data)"
    assert str(inspect.signature(socketio.AsyncClient._get_real_value)) == "(self, value)"
    assert str(inspect.signature(socketio.Client._trigger_event)) == "(self, event, namespace, *args)"
