"""Moves of sids: in memory for a client without a session, by a record of the log for all others."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, StoreUnavailable
from sio_pg_adapter.local.appender import Appender
from sio_pg_adapter.local.client import State
from sio_pg_adapter.local.cursor import Cursor
from sio_pg_adapter.local.handling import handling
from sio_pg_adapter.local.moves import Moves
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.store.reader import LogReader
from sio_pg_adapter.store.writer import LogWriter
from support.local import Local, client_of, unopened_database


class Node(Local):
    """The local side of a node whose cursor is at offset 7, and whose log takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        database = unopened_database()
        cursor = Cursor(LogReader(database, self.epochs))
        cursor.jump(7)
        writer = LogWriter(database, cursor.offer, cursor.ring, "node", self.counters)
        self.moves = Moves(self.clients, self.rooms, cursor, Appender(writer, cursor, follows=True))


APPENDS = pytest.raises(StoreUnavailable, match="appending to the log: closed")


async def test_a_live_client_without_a_session_enters_and_leaves_at_once():
    node = Node()
    client = node.client("a")
    await node.moves.enter("a", "/", "x")
    assert node.members("x") == {"a"} and client.memberships.rooms == {"x": [(7, None)]}
    await node.moves.leave("a", "/", "x")
    assert node.members("x") == set() and client.memberships.rooms == {}


async def test_a_client_whose_connect_is_being_decided_enters_when_it_goes_live():
    node = Node()
    client = node.client("a", state=State.CONNECTING)
    await node.moves.enter("a", "/", "x")
    await node.moves.enter("a", "/", "y")
    await node.moves.leave("a", "/", "y")
    assert node.table.rooms == {} and client.memberships.current() == ["x"]
    node.rooms.go_live(client)
    assert node.members("x") == {"a"} and node.members("y") == set()


async def test_a_client_whose_session_is_being_stored_is_waited_for():
    node = Node()
    client = node.client("a", state=State.CONNECTING)
    client.begin_opening()
    move = asyncio.create_task(node.moves.enter("a", "/", "x"))
    await asyncio.sleep(0)
    assert not move.done() and client.memberships.rooms == {}
    client.opened(None)
    await move
    assert client.memberships.current() == ["x"]


async def test_a_client_with_a_session_moves_by_a_record():
    node = Node()
    client = node.client("a", state=State.CONNECTING)
    client.begin_opening()
    client.opened(Held(1, 1))
    with APPENDS:
        await node.moves.enter("a", "/", "x")
    assert client.memberships.rooms == {}


async def test_a_sid_of_another_node_moves_by_a_record():
    with APPENDS:
        await Node().moves.enter("elsewhere", "/", "x")
    with APPENDS:
        await Node().moves.leave("elsewhere", "/", "x")
    with APPENDS:
        await Node().moves.close("x", None)


async def test_nobody_moves_in_or_out_of_its_own_room():
    node = Node()
    node.client("a")
    await node.moves.enter("a", "/", "a")
    await node.moves.leave("a", "/", "a")
    await node.moves.leave("elsewhere", "/", "elsewhere")
    assert node.members("a") == {"a"}


async def test_the_own_room_of_a_client_cannot_be_entered_by_another_or_closed():
    node = Node()
    node.client("a")
    node.client("b")
    with pytest.raises(ValueError, match="cannot enter a sid room"):
        await node.moves.enter("b", "/", "a")
    with pytest.raises(ValueError, match="cannot close a sid room"):
        await node.moves.close("a", None)
    assert node.members("a") == {"a"}


async def test_in_its_disconnect_handler_a_clients_rooms_are_what_they_were():
    node = Node()
    client = client_of("a")
    client.memberships.enter("x", 3)
    client.depart()
    with handling(client):
        await node.moves.enter("a", "/", "y")
        await node.moves.leave("a", "/", "x")
    assert client.memberships.rooms == {"x": [(3, None)]}
    with APPENDS:  # of a task that outlives the handler
        await node.moves.leave("a", "/", "x")


async def test_a_claimed_client_that_is_certainly_in_a_room_enters_it_without_a_record():
    node = Node()
    client = node.client("a", state=State.CONNECTING)
    client.resume(Held(1, 2), after=5, data={})
    client.follow(Memberships("a", 1, {"x": [(2, None)]}))
    client.confirm_claim()
    with APPENDS:  # from outside of its own handler
        await node.moves.enter("a", "/", "x")
    with handling(client):
        await node.moves.enter("a", "/", "x")
        with APPENDS:
            await node.moves.enter("a", "/", "y")
        await asyncio.sleep(0)  # another record may take it out of the room by now
        with APPENDS:
            await node.moves.enter("a", "/", "x")


@pytest.mark.parametrize(
    ("sid", "namespace", "room", "error"),
    [
        (1, "/", "x", NotSerializable),
        ("a", 0, "x", NotSerializable),
        ("a", "/", 42, NotSerializable),
        ("a", "/", "", ConfigurationError),
    ],
)
async def test_wrong_names_are_refused_before_anything_moves(sid, namespace, room, error):
    node = Node()
    for move in (node.moves.enter, node.moves.leave):
        with pytest.raises(error):
            await move(sid, namespace, room)
    assert node.table.rooms == {}


@pytest.mark.parametrize(("room", "error"), [(42, NotSerializable), ("", ConfigurationError)])
async def test_only_a_named_room_is_closed(room, error):
    with pytest.raises(error):
        await Node().moves.close(room, None)
