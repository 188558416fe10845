"""The Python client: the claims it sends, the arguments of its handlers, and the moment when the offset moves.

There is no server. The tests run the real client on an Engine.IO client whose transport is replaced.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from typing import Any

import engineio
import pytest
import socketio
from engineio import packet as eio_packet

from sio_pg_adapter.client import AsyncClient, AsyncSimpleClient
from sio_pg_adapter.errors import ConfigurationError
from support.engine_wire import Wire, settle


class Client(AsyncClient):
    eio: Wire

    def _engineio_client_class(self):
        return Wire


@pytest.fixture
async def client():
    client = Client(handle_sigint=False, reconnection_delay=0.001, randomization_factor=0)
    yield client
    client.reconnection = False
    await asyncio.wait_for(client.shutdown(), 5)
    if client._reconnect_task is not None:
        await asyncio.wait_for(client._reconnect_task, 5)


async def connected(client: Client, *replies: str, **options: Any) -> Client:
    """Connect, with `replies` as the server's answer."""
    task = asyncio.ensure_future(client.connect("http://node", **options))
    await asyncio.wait_for(client.eio.opened.wait(), 5)
    await client.eio.receive(*(replies or ('0{"sid":"s1","pid":"p1"}',)))
    await asyncio.wait_for(task, 5)
    return client


async def claims(client: Client) -> list[str | bytes]:
    """Return the claims that the client presents after a drop."""
    await client.eio.drop()
    await client.eio.reopened()
    return client.eio.sent


def calls_of(client: Client, event: str = "e") -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    client.on(event, lambda *args: calls.append(args))
    return calls


# -- claims ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "first", "again"),
    [
        (None, {}, {"pid": "p1", "offset": "o1"}),
        ({"token": "t"}, {"token": "t"}, {"pid": "p1", "offset": "o1", "token": "t"}),
        (lambda: {"token": "t"}, {"token": "t"}, {"pid": "p1", "offset": "o1", "token": "t"}),
        ({"pid": "mine"}, {"pid": "mine"}, {"pid": "mine", "offset": "o1"}),
        ({"offset": 7}, {"offset": 7}, {"pid": "p1", "offset": 7}),
        ("secret", "secret", "secret"),
        ([1], [1], [1]),
    ],
)
async def test_claim_after_a_drop_and_the_applications_auth_wins(client, auth, first, again):
    await connected(client, auth=auth)
    [frame] = client.eio.sent
    assert (frame[0], json.loads(frame[1:])) == ("0", first)
    await client.eio.receive('2["e",1,"o1"]')
    [frame] = await claims(client)
    assert (frame[0], json.loads(frame[1:])) == ("0", again)


async def test_auth_from_a_coroutine_is_asked_for_each_time(client):
    tokens = iter("ab")

    async def auth():
        return {"token": next(tokens)}

    await connected(client, auth=auth)
    assert client.eio.sent == ['0{"token":"a"}']
    assert await claims(client) == ['0{"pid":"p1","token":"b"}']


async def test_no_offset_after_no_event(client):
    await connected(client)
    assert await claims(client) == ['0{"pid":"p1"}']


async def test_no_pid_no_claim(client):
    calls = calls_of(client)
    await connected(client, '0{"sid":"s1"}')
    await client.eio.receive('2["e","text"]', '2["e",null]')
    assert calls == [("text",), (None,)]
    assert await claims(client) == ["0{}"]


async def test_each_namespace_has_its_own(client):
    await connected(
        client,
        '0{"sid":"s1","pid":"p1"}',
        '0/a,{"sid":"s2","pid":"p2"}',
        '0/b,{"sid":"s3"}',
        namespaces=["/", "/a", "/b"],
    )
    await client.eio.receive('2["e","o1"]', '2/a,["e","o2"]', '2/b,["e","text"]')
    assert await claims(client) == [
        '0{"pid":"p1","offset":"o1"}',
        '0/a,{"pid":"p2","offset":"o2"}',
        "0/b,{}",
    ]


