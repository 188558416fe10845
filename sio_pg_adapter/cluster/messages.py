"""Messages between nodes that are not stored: unstored events, questions to clients, requests, and what comes back.

They go by NOTIFY and bear the sender's cursor. A node acts on a message when its own cursor has reached the sender's,
so that the message does not overtake the records the sender had seen.

A new kind of message is a member of :class:`MessageKind`, a frozen dataclass in ``BODIES``, and a handler given to
:meth:`Messages.on`.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import logging
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.local.cursor import Cursor
from sio_pg_adapter.log.payload import pack
from sio_pg_adapter.log.records import Outgoing
from sio_pg_adapter.store.backends import QUERY_TIMEOUT
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.failures import translated
from sio_pg_adapter.store.reader import ATTACHMENT_TIMEOUT, read_attachment

NOTIFICATION_BYTES = 7_900
"""The largest notification, in bytes. PostgreSQL takes 7,999. Larger messages go through the attachment table."""

BATCH = 200
"""How many messages are sent in one statement."""

logger = logging.getLogger("sio_pg_adapter")


class MessageKind(enum.StrEnum):
    """What a message is for."""

    EVENT = "event"
    QUESTION = "question"
    ANSWER = "answer"
    REQUEST = "request"
    REPLY = "reply"


@dataclass(frozen=True, slots=True)
class UnstoredEvent:
    """An unstored event for the clients of the other nodes.

    :ivar volatile: clients for which anything waits do not get it.
    """

    kind: ClassVar[MessageKind] = MessageKind.EVENT
    namespace: str
    rooms: tuple[str, ...]
    skip_sids: tuple[str, ...]
    skip_rooms: tuple[str, ...]
    body: str
    volatile: bool = False

    @classmethod
    def of(cls, outgoing: Outgoing, *, volatile: bool = False) -> Self:
        names = (outgoing.namespace, outgoing.rooms, outgoing.skip_sids, outgoing.skip_rooms)
        return cls(*names, outgoing.body, volatile)

    def outgoing(self, parts: tuple[bytes, ...]) -> Outgoing:
        return Outgoing(
            self.namespace,
            tuple(self.rooms),
            tuple(self.skip_sids),
            self.body,
            parts,
            skip_rooms=tuple(self.skip_rooms),
        )


@dataclass(frozen=True, slots=True)
class Question:
    """An event that wants an acknowledgement from clients of the other nodes.

    :ivar id: the number of the question at the node that asks.
    :ivar reply_to: that node's channel.
    :ivar event: the fields of an :class:`UnstoredEvent`.
    """

    kind: ClassVar[MessageKind] = MessageKind.QUESTION
    id: int
    reply_to: str
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The acknowledgement of a client.

    :ivar body: its arguments, a JSON array.
    """

    kind: ClassVar[MessageKind] = MessageKind.ANSWER
    id: int
    body: str


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the other nodes.

    :ivar what: the service that is asked.
    :ivar id: the number of the request at the node that asks. ``None`` if it wants no reply.
    :ivar reply_to: that node's channel.
    """

    kind: ClassVar[MessageKind] = MessageKind.REQUEST
    what: str
    fields: dict[str, Any] = field(default_factory=dict)
    id: int | None = None
    reply_to: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of a node.

    :ivar node: the id of the node that replies.
    :ivar body: the answer in a JSON array.
    :ivar error: why there is none.
    """

    kind: ClassVar[MessageKind] = MessageKind.REPLY
    id: int
    node: str
    body: str | None = None
    error: str | None = None


Body = UnstoredEvent | Question | Answer | Request | Reply

BODIES: dict[MessageKind, type[Body]] = {
    body.kind: body for body in (UnstoredEvent, Question, Answer, Request, Reply)
}


def fields_of(body: Body) -> dict[str, Any]:
    """Return the fields of a body, as JSON takes them."""
    return {name: getattr(body, name) for name in body.__dataclass_fields__ if name != "kind"}


def encode(body: Body, *, node: str, number: int, cursor: int) -> str:
    """Return a message as the payload of a notification.

    :param number: distinguishes it from equal messages, which PostgreSQL delivers only once in a transaction (manual,
                   NOTIFY).
    """
    head = {"node": node, "number": number, "cursor": cursor, "kind": body.kind}
    return json.dumps({**head, "body": fields_of(body)}, separators=(",", ":"))


