"""Background tasks, each with a name, an owner and an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

logger = logging.getLogger("sio_pg_adapter")


async def cancelled(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end. If it had failed before, that is logged."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled() and (e := task.exception()) is not None:
        logger.error("%s failed", task.get_name(), exc_info=e)


class Begun:
    """A coroutine that runs to its first wait at once, before the task that is going to await it has its turn.

    Until that wait ``asyncio.current_task()`` is the caller's task. So the coroutine may wait for futures there, but
    use no timeout of asyncio. What it waits for is not cancelled with the caller.

    :param context: the context of the task that is going to await it.
    """

    def __init__(self, work: Coroutine[Any, Any, None], context: Context) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._waits_for: Any = None
        try:
            self._waits_for = context.run(work.send, None)
        except BaseException as e:  # noqa: BLE001 - for the task that awaits it
            self._error = e

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            if self._error is not None:
                raise self._error
            while True:
                try:
                    yield self._waits_for
                except BaseException as e:  # noqa: BLE001 - for the coroutine to handle
                    self._waits_for = self._work.throw(e)
                else:
                    self._waits_for = self._work.send(None)
        except StopIteration:  # the coroutine has returned
            return

    def close(self) -> None:
        """End the coroutine where it waits."""
        self._work.close()


class Tasks:
    """The tasks of an owner, such as a node, that end with it. A node's own loops are not among them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, Any], name: str, *, awaited: bool = False) -> asyncio.Task[Any]:
        """Run a coroutine as a task that ends with its owner. Its exception, if any, is logged.

        After :meth:`close` the task is cancelled before its first step.

        :param awaited: whether somebody awaits it and handles its exception, which is then not logged.
        """
        task = asyncio.get_running_loop().create_task(work, name=f"sio_pg {name}")
        if self._closed:
            task.cancel()
        self._running.add(task)
        task.add_done_callback(self._running.discard if awaited else self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (e := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=e)

    async def close(self) -> None:
        """Cancel all tasks but the calling one, and wait for their end. Safe to call twice."""
        self._closed = True
        tasks = [task for task in self._running if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
