"""Requests to the other nodes, and what comes back.

A request goes to all nodes in one message that is not kept, and each answers to the asker's own channel. Who has to
answer is what presence tells, before the request and again while an answer is missing: a node that is gone, killed
or cut off, is not waited for.
"""

from __future__ import annotations

import asyncio
import inspect
import json as stdlib_json
import logging
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sio_pg_adapter.errors import SioPgError, StoreUnavailable
from sio_pg_adapter.log.records import encode_event, with_binary

from .messages import Message

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

LOOK_AGAIN = 0.5
"""Seconds for which an answer may be missing until it is looked who is still there."""

logger = logging.getLogger("sio_pg_adapter")

Service = Callable[[Message, tuple[bytes, ...]], Any]


class Gathering:
    """The answers to one request, as they come.

    :ivar nodes: who has to answer, by node id.
    :ivar answers: what came, by node id.
    :ivar failed: whose answer was an error, and which.
    """

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.answers: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.given_up = False

    def take(self, node: str, value: Any) -> None:
        """An answer of a node."""
        self.answers[node] = value

    def owing(self) -> set[str]:
        """The nodes that have not answered in full."""
        return self.nodes - self.answers.keys() - self.failed.keys()


class Peers:
    """The other nodes of the cluster.

    :param manager: whose presence and messages the requests go by.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        self._services: dict[str, Service] = {}
        self._gatherings: dict[int, Gathering] = {}
        self._numbers = iter(range(secrets.randbits(40), 1 << 62))
        self._seen: set[str] = set()
        self._seen_at = 0.0

    def __len__(self) -> int:
        """How many requests of this node wait for answers."""
        return len(self._gatherings)

    def serve(self, what: str, service: Service) -> None:
        """Answer the requests of a kind.

        :param service: called with the message and its binary parts when this node's cursor has reached the
                        sender's; returns the answer, what to await for it, or ``None``: none, or one by
                        :meth:`reply`. It must not run application code itself.
        """
        self._services[what] = service

    # -- asking ------------------------------------------------------------------------------------------
    async def others(self) -> set[str]:
        """The ids of the other nodes that are there now.

        :raises StoreUnavailable: if the database cannot tell.
        """
        rows = await self._manager.database.fetch("others", uuid.UUID(self._manager.node))
        self._seen, self._seen_at = {row["id"].hex for row in rows}, time.monotonic()
        return self._seen

    async def tell(self, what: str, fields: Message, parts: tuple[bytes, ...] = ()) -> None:
        """Send a message that wants no answer to all other nodes.

        :raises StoreUnavailable: if it cannot be sent.
        """
        message = {**fields, "type": "request", "what": what}
        await self._manager.ephemeral.send(self._manager.database.channel, message, parts)

    async def gather(
        self,
        what: str,
        fields: Message,
        parts: tuple[bytes, ...],
        gathering: Gathering,
        *,
        timeout: float,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Send a request and wait for the answers of all other nodes that are there, at most ``timeout`` seconds:
        what is owing then, the gathering tells.

        :param begin: called when it is known who is there, and nothing has been sent: to ask this node, too.
        :raises StoreUnavailable: if the request cannot be sent, or the manager is closed meanwhile.
        """
        number, manager = next(self._numbers), self._manager
        others = await self.others()
        gathering.nodes |= others
        self._gatherings[number] = gathering
        try:
            async with asyncio.timeout(timeout):
                if begin is not None:
                    begin()
                if others:
                    await self.tell(what, {**fields, "id": number, "reply": manager.channel}, parts)
                while gathering.owing():
                    await self._wait(gathering)
                    if gathering.given_up:
                        raise StoreUnavailable("the manager was closed while other nodes were asked")
        except TimeoutError:
            return
        finally:
            del self._gatherings[number]

    def close(self) -> None:
        """Wait for no answer any more. Safe to call twice."""
        for gathering in self._gatherings.values():
            gathering.given_up = True
            gathering.changed.set()

    async def _wait(self, gathering: Gathering) -> None:
        """Wait for an answer; who is gone need not answer any more."""
        try:
            async with asyncio.timeout(LOOK_AGAIN):
                await gathering.changed.wait()
            gathering.changed.clear()
        except TimeoutError:
            own = {self._manager.node}
            if not gathering.owing() - own:
                return
            try:  # one look serves all requests that wait
                seen = self._seen if time.monotonic() - self._seen_at < LOOK_AGAIN / 2 else await self.others()
            except SioPgError as e:
                logger.debug("who is there cannot be told: %s", e)
            else:
                gathering.nodes &= seen | own

    # -- what comes --------------------------------------------------------------------------------------
    def requested(self, message: Message, parts: tuple[bytes, ...]) -> None:
        """Another node asks."""
        service = self._services.get(message["what"])
        if service is None:  # of a later version
            self._send(message, {"error": f"this node does not know the request {message['what']!r}"})
            return
        answer = service(message, parts)
        if inspect.isawaitable(answer):
            self._manager.spawn(self._reply_later(message, answer), "sio_pg request")
        elif answer is not None:
            self.reply(message, answer)

    async def _reply_later(self, message: Message, answer: Awaitable[Any]) -> None:
        try:
            value = await answer
        except Exception as e:  # noqa: BLE001 - the service has logged it; the asker is told
            self._send(message, {"error": f"{type(e).__name__}: {e}"})
        else:
            self.reply(message, value)

    def reply(self, message: Message, value: Any) -> None:
        """Answer a request, with what JSON can hold, and bytes."""
        try:
            body, parts = encode_event("", (value,), stdlib_json)
        except SioPgError as e:
            logger.error("an answer to another node cannot be sent: %s", e)  # noqa: TRY400 - not of this code
            self._send(message, {"error": str(e)})
        else:
            self._send(message, {"body": body}, parts)

    def _send(self, message: Message, fields: Message, parts: tuple[bytes, ...] = ()) -> None:
        if "reply" in message:
            answer = {**fields, "type": "reply", "id": message["id"], "from": self._manager.node}
            self._manager.ephemeral.send(message["reply"], answer, parts)

    def replied(self, message: Message, parts: tuple[bytes, ...]) -> None:
        """Another node has answered; too late, perhaps."""
        gathering = self._gatherings.get(message["id"])
        if gathering is None:
            return
        if "error" in message:
            gathering.failed[message["from"]] = message["error"]
        else:
            gathering.take(message["from"], with_binary(stdlib_json.loads(message["body"])[1], parts))
        gathering.nodes.add(message["from"])  # it may have come just now
        gathering.changed.set()