async def test_url_from_a_callable_may_name_another_node(client):
    urls = iter(["http://a", "http://b"])
    task = asyncio.ensure_future(client.connect(lambda: next(urls)))
    await client.eio.opened.wait()
    await client.eio.receive('0{"sid":"s1","pid":"p1"}')
    await task
    assert await claims(client) == ['0{"pid":"p1"}']
    assert client.eio.url == "http://b"


# -- recovered ----------------------------------------------------------------------------------------------


async def test_recovered_means_the_reply_bears_the_pid_that_was_sent(client):
    assert client.recovered() is False
    seen = []
    client.on("connect", lambda: seen.append((client.recovered(), client.get_sid())))
    await connected(client)
    for reply in ('{"sid":"s1","pid":"p1"}', '{"sid":"s2","pid":"p2"}', '{"sid":"s2","pid":"p2"}'):
        await claims(client)
        await client.eio.receive("0" + reply)
    await claims(client)
    await client.eio.receive('0{"sid":"s3"}')
    assert seen == [(False, "s1"), (True, "s1"), (False, "s2"), (True, "s2"), (False, "s3")]
    assert client.recovered("/unknown") is False


async def test_each_namespace_reports_its_own_recovery(client):
    await connected(client, '0/a,{"sid":"s1","pid":"p1"}', '0/b,{"sid":"s2","pid":"p2"}', namespaces=["/a", "/b"])
    await claims(client)
    await client.eio.receive('0/a,{"sid":"s1","pid":"p1"}', '0/b,{"sid":"s9","pid":"p9"}')
    assert (client.recovered("/a"), client.recovered("/b"), client.recovered()) == (True, False, False)


async def test_a_fresh_session_does_not_keep_the_offset_of_the_old_one(client):
    await connected(client)
    await client.eio.receive('2["e","o1"]')
    await claims(client)
    await client.eio.receive('0{"sid":"s2","pid":"p2"}')
    assert await claims(client) == ['0{"pid":"p2"}']


async def test_a_second_connect_reply_changes_nothing(client):
    await connected(client)
    await client.eio.receive('2["e","o1"]', '0{"sid":"s2","pid":"p2"}')
    assert client.recovered() is False
    assert await claims(client) == ['0{"pid":"p1","offset":"o1"}']


# -- arguments of handlers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "args", "offset"),
    [
        ('2["e","o1"]', (), "o1"),
        ('2["e",1,"o1"]', (1,), "o1"),
        ('2["e",[1,2],"o1"]', ([1, 2],), "o1"),
        ('2["e","text","o1"]', ("text",), "o1"),
        ('2["e",null,"o1"]', (None,), "o1"),
        ('2["e",1,{},"o1"]', (1, {}), "o1"),
        # unstored: the server appended None to an end that is a string or None
        ('2["e",null]', (), None),
        ('2["e","world",null]', ("world",), None),
        ('2["e","world",null,null]', ("world", None), None),
        ('2["e",null,null]', (None,), None),
        ('2["e"]', (), None),
        ('2["e",1]', (1,), None),
        ('2["e","x",{"a":null}]', ("x", {"a": None}), None),
        ('2["e",false]', (False,), None),
    ],
)
async def test_the_servers_own_argument_is_taken_off(client, frame, args, offset):
    calls = calls_of(client)
    await connected(client)
    await client.eio.receive(frame)
    assert calls == [args]
    assert client._sessions["/"].offset == offset


@pytest.mark.parametrize(("frame", "args"), [('27["e","x"]', ("x",)), ('27["e",null]', (None,)), ('27["e"]', ())])
async def test_an_event_with_ack_id_bears_no_offset(client, frame, args):
    calls = []
    client.on("e", lambda *args: calls.append(args) or "answer")
    await connected(client)
    client.eio.sent.clear()
    await client.eio.receive(frame)
    assert calls == [args]
    assert client.eio.sent == ['37["answer"]']
    assert await claims(client) == ['0{"pid":"p1"}']


