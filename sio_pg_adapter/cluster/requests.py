"""Requests to the other nodes, and their replies.

A request goes to all nodes in one message, and each replies to the channel of the node that asks. Presence says which
nodes have to reply, before the request and again while a reply is missing. A node that is gone, killed or cut off is
not waited for.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sio_pg_adapter.errors import SioPgError, StoreUnavailable
from sio_pg_adapter.log.payload import encode_event, with_binary
from sio_pg_adapter.store.presence import Presence
from sio_pg_adapter.tasks import Tasks

from .messages import MessageKind, Messages, Reply, Request

LOOK_AGAIN = 0.5
"""Seconds for which a reply may be missing until presence is asked again."""

logger = logging.getLogger("sio_pg_adapter")

Answering = Callable[[Request, tuple[bytes, ...]], Any]


class Service(enum.StrEnum):
    """The services of a node."""

    SOCKETS = "sockets"
    UNSTORED = "unstored"
    BROADCAST_CALL = "broadcast_call"
    SERVER_EVENT = "server_event"
    STATUS = "status"


class Answers:
    """The answers to one request, as they come.

    :ivar nodes: the ids of the nodes that have to answer.
    :ivar answers: the answers, by node id.
    :ivar failed: the errors, by node id.
    """

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.answers: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.given_up = False

    def take(self, node: str, value: Any) -> None:
        """Take an answer of a node."""
        self.answers[node] = value

    def owing(self) -> set[str]:
        """Return the nodes that have not answered in full."""
        return self.nodes - self.answers.keys() - self.failed.keys()

    def missing(self) -> set[str]:
        """Return the nodes without an answer, those that failed included."""
        return self.owing() | self.failed.keys()


class Requests:
    """Asks the other nodes, and answers them.

    :param node: this node's id.
    :param channel: this node's own channel.
    """

    def __init__(self, messages: Messages, presence: Presence, tasks: Tasks, node: str, channel: str) -> None:
        self._messages = messages
        self._presence = presence
        self._tasks = tasks
        self._node = node
        self._channel = channel
        self._services: dict[str, Answering] = {}
        self._pending: dict[int, Answers] = {}
        self._numbers = iter(range(secrets.randbits(40), 1 << 62))
        self._seen: set[str] = set()
        self._seen_at = 0.0
        messages.on(MessageKind.REQUEST, self._requested)
        messages.on(MessageKind.REPLY, self._replied)

    def serve(self, what: Service, service: Answering) -> None:
        """Answer the requests for a service.

        :param service: called with the request and its binary parts when this node's cursor has reached the sender's.
                        It returns the answer, an awaitable of it, or ``None``: none, or one by :meth:`reply`. It runs
                        no code of the application itself.
        """
        self._services[what] = service

    # -- asking ------------------------------------------------------------------------------------------
    async def others(self) -> set[str]:
        """Return the ids of the other nodes that live.

        :raises StoreUnavailable: if the database does not answer.
        """
        self._seen, self._seen_at = await self._presence.others(), time.monotonic()
        return self._seen

    async def announce(self, what: Service, fields: dict[str, Any], parts: tuple[bytes, ...] = ()) -> None:
        """Send a request that wants no answer to all other nodes.

        :raises StoreUnavailable: if it cannot be sent.
        """
        await self._messages.send_to_all(Request(what, fields), parts)

    async def gather(
        self,
        what: Service,
        fields: dict[str, Any],
        parts: tuple[bytes, ...],
        answers: Answers,
        *,
        timeout: float,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Send a request, and wait for the answers of all other nodes that live, at most ``timeout`` seconds.

        :param answers: takes the answers, and knows which are owing at the end.
        :param begin: called when it is known which nodes live, and before anything is sent: to ask this node, too.
        :raises StoreUnavailable: if the request cannot be sent, or the manager is closed meanwhile.
        """
        number = next(self._numbers)
        others = await self.others()
        answers.nodes |= others
        self._pending[number] = answers
        try:
            async with asyncio.timeout(timeout):
                if begin is not None:
                    begin()
                if others:
                    await self._messages.send_to_all(Request(what, fields, number, self._channel), parts)
                while answers.owing():
                    await self._wait(answers)
                    if answers.given_up:
                        raise StoreUnavailable(
                            "the manager was closed while other nodes were asked", may_be_stored=None
                        )
        except TimeoutError:
            return
        finally:
            del self._pending[number]

    def close(self) -> None:
        """Wait for no more answers. Safe to call twice."""
        for answers in self._pending.values():
            answers.given_up = True
            answers.changed.set()

    async def _wait(self, answers: Answers) -> None:
        """Wait for an answer. A node that is gone need not answer any more."""
        try:
            async with asyncio.timeout(LOOK_AGAIN):
                await answers.changed.wait()
            answers.changed.clear()
        except TimeoutError:
            own = {self._node}
            if not answers.owing() - own:
                return
            try:  # one look serves all requests that wait
                seen = self._seen if time.monotonic() - self._seen_at < LOOK_AGAIN / 2 else await self.others()
            except SioPgError as e:
                logger.debug("which nodes live is not known: %s", e)
            else:
                answers.nodes &= seen | own

    # -- answering ---------------------------------------------------------------------------------------
    def _requested(self, request: Request, parts: tuple[bytes, ...]) -> None:
        service = self._services.get(request.what)
        if service is None:  # of a later version
            self._send(request, error=f"this node does not know the request {request.what!r}")
            return
        answer = service(request, parts)
        if inspect.isawaitable(answer):
            self._tasks.spawn(self._reply_later(request, answer), "request")
        elif answer is not None:
            self.reply(request, answer)

    async def _reply_later(self, request: Request, answer: Awaitable[Any]) -> None:
        try:
            value = await answer
        except Exception as e:  # noqa: BLE001 - the service has logged it, and the node that asked gets it
            self._send(request, error=f"{type(e).__name__}: {e}")
        else:
            self.reply(request, value)

    def reply(self, request: Request, value: Any) -> None:
        """Answer a request, with anything that JSON can hold, and bytes."""
        try:
            body, parts = encode_event("", (value,))
        except SioPgError as e:
            logger.error("an answer to another node cannot be sent: %s", e)  # noqa: TRY400 - not this code's error
            self._send(request, error=str(e))
        else:
            self._send(request, body=body, parts=parts)

    def _send(
        self, request: Request, *, body: str | None = None, error: str | None = None, parts: tuple[bytes, ...] = ()
    ) -> None:
        if request.id is not None:
            self._messages.send(request.reply_to, Reply(request.id, self._node, body, error), parts)

    def _replied(self, reply: Reply, parts: tuple[bytes, ...]) -> None:
        answers = self._pending.get(reply.id)
        if answers is None:
            return  # too late
        if reply.error is not None:
            answers.failed[reply.node] = reply.error
        else:
            answers.take(reply.node, with_binary(answer_in(reply), parts))
        answers.nodes.add(reply.node)  # it may have entered the cluster just now
        answers.changed.set()


def answer_in(reply: Reply) -> Any:
    """Return the answer in a reply, its binary parts apart."""
    return json.loads(reply.body or "[null,null]")[1]
