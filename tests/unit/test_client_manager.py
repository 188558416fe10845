"""python-socketio's questions about the clients of this node, answered from memory."""

from __future__ import annotations

import pytest
import socketio
from engineio.async_socket import AsyncSocket

from sio_pg_adapter.local.client import State
from sio_pg_adapter.local.client_manager import ClientManager
from sio_pg_adapter.local.handling import handling


@pytest.fixture
async def manager():
    manager = ClientManager()
    sio = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
    sio.eio.sockets["eio"] = AsyncSocket(sio.eio, "eio")
    return manager


def admitted(manager, namespace="/"):
    return manager.admit("eio", namespace, {"token": "t"}, start=7)


async def test_a_client_is_admitted_under_a_new_sid_and_is_due_what_comes_later(manager):
    client = admitted(manager)
    assert client.state is State.CONNECTING and client.sent == 7 and client.presented == {"token": "t"}
    assert manager.is_pre_connected(client.sid, "/") and not manager.is_connected(client.sid, "/")
    assert manager.sid_from_eio_sid("eio", "/") == client.sid and manager.eio_sid_from_sid(client.sid, "/") == "eio"
    assert manager.get_rooms(client.sid, "/") == [client.sid]


async def test_a_connection_has_one_client_in_a_namespace_and_a_closed_one_has_none(manager):
    first, other = admitted(manager), admitted(manager, "/other")
    assert admitted(manager) is None and other.sid != first.sid
    assert sorted(manager.get_namespaces()) == ["/", "/other"]
    assert manager.admit("gone", "/", None, start=0) is None


async def test_a_client_that_is_being_disconnected_is_not_connected(manager):
    client = admitted(manager)
    manager.live_rooms.go_live(client)
    assert manager.is_connected(client.sid, "/")
    assert manager.pre_disconnect(client.sid, "/") == "eio"
    assert not manager.is_connected(client.sid, "/")
    manager.basic_disconnect(client.sid, "/")
    assert client.state is State.LEFT and manager.pending_disconnect == {} and manager.rooms == {}
    assert manager.eio_sid_from_sid(client.sid, "/") is None and manager.get_rooms(client.sid, "/") == []


async def test_in_its_own_handler_a_client_is_known_after_it_has_left(manager):
    client = admitted(manager)
    manager.basic_disconnect(client.sid, "/")
    with handling(client):
        assert manager.eio_sid_from_sid(client.sid, "/") == "eio"
        assert manager.get_rooms(client.sid, "/") == [client.sid]


async def test_of_several_clients_that_are_being_disconnected_each_is_done_with_apart(manager):
    manager.server.eio.sockets["other"] = AsyncSocket(manager.server.eio, "other")
    first, second = admitted(manager), manager.admit("other", "/", None, start=0)
    for client in (first, second):
        manager.live_rooms.go_live(client)
        manager.pre_disconnect(client.sid, "/")
    assert manager.pending_disconnect == {"/": [first.sid, second.sid]}
    manager.basic_disconnect(first.sid, "/")
    assert manager.pending_disconnect == {"/": [second.sid]} and second.state is State.LIVE
    manager.basic_disconnect("nobody", "/")
    manager.basic_disconnect("nobody", "/nowhere")
    assert manager.pending_disconnect == {"/": [second.sid]}


async def test_nothing_is_known_of_a_sid_that_is_not_of_this_node(manager):
    assert manager.is_connected("nobody", "/") is False and manager.is_pre_connected("nobody", "/") is False
    assert manager.sid_from_eio_sid("eio", "/") is None and manager.pre_disconnect("nobody", "/") is None
    client = admitted(manager)
    manager.live_rooms.go_live(client)
    assert manager.is_pre_connected(client.sid, "/") is False and manager.is_connected(client.sid, "/other") is False


async def test_the_rooms_of_a_client_are_its_own_and_those_that_it_is_in(manager):
    client = admitted(manager)
    client.memberships.enter("x", 8)
    manager.live_rooms.go_live(client)
    assert manager.get_rooms(client.sid, "/") == [client.sid, "x"]
    assert manager.connections.of(manager.server.eio.sockets["eio"]) is client.connection
