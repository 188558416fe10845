"""Events from server to server."""

from __future__ import annotations

import inspect
import json as stdlib_json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sio_pg_adapter.errors import HandlerFailed, NoAnswer
from sio_pg_adapter.log.records import encode_event, with_binary

from .messages import Message
from .requests import Gathering

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

logger = logging.getLogger("sio_pg_adapter")

Handler = Callable[..., Any]


class ServerEvents:
    """Sends events to the other nodes, and calls this node's handlers of theirs.

    :param manager: whose peers they go to, and whose tasks run the handlers.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        self.handlers: dict[str, Handler] = {}
        manager.peers.serve("event", self._received)

    async def emit(self, event: str, args: tuple[Any, ...]) -> None:
        """Send an event to the other nodes."""
        body, parts = encode_event(event, args, self._manager.json)
        await self._manager.ready()
        await self._manager.peers.tell("event", {"body": body}, parts)

    async def call(self, event: str, args: tuple[Any, ...], timeout: float) -> dict[str, Any]:
        """What the handlers of the other nodes returned, by node id."""
        body, parts = encode_event(event, args, self._manager.json)
        await self._manager.ready()
        gathering = Gathering()
        await self._manager.peers.gather("event", {"body": body}, parts, gathering, timeout=timeout)
        answers = {node: answer["value"] for node, answer in gathering.answers.items() if answer["handled"]}
        if missing := gathering.owing():
            raise NoAnswer(f"server event {event!r}", "node", missing, answers)
        if gathering.failed:
            raise HandlerFailed(f"server event {event!r}", gathering.failed, answers)
        return answers

    def _received(self, message: Message, parts: tuple[bytes, ...]) -> Any:
        event, *args = with_binary(stdlib_json.loads(message["body"]), parts)
        handler = self.handlers.get(event)
        return {"handled": False} if handler is None else self._run(event, handler, args)

    async def _run(self, event: str, handler: Handler, args: list[Any]) -> dict[str, Any]:
        try:
            result = handler(*args)
            if inspect.isawaitable(result):
                result = await result
        except Exception:  # of the application's: told here, where it can be mended, and to who asked
            logger.exception("the handler of server event %r failed", event)
            raise
        return {"handled": True, "value": result}
