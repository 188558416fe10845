"""Messages between nodes: their form, and when a node acts on them."""

from __future__ import annotations

import asyncio
import json

import pytest

from sio_pg_adapter.cluster.messages import (
    BATCH,
    BODIES,
    NOTIFICATION_BYTES,
    Answer,
    MessageKind,
    Messages,
    Question,
    Reply,
    Request,
    UnstoredEvent,
    decode,
    encode,
)
from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.local.cursor import Cursor
from sio_pg_adapter.log.payload import unpack
from sio_pg_adapter.log.records import Outgoing
from sio_pg_adapter.store.epochs import Epochs
from sio_pg_adapter.store.reader import LogReader
from support.postgres import Postgres

EXAMPLES = [
    UnstoredEvent("/", ("x",), ("a",), ("m",), '["e"]'),
    Question(7, "sio_channel", {"namespace": "/"}),
    Answer(7, "[1]"),
    Request("status"),
    Request("sockets", {"namespace": "/"}, 7, "sio_channel"),
    Reply(7, "node", "[1]"),
    Reply(7, "node", error="broken"),
]


# -- their form ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("body", EXAMPLES, ids=lambda body: body.kind)
def test_a_message_comes_back_as_it_was_sent(body):
    message = json.loads(encode(body, node="n", number=3, cursor=9))
    assert (message["node"], message["cursor"], message["kind"]) == ("n", 9, body.kind)
    decoded = decode(message)
    assert type(decoded) is type(body)
    assert encode(decoded, node="n", number=3, cursor=9) == encode(body, node="n", number=3, cursor=9)


def test_equal_messages_differ_by_their_number():
    assert encode(Answer(7, "[]"), node="n", number=1, cursor=9) != encode(
        Answer(7, "[]"), node="n", number=2, cursor=9
    )


def test_every_kind_has_a_body():
    assert BODIES.keys() == set(MessageKind) and {body.kind for body in EXAMPLES} == set(MessageKind)


def test_a_kind_of_a_later_version_is_refused():
    with pytest.raises(ValueError, match="later"):
        decode({"kind": "later", "body": {}})


def test_an_event_comes_back_as_it_was_emitted():
    outgoing = Outgoing("/chat", ("x", "y"), ("a",), '["e"]', (b"p",))
    decoded = decode(json.loads(encode(UnstoredEvent.of(outgoing), node="n", number=1, cursor=1)))
    assert isinstance(decoded, UnstoredEvent) and decoded.outgoing((b"p",)) == outgoing


# -- between nodes -----------------------------------------------------------------------------------------
class Node:
    """The messages of a node whose cursor is at offset 10."""

    def __init__(self, postgres, name="here"):
        self.cursor = Cursor(LogReader(postgres.database, Epochs(postgres.database)))
        self.cursor.jump(10)
        self.messages = Messages(postgres.database, name, self.cursor)
        self.handled = []
        for kind in MessageKind:
            self.messages.on(kind, lambda body, parts: self.handled.append((body, parts)))


@pytest.fixture
async def postgres():
    return await Postgres.opened()


def payload(body, *, node="there", cursor=10):
    return encode(body, node=node, number=1, cursor=cursor)


async def test_a_message_is_handled_by_its_kind(postgres):
    node = Node(postgres)
    answers = []
    node.messages.on(MessageKind.ANSWER, lambda body, parts: answers.append((body, parts)))
    node.messages.receive(payload(Answer(7, "[]")))
    node.messages.receive(payload(Request("status")))
    assert answers == [(Answer(7, "[]"), ())] and node.handled == [(Request("status"), ())]


async def test_a_node_ignores_its_own_messages(postgres):
    node = Node(postgres)
    node.messages.receive(payload(Answer(7, "[]"), node="here"))
    assert node.handled == []


async def test_a_message_waits_for_the_cursor_of_its_sender(postgres):
    node = Node(postgres)
    node.messages.receive(payload(Answer(12, "[]"), cursor=12))
    node.messages.receive(payload(Answer(11, "[]"), cursor=11))
    node.messages.receive(payload(Answer(10, "[]"), cursor=10))
    assert [body.id for body, _ in node.handled] == [10]
    node.cursor.jump(11)
    assert [body.id for body, _ in node.handled] == [10, 11]
    node.cursor.jump(15)
    assert [body.id for body, _ in node.handled] == [10, 11, 12]


