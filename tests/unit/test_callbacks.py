"""Callbacks: each is called once, with the first answer, unless it is forgotten or given up."""

from __future__ import annotations

import asyncio
import json

import pytest

from sio_pg_adapter.cluster import callbacks as module
from sio_pg_adapter.cluster.callbacks import Callbacks
from sio_pg_adapter.cluster.messages import Answer, Messages, Question, UnstoredEvent, decode, encode, fields_of
from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.local.cursor import Cursor
from sio_pg_adapter.log.payload import unpack
from sio_pg_adapter.log.records import Outgoing
from sio_pg_adapter.store.reader import LogReader
from sio_pg_adapter.tasks import Tasks
from support.local import Local, event
from support.postgres import Postgres
from support.waiting import until


class Node(Local):
    """A node that asks, and the notifications that it sends."""

    def __init__(self, postgres: Postgres) -> None:
        super().__init__()
        self.postgres = postgres
        cursor = Cursor(LogReader(postgres.database, self.epochs))
        self.messages = Messages(postgres.database, "here", cursor)
        self.tasks = Tasks()
        self.callbacks = Callbacks(self.clients, self.delivery, self.messages, self.tasks, "sio_here")
        self.calls: list[tuple[object, ...]] = []

    def called(self, *args: object) -> None:
        self.calls.append(args)

    async def turn(self) -> None:
        """Let the callbacks that were spawned run, and messages go out."""
        await asyncio.sleep(0)
        await self.messages.close()

    def sent(self):
        """Return the channel and the body of each message, in order."""
        return [
            (channel, decode(json.loads(payload)))
            for channels, payloads in self.postgres.arguments_of("notify")
            for channel, payload in zip(channels, payloads, strict=True)
        ]

    def receive(self, body) -> None:
        self.messages.receive(encode(body, node="there", number=1, cursor=0))

    def acks(self, sid: str) -> list[int]:
        return list(self.clients.by_sid["/"][sid].acks)


@pytest.fixture
async def node():
    return Node(await Postgres.opened())


async def test_the_first_answer_of_this_nodes_clients_is_the_callbacks(node):
    a, b = node.client("a", "x"), node.client("b", "x")
    await node.callbacks.ask(event("x"), node.called, only_here=True)
    (first,), (second,) = node.acks("a"), node.acks("b")
    assert node.callbacks.acknowledged(b, second, [1, 2])
    assert node.callbacks.acknowledged(a, first, [3])
    await node.turn()
    assert node.calls == [(1, 2)] and len(node.callbacks._pending) == 0


async def test_an_acknowledgement_that_nobody_waits_for_is_known_as_such(node):
    a = node.client("a")
    await node.callbacks.ask(event("a"), node.called, only_here=True)
    (ack_id,) = node.acks("a")
    assert not node.callbacks.acknowledged(None, ack_id, [])
    assert not node.callbacks.acknowledged(a, ack_id + 1, [])
    assert node.callbacks.acknowledged(a, ack_id, [])
    assert not node.callbacks.acknowledged(a, ack_id, [])


async def test_a_callback_may_be_a_coroutine_function_and_its_failure_is_logged(node, caplog):
    async def callback(value):
        await asyncio.sleep(0)
        raise ValueError(value)

    a = node.client("a")
    await node.callbacks.ask(event("a"), callback, only_here=True)
    node.callbacks.acknowledged(a, *node.acks("a"), ["broken"])
    await until(lambda: "sio_pg callback failed" in caplog.text)
    assert "ValueError: broken" in caplog.text


# -- the other nodes ---------------------------------------------------------------------------------------
async def test_a_question_goes_to_the_other_nodes_unless_it_is_for_one_client_of_this_node(node):
    node.client("a", "x")
    await node.callbacks.ask(event("a"), node.called, only_here=False)
    await node.callbacks.ask(event("x"), node.called, only_here=True)
    assert node.sent() == []
    await node.callbacks.ask(event("x", body='["q"]'), node.called, only_here=False)
    await node.callbacks.ask(event("a", "elsewhere"), node.called, only_here=False)
    (channel, question), (_, other) = node.sent()
    assert channel == node.postgres.database.channel and question.reply_to == "sio_here"
    assert UnstoredEvent(**question.event).outgoing(()) == event("x", body='["q"]')
    assert question.id != other.id


