"""Moves of sids: in memory for a client without a session, by a record of the log for all others."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, StoreUnavailable
from sio_pg_adapter.local.appender import Appender
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.cursor import Cursor
from sio_pg_adapter.local.handling import handling
from sio_pg_adapter.local.moves import Moves
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.records import Held, Kind, Record
from sio_pg_adapter.store.reader import LogReader
from sio_pg_adapter.store.writer import LogWriter
from support.local import Local, client_of, unopened_database
from support.postgres import Postgres


class Node(Local):
    """The local side of a node whose cursor is at offset 7, and whose log takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        database = unopened_database()
        cursor = Cursor(LogReader(database, self.epochs))
        cursor.jump(7)
        writer = LogWriter(database, cursor.offer, cursor.ring, "node", self.counters, lambda: cursor.reached)
        self.moves = Moves(self.clients, self.rooms, cursor, Appender(writer, cursor, follows=True))


class Nobody:
    """Looks after the clients of a log that does not change."""

    async def check(self): ...

    def skipped(self, floor): ...

    def missed(self, namespace): ...


class WritingNode(Local):
    """The local side of a node, on a stand-in for PostgreSQL that gives the next batch offset 8."""

    def __init__(self, postgres: Postgres) -> None:
        super().__init__()
        self.postgres = postgres
        postgres.answers |= {"head": [[7]], "write": {"prev": 7, "offsets": [8], "results": None, "server": None}}
        self.cursor = cursor = Cursor(LogReader(postgres.database, self.epochs))
        self.writer = LogWriter(
            postgres.database, cursor.offer, cursor.ring, "node", self.counters, lambda: cursor.reached
        )
        self.moves = Moves(self.clients, self.rooms, self.cursor, Appender(self.writer, self.cursor, follows=True))

    def resumed(self, sid: str) -> Client:
        """Add a client that has just claimed its session above offset 5, and is in the room x."""
        client = self.client(sid, state=State.CONNECTING)
        client.resume(Held(1, 2), after=5, data={})
        client.follow(Memberships(sid, 1, {"x": [(2, None)]}))
        client.confirm_claim()
        return client

    def arguments(self) -> list[object]:
        """Return the arguments of each entry that was written."""
        return [json.loads(text) for _, *columns, _ in self.postgres.arguments_of("write") for text in columns[10]]


@pytest.fixture
async def writing():
    node = WritingNode(await Postgres.opened())
    await node.cursor.start(node.delivery.apply, Nobody())
    node.writer.start()
    yield node
    await node.writer.close()
    await node.cursor.close()


APPENDS = pytest.raises(StoreUnavailable, match="appending to the log: closed")


async def test_a_live_client_without_a_session_enters_and_leaves_at_once():
    node = Node()
    client = node.client("a")
    assert await node.moves.enter("a", "/", "x") == 7
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


async def test_a_room_that_is_left_was_the_clients_up_to_the_cursor():
    node = Node()
    client = node.client("a", "x", state=State.CONNECTING, sent=5)
    await node.moves.leave("a", "/", "x")
    assert client.memberships.rooms == {"x": [(5, 8)]}


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
    node.client("a", sent=3)
    assert await node.moves.enter("a", "/", "a") == 3
    assert await node.moves.enter("elsewhere", "/", "elsewhere") is None
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


async def test_a_move_by_a_record_has_taken_effect_on_return(writing):
    client = writing.resumed("a")
    writing.rooms.go_live(client)
    assert await writing.moves.enter("a", "/", "y") == 8
    assert writing.members("y") == {"a"} and client.memberships.rooms["y"] == [(8, None)]
    [(_, *columns, _)] = writing.postgres.arguments_of("write")
    assert columns[10] is None  # no arguments


async def test_a_room_that_is_left_in_the_connect_handler_is_left_from_the_offset_that_was_presented(writing):
    client = writing.resumed("a")
    with handling(client):
        await writing.moves.leave("a", "/", "x")
    assert writing.arguments() == [{"generation": 2, "as_of": 5}]
    assert client.memberships.rooms == {"x": [(2, 5)]}


async def test_a_room_that_is_about_to_be_closed_is_entered_by_a_record(writing):
    writing.postgres.answers["write"] |= {"offsets": [8, 9]}  # one batch
    client = writing.resumed("a")
    closing = asyncio.create_task(writing.moves.close("x", None))
    await asyncio.sleep(0)
    client.confirm_claim()
    with handling(client):
        await writing.moves.enter("a", "/", "x")
    await closing
    kinds = [kind for _, kinds, *_ in writing.postgres.arguments_of("write") for kind in kinds]
    assert kinds == [Kind.CLOSE, Kind.ENTER]


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


@pytest.mark.parametrize(
    ("client", "offset", "outcome"),
    [("none", 5, 5), ("none", 0, None), ("elsewhere", 0, None), ("in it", 0, 0), ("in it", 5, 5)],
)
async def test_a_sid_is_in_a_room_from_the_offset_of_the_record_that_it_entered_by(writing, client, offset, outcome):
    writing.postgres.answers["write"] |= {"offsets": [-offset]}  # an earlier record
    if client != "none":
        writing.rooms.go_live(resumed := writing.resumed("a"))
        if client == "in it":
            resumed.memberships.enter("y", 0)
    assert await writing.moves.enter("a", "/", "y", member=True) == outcome
    assert writing.arguments() == [{"member": True}]


@pytest.mark.parametrize(("move", "room"), [("enter", "y"), ("enter", "x"), ("leave", "x")])
async def test_in_its_handler_a_live_client_moves_by_the_generation_that_it_holds(writing, move, room):
    client = writing.resumed("a")
    writing.rooms.go_live(client)
    with handling(client):
        await getattr(writing.moves, move)("a", "/", room)
    assert writing.arguments() == [{"generation": 2}]


async def test_a_client_that_left_moves_by_a_record_outside_of_its_disconnect_handler():
    node = Node()
    client = node.client("a", state=State.CONNECTING)
    client.resume(Held(1, 2), after=5, data={})
    client.depart()
    with APPENDS:
        await node.moves.leave("a", "/", "x")


INTRUSION = Record(8, Kind.ENTER, "/chat", ("a",), sid="intruder")


async def test_others_are_expelled_from_the_own_room_of_a_client(writing):
    await writing.moves.expel(INTRUSION, "a")
    [(_, kinds, namespaces, rooms, *_)] = writing.postgres.arguments_of("write")
    assert (kinds, namespaces, rooms) == ([Kind.CLOSE], ["/chat"], ["a"])


@pytest.mark.parametrize(("sid", "unstored"), [("intruder", ("intruder",)), (None, ())])
async def test_others_are_expelled_from_the_own_room_of_a_client_whose_session_is_stored(writing, sid, unstored):
    writing.postgres.answers["write"] |= {"offsets": [None]}
    writing.postgres.answers["move_members"] = {"prev": 7, "offsets": [], "server": None}
    await writing.moves.expel(replace(INTRUSION, sid=sid), "a")
    [(_, kind, namespace, rooms, *columns)] = writing.postgres.arguments_of("move_members")
    assert (kind, namespace, rooms) == (Kind.LEAVE, "/chat", ("a",))
    assert columns == [unstored, ("a",), (), ("a",)]