async def test_binary_events(client):
    calls = calls_of(client)
    await connected(client)
    await client.eio.receive(
        '52-["e",{"_placeholder":true,"num":0},{"b":[{"_placeholder":true,"num":1}]},"o1"]', b"one", b"two"
    )
    await client.eio.receive('51-["e",{"_placeholder":true,"num":0}]', b"unstored")
    await client.eio.receive('51-["e",{"_placeholder":true,"num":0},null]', b"x")
    assert calls == [(b"one", {"b": [b"two"]}), (b"unstored",), (b"x",)]
    assert await claims(client) == ['0{"pid":"p1","offset":"o1"}']


async def test_msgpack():
    msgpack = pytest.importorskip("msgpack")
    client = Client(handle_sigint=False, reconnection_delay=0.001, randomization_factor=0, serializer="msgpack")
    calls = calls_of(client)
    await connected(client, msgpack.dumps({"type": 0, "nsp": "/", "data": {"sid": "s", "pid": "p1"}}))
    await client.eio.receive(msgpack.dumps({"type": 2, "nsp": "/", "data": ["e", b"x", "o1"]}))
    await client.eio.receive(msgpack.dumps({"type": 2, "nsp": "/", "data": ["e", "x"], "id": 1}))
    assert calls == [(b"x",), ("x",)]
    [frame] = await claims(client)
    assert msgpack.loads(frame)["data"] == {"pid": "p1", "offset": "o1"}
    await client.shutdown()


async def test_class_based_handlers(client):
    calls = []

    class Chat(socketio.AsyncClientNamespace):
        async def on_connect(self):
            calls.append(("connect", client.recovered("/chat")))

        async def on_line(self, text):
            calls.append(("line", text))

    client.register_namespace(Chat("/chat"))
    await connected(client, '0/chat,{"sid":"s","pid":"p1"}')
    await client.eio.receive('2/chat,["line","hello","o1"]')
    assert calls == [("connect", False), ("line", "hello")]
    assert await claims(client) == ['0/chat,{"pid":"p1","offset":"o1"}']


async def test_catch_all_handlers(client):
    calls = calls_of(client, "*")
    await connected(client)
    await client.eio.receive('2["e",1,"o1"]')
    assert calls == [("e", 1)]


async def test_simple_client():
    class Simple(AsyncSimpleClient):
        client_class = Client

    assert AsyncSimpleClient.client_class is AsyncClient
    simple = Simple(handle_sigint=False, reconnection_delay=0.001, randomization_factor=0)
    task = asyncio.ensure_future(simple.connect("http://node"))
    await settle()
    await simple.client.eio.receive('0{"sid":"s1","pid":"p1"}')
    await task
    await simple.client.eio.receive('2["e","text","o1"]')
    assert await simple.receive(timeout=1) == ["e", "text"]
    assert await claims(simple.client) == ['0{"pid":"p1","offset":"o1"}']
    await simple.client.eio.receive('0{"sid":"s1","pid":"p1"}')
    assert (simple.sid, simple.client.recovered()) == ("s1", True)
    await simple.disconnect()


# -- when the offset moves ----------------------------------------------------------------------------------


async def test_the_offset_follows_the_order_of_arrival_whatever_handlers_do(client):
    gates = {n: asyncio.Event() for n in (1, 2, 3)}
    begun, ended = [], []

    @client.on("e")
    async def handler(n):
        begun.append(n)
        await gates[n].wait()
        ended.append(n)

    await connected(client)
    await client.eio.receive(*(f'2["e",{n},"o{n}"]' for n in gates))
    for n in (3, 1, 2):
        assert client._sessions["/"].offset == "o3"
        gates[n].set()
        await settle()
    assert (begun, ended) == ([1, 2, 3], [3, 1, 2])
    assert client._sessions["/"].offset == "o3"


