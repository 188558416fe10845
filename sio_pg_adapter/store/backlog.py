"""Back-pressure: how many events may wait to be written before an emit waits to be queued."""

from __future__ import annotations

import asyncio
from collections import deque


class Backlog:
    """Places in a queue, given out in the order in which they were asked for.

    A semaphore does the same, but searches all who were woken at each release: of a batch of 500, 500 times.

    :param places: how many may be taken at once.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._line: deque[asyncio.Future[None]] = deque()
        self._called = 0  # of those who have a place and have not gone on yet: nobody may overtake them

    @property
    def waiting(self) -> int:
        """Who waits for a place."""
        return len(self._line)

    async def take(self) -> None:
        """Wait for a place, in turn."""
        if self._free > 0 and not self._line and not self._called:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # called, and cancelled in the same tick
                self._called -= 1
                self.leave(1)
            raise
        self._called -= 1
        self._call()  # who came while it was on its way

    def leave(self, count: int) -> None:
        """Give places back."""
        self._free += count
        self._call()

    def _call(self) -> None:
        while self._free > 0 and self._line:
            turn = self._line.popleft()
            if not turn.done():
                self._free -= 1
                self._called += 1
                turn.set_result(None)
