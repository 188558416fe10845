"""Appends: when they return, and which rooms are being left meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.local import appender as module
from sio_pg_adapter.local.appender import Appender
from sio_pg_adapter.log.records import Entry, Kind, MemberMove
from support.local import event
from support.postgres import Postgres
from support.stored import StoredNode, written

CLOSE = Entry(Kind.CLOSE, "/", ("x",))


class AppendingNode(StoredNode):
    def __init__(self, postgres):
        super().__init__(postgres)
        self.appender = self.appender_that(follows=True)

    def appender_that(self, *, follows):
        return Appender(self.writer, self.cursor, follows=follows)


@pytest.fixture
async def unstarted():
    return AppendingNode(await Postgres.opened())


@pytest.fixture
async def node(unstarted):
    unstarted.postgres.answers |= {
        "write": written(8),
        "append_event": {"prev": 7, "offset": 8, "server": None},
        "range": [{"floor": 7, "offset": None}],
    }
    await unstarted.cursor.start(unstarted.delivery.apply, unstarted.continuity)
    unstarted.writer.start()
    yield unstarted
    await unstarted.writer.close()
    await unstarted.cursor.close()


def leaving(node, room="x", namespace="/"):
    return node.appender.is_leaving(namespace, room)


async def test_a_change_has_taken_effect_on_return(node):
    client = node.client("a", "x")
    assert await node.appender.change(CLOSE) == 8
    assert node.cursor.offset == 8 and client.memberships.current() == []


async def test_an_event_of_several_rooms_has_been_sent_on_return(node):
    client = node.client("a", "x")
    assert await node.appender.event(event("x", "y")) is True
    assert client.sent == 8


async def test_an_event_whose_key_the_log_has_is_not_stored_again(node):
    node.postgres.answers["write"] = written(-6)
    assert await node.appender.event(event("x", "y")) is False


@pytest.mark.parametrize(
    ("kind", "message"), [(Kind.CLOSE, "cannot close a sid room"), (Kind.ENTER, "cannot enter a sid room")]
)
async def test_the_own_room_of_a_client_is_refused(node, kind, message):
    node.postgres.answers["write"] = written(None)
    with pytest.raises(ValueError, match=f"^{message}$"):
        await node.appender.change(Entry(kind, "/", ("x",), sid="a"))


async def test_a_node_that_is_behind_returns_after_a_while(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "EFFECT_WAIT", 0)
    node.postgres.answers["write"] = written(9, prev=8)
    assert await node.appender.change(CLOSE) == 9
    assert await node.appender.event(event("x", "y")) is True
    assert caplog.text.count("this node is behind the log, at offset 7") == 2


async def test_a_process_that_only_emits_does_not_wait_for_its_cursor(node, caplog):
    node.postgres.answers["write"] = written(9, prev=8)
    appender = node.appender_that(follows=False)
    closing = asyncio.create_task(appender.change(CLOSE))
    await asyncio.sleep(0)
    assert not appender.is_leaving("/", "x")
    assert await asyncio.wait_for(closing, 2) == 9
    assert caplog.text == ""


# -- rooms that are being left ---------------------------------------------------------------------------
async def test_a_room_is_being_left_until_the_cursor_has_passed_the_change(node):
    client = node.client("a", "x")
    closing = asyncio.create_task(node.appender.change(CLOSE))
    await asyncio.sleep(0)
    assert leaving(node) and not leaving(node, "y") and not leaving(node, "x", "/chat")
    await closing
    assert not leaving(node) and client.memberships.current() == []
    assert len(node.appender._leaving) == 0


async def test_a_room_that_two_changes_leave_is_being_left_until_the_second(node, monkeypatch):
    monkeypatch.setattr(module, "EFFECT_WAIT", 0)
    node.postgres.answers["write"] = written(9, 10, prev=8)
    await asyncio.gather(*(node.appender.change(CLOSE) for _ in range(2)))
    assert leaving(node)
    node.cursor.jump(9)
    assert leaving(node)
    node.cursor.jump(10)
    assert not leaving(node)


async def test_a_room_that_a_cancelled_change_would_leave_is_not_being_left(node):
    closing = asyncio.create_task(node.appender.change(CLOSE))
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait((closing,))
    assert closing.cancelled() and not leaving(node)


async def test_a_change_that_the_cursor_has_not_passed_is_still_leaving(node, monkeypatch):
    monkeypatch.setattr(module, "EFFECT_WAIT", 0)
    node.postgres.answers["write"] = written(9, prev=8)
    await node.appender.change(CLOSE)
    assert leaving(node)
    node.cursor.jump(9)
    assert not leaving(node)


async def test_members_that_leave_are_leaving_the_rooms_of_the_move(node):
    node.postgres.answers["move_members"] = {"prev": 7, "offsets": [-6], "server": None}
    change = asyncio.create_task(node.appender.change(MemberMove(Kind.LEAVE, "/", ("members",), ("x", "y"))))
    await asyncio.sleep(0)
    assert leaving(node) and leaving(node, "y") and not leaving(node, "members")
    assert await change == 6
    assert not leaving(node) and not leaving(node, "y")


@pytest.mark.parametrize("cursor", [0, 7])
async def test_a_room_whose_change_failed_is_not_being_left(unstarted, cursor):
    unstarted.cursor.jump(cursor)
    for entry in (CLOSE, Entry(Kind.LEAVE, "/", ("y",), sid="a")):
        with pytest.raises(StoreUnavailable):
            await unstarted.appender.change(entry)
        await asyncio.sleep(0)
    assert not leaving(unstarted) and not leaving(unstarted, "y")


async def test_a_room_that_is_entered_is_not_being_left(node):
    entering = asyncio.create_task(node.appender.change(Entry(Kind.ENTER, "/", ("x",), sid="a")))
    await asyncio.sleep(0)
    assert not leaving(node)
    await entering