async def test_an_event_whose_handler_runs_at_the_drop_is_not_asked_for_again(client):
    gate = asyncio.Event()
    ended = []

    @client.on("e")
    async def handler(n):
        await gate.wait()
        ended.append(n)

    await connected(client)
    await client.eio.receive('2["e",1,"o1"]')
    assert await claims(client) == ['0{"pid":"p1","offset":"o1"}']
    gate.set()
    await client.eio.receive('0{"sid":"s1","pid":"p1"}')
    assert ended == [1]


async def test_an_event_without_a_handler_moves_the_offset(client):
    await connected(client)
    await client.eio.receive('2["nobody",1,"o1"]')
    assert await claims(client) == ['0{"pid":"p1","offset":"o1"}']


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_an_event_whose_handler_raised_is_neither_repeated_nor_in_the_way(client, asynchronous, caplog):
    if asynchronous:

        async def handler(n):
            raise RuntimeError(n)
    else:

        def handler(n):
            raise RuntimeError(n)

    client.on("e", handler)
    await connected(client)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # python-socketio does not catch it in its task
    await client.eio.receive('2["e",1,"o1"]')
    assert await claims(client) == ['0{"pid":"p1","offset":"o1"}']


async def test_events_before_connect_are_handed_out_at_once_and_only_once(client):
    calls = calls_of(client)
    await connected(client)
    await claims(client)
    await client.eio.receive('2["e",1,"o1"]')  # Node's own server replays before CONNECT
    assert calls == [(1,)]
    assert await claims(client) == ['0{"pid":"p1","offset":"o1"}']


async def test_a_drop_within_a_binary_event_delivers_nothing_and_asks_for_it_again(client):
    calls = calls_of(client)
    await connected(client)
    await client.eio.receive('2["e",0,"o0"]', '51-["e",{"_placeholder":true,"num":0},"o1"]')
    assert await claims(client) == ['0{"pid":"p1","offset":"o0"}']
    await client.eio.receive('0{"sid":"s1","pid":"p1"}')
    assert (calls, client.recovered()) == ([(0,)], True)
    await client.eio.receive('51-["e",{"_placeholder":true,"num":0},"o1"]', b"x")
    assert calls == [(0,), (b"x",)]


async def test_a_binary_head_seen_after_the_drop_does_not_swallow_the_next_connection(client):
    await connected(client)
    head = eio_packet.Packet(eio_packet.MESSAGE, data='51-["e",{"_placeholder":true,"num":0},"o1"]')
    await client.eio._receive_packet(head)  # only scheduled
    assert await claims(client) == ['0{"pid":"p1"}']
    await client.eio.receive('0{"sid":"s1","pid":"p1"}')
    assert client.recovered() is True


# -- python-socketio's connect() during a recovery ----------------------------------------------------------------


async def reconnecting(client: Client) -> None:
    await client.eio.drop()
    await client.eio.reopened()


async def test_a_reconnection_waits_longer_than_upstreams_second(client):
    waits = []
    await connected(client, wait_timeout=0.01)
    wait_for = asyncio.wait_for

    async def note(awaitable, timeout):
        waits.append(timeout)
        return await wait_for(awaitable, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "wait_for", note)
        await reconnecting(client)
        await settle()
    assert waits[-1] == 20
    assert not client.connected
    await client.eio.receive('0{"sid":"s1","pid":"p1"}')
    assert client.connected


async def test_a_wait_timeout_of_the_application_holds_for_connect_itself(client):
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect("http://node", wait_timeout=0.01)


async def test_a_client_without_aiohttp_names_the_extra_at_once(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigurationError, match=r"needs aiohttp\. Run `pip install 'sio-pg-adapter\[client\]'`"):
        await client.connect("http://node")
    assert not client.eio.opened.is_set()


