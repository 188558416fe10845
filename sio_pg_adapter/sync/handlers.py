"""The threads that run handlers of the application."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any

IDLE_THREADS = 32
"""How many threads without work are kept for the next handlers. A handler never waits for a thread."""

_Work = tuple[asyncio.Future[Any], Callable[[], Any]]


class HandlerEnded(RuntimeError):
    """A handler raised something that would end its thread, such as ``SystemExit``."""


class HandlerThreads:
    """Runs functions in daemon threads, as many as there are functions at once.

    All methods are called in the event loop, so its counters need no lock.

    :param loop: the event loop that awaits the functions.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._number = 0
        self._closed = False
        self._start()  # Python 3.12 starts none at the end of the process, when disconnect handlers run
        self._idle = 1

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a thread, with the context variables of this task, and return what it returns.

        :raises HandlerEnded: if it raised something that is no ``Exception``.
        """
        context = contextvars.copy_context()
        future: asyncio.Future[Any] = self._loop.create_future()
        work: _Work = (future, functools.partial(context.run, function, *args))
        if self._idle:
            self._idle -= 1
        else:
            self._start()
        self._work.put(work)
        return await future

    def _start(self) -> None:
        self._number += 1
        thread = threading.Thread(target=self._serve, name=f"sio_pg handler {self._number}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or the system has no more threads: the others take it in turn
            if not self._threads:
                raise
        else:
            self._threads += 1

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, function = work
            result: Any = None
            error: Exception | None = None
            try:
                result = function()
            except StopIteration as e:  # a future cannot hold it
                error = RuntimeError("a handler raised StopIteration")
                error.__cause__ = e
            except Exception as e:  # noqa: BLE001 - the application's: raised in the task that awaits it
                error = e
            except BaseException as e:  # noqa: BLE001 - SystemExit would end the event loop with all its clients
                error = HandlerEnded(f"a handler raised {type(e).__name__}")
                error.__cause__ = e
            try:
                self._loop.call_soon_threadsafe(self._done, future, result, error)
            except RuntimeError:  # the loop has ended
                return
            del work, future, function, result, error  # or they live until the next work

    def _done(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        if self._closed or self._idle >= IDLE_THREADS:
            self._threads -= 1
            self._work.put(None)
        else:
            self._idle += 1
        if future.done():  # its task was cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def close(self) -> None:
        """End the idle threads. Others end after their handlers."""
        self._closed = True
        for _ in range(self._idle):
            self._work.put(None)
        self._threads -= self._idle
        self._idle = 0
