"""The history of a room: what is read, and what is returned of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sio_pg_adapter.errors import ConfigurationError, PositionLost, StoreUnavailable
from sio_pg_adapter.local.history import END
from sio_pg_adapter.log.offsets import Epoch
from sio_pg_adapter.log.payload import pack
from sio_pg_adapter.log.records import StoredEvent
from support.postgres import Postgres
from support.stored import FIRST_OF_SECOND, KEY, SECOND, StoredNode, position


class Row(tuple):
    """A row as asyncpg returns it: by name and by number."""

    __slots__ = ()

    NAMES = ("floor", "offset", "at", "body", "parts", "attached")

    def __getitem__(self, key):
        return super().__getitem__(self.NAMES.index(key) if isinstance(key, str) else key)


def stored(offset, body='["e",1]', parts=None, floor=0):
    return Row((floor, offset, 0, body, parts, None))


@pytest.fixture
async def node():
    node = StoredNode(await Postgres.opened())
    node.postgres.answers["history"] = [stored(None)]
    return node


async def read(node, room="x", namespace=None, since=None, until=None, limit=10):
    return await node.history.read(room, namespace, since, until, limit)


async def test_events_are_returned_as_clients_receive_them(node):
    node.postgres.answers["history"] = [
        stored(3),
        stored(5, '["f",{"_placeholder":true,"num":0}]', pack([b"a"])),
    ]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert await read(node) == [
        StoredEvent("e", (1,), position(3), epoch),
        StoredEvent("f", (b"a",), position(5), epoch),
    ]
    assert node.statements() == ["history"]


@pytest.mark.parametrize(("room", "name"), [(None, ""), ("x", "x")])
@pytest.mark.parametrize(("namespace", "where"), [(None, "/"), ("/chat", "/chat")])
async def test_a_room_or_everybody_is_asked_for_in_a_namespace(node, room, name, namespace, where):
    assert await read(node, room, namespace) == []
    assert node.postgres.arguments_of("history") == [(where, name, None, END, 10)]


async def test_positions_bound_what_is_read(node):
    assert await read(node, since=position(3), until=position(5), limit=7) == []
    assert node.postgres.arguments_of("history") == [("/", "x", 3, 5, 7)]


async def test_events_after_a_position_are_all_there_or_it_is_lost(node):
    node.postgres.answers["history"] = [stored(5, floor=3)]
    assert len(await read(node, since=position(3))) == 1
    assert len(await read(node)) == 1
    with pytest.raises(PositionLost, match="since= is older than the events that are stored"):
        await read(node, since=position(2))


async def test_events_of_an_epoch_that_has_just_begun_have_positions(node):
    epochs = Epoch(0, KEY, 7), SECOND
    node.postgres.answers["history"] = [stored(5), stored(FIRST_OF_SECOND)]
    node.epochs_of_the_log(*epochs)
    events = await read(node)
    assert [event.position for event in events] == [position(5), position(FIRST_OF_SECOND, "/", *epochs)]


async def test_a_log_that_is_exchanged_while_it_is_read_is_read_again_by_the_caller(node):
    node.postgres.answers["history"] = [stored(5), stored(FIRST_OF_SECOND)]
    with pytest.raises(StoreUnavailable, match="the log was exchanged while it was read"):
        await read(node)


async def test_an_event_that_cannot_be_read_is_logged_and_left_out(node, caplog):
    node.postgres.answers["history"] = [stored(3, "[1"), stored(4, None), stored(5)]
    assert [event.position for event in await read(node)] == [position(5)]
    assert "record 3 is left out of a history" in caplog.text and "record 4 is left out" in caplog.text


@pytest.mark.parametrize("limit", [0, 10_001])
async def test_a_limit_is_checked_before_anything_is_read(node, limit):
    with pytest.raises(ConfigurationError, match="limit"):
        await read(node, limit=limit)
    assert node.statements() == []
