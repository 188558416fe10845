"""Rooms that a client enters from a position on: when that is possible, and what its replay begins with."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, PositionInvalid, PositionLost, StoreUnavailable
from sio_pg_adapter.local import positions as module
from sio_pg_adapter.local.client import State
from sio_pg_adapter.local.handling import handling
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.offsets import Epoch
from sio_pg_adapter.log.records import Held
from support.postgres import Postgres
from support.stored import FIRST_OF_SECOND, KEY, SECOND, StoredNode, position, written

NEEDS_A_HANDLER = pytest.raises(ConfigurationError, match="since= works in the connect handler or a middleware")
TOO_LATE = pytest.raises(ConfigurationError, match="since= works before the client gets its answer")


@pytest.fixture
async def node():
    return StoredNode(await Postgres.opened())


@pytest.fixture
async def writing(node):
    """A node whose cursor and writer run. The next batch has offset 8."""
    node.postgres.answers |= {"write": written(8), "range": [{"floor": 7, "offset": None}]}
    await node.cursor.start(node.delivery.apply, node.continuity)
    node.writer.start()
    yield node
    await node.writer.close()
    await node.cursor.close()


def connecting(node, sid="a", **options):
    return node.client(sid, state=State.CONNECTING, sent=7, recoverable=True, **options)


async def enter(node, client, room="x", since=None, sid=None, namespace="/"):
    with handling(client):
        return await node.positions.enter(sid or client.sid, namespace, room, since or position(5))


async def test_the_replay_of_a_client_begins_at_the_lowest_of_its_positions(node):
    client = connecting(node)
    assert await enter(node, client) == 5
    assert await enter(node, client, "y", position(3)) == 3
    assert await enter(node, client, "z", position(6)) == 6
    assert client.sent == 3
    assert client.since == {room: (offset, KEY.hex()) for room, offset in (("x", 5), ("y", 3), ("z", 6))}
    assert client.memberships.rooms == {"x": [(5, None)], "y": [(3, None)], "z": [(6, None)]}
    assert node.postgres.arguments_of("since") == [
        ("/", ["x"], [5], 11),
        ("/", ["x", "y"], [5, 3], 11),
        ("/", ["x", "y", "z"], [5, 3, 6], 11),
    ]


async def test_a_room_that_it_is_in_is_not_entered_again(node):
    client = connecting(node)
    client.memberships.enter("x", 2)
    assert await enter(node, client) == 2
    assert client.since == {} and node.statements() == []


@pytest.mark.parametrize(("missed", "floor"), [(10, 0), (0, 5)])
async def test_all_events_after_a_position_can_be_sent(node, missed, floor):
    node.postgres.answers["since"] = [{"missed": missed, "floor": floor}]
    assert await enter(node, connecting(node)) == 5


@pytest.mark.parametrize(
    ("missed", "floor", "message"), [(11, 0, "there are more than 10 events"), (0, 6, "are no longer stored")]
)
async def test_a_position_is_lost_if_not_all_events_after_it_can_be_sent(node, missed, floor, message):
    node.postgres.answers["since"] = [{"missed": missed, "floor": floor}]
    client = connecting(node)
    with pytest.raises(PositionLost, match=message):
        await enter(node, client)
    assert client.since == {} and client.memberships.rooms == {} and client.sent == 7


async def test_a_client_that_received_what_the_log_lost_enters_from_later_positions_only(node):
    epochs = Epoch(0, KEY, 5), SECOND
    node.epochs_of_the_log(*epochs)
    await node.continuity.check()
    node.cursor.jump(FIRST_OF_SECOND)
    lost, other = connecting(node), connecting(node, "b")
    lost.present_lost()
    with pytest.raises(PositionLost, match="older than a crash, restore or failover"):
        await enter(node, lost, since=position(4))
    assert await enter(node, lost, since=position(5)) == 5
    assert await enter(node, lost, "y", position(FIRST_OF_SECOND, "/", *epochs)) == FIRST_OF_SECOND
    assert lost.since["y"] == (FIRST_OF_SECOND, SECOND.key.hex())
    assert await enter(node, other, since=position(4)) == 4


# -- who may ---------------------------------------------------------------------------------------------
async def test_only_the_connect_handler_of_a_client_enters_it_from_a_position(node):
    client, other = connecting(node), connecting(node, "b")
    with NEEDS_A_HANDLER:
        await node.positions.enter("a", "/", "x", position(5))
    with NEEDS_A_HANDLER:
        await enter(node, other, sid="a")
    with NEEDS_A_HANDLER:
        await enter(node, client, namespace="/chat")
    client.accept()
    node.rooms.go_live(client)
    with NEEDS_A_HANDLER:
        await enter(node, client)
    node.rooms.depart(client)
    with NEEDS_A_HANDLER:  # in its disconnect handler
        await enter(node, client)


async def test_a_connection_that_has_ended_while_its_handler_ran_enters_nothing(node):
    client = connecting(node)
    node.rooms.depart(client)
    assert await enter(node, client) is None and node.statements() == []


async def test_a_client_without_a_session_has_no_replay(node):
    without = node.client("b", state=State.CONNECTING)
    with pytest.raises(ConfigurationError, match="since= needs a client with a session"):
        await enter(node, without)
    unlimited = StoredNode(node.postgres, limit=None)
    with pytest.raises(ConfigurationError, match="since= needs a client with a session"):
        await enter(unlimited, connecting(unlimited))


async def test_a_client_that_has_its_answer_enters_from_no_position(node):
    replaying, opening = connecting(node), connecting(node, "b")
    replaying.accept()  # always_connect
    replaying.begin_replay()
    opening.begin_opening()
    for client in (replaying, opening):
        with TOO_LATE:
            await enter(node, client)


async def test_the_own_room_of_another_client_is_not_entered(node):
    node.client("b")
    with pytest.raises(ValueError, match="cannot enter a sid room"):
        await enter(node, connecting(node), "b")


async def test_a_room_that_is_left_in_the_same_handler_is_not_replayed(node):
    client = connecting(node)
    await enter(node, client)
    await enter(node, client, "y", position(4))
    with handling(client):
        await node.moves.leave("a", "/", "x")
    assert client.since == {"y": (4, KEY.hex())} and client.memberships.current() == ["y"]
    assert "x" not in client.memberships.rooms


@pytest.mark.parametrize(("namespace", "room"), [(0, "x"), ("/", 42)])
async def test_wrong_names_enter_nothing(node, namespace, room):
    with pytest.raises(NotSerializable, match="takes text"):
        await enter(node, connecting(node), room, namespace=namespace)


async def test_no_namespace_is_the_default_one(node):
    assert await enter(node, connecting(node), namespace=None) == 5


async def test_a_position_that_is_malformed_enters_nothing(node):
    client = connecting(node)
    with pytest.raises(PositionInvalid, match="since takes a position"):
        await enter(node, client, since="x")
    assert client.since == {}


# -- while it waits for the cursor -------------------------------------------------------------------------
async def test_a_position_above_the_cursor_is_waited_for(node):
    client = connecting(node)
    entering = asyncio.create_task(enter(node, client, since=position(9)))
    await asyncio.sleep(0)
    assert client.since == {}
    node.cursor.jump(9)
    assert await entering == 9


async def test_a_node_that_is_too_far_behind_enters_nothing(node, monkeypatch):
    monkeypatch.setattr(module, "CURSOR_WAIT", 0)
    with pytest.raises(StoreUnavailable, match="too far behind the log"):
        await enter(node, connecting(node), since=position(9))


async def test_a_handler_that_returns_without_its_task_enters_nothing(node):
    client = connecting(node)
    with handling(client):
        entering = asyncio.create_task(node.positions.enter("a", "/", "x", position(9)))
        await asyncio.sleep(0)
    node.cursor.jump(9)
    with NEEDS_A_HANDLER:
        await entering
    assert client.since == {}


async def test_of_two_tasks_of_a_handler_the_first_enters_the_room(node):
    client = connecting(node)
    with handling(client):
        both = asyncio.gather(*(node.positions.enter("a", "/", "x", position(offset)) for offset in (8, 9)))
        await asyncio.sleep(0)
        node.cursor.jump(9)
        assert await both == [8, 8]
    assert client.since == {"x": (8, KEY.hex())} and client.sent == 7


# -- clients that recover ----------------------------------------------------------------------------------
def recovered(node):
    client = connecting(node)
    client.resume(Held(1, 2), after=5, data={})
    client.follow(Memberships("a", 1, {"x": [(2, None)]}))
    return client


async def test_a_recovered_client_stays_in_the_room_of_its_session(writing):
    client = recovered(writing)
    client.confirm_claim()
    assert await enter(writing, client) == 2
    assert await enter(writing, client, since=position(FIRST_OF_SECOND, "/", SECOND)) == 2  # it needs no position
    with pytest.raises(PositionInvalid):
        await enter(writing, client, since="x")
    assert client.since == {} and client.sent == 5


async def test_a_recovered_client_enters_no_other_room_from_a_position(writing):
    writing.postgres.answers["write"] = written(0)
    with pytest.raises(PositionLost, match="recovered its session, which is not in room 'y'"):
        await enter(writing, recovered(writing), "y")
    [(_, *columns, _)] = writing.postgres.arguments_of("write")
    assert columns[10] == ['{"member":true,"generation":2}']


# -- positions of records ----------------------------------------------------------------------------------
async def test_the_position_of_a_record_of_an_epoch_that_has_just_begun_is_read_for(node):
    epochs = Epoch(0, KEY, 7), SECOND
    assert await node.positions.of(5, "/chat") == position(5, "/chat")
    assert node.statements() == []
    node.epochs_of_the_log(*epochs)
    assert await node.positions.of(FIRST_OF_SECOND, "/") == position(FIRST_OF_SECOND, "/", *epochs)
