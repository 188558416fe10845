"""New connections begin a few at a time, so that many that come at once do not hold up the events of others."""

from __future__ import annotations

import asyncio
from collections import deque

CONNECTIONS_A_TURN = 4
"""How many connections begin in one turn of the event loop. An event passes through several turns on its way, and
each takes as long as what begins in it."""


class Admission:
    """A line in which new connections wait, first come, first served. It is empty unless many come at once."""

    def __init__(self) -> None:
        self._line: deque[asyncio.Future[None]] = deque()
        self._free = CONNECTIONS_A_TURN  # how many more may begin in this turn
        self._is_counting = False

    async def turn(self) -> None:
        """Wait until a connection may begin."""
        loop = asyncio.get_running_loop()
        if not self._is_counting:
            self._is_counting = True
            loop.call_soon(self._next_turn, loop)
        if self._free > 0 and not self._line:
            self._free -= 1
            return
        turn = loop.create_future()
        self._line.append(turn)
        await turn

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._free = CONNECTIONS_A_TURN
        self._is_counting = bool(self._line)
        if self._is_counting:
            loop.call_soon(self._next_turn, loop)
        while self._free > 0 and self._line:
            turn = self._line.popleft()
            if not turn.done():  # else its request was cancelled
                self._free -= 1
                turn.set_result(None)
