"""One ``sio.session(sid)`` block at a time for each sid of this node."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator
from typing import Any


class _Lock(asyncio.Lock):
    """A lock that knows which task holds it."""

    owner: asyncio.Task[Any] | None = None


class SessionLocks:
    """The locks of sessions, by namespace and sid. Each lasts as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[tuple[str, str], _Lock] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def holding(self, namespace: str, sid: str) -> AsyncIterator[None]:
        """Hold the lock of a session. A task that holds it already does not wait for itself."""
        lock = self._locks.get((namespace, sid))
        if lock is None:
            lock = self._locks[namespace, sid] = _Lock()
        if lock.owner is not None and lock.owner is asyncio.current_task():
            yield
            return
        async with lock:
            lock.owner = asyncio.current_task()
            try:
                yield
            finally:
                lock.owner = None
