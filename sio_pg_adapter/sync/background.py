"""An event loop in a thread of its own, and how other threads call what runs in it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from sio_pg_adapter.drivers import LentConnection
from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.green_threads import refuse_green_threads
from sio_pg_adapter.local.session_locks import calling_thread

from .handlers import HandlerThreads

INSTEAD = "Use threads, for example `gunicorn -k gthread` or `celery worker --pool threads`."
"""What to do in a process where green threads are refused."""


class Background:
    """An event loop in a daemon thread. It ends with :meth:`stop`, or with the process."""

    def __init__(self) -> None:
        refuse_green_threads(INSTEAD)  # a worker of gunicorn patches only once it was forked
        self.loop: asyncio.AbstractEventLoop = _Loop()
        self.handlers = HandlerThreads(self.loop)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = self._closed = False
        self._entering = threading.RLock()  # or a call between the end of the loop and its close would get no answer
        self._thread = threading.Thread(target=self._run, name="sio_pg loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        with self._entering:
            self._closed = True
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()  # the calls that came last, which it refuses
        self.loop.close()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in the event loop, await what it returns, and return the result to this thread.

        :raises StoreUnavailable: if the event loop stops before there is a result.
        """
        return self.begin(Caller(self.loop), function, *args, **kwargs).wait()

    def begin(self, caller: Caller, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Caller:
        """Call a function in the event loop. The caller gets its result, unless it had one before."""
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "A synchronous call was made in the event loop of the server, which would wait for itself. Make it "
                "in a handler, or in a thread of your own."
            )
        with self._entering:
            if self._closed:
                raise StoreUnavailable("the manager was closed")
            # The task runs in a copy of this thread's context variables, so a handler's calls are known as its own.
            self.loop.call_soon_threadsafe(self._spawn, caller, functools.partial(function, *args, **kwargs))
        return caller

    def _spawn(self, caller: Caller, work: Callable[[], Any]) -> None:
        if self._stopped:
            caller.fail(StoreUnavailable("the manager was closed"))
            return
        task = self.loop.create_task(_answer(caller, work), name="sio_pg call")
        caller.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """End the calls that still wait, stop the loop, and wait for the end of its thread. Safe to call twice."""
        with self._entering:
            if not self._closed:
                self.loop.call_soon_threadsafe(self._begin_stop)
        self._thread.join()

    def _begin_stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._ending = self.loop.create_task(self._end(), name="sio_pg end")

    async def _end(self) -> None:
        self.handlers.close()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        self.loop.stop()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that finds the database also at the end of the process, when an executor takes no more work."""

    async def getaddrinfo(self, host: Any, port: Any, **hints: Any) -> Any:
        try:
            return await super().getaddrinfo(host, port, **hints)
        except RuntimeError:
            return socket.getaddrinfo(host, port, **hints)


class Caller:
    """A thread that waits for the result of a call, and runs meanwhile what only that thread may run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inbox: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._result: Any = None
        self._error: BaseException | None = None
        self._answered = self._left = False
        self.thread = threading.current_thread()
        self.task: asyncio.Task[Any] | None = None

    def wait(self) -> Any:
        """Wait for the result. An interruption of the thread cancels the call."""
        try:
            while self._inbox.get()():
                pass
        except BaseException:  # KeyboardInterrupt, or an exception that a time limit raises here
            self._loop.call_soon_threadsafe(self._cancel)
            raise
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # a cycle of the error, its traceback and this frame would keep them all

    def _cancel(self) -> None:
        self._left = True
        if self.task is not None:
            self.task.cancel()

    # -- in the event loop -------------------------------------------------------------------------------
    def answer(self, result: Any) -> None:
        """Give the thread its result, unless it had one."""
        if not self._answered:
            self._answered = True
            self._result = result
            self._inbox.put(lambda: False)

    def fail(self, error: BaseException) -> None:
        """Raise an error in the thread, unless it had a result."""
        if not self._answered:
            self._answered = True
            self._error = error
            self._inbox.put(lambda: False)

    def lend(self, connection: Any) -> LentConnection:
        """Return a connection of the thread for the event loop. Its statements run in the thread."""
        return LentConnection(connection, self.run_there)

    async def run_there(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function in the thread, and return its result.

        :raises ConnectionError: if the thread was interrupted, and waits no longer.
        """
        if self._left:
            raise ConnectionError("the thread whose connection it is was interrupted")
        future: asyncio.Future[Any] = self._loop.create_future()

        def step() -> bool:
            try:
                result = function(*args, **kwargs)
            except Exception as e:  # noqa: BLE001 - the connection's, for the call
                self._loop.call_soon_threadsafe(_settle, future, None, e)
            else:
                self._loop.call_soon_threadsafe(_settle, future, result, None)
            return True

        self._inbox.put(step)
        return await future


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


async def _answer(caller: Caller, work: Callable[[], Any]) -> None:
    calling_thread.set(caller.thread)
    try:
        result = work()
        if inspect.isawaitable(result):
            result = await result
    except asyncio.CancelledError:
        caller.fail(StoreUnavailable("the manager was closed"))
    except BaseException as e:  # noqa: BLE001 - it is raised in the thread, and must not end the event loop
        caller.fail(e)
    else:
        caller.answer(result)