def decode(message: dict[str, Any]) -> Body:
    """Return the body of a message.

    :raises ValueError: if its kind is not known: a later version sent it.
    """
    return BODIES[MessageKind(message["kind"])](**message["body"])


class Messages:
    """Sends and receives messages.

    :param node: this node's id.
    """

    def __init__(self, database: Database, node: str, cursor: Cursor) -> None:
        self._database = database
        self._node = node
        self._cursor = cursor
        self._handlers: dict[MessageKind, Callable[[Any, tuple[bytes, ...]], None]] = {}
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[str, str, str | None, bytes, asyncio.Future[None]]] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._reading: set[asyncio.Task[None]] = set()

    def on(self, kind: MessageKind, handler: Callable[[Any, tuple[bytes, ...]], None]) -> None:
        """Register the handler of a kind. It gets the body and its binary parts, and never awaits."""
        self._handlers[kind] = handler

    @property
    def waiting(self) -> int:
        """How many messages are not on their way yet."""
        return len(self._waiting)

    async def close(self) -> None:
        """Send the waiting messages, then end. Safe to call twice."""
        tasks = [task for task in (self._sending, *self._reading) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def send(self, channel: str, body: Body, parts: tuple[bytes, ...] = ()) -> asyncio.Future[None]:
        """Send a message to all nodes that listen on the channel. Messages of one tick are sent together.

        :returns: a future that is done when the message is on its way. It fails with StoreUnavailable.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        cursor = self._cursor.reached  # also of a process that only emits: it must not overtake its own records
        text = encode(body, node=self._node, number=next(self._numbers), cursor=cursor)
        if not parts and len(text) <= NOTIFICATION_BYTES:
            self._waiting.append((channel, text, None, b"", future))
        else:
            key = str(uuid.uuid4())
            pointer = json.dumps({"node": self._node, "cursor": cursor, "attachment": key})
            self._waiting.append((channel, pointer, key, pack([text.encode(), *parts]), future))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="sio_pg message sender")
        return future

    def send_to_all(self, body: Body, parts: tuple[bytes, ...] = ()) -> asyncio.Future[None]:
        """Send a message to all other nodes."""
        return self.send(self._database.channel, body, parts)

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    with translated("sending a message to other nodes", may_be_stored=None):
                        await self._send_batch(batch)
                except Exception as e:  # noqa: BLE001 - for the senders to handle
                    for *_, future in batch:
                        if not future.done():
                            future.set_exception(e)
                            future.exception()  # the sender may not wait for it
                else:
                    for *_, future in batch:
                        if not future.done():
                            future.set_result(None)
        finally:
            self._sending = None

    async def _send_batch(self, batch: list[tuple[str, str, str | None, bytes, asyncio.Future[None]]]) -> None:
        queries = self._database.queries
        large = [(key, data) for _, _, key, data, _ in batch if key is not None]
        async with self._database.reader as connection:
            if large:
                keys, data = [key for key, _ in large], [data for _, data in large]
                ephemeral = [True] * len(large)
                await connection.execute(queries["attach"], keys, data, ephemeral, timeout=ATTACHMENT_TIMEOUT)
            channels, payloads = [message[0] for message in batch], [message[1] for message in batch]
            await connection.execute(queries["notify"], channels, payloads, timeout=QUERY_TIMEOUT)

    def receive(self, payload: str) -> None:
        """Take the payload of a notification, in order of arrival.

        :raises ValueError: if it is not a message.
        """
        message = json.loads(payload)
        if message.get("node") == self._node:
            return  # this node acted on it when it was sent
        if key := message.get("attachment"):
            task = asyncio.create_task(self._read(key, message["cursor"]), name="sio_pg message reader")
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        else:
            self._cursor.when(message["cursor"], lambda: self._handle(message, ()))

    async def _read(self, key: str, cursor: int) -> None:
        try:
            text, parts = await read_attachment(self._database, key)
        except (SioPgError, LookupError, ValueError) as e:
            logger.warning("a message of another node is lost: %s", e)
            return
        self._cursor.when(cursor, lambda: self._handle(json.loads(text), parts))

    def _handle(self, message: dict[str, Any], parts: tuple[bytes, ...]) -> None:
        body = decode(message)
        self._handlers[body.kind](body, parts)
