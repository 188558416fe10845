"""Sessions that come back again and again with the same offset, though they were sent an event."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from sio_pg_adapter.log.records import Held

MOST_RETURNS = 5
"""How often in a row a session is sent what it missed above the same offset. Then the client gets a new session.

A client that cannot take an event would otherwise reconnect for ever. It gets several tries, because a connection may
also break while an event is on its way.
"""

_SESSIONS = 10_000
"""How many sessions are remembered. Each node counts for itself, so a client that changes nodes gets more tries."""


@dataclass(slots=True)
class _Returns:
    after: int
    generation: int
    count: int


class Returns:
    """How often each session has come back to this node in a row with the same offset."""

    def __init__(self) -> None:
        self._of: OrderedDict[int, _Returns] = OrderedDict()

    def sent(self, held: Held, after: int) -> None:
        """A session that came back with the offset ``after`` is sent an event. Each connection counts once."""
        returns = self._of.get(held.id)
        if returns is None or returns.after != after:
            self._of[held.id] = _Returns(after, held.generation, 1)
            self._of.move_to_end(held.id)
            if len(self._of) > _SESSIONS:
                self._of.popitem(last=False)
        elif returns.generation != held.generation:
            returns.generation = held.generation
            returns.count += 1

    def are_over(self, session: int, after: int) -> bool:
        """Whether a session has come back with the same offset as often as it may."""
        returns = self._of.get(session)
        return returns is not None and returns.after == after and returns.count >= MOST_RETURNS
