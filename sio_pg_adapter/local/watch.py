"""Listeners for the events that this node sends to its clients."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from sio_pg_adapter.log.payload import decode_event

logger = logging.getLogger("sio_pg_adapter")


class Watch:
    """Calls listeners for each event and each client that it was sent to, in a task of its own.

    :ivar handlers: the listeners, by namespace.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, list[Callable[..., Any]]] = {}
        self._sent: deque[tuple[str, list[str], str, tuple[bytes, ...]]] = deque()
        self._calling: asyncio.Task[None] | None = None

    def sent(self, namespace: str, sids: list[str], body: str, parts: tuple[bytes, ...]) -> None:
        """An event was sent to clients."""
        self._sent.append((namespace, sids, body, parts))
        if self._calling is None:
            self._calling = asyncio.create_task(self._call(), name="sio_pg listeners of outgoing events")

    async def _call(self) -> None:
        try:
            while self._sent:
                namespace, sids, body, parts = self._sent.popleft()
                event, args = decode_event(body, parts)
                for sid in sids:
                    for handler in self.handlers[namespace]:
                        await _call(handler, event, sid, args)
        finally:
            self._calling = None


async def _call(handler: Callable[..., Any], event: str, sid: str, args: tuple[Any, ...]) -> None:
    try:
        result = handler(event, sid, *args)
        if inspect.isawaitable(result):
            await result
    except Exception:  # the application's listener failed. The event was sent all the same
        logger.exception("a listener of outgoing events failed: event %r for %s", event, sid)
