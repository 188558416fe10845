"""One ``sio.session(sid)`` block at a time for each sid of this node."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import weakref
from collections.abc import AsyncIterator

calling_thread: contextvars.ContextVar[object] = contextvars.ContextVar("sio_pg_calling_thread")
"""The thread on whose behalf a task runs. Such a task is one call, while a block of the thread is several."""


class _Lock(asyncio.Lock):
    """A lock that knows which task, or which thread, holds it."""

    owner: object = None


def _caller() -> object:
    return calling_thread.get(None) or asyncio.current_task()


class SessionLocks:
    """The locks of sessions, by namespace and sid. Each lasts as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[tuple[str, str], _Lock] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def holding(self, namespace: str, sid: str) -> AsyncIterator[None]:
        """Hold the lock of a session. A task or thread that holds it already does not wait for itself."""
        lock = self._locks.get((namespace, sid))
        if lock is None:
            lock = self._locks[namespace, sid] = _Lock()
        if lock.owner is not None and lock.owner is _caller():
            yield
            return
        async with lock:
            lock.owner = _caller()
            try:
                yield
            finally:
                lock.owner = None
