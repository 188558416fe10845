"""Listeners for the events that this node sends to its clients."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from sio_pg_adapter.log.payload import decode_event

from .registry import Registry

MAX_WAITING_BYTES = 32 * 1024 * 1024
"""How much may wait for the listeners, in bytes."""

EVENT_BYTES, SID_BYTES = 200, 8
"""What an event and each of its recipients take while they wait, besides the event's body, in bytes."""

logger = logging.getLogger("sio_pg_adapter")


class Watch:
    """Calls listeners for each event and each client that it was sent to, in a task of its own.

    Neither clients nor the cursor wait for a listener. If it is slower than the events for so long that too much
    waits for it, it misses events until it has caught up.

    :ivar listeners: functions of the application.
    """

    def __init__(self, listeners: Registry) -> None:
        self.listeners = listeners
        self._sent: deque[tuple[str, list[str], str, tuple[bytes, ...], int]] = deque()
        self._waiting_bytes = 0
        self._missed = 0
        self._calling: asyncio.Task[None] | None = None

    def sent(self, namespace: str, sids: list[str], body: str, parts: tuple[bytes, ...]) -> None:
        """An event was sent to clients."""
        if not sids or not self.listeners.of(namespace):
            return
        if self._missed or self._waiting_bytes > MAX_WAITING_BYTES:  # before this event, which may be large
            if not self._missed:
                logger.warning("listeners of outgoing events are slow: they miss events until they have caught up")
            self._missed += 1
            return
        size = EVENT_BYTES + SID_BYTES * len(sids) + len(body) + sum(map(len, parts))
        self._waiting_bytes += size
        self._sent.append((namespace, sids, body, parts, size))
        if self._calling is None:
            self._calling = asyncio.create_task(self._call_all(), name="sio_pg listeners of outgoing events")

    async def _call_all(self) -> None:
        try:
            while self._sent:
                namespace, sids, body, parts, size = self._sent.popleft()
                self._waiting_bytes -= size
                await self._call(namespace, sids, body, parts)
            if self._missed:
                logger.warning("listeners of outgoing events have caught up: they missed %d events", self._missed)
                self._missed = 0
        finally:
            self._calling = None

    async def _call(self, namespace: str, sids: list[str], body: str, parts: tuple[bytes, ...]) -> None:
        listeners = self.listeners.of(namespace)
        try:
            event, args = decode_event(body, parts)
        except (RecursionError, ValueError):  # emitted by SQL, which nests deeper than Python reads
            logger.exception("listeners of outgoing events miss an event that cannot be decoded: %s", body[:80])
            return
        for sid in sids:
            for listener, leading in listeners:
                await _call(listener, event, sid, (*leading, sid, *args))


async def _call(listener: Callable[..., Any], event: str, sid: str, args: tuple[Any, ...]) -> None:
    try:
        result = listener(event, *args)
        if inspect.isawaitable(result):
            await result
    except Exception:  # the application's listener failed. The event was sent all the same
        logger.exception("a listener of outgoing events failed: event %r for %s", event, sid)
