"""The threads that run handlers of the application."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

IDLE_THREADS = 32
"""How many threads without work are kept for the next handlers. A handler never waits for a thread."""

_Work = tuple[asyncio.Future[Any], Callable[[], Any]]


class HandlerEnded(RuntimeError):
    """A handler raised something that would end its thread, such as ``SystemExit``."""


class HandlerThreads:
    """Runs functions in daemon threads, as many as there are functions at once.

    All methods are called in the event loop, so its lists need no lock.

    :param loop: the event loop that awaits the functions.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads: set[_HandlerThread] = set()
        self._idle: list[_HandlerThread] = []
        self._waiting: deque[_Work] = deque()
        self._number = 0
        self._closed = False
        self._idle.append(self._start())  # Python 3.12 starts none at the end of the process, for disconnect handlers

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a thread, with the context variables of this task, and return its result.

        :raises HandlerEnded: if it raised something that is no ``Exception``, or its thread was ended from outside.
        """
        context = contextvars.copy_context()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._give((future, functools.partial(context.run, function, *args)))
        return await future

    def _give(self, work: _Work) -> None:
        try:
            thread = self._idle.pop() if self._idle else self._start()
        except RuntimeError as e:  # the interpreter ends, or the system has no more threads
            if self._threads:  # they take it in turn
                self._waiting.append(work)
            else:
                work[0].set_exception(e)
        else:
            thread.take(work)

    def _start(self) -> _HandlerThread:
        self._number += 1
        thread = _HandlerThread(f"sio_pg handler {self._number}", self)
        thread.start()
        self._threads.add(thread)
        return thread

    def is_free(self, thread: _HandlerThread) -> None:
        """Give a thread that has done its work the next one, keep it, or end it."""
        if self._waiting:
            thread.take(self._waiting.popleft())
        elif self._closed or len(self._idle) >= IDLE_THREADS:
            self._threads.discard(thread)
            thread.take(None)
        else:
            self._idle.append(thread)

    def has_ended(self, thread: _HandlerThread) -> None:
        """Replace a thread that was ended from outside. Work that it has not begun gets another thread."""
        self._threads.discard(thread)
        if thread in self._idle:
            self._idle.remove(thread)
        work = thread.work
        if work is not None and thread.has_begun:
            if not work[0].done():
                work[0].set_exception(HandlerEnded(f"the thread of a handler was ended: {thread.name}"))
        elif work is not None:
            self._give(work)
        if self._waiting:
            self._give(self._waiting.popleft())

    def close(self) -> None:
        """End the idle threads. Others end after their handlers."""
        self._closed = True
        while self._idle:
            self.is_free(self._idle.pop())

    # -- in a thread -------------------------------------------------------------------------------------
    def in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


class _HandlerThread(threading.Thread):
    """A thread that does the work which the event loop gives to it, one after the other.

    :ivar work: what it was given last. The event loop sets it, so it is known even if the thread ends before it takes
                it.
    :ivar has_begun: whether it has begun with that work.
    """

    def __init__(self, name: str, owner: HandlerThreads) -> None:
        super().__init__(name=name, daemon=True)
        self._owner = owner
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self.work: _Work | None = None
        self.has_begun = False

    def take(self, work: _Work | None) -> None:
        """Do this next, or end. Called in the event loop, while the thread has nothing to do."""
        self.work, self.has_begun = work, False
        self._inbox.put(work)

    def run(self) -> None:
        try:
            while (work := self._inbox.get()) is not None:
                self.has_begun = True
                result, error = _call(work[1])
                self._owner.in_loop(self._done, work[0], result, error)
                del work, result, error  # or they live until the next work
        except BaseException:  # noqa: BLE001 - raised from outside, as debuggers and time limits do, between two handlers
            self._owner.in_loop(self._owner.has_ended, self)

    def _done(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        self.work = None
        self._owner.is_free(self)
        if future.done():  # its task was cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _call(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return the result of a function, or its exception as one that a future can hold."""
    error: Exception
    try:
        return function(), None
    except StopIteration as e:  # a future cannot hold it
        error = RuntimeError("a handler raised StopIteration")
        error.__cause__ = e
    except Exception as e:  # noqa: BLE001 - the application's: raised in the task that awaits it
        error = e
    except BaseException as e:  # noqa: BLE001 - SystemExit would end the event loop with all its clients
        error = HandlerEnded(f"a handler raised {type(e).__name__}")
        error.__cause__ = e
    try:
        return None, error
    finally:
        del error  # a cycle of the error, its traceback and this frame would keep them all
