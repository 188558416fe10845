"""Events from server to server."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from sio_pg_adapter.errors import HandlerFailed, NoAnswer
from sio_pg_adapter.log.payload import encode_event, with_binary

from .messages import Request
from .requests import Answers, Requests, Service

logger = logging.getLogger("sio_pg_adapter")

Handler = Callable[..., Any]


class ServerEvents:
    """Sends events to the other nodes, and calls this node's handlers of theirs.

    :param handlers: this node's handlers by namespace and event. Some may be registered later.
    """

    def __init__(
        self, requests: Requests, handlers: Mapping[tuple[str, str], Handler], json: ModuleType | Any
    ) -> None:
        self._requests = requests
        self._handlers = handlers
        self._json = json
        requests.serve(Service.SERVER_EVENT, self._received)

    async def emit(self, namespace: str, event: str, args: tuple[Any, ...]) -> None:
        """Send an event to the other nodes."""
        body, parts = encode_event(event, args, self._json)
        await self._requests.announce(Service.SERVER_EVENT, {"namespace": namespace, "body": body}, parts)

    async def call(self, namespace: str, event: str, args: tuple[Any, ...], timeout: float) -> dict[str, Any]:
        """Return what the handlers of the other nodes returned, by node id."""
        body, parts = encode_event(event, args, self._json)
        answers, fields = Answers(), {"namespace": namespace, "body": body}
        await self._requests.gather(Service.SERVER_EVENT, fields, parts, answers, timeout=timeout)
        values = {node: answer["value"] for node, answer in answers.answers.items() if answer["handled"]}
        if missing := answers.owing():
            raise NoAnswer(f"server event {event!r}", "node", missing, values)
        if answers.failed:
            raise HandlerFailed(f"server event {event!r}", answers.failed, values)
        return values

    def _received(self, request: Request, parts: tuple[bytes, ...]) -> Any:
        event, *args = with_binary(json.loads(request.fields["body"]), parts)
        handler = self._handlers.get((request.fields["namespace"], event))
        return {"handled": False} if handler is None else _run(event, handler, args)


async def _run(event: str, handler: Handler, args: list[Any]) -> dict[str, Any]:
    try:
        result = handler(*args)
        if inspect.isawaitable(result):
            result = await result
    except Exception:  # the application's handler failed: log it here, and report it to the caller
        logger.exception("the handler of server event %r failed", event)
        raise
    return {"handled": True, "value": result}