async def test_the_first_answer_of_another_node_is_the_callbacks(node):
    await node.callbacks.ask(event("x"), node.called, only_here=False)
    ((_, question),) = node.sent()
    node.receive(Answer(question.id + 1, "[0]"))
    node.receive(Answer(question.id, '[1,{"v":2}]'))
    node.receive(Answer(question.id, "[3]"))
    await node.turn()
    assert node.calls == [(1, {"v": 2})]


async def test_a_question_that_cannot_be_sent_is_reported_to_the_caller(node):
    node.postgres.failures = [OSError("connection reset")]
    with pytest.raises(StoreUnavailable, match="connection reset"):
        await node.callbacks.ask(event("x"), node.called, only_here=False)


async def test_each_client_answers_the_question_of_another_node_on_its_channel(node):
    a, b = node.client("a", "x"), node.client("b", "x")
    node.receive(Question(9, "sio_there", fields_of(UnstoredEvent.of(event("x", body='["q"]')))))
    assert a.connection.socket.sent() == [f'2{node.acks("a")[0]}["q"]']
    node.callbacks.acknowledged(b, *node.acks("b"), [1])
    node.callbacks.acknowledged(a, *node.acks("a"), [])
    await node.turn()
    assert node.sent() == [("sio_there", Answer(9, "[1]")), ("sio_there", Answer(9, "[]"))]
    assert len(node.callbacks._pending) == 0


async def test_binary_is_carried_in_a_question_and_in_its_answer(node):
    a = node.client("a")
    outgoing = Outgoing("/", ("a",), (), '["q",{"_placeholder":true,"num":0}]', (b"asked",))
    node.callbacks._asked(Question(9, "sio_there", fields_of(UnstoredEvent.of(outgoing))), outgoing.parts)
    assert a.connection.socket.sent()[1:] == [b"asked"]
    node.callbacks.acknowledged(a, *node.acks("a"), [b"answered"])
    await node.turn()
    assert len(node.postgres.arguments_of("attach")) == 1

    await node.callbacks.ask(Outgoing("/", ("x",), (), outgoing.body, (b"asked",)), node.called, only_here=False)
    _, (_, (data,), _) = node.postgres.arguments_of("attach")
    assert list(unpack(data))[1:] == [b"asked"]
    (number,) = node.callbacks._pending
    node.callbacks._answered(Answer(number, '[{"_placeholder":true,"num":0}]'), (b"answered",))
    await node.turn()
    assert node.calls == [(b"answered",)]


# -- which callbacks wait ----------------------------------------------------------------------------------
async def test_a_callback_that_is_forgotten_is_not_called_and_the_others_are(node):
    def forgotten(*args):
        node.called("forgotten")

    a = node.client("a")
    await node.callbacks.ask(event("a"), forgotten, only_here=True)
    await node.callbacks.ask(event("a"), node.called, only_here=True)
    node.callbacks.forget(forgotten)
    node.callbacks.forget(forgotten)
    for ack_id in node.acks("a"):
        node.callbacks.acknowledged(a, ack_id, ["x"])
    await node.turn()
    assert node.calls == [("x",)]


async def test_an_answered_callback_that_asks_again_can_be_forgotten(node):
    def callback(*args):
        node.called("answered")

    a = node.client("a")
    await node.callbacks.ask(event("a"), callback, only_here=True)
    await node.callbacks.ask(event("a"), callback, only_here=True)
    first, second = node.acks("a")
    node.callbacks.acknowledged(a, first, [])
    node.callbacks.forget(callback)  # the newer question
    node.callbacks.acknowledged(a, second, [])
    await node.turn()
    assert node.calls == [("answered",)] and len(node.callbacks._pending) == 0


async def test_a_callback_that_was_never_asked_is_nothing_to_forget(node):
    await node.callbacks.ask(event("a"), node.called, only_here=True)
    node.callbacks.forget(lambda: None)
    assert len(node.callbacks._pending) == 1


async def test_the_oldest_callback_is_given_up_when_there_are_too_many(node, monkeypatch):
    monkeypatch.setattr(module, "PENDING_CALLBACKS", 2)
    a = node.client("a")
    for i in range(3):
        await node.callbacks.ask(event("a"), lambda i=i: node.called(i), only_here=True)
    assert len(node.callbacks._pending) == 2
    for ack_id in node.acks("a"):
        node.callbacks.acknowledged(a, ack_id, [])
    await node.turn()
    assert node.calls == [(1,), (2,)]
