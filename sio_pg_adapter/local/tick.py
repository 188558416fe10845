"""One turn of the event loop. Until a task waits, nothing else runs in the process."""

from __future__ import annotations

import asyncio


class Tick:
    """The time from its making until the loop turns.

    A task that was suspended in between finds it over: whatever resumes the task stands behind ``_end`` in the loop's
    queue. So what was known of this node's memory when it was made still holds while it lasts.
    """

    def __init__(self) -> None:
        self.lasts = True
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self.lasts = False
