"""The server as a CONNECT sees it: which namespaces it serves, and what their connect handlers take."""

from __future__ import annotations

import functools
import inspect

import pytest
import socketio
from engineio.packet import MESSAGE, NOOP

import support.local
from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from sio_pg_adapter.server.host import Host, hang_up
from sio_pg_adapter.wire.frames import frame
from sio_pg_adapter.wire.transport import Connection


def server(**options):
    return AsyncServer(AsyncPostgresManager("postgresql://db"), async_mode="asgi", **options)


def host(sio):
    return Host(sio, sio.manager, sio.middlewares)


def two(sid, environ): ...


def three(sid, environ, auth): ...


def four(namespace, sid, environ, auth): ...


async def asynchronous(sid, environ, auth=None): ...


def everything(*args): ...


class Handlers:
    def two(self, sid, environ): ...

    def three(self, sid, environ, auth): ...

    def __call__(self, sid, environ): ...


class Two(socketio.AsyncNamespace):
    def on_connect(self, sid, environ): ...


class Three(socketio.AsyncNamespace):
    async def on_connect(self, sid, environ, auth): ...


class Neither(socketio.AsyncNamespace):
    def on_other(self, sid): ...


class AnyTwo(socketio.AsyncNamespace):
    def on_connect(self, namespace, sid, environ): ...


class AnyThree(socketio.AsyncNamespace):
    def on_connect(self, namespace, sid, environ, auth): ...


# -- the client's auth -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("handler", "takes"),
    [
        (two, False),
        (three, True),
        (asynchronous, True),
        (everything, True),
        (Handlers().two, False),
        (Handlers().three, True),
        (Handlers(), False),
        (functools.partial(three, auth=None), False),
        (functools.partial(two), False),
    ],
)
def test_a_function_or_method_takes_the_auth_if_it_has_a_third_argument(handler, takes):
    sio = server()
    sio.on("connect", handler, namespace="/chat")
    assert host(sio).takes_auth("/chat") is takes


@pytest.mark.parametrize(
    ("handler", "takes"),
    [(three, False), (four, True), (asynchronous, False), (everything, True)],
)
def test_a_handler_of_every_namespace_has_the_namespace_in_front(handler, takes):
    sio = server()
    sio.on("connect", handler, namespace="*")
    assert host(sio).takes_auth("/chat") is takes


@pytest.mark.parametrize(("handlers", "takes"), [(Two, False), (Three, True), (Neither, True)])
def test_a_class_based_namespace_takes_the_auth_if_its_method_does(handlers, takes):
    sio = server()
    sio.register_namespace(handlers("/chat"))
    assert host(sio).takes_auth("/chat") is takes


@pytest.mark.parametrize(("handlers", "takes"), [(AnyTwo, False), (AnyThree, True)])
def test_a_class_based_namespace_of_every_namespace_does_too(handlers, takes):
    sio = server()
    sio.register_namespace(handlers("*"))
    assert host(sio).takes_auth("/chat") is takes


def test_without_a_handler_the_auth_is_passed_on():
    assert host(server()).takes_auth("/chat")


# -- namespaces ------------------------------------------------------------------------------------------
def test_the_default_namespace_is_served_and_those_with_handlers():
    sio = server()
    sio.on("e", two, namespace="/functions")
    sio.register_namespace(Two("/class"))
    assert [host(sio).serves(name) for name in ("/", "/functions", "/class", "/other")] == [True, True, True, False]


@pytest.mark.parametrize(("namespaces", "serves"), [("*", True), (["/other"], True), (["/chat"], False)])
def test_the_option_names_further_namespaces(namespaces, serves):
    assert host(server(namespaces=namespaces)).serves("/other") is serves


def test_a_namespace_is_stored_unless_the_manager_excludes_it():
    sio = server()
    sio.manager.unstored.add("/admin")
    assert host(sio).stores("/") and not host(sio).stores("/admin")


def test_there_is_no_node_before_the_first_start():
    assert host(server()).running_node is None


# -- closing a connection --------------------------------------------------------------------------------
class Socket(support.local.Socket):
    """A stand-in for an Engine.IO socket that notes how it was closed."""

    def __init__(self):
        super().__init__("eio")
        self.server = socketio.AsyncServer().eio
        self.closes = []

    async def close(self, **how):
        self.closes.append(how)


def queued(socket):
    return [getattr(packet, "packet_type", packet) for packet in socket.queue.waiting()]


@pytest.mark.parametrize(("drop_queue", "before"), [(False, [MESSAGE]), (True, [])])
async def test_a_connection_is_closed_so_that_its_client_comes_back(drop_queue, before):
    sio, socket = server(), Socket()
    sio.eio.sockets["eio"] = socket
    socket.queue.put_nowait(frame("2[]"))
    await (Connection(socket).cut() if drop_queue else hang_up(host(sio), "eio"))
    assert queued(socket) == [*before, NOOP, None]  # the end of a poll, and of a websocket's writer
    assert socket.closes == [{"wait": False, "abort": True, "reason": sio.reason.TRANSPORT_CLOSE}]


@pytest.mark.parametrize("flag", ["closed", "closing"])
async def test_a_connection_that_is_closing_or_gone_is_left_alone(flag):
    sio, socket = server(), Socket()
    await hang_up(host(sio), "eio")
    sio.eio.sockets["eio"] = socket
    setattr(socket, flag, True)
    await hang_up(host(sio), "eio")
    await Connection(socket).cut()
    assert queued(socket) == socket.closes == []


def test_the_signature_of_a_handler_is_read_once():
    reads = []

    class Handler:
        def __call__(self, sid, environ): ...

        @property
        def __signature__(self):
            reads.append(self)
            return inspect.signature(self.__call__)

    sio = server()
    sio.on("connect", Handler(), namespace="/chat")
    asked = host(sio)
    assert [asked.takes_auth("/chat") for _ in range(3)] == [False] * 3
    assert len(reads) == 1


def test_each_handler_has_its_own_answer():
    sio = server()
    sio.on("connect", two, namespace="/chat")
    sio.on("connect", everything, namespace="/any")
    sio.on("connect", three, namespace="*")  # its first argument is the namespace
    asked = host(sio)
    assert [asked.takes_auth(name) for name in ("/chat", "/any", "/other", "/chat")] == [False, True, False, False]
    sio.on("connect", three, namespace="/chat")  # the same function as that of every namespace
    assert [asked.takes_auth(name) for name in ("/other", "/chat")] == [False, True]