async def test_a_message_of_a_process_that_only_emits_waits_for_what_it_has_appended(postgres):
    writer = Node(postgres)  # its cursor does not walk
    writer.cursor.offer(11, 12, None)
    await writer.messages.send_to_all(Answer(1, "[]"))
    ((_, [sent]),) = postgres.arguments_of("notify")
    assert json.loads(sent)["cursor"] == 12


async def test_a_message_that_cannot_be_handled_does_not_hold_up_the_next(postgres, caplog):
    node = Node(postgres)
    node.messages.receive(payload(Answer(1, "[]"), cursor=11).replace("answer", "later"))
    node.messages.receive(payload(Answer(2, "[]"), cursor=11))
    node.cursor.jump(11)
    assert [body.id for body, _ in node.handled] == [2]
    assert "a message that waited for offset 11 could not be handled" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "released 1 2"])
async def test_what_is_no_message_is_refused(postgres, text):
    with pytest.raises(ValueError, match="Expecting"):
        Node(postgres).messages.receive(text)


async def test_messages_of_one_tick_are_sent_in_one_statement_and_in_order(postgres):
    node, peer = Node(postgres), Node(postgres, "there")
    sent = [node.messages.send_to_all(Answer(i, "[]")) for i in range(3)]
    assert node.messages.waiting == 3
    await asyncio.gather(*sent, node.messages.send("sio_other", Answer(3, "[]")))
    ((channels, payloads),) = postgres.arguments_of("notify")
    assert channels == ["sio_log"] * 3 + ["sio_other"] and node.messages.waiting == 0
    for each in payloads:
        peer.messages.receive(each)
    assert [body.id for body, _ in peer.handled] == [0, 1, 2, 3]
    assert {json.loads(each)["cursor"] for each in payloads} == {10}


async def test_a_statement_sends_a_limited_number_of_messages(postgres):
    node = Node(postgres)
    await asyncio.gather(*[node.messages.send_to_all(Answer(i, "[]")) for i in range(BATCH + 1)])
    assert [len(channels) for channels, _ in postgres.arguments_of("notify")] == [BATCH, 1]


@pytest.mark.parametrize("parts", [(), (b"p",)])
async def test_a_message_that_is_large_or_binary_goes_through_the_attachment_table(postgres, parts):
    node, peer = Node(postgres), Node(postgres, "there")
    body = Answer(7, "[]" if parts else f'["{"x" * NOTIFICATION_BYTES}"]')
    await node.messages.send_to_all(body, parts)
    ((keys, data, ephemeral),) = postgres.arguments_of("attach")
    ((_, (pointer,)),) = postgres.arguments_of("notify")
    assert len(pointer) < 200 and str(keys[0]) in pointer and ephemeral == [True]
    text, *stored = unpack(data[0])
    assert decode(json.loads(text)) == body and tuple(stored) == parts

    postgres.answers["attachment"] = data[0]
    peer.messages.receive(pointer)
    await peer.messages.close()
    assert peer.handled == [(body, parts)]
    peer.messages.receive(json.dumps({**json.loads(pointer), "node": "here", "cursor": 11}))
    await peer.messages.close()
    assert len(peer.handled) == 1  # it has been read, and waits for the cursor
    peer.cursor.jump(11)
    assert len(peer.handled) == 2


async def test_a_message_whose_attachment_is_gone_is_lost_and_logged(postgres, caplog):
    peer = Node(postgres, "there")
    key = "00000000-0000-0000-0000-000000000000"
    peer.messages.receive(json.dumps({"node": "here", "cursor": 10, "attachment": key}))
    await peer.messages.close()
    assert peer.handled == [] and "a message of another node is lost" in caplog.text


async def test_a_message_that_cannot_be_sent_fails_and_the_next_one_is_sent(postgres):
    node = Node(postgres)
    postgres.failures = [OSError("connection reset")]
    with pytest.raises(StoreUnavailable, match=r"sending a message to other nodes.*connection reset"):
        await node.messages.send_to_all(Answer(1, "[]"))
    await node.messages.send_to_all(Answer(2, "[]"))
    ((_, (payload,)),) = postgres.arguments_of("notify")
    assert decode(json.loads(payload)) == Answer(2, "[]")


async def test_nobody_has_to_wait_for_a_message_that_fails():
    node = Node(await Postgres.opened(failures=[OSError("connection reset")]))
    node.messages.send_to_all(Answer(1, "[]"))
    await node.messages.close()
    await node.messages.close()


async def test_a_close_sends_what_is_waiting(postgres):
    node = Node(postgres)
    sent = node.messages.send_to_all(Answer(1, "[]"))
    await node.messages.close()
    assert sent.done() and len(postgres.arguments_of("notify")) == 1
