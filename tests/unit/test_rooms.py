"""Rooms of live clients: python-socketio's table and the clients' memberships stay in step."""

from __future__ import annotations

import pytest

from sio_pg_adapter.local.client import State
from sio_pg_adapter.log.names import EVERYBODY
from support.local import Local, event


async def test_a_client_that_goes_live_is_in_its_rooms_its_own_and_everybodys():
    local = Local()
    client = local.client("a", "x", state=State.REPLAYING)
    assert local.table.rooms == {} and local.clients.unsettled("/") == {client}
    local.rooms.go_live(client)
    assert {room: dict(sids) for room, sids in local.table.rooms["/"].items()} == {
        None: {"a": "eio-a"},
        "a": {"a": "eio-a"},
        "x": {"a": "eio-a"},
    }
    assert client.state is State.LIVE and local.clients.unsettled("/") == set()


async def test_a_room_that_is_left_is_gone_from_the_table_and_the_memberships():
    local = Local()
    client = local.client("a", "x", "y")
    local.rooms.leave(client, "x")
    assert local.members("x") == set() and local.members("y") == {"a"}
    assert client.memberships.rooms.keys() == {"y"}


async def test_nobody_enters_the_own_room_of_another_client(caplog):
    local = Local()
    local.client("a")
    other = local.client("b")
    local.rooms.enter(other, "a")
    assert local.members("a") == {"a"} and "another client's sid" in caplog.text


async def test_the_own_room_of_a_client_is_refused_to_all_others():
    local = Local()
    local.client("a")
    local.rooms.refuse_own_room("enter", "/", "x", "a", but="a")
    local.rooms.refuse_own_room("enter", "/other", "a")
    with pytest.raises(ValueError, match=r"^cannot enter a sid room$"):
        local.rooms.refuse_own_room("enter", "/", "x", "a", but="b")
    with pytest.raises(ValueError, match=r"^cannot close a sid room$"):
        local.rooms.refuse_own_room("close", "/", "a")


async def test_a_client_that_departs_is_in_no_list_and_keeps_its_memberships():
    local = Local()
    client = local.client("a", "x")
    local.client("b", "x")
    local.rooms.depart(client)
    assert {room: set(sids) for room, sids in local.table.rooms["/"].items()} == {
        None: {"b"},
        "b": {"b"},
        "x": {"b"},
    }
    assert local.clients.current("a", "/") is None and client.state is State.LEFT
    assert client.memberships.current() == ["x"]
    local.rooms.depart(client)  # safe to call twice


async def test_a_client_that_departs_before_it_is_live_takes_nobody_out_of_a_room():
    local = Local()
    former = local.client("a", "x", state=State.REPLAYING)
    local.client("a", "x")  # another connection has taken over the sid
    local.rooms.depart(former)
    assert local.members("x") == local.members(None) == {"a"}
    assert local.clients.current("a", "/") is not None


async def test_each_member_of_several_rooms_is_named_once():
    local = Local()
    local.client("a", "x", "y")
    local.client("b", "y")
    local.client("c")
    local.client("d", "x", namespace="/other")
    assert list(local.rooms.members("/", ("x", "y"))) == ["a", "b"]
    assert list(local.rooms.members("/", ("x",))) == ["a"]
    assert sorted(local.rooms.members("/", (EVERYBODY,))) == ["a", "b", "c"]
    assert sorted(local.rooms.members("/", (EVERYBODY, "x"))) == ["a", "b", "c"]
    assert list(local.rooms.members("/", ("x", "y"), ("nobody", "x"))) == ["b"]
    assert list(local.rooms.members("/", (EVERYBODY,), ("b",))) == ["a", "c"]
    assert list(local.rooms.members("/nobody", ("x",))) == list(local.rooms.members("/", ("nobody",))) == []


async def test_an_event_is_for_live_and_replaying_members_that_are_not_skipped():
    local = Local()
    live = local.client("live", "x")
    replaying = local.client("replaying", "x", state=State.REPLAYING)
    connecting = local.client("connecting", "x", state=State.CONNECTING)
    local.client("other")
    local.client("elsewhere", "x", namespace="/other")
    assert local.rooms.recipients(event("x")) == [live, replaying]
    assert local.rooms.recipients(event("replaying")) == [replaying]
    assert local.rooms.recipients(event("live")) == [live]
    assert local.rooms.recipients(event("x", skip=("live",))) == [replaying]
    assert local.rooms.recipients(event("x", skip=("replaying",))) == [live]
    assert local.rooms.recipients(event("x", skip_rooms=("nobody", "replaying"))) == [live]
    assert local.rooms.recipients(event("x", skip_rooms=("x",))) == []
    assert local.rooms.awaited(event("connecting")) == [connecting]
    assert local.rooms.awaited(event("connecting", skip_rooms=("x",))) == []
    assert local.rooms.awaited(event("live", "replaying", "nobody")) == [replaying]


async def test_clients_belong_to_their_rooms_in_whatever_state():
    local = Local()
    live = local.client("live", "x")
    connecting = local.client("connecting", "x", "y", state=State.CONNECTING)
    other = local.client("other")
    assert local.rooms.belonging("/", ["x"]) == [live, connecting]
    assert local.rooms.belonging("/", ["y", "other"]) == [connecting, other]
    assert local.rooms.belonging("/", [EVERYBODY]) == [live, connecting, other]
    assert local.rooms.belonging("/other", [EVERYBODY]) == []
