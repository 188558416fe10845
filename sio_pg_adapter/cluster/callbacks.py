"""Questions to clients of any node: who waits for which answer.

A question is an event that wants an acknowledgement. It goes to the clients of this node at once, and by a message
that is not kept to the other nodes, which send what their clients answer to this node's own channel.
"""

from __future__ import annotations

import inspect
import json as stdlib_json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sio_pg_adapter.local.clients import Ack
from sio_pg_adapter.log.records import encode_event, with_binary

from .messages import Message

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

PENDING_CALLBACKS = 100_000
"""Callbacks that wait for other nodes' clients; beyond that the oldest are given up."""

logger = logging.getLogger("sio_pg_adapter")

Callback = Callable[..., Any]


class Callbacks:
    """The callbacks that this node waits to call.

    :param manager: whose delivery and messages the questions go by, and whose tasks run the callbacks.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        self._pending: OrderedDict[int, Callback] = OrderedDict()
        self._numbers = iter(range(secrets.randbits(40), 1 << 62))

    def __len__(self) -> int:
        return len(self._pending)

    async def ask(
        self,
        namespace: str,
        rooms: tuple[str, ...],
        skip_sids: tuple[str, ...],
        body: str,
        parts: tuple[bytes, ...],
        callback: Callback,
        *,
        only_here: bool,
    ) -> None:
        """Send a question; ``callback`` is called with the first answer.

        :param only_here: to this node's clients alone.
        :raises StoreUnavailable: if it cannot be sent to the other nodes.
        """
        manager, number = self._manager, next(self._numbers)
        self._pending[number] = callback
        if len(self._pending) > PENDING_CALLBACKS:
            self._pending.popitem(last=False)
        ack = self._answer_to(manager.channel, number)
        manager.delivery.question(namespace, rooms, skip_sids, body, parts, lambda _client: ack)
        if only_here or (len(rooms) == 1 and rooms[0] in manager.clients.by_sid.get(namespace, {})):
            return  # for a client of this node alone
        message: Message = {
            "type": "question",
            "namespace": namespace,
            "rooms": rooms,
            "skip": skip_sids,
            "body": body,
        }
        message |= {"id": number, "reply": manager.channel}
        await manager.ephemeral.send(manager.database.channel, message, parts)

    def forget(self, callback: Callback) -> None:
        """Nobody waits for its answer any more."""
        for number in [n for n, c in self._pending.items() if c is callback]:
            del self._pending[number]

    def asked(self, message: Message, parts: tuple[bytes, ...]) -> None:
        """Another node has a question to clients of this one."""
        target = (message["namespace"], tuple(message["rooms"]), tuple(message["skip"]), message["body"], parts)
        ack = self._answer_to(message["reply"], message["id"])
        self._manager.delivery.question(*target, lambda _client: ack)

    def answered(self, message: Message, parts: tuple[bytes, ...]) -> None:
        """A client of another node has answered."""
        callback = self._pending.pop(message["id"], None)
        if callback is not None:
            self._run(callback, with_binary(stdlib_json.loads(message["body"]), parts))

    def acknowledged(self, sid: str, ack_id: int, data: Any) -> None:
        """A client of this node acknowledged an event."""
        for of_namespace in self._manager.clients.by_sid.values():
            client = of_namespace.get(sid)
            if client is not None and (ack := client.acks.pop(ack_id, None)) is not None:
                ack.answered(*data)
                return
        logger.warning("Unknown callback received, ignoring.")

    def _answer_to(self, channel: str, number: int) -> Ack:
        def answer(*args: Any) -> None:
            if channel == self._manager.channel:
                callback = self._pending.pop(number, None)
                if callback is not None:
                    self._run(callback, args)
                return
            body, parts = encode_event("", args, stdlib_json)
            values = stdlib_json.dumps(stdlib_json.loads(body)[1:])
            self._manager.ephemeral.send(channel, {"type": "answer", "id": number, "body": values}, parts)

        return Ack(answer)

    def _run(self, callback: Callback, args: Any) -> None:
        async def run() -> None:
            result = callback(*args)
            if inspect.isawaitable(result):
                await result

        self._manager.spawn(run(), "sio_pg callback")
