"""What is written to the log, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .records import Kind


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to write; see :class:`~.records.Kind`.

    :ivar args: those of its SQL function.
    :ivar answer: bytes that the function's answer may have, beyond a few: they count in a batch, too.
    """

    kind: Kind
    namespace: str = ""
    rooms: tuple[str, ...] = ("",)
    skip_sids: tuple[str, ...] = ()
    sid: str | None = None
    body: str | None = None
    parts: tuple[bytes, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)
    answer: int = 0

    @property
    def size(self) -> int:
        return len(self.body or "") + (sum(map(len, self.parts)) if self.parts else 0)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of an entry.

    :ivar offset: of its record; of the record that had already done it; 0 if there is none; -1: refused, since
                  the room is a client's own.
    :ivar result: what a session function answered.
    """

    offset: int
    result: Any = None


@dataclass(frozen=True, slots=True)
class Members:
    """A move of all members of some rooms, those away too: it counts from one place in the log, since they are read
    under its lock. Its ``Written`` has the last offset.

    :ivar kind: they enter or leave each of ``targets``, or are kicked; then that is ``("",)``.
    :ivar rooms: whose members; ``""`` is everybody.
    :ivar unstored: sids that have no session, and are moved, too.
    :ivar skip_sids: who is not.
    """

    kind: Kind
    namespace: str
    rooms: tuple[str, ...]
    targets: tuple[str, ...]
    unstored: tuple[str, ...] = ()
    skip_sids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """The session that a client holds, by the generation of its claim."""

    id: int
    generation: int

    def args(self) -> dict[str, int]:
        return {"id": self.id, "generation": self.generation}
