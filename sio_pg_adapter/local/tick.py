"""One moment of the event loop: as long as nobody has waited, nothing else has run here."""

from __future__ import annotations

import asyncio


class Moment:
    """From its making until the loop turns.

    A task that was suspended in between finds it over: what resumes the task stands behind ``_end`` in the loop's
    queue. So what was known at its making, of this node's memory, is still so while it lasts.
    """

    def __init__(self) -> None:
        self.lasts = True
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self.lasts = False
