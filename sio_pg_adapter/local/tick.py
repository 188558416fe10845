"""One turn of the event loop. Until a task waits, nothing else runs in the process."""

from __future__ import annotations

import asyncio


class Tick:
    """The time from its making until the loop turns.

    Once the task that made it has been suspended, it is over: ``_end`` stands before that task's resumption in the
    loop's queue. So while that task finds that it lasts, nothing in this node's memory has changed behind its back.
    """

    def __init__(self) -> None:
        self.lasts = True
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self.lasts = False
