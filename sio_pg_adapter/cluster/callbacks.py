"""Questions to clients of any node, and the callbacks that wait for their answers.

A question is an event that wants an acknowledgement. It goes to the clients of this node at once, and by a message to
the other nodes, which send their clients' answers to this node's own channel.
"""

from __future__ import annotations

import inspect
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sio_pg_adapter.local.client import Ack, Client
from sio_pg_adapter.local.clients import Clients
from sio_pg_adapter.local.delivery import Delivery
from sio_pg_adapter.log.payload import encode_values, with_binary
from sio_pg_adapter.log.records import Outgoing
from sio_pg_adapter.tasks import Tasks

from .messages import Answer, MessageKind, Messages, Question, UnstoredEvent, fields_of

PENDING_CALLBACKS = 100_000
"""How many callbacks may wait for clients of other nodes. Beyond that the oldest are given up."""

Callback = Callable[..., Any]


class Callbacks:
    """The callbacks that this node waits to call.

    :param channel: this node's own channel.
    """

    def __init__(self, clients: Clients, delivery: Delivery, messages: Messages, tasks: Tasks, channel: str) -> None:
        self._clients = clients
        self._delivery = delivery
        self._messages = messages
        self._tasks = tasks
        self._channel = channel
        self._pending: OrderedDict[int, Callback] = OrderedDict()
        self._numbers_of: dict[int, int] = {}
        self._numbers = iter(range(secrets.randbits(40), 1 << 62))
        messages.on(MessageKind.QUESTION, self._asked)
        messages.on(MessageKind.ANSWER, self._answered)

    async def ask(self, outgoing: Outgoing, callback: Callback, *, only_here: bool) -> None:
        """Send a question. ``callback`` is called with the first answer.

        :param only_here: ask only this node's clients.
        :raises StoreUnavailable: if it cannot be sent to the other nodes.
        """
        number = next(self._numbers)
        self._pending[number] = callback
        self._numbers_of[id(callback)] = number
        if len(self._pending) > PENDING_CALLBACKS:
            self._take(next(iter(self._pending)))
        ack = Ack(lambda *args: self._call(number, args))
        self._delivery.question(outgoing, lambda _client: ack)
        if only_here or (
            len(outgoing.rooms) == 1 and self._clients.current(outgoing.rooms[0], outgoing.namespace) is not None
        ):
            return  # it is for a client of this node alone
        question = Question(number, self._channel, fields_of(UnstoredEvent.of(outgoing)))
        await self._messages.send_to_all(question, outgoing.parts)

    def forget(self, callback: Callback) -> None:
        """Nobody waits for the answer to this callback any more."""
        number = self._numbers_of.get(id(callback))
        if number is not None and self._pending.get(number) is callback:
            self._take(number)

    def acknowledged(self, client: Client | None, ack_id: int, data: Any) -> bool:
        """A client of this node acknowledged an event. ``False`` if nobody asked, or waits any more."""
        ack = None if client is None else client.take_ack(ack_id)
        if ack is None:
            return False
        ack.answered(*data)
        return True

    def _take(self, number: int) -> Callback | None:
        callback = self._pending.pop(number, None)
        if callback is not None and self._numbers_of.get(id(callback)) == number:
            del self._numbers_of[id(callback)]
        return callback

    def _call(self, number: int, args: Any) -> None:
        callback = self._take(number)
        if callback is not None:
            self._tasks.spawn(_call(callback, args), "callback")

    # -- the questions of other nodes, and their answers to ours -----------------------------------------------
    def _asked(self, question: Question, parts: tuple[bytes, ...]) -> None:
        def answer(*args: Any) -> None:
            body, answer_parts = encode_values(list(args), "an acknowledgement")
            self._messages.send(question.reply_to, Answer(question.id, body), answer_parts)

        ack = Ack(answer)
        self._delivery.question(UnstoredEvent(**question.event).outgoing(parts), lambda _client: ack)

    def _answered(self, answer: Answer, parts: tuple[bytes, ...]) -> None:
        self._call(answer.id, with_binary(json.loads(answer.body), parts))


async def _call(callback: Callback, args: Any) -> None:
    result = callback(*args)
    if inspect.isawaitable(result):
        await result
