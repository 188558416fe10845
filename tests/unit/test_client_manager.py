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
