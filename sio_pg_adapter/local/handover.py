"""Handovers of sessions: when the former holder of a claimed session has let go."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

REMEMBERED = 20_000
"""How many handovers are remembered or waited for: more than happen when all clients of a node reconnect."""


class Handover:
    """The sessions whose former holder has let go, by session id and former generation."""

    def __init__(self) -> None:
        self._events: OrderedDict[tuple[int, int], asyncio.Event] = OrderedDict()

    def of(self, session: int, generation: int) -> asyncio.Event:
        """Return the event that is set when the holder of a generation has let go. It may be set already."""
        event = self._events.setdefault((session, generation), asyncio.Event())
        if len(self._events) > REMEMBERED:  # announced, and nobody waited for it
            self._events.popitem(last=False)
        return event

    def forget(self, session: int, generation: int) -> None:
        self._events.pop((session, generation), None)
