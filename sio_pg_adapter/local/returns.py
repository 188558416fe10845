"""Sessions that come back again and again with the same offset, though they were sent an event."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MOST_RETURNS = 5
"""How often in a row a client may break off above the same offset. Then it gets a new session.

A client that cannot take an event would otherwise reconnect for ever. It gets several tries, because a connection may
also break while an event is on its way.
"""

_SESSIONS = 10_000
"""How many sessions are remembered. Each node counts for itself, so a client that changes nodes gets more tries."""


@dataclass(slots=True)
class _Returns:
    after: int
    count: int


class Returns:
    """How often the client of each session has broken off in a row on this node, above the same offset.

    :attr:`.Client.breaks_off` says which ends of connections count.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[int, _Returns] = OrderedDict()

    def broke_off(self, session: int, after: int) -> None:
        """The client that came back with the offset ``after`` was sent an event, and has closed its connection."""
        returns = self._of.get(session)
        if returns is None or returns.after != after:
            self._of[session] = _Returns(after, 1)
            self._of.move_to_end(session)
            if len(self._of) > _SESSIONS:
                self._of.popitem(last=False)
        else:
            returns.count += 1

    def are_over(self, session: int, after: int) -> bool:
        """Whether a session has come back with the same offset as often as it may."""
        returns = self._of.get(session)
        return returns is not None and returns.after == after and returns.count >= MOST_RETURNS
