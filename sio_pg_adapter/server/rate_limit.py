"""How often a session may be claimed: a client that loops must harm nobody."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from sio_pg_adapter.log.verdict import pid_hash

BURST = 100
"""How many claims of a pid one node takes at once."""

PER_SECOND = 10.0
"""How many it takes in a second after that. Later ones wait for their turn."""

REMEMBERED = 10_000
"""How many pids are remembered. The one that was claimed longest ago is forgotten first."""


class RateLimit:
    """A token bucket for each pid."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def delay(self, pid: str, now: float) -> float:
        """Take a token. Return the seconds until it is there."""
        key = pid_hash(pid)
        tokens, then = self._buckets.pop(key, (float(BURST), now))
        tokens = min(BURST, tokens + (now - then) * PER_SECOND) - 1
        self._buckets[key] = (tokens, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return max(0.0, -tokens / PER_SECOND)

    async def wait(self, pid: str) -> None:
        """Wait for the pid's turn."""
        if delay := self.delay(pid, time.monotonic()):
            await asyncio.sleep(delay)  # until its turn comes