async def test_giving_up_does_not_end_the_sessions_of_other_namespaces(client):
    ok, refused = '0/a,{"sid":"s","pid":"p"}', '4/b,{"message":"no"}'
    with pytest.raises(socketio.exceptions.ConnectionError, match=r": /b$"):
        await connected(client, ok, refused, namespaces=["/a", "/b"])
    assert client.eio.sent == ["0/a,{}", "0/b,{}"]  # no DISCONNECT of /a


async def test_disconnect_by_the_application_ends_the_session(client):
    await connected(client)
    await client.disconnect()
    assert client.eio.sent == ["0{}", "1"]
    assert not client.connected


async def test_disconnect_from_a_handler_while_connecting_ends_the_session(client):
    client.on("connect", client.disconnect)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await connected(client)
    assert client.eio.sent == ["0{}", "1"]


async def test_a_drop_while_a_reconnection_waits_is_retried_at_once(client):
    await connected(client)
    await reconnecting(client)
    assert await claims(client) == ['0{"pid":"p1"}']
    await client.eio.receive('0{"sid":"s1","pid":"p1"}')
    assert (client.connected, client.recovered()) == (True, True)


async def test_a_drop_right_after_connect_is_not_taken_for_a_connection(client):
    await connected(client)
    await reconnecting(client)
    await client.eio._receive_packet(eio_packet.Packet(eio_packet.MESSAGE, data='0{"sid":"s1","pid":"p1"}'))
    while not client._connect_event.is_set():
        await asyncio.sleep(0)
    assert await claims(client) == ['0{"pid":"p1"}']  # dropped before connect() returned
    await client.eio.receive('0{"sid":"s1","pid":"p1"}')
    assert client.connected


async def test_a_drop_while_the_first_connect_waits_fails_it_at_once(client):
    client.reconnection = False
    task = asyncio.ensure_future(client.connect("http://node"))
    await client.eio.opened.wait()
    await client.eio.drop()
    with pytest.raises(socketio.exceptions.ConnectionError):
        await asyncio.wait_for(task, 1)


async def test_shutdown_stops_a_reconnection_that_waits(client):
    await connected(client)
    final = calls_of(client, "__disconnect_final")
    await reconnecting(client)
    await asyncio.wait_for(client.shutdown(), 1)
    assert (client.connected, client.eio.state, len(final)) == (False, "disconnected", 1)
    assert client._reconnect_task.done()


async def test_connecting_again_by_hand_presents_the_session(client):
    await connected(client)
    await client.eio.receive('2["e","o1"]')
    await client.disconnect()
    client.eio.opened.clear()
    client.eio.sent.clear()
    await connected(client, '0{"sid":"s2","pid":"p2"}')
    assert client.eio.sent == ['0{"pid":"p1","offset":"o1"}']  # as in JavaScript. The server has ended that session
    assert client.recovered() is False


# -- overridden methods of python-socketio -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        (
            "connect",
            (
                "(self, url, headers={}, auth=None, transports=None, namespaces=None, "
                "socketio_path='socket.io', wait=True, wait_timeout=1, retry=False)"
            ),
        ),
        ("disconnect", "(self)"),
        ("shutdown", "(self)"),
        ("_send_packet", "(self, pkt)"),
        ("_handle_connect", "(self, namespace, data)"),
        ("_handle_event", "(self, namespace, id, data)"),
        ("_handle_eio_connect", "(self)"),
        ("_handle_eio_disconnect", "(self, reason)"),
        ("_engineio_client_class", "(self)"),
    ],
)
def test_upstreams_signature(method, signature):
    assert str(inspect.signature(getattr(socketio.AsyncClient, method))) == signature


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        ("disconnect", "(self, abort=False, reason=None)"),
        ("_receive_packet", "(self, pkt)"),
        ("_send_request", "(self, method, url, headers=None, body=None, timeout=None)"),
    ],
)
def test_upstreams_engines_signature(method, signature):
    assert str(inspect.signature(getattr(engineio.AsyncClient, method))) == signature
