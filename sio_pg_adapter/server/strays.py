"""Sessions that the store gives to this node, and that no client here holds.

The answer to an open or a claim may never come, or come when nobody waits for it any more. The session would not
expire while this node lives, so it is let go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.local.client import Client
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.store.sessions import Sessions
from sio_pg_adapter.tasks import Tasks

SECOND_LOOK = 30.0
"""How long an open or a claim may be under way, in seconds: longer than its statement and its retries take."""

RETRY = 1.0
"""Seconds between looks while the database is away."""

logger = logging.getLogger("sio_pg_adapter")


class Strays:
    """Finds and lets go the sessions of this node that no client holds.

    :param clients: returns the clients of this node, those that are leaving included.
    :param window: how long a session lasts from its release, in seconds. ``None``: for ever.
    """

    def __init__(
        self, clients: Callable[[], Iterable[Client]], sessions: Sessions, window: float | None, tasks: Tasks
    ) -> None:
        self._clients = clients
        self._sessions = sessions
        self._window = window
        self._tasks = tasks
        self._suspected = False
        self._task: asyncio.Task[None] | None = None

    def suspect(self) -> None:
        """A session may have become this node's, and nobody here knows of it."""
        self._suspected = True
        if self._task is None or self._task.done():
            self._task = self._tasks.spawn(self._run(), "strays")

    async def _run(self) -> None:
        while self._suspected:
            self._suspected = False
            try:
                await self.let_go()
            except SioPgError:  # the database is away. Others that need it log that
                self._suspected = True
                await asyncio.sleep(RETRY)  # nothing announces that the database is back

    async def let_go(self) -> None:
        """Let go the sessions that no client holds, neither now nor once everything that is under way has ended."""
        strays = await self._sessions.held_here() - self._held()
        if not strays:
            return
        await asyncio.sleep(SECOND_LOOK)  # an open or a claim that is under way ends by then
        for stray in strays - self._held():
            logger.info("a session that no client holds is let go: the answer to its connect was lost")
            await self._sessions.release(stray, seconds=self._window, since=SECOND_LOOK)

    def _held(self) -> set[Held]:
        return {client.held for client in self._clients() if client.held is not None}
