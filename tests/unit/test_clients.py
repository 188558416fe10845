"""The registry of clients: by sid, by connection, and by the handler that is running."""

from __future__ import annotations

from sio_pg_adapter.local.clients import Clients
from sio_pg_adapter.local.handling import handling
from support.local import client_of


async def test_a_client_is_known_by_its_sid_and_its_connection():
    clients = Clients()
    a, b = client_of("a", eio_sid="eio"), client_of("b", "/chat", eio_sid="eio")
    clients.add(a)
    clients.add(b)
    assert clients.current("a", "/") is a and clients.current("a", "/chat") is None
    assert clients.of_socket("eio", "/chat") is b and clients.of_socket("eio", "/other") is None
    assert list(clients) == [a, b]


async def test_nothing_is_left_of_a_client_that_is_removed():
    clients = Clients()
    a = client_of("a")
    clients.add(a)
    clients.remove(a)
    clients.remove(a)
    assert (clients.by_sid, clients.by_socket, clients.unsettled("/")) == ({}, {}, set())


async def test_a_client_is_unsettled_until_it_is_live():
    clients = Clients()
    a, b = client_of("a"), client_of("b")
    clients.add(a)
    clients.add(b)
    clients.settle(a)
    clients.settle(a)
    assert clients.unsettled("/") == {b} and clients.unsettled("/other") == set()


async def test_a_client_that_lost_its_sid_to_another_takes_nothing_from_it():
    clients = Clients()
    former, newer = client_of("a", eio_sid="eio-1"), client_of("a", eio_sid="eio-2")
    clients.add(former)
    clients.add(newer)
    clients.remove(former)
    assert clients.current("a", "/") is newer and clients.of_socket("eio-2", "/") is newer
    assert clients.of_socket("eio-1", "/") is None and clients.unsettled("/") == {newer}


async def test_a_client_that_resumes_a_session_has_one_sid():
    clients = Clients()
    client = client_of("a")
    clients.add(client)
    clients.rename(client, "b")
    assert client.sid == "b" and list(clients) == []
    clients.add(client)
    assert clients.by_sid == {"/": {"b": client}} and clients.of_socket("eio-a", "/") is client


async def test_a_client_whose_sid_another_has_gives_up_its_own_only():
    clients = Clients()
    former, newer = client_of("a", eio_sid="eio-1"), client_of("a", eio_sid="eio-2")
    clients.add(former)
    clients.add(newer)
    clients.rename(former, "b")
    assert clients.current("a", "/") is newer


async def test_in_a_handler_the_sid_means_the_client_that_the_handler_is_about():
    clients = Clients()
    former, newer = client_of("a", eio_sid="eio-1"), client_of("a", eio_sid="eio-2")
    other = client_of("b")
    for client in (newer, other):
        clients.add(client)
    assert clients.addressed("a", "/") is newer
    with handling(former):
        assert clients.addressed("a", "/") is former
        assert clients.addressed("b", "/") is other
        assert clients.addressed("a", "/chat") is None
        assert clients.current("a", "/") is newer
    assert clients.addressed("a", "/") is newer


async def test_the_clients_of_a_connection_are_those_of_all_its_namespaces():
    clients = Clients()
    a, b, c = client_of("a", eio_sid="eio"), client_of("b", "/chat", eio_sid="eio"), client_of("c")
    for client in (a, b, c):
        clients.add(client)
    clients.rename(a, "resumed")
    assert list(clients.on_connections()) == [a, b, c] and list(clients) == [c, b]
    assert not clients.any_connected("eio") and not clients.any_connected("nobody")
    b.begin_replay()
    assert clients.any_connected("eio") is True and clients.any_connected("eio-c") is False


async def test_a_client_that_is_removed_leaves_the_others_of_its_connection_and_namespace():
    clients = Clients()
    a, b, c = client_of("a", eio_sid="eio"), client_of("b", "/chat", eio_sid="eio"), client_of("c")
    for client in (a, b, c):
        clients.add(client)
    clients.remove(a)
    assert clients.by_sid == {"/": {"c": c}, "/chat": {"b": b}} and clients.by_socket["eio"] == {"/chat": b}
    assert clients.unsettled("/") == {c}
    clients.remove(c)
    assert "/" not in clients.by_sid and clients._unsettled == {"/chat": {b}}
