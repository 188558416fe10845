"""The records of the log, and the entries that are to be written to it, as values that nobody changes."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform

from .names import EVERYBODY, first_named, key_name, namespace_name, text_names
from .payload import encode_client_event

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make a dataclass that only the type checker keeps frozen.

    Python sets each field of a frozen one by a function call. So it takes three to five times as long to make, and an
    emit makes four. That was a fifth of the Python time of an emit in flight.
    """
    return dataclass(slots=True)(cls)


class Kind(enum.IntEnum):
    """The kinds of the records of the log, and of the entries of a batch. Kinds from 10 on leave no record.

    ``UNREADABLE`` stands for a record that this node cannot read. Clients may be due what it says.
    """

    UNREADABLE = -1
    EVENT = 0
    ENTER = 1
    LEAVE = 2
    CLOSE = 3
    CLAIM = 4
    KICK = 5
    MEMBERS_ENTER = 6
    MEMBERS_LEAVE = 7
    MEMBERS_KICK = 8
    OPEN = 10
    SETTLE = 11
    RELEASE = 12
    END = 13
    SAVE = 14


@value
class Record:
    """A record of the log.

    :ivar rooms: the rooms of an event, ``("",)`` for everybody. The room of a move, or all rooms if members move.
    :ivar skip_sids: clients that it is not about.
    :ivar skip_rooms: rooms whose members, as of this record, it is not about.
    :ivar members: the rooms whose members move or are kicked, as of this record. ``""`` is everybody.
    :ivar body: an event's name and arguments as a JSON array, without the offset.
    :ivar parts: the binary parts that ``{"_placeholder":true,"num":n}`` in the body stands for.
    :ivar generation: the generation that a claim raised the session to.
    :ivar as_of: the offset that a leave counts from, if that is not its own.
    :ivar data: the session data of a session that a kick ended, as JSON.
    :ivar attachment: the key of body and parts in the attachment table. ``None`` once they are read.
    :ivar frames: the event's frames, made once for all recipients by the delivery.
    """

    offset: int
    kind: Kind
    namespace: str
    rooms: tuple[str, ...] = (EVERYBODY,)
    skip_sids: tuple[str, ...] = ()
    skip_rooms: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    sid: str | None = None
    generation: int | None = None
    node: str | None = None
    body: str | None = None
    parts: tuple[bytes, ...] = ()
    attachment: str | None = None
    as_of: int | None = None
    data: str | None = None
    frames: dict[bool, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def size(self) -> int:
        """What the record takes in a buffer, roughly, in bytes."""
        return 200 + len(self.body or "") + (sum(map(len, self.parts)) if self.parts else 0)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of the log, as a client receives it.

    :ivar event: its name.
    :ivar args: its arguments. Binary values are ``bytes``.
    :ivar position: its place in the log, for ``since=`` and ``until=``.
    :ivar at: when it entered the log, in UTC. The events of a transaction enter it when that commits.
    """

    event: str
    args: tuple[Any, ...]
    position: str
    at: datetime


@value
class Outgoing:
    """An event on its way to clients: its names checked, its data encoded.

    :ivar rooms: the rooms it is for, ``("",)`` for everybody.
    :ivar skip_sids: clients that do not get it.
    :ivar skip_rooms: rooms whose members do not get it.
    :ivar body: the JSON array of its name and arguments.
    :ivar parts: its binary parts.
    :ivar key: its idempotency key.
    """

    namespace: str
    rooms: tuple[str, ...]
    skip_sids: tuple[str, ...]
    body: str
    parts: tuple[bytes, ...] = ()
    key: str | None = None
    skip_rooms: tuple[str, ...] = ()

    @classmethod
    def encoded(
        cls,
        event: str,
        data: Any,
        *,
        namespace: Any,
        room: Any,
        to: Any = None,
        skip_sid: Any = None,
        skip_room: Any = None,
        key: Any = None,
        json: ModuleType,
    ) -> Outgoing:
        """Check and encode what ``emit`` was given. ``to`` wins over ``room``.

        :raises ConfigurationError: if a list of rooms names none, or the key is empty.
        :raises NotSerializable: naming the key, the argument or the name.
        :raises PayloadTooLarge: if the event or a name is too large.
        """
        rooms = text_names(first_named(to, room), "room") or (EVERYBODY,)
        skip_sids = text_names(skip_sid, "skip_sid")
        name, key = namespace_name(namespace), key_name(key)
        body, parts = encode_client_event(event, data, json)
        return cls(name, rooms, skip_sids, body, parts, key, text_names(skip_room, "skip_room"))


@dataclass(frozen=True, slots=True)
class Held:
    """The session that a client holds, by the generation of its claim."""

    id: int
    generation: int

    def args(self) -> dict[str, int]:
        return {"id": self.id, "generation": self.generation}


@value
class Entry:
    """A change to append in a batch. :class:`Kind` lists them.

    :ivar args: the arguments of its SQL function, or the key of an event.
    :ivar answer: the most bytes that the function's answer may have. They count toward the size of a batch.
    """

    kind: Kind
    namespace: str = ""
    rooms: tuple[str, ...] = (EVERYBODY,)
    skip_sids: tuple[str, ...] = ()
    skip_rooms: tuple[str, ...] = ()
    sid: str | None = None
    body: str | None = None
    parts: tuple[bytes, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)
    answer: int = 0

    @classmethod
    def event(cls, outgoing: Outgoing) -> Entry:
        return cls(
            Kind.EVENT,
            outgoing.namespace,
            outgoing.rooms,
            outgoing.skip_sids,
            outgoing.skip_rooms,
            body=outgoing.body,
            parts=outgoing.parts,
            args={} if outgoing.key is None else {"key": outgoing.key},
        )

    @property
    def key(self) -> str | None:
        """The idempotency key of an event."""
        return self.args.get("key") if self.kind is Kind.EVENT else None

    @property
    def size(self) -> int:
        return len(self.body or "") + (sum(map(len, self.parts)) if self.parts else 0)


@dataclass(frozen=True, slots=True)
class MemberMove:
    """A move of all members of some rooms, including sessions that are away.

    The members are read under the log's lock, so the move takes effect at one place in the log. The offset of its
    ``Written`` is the last one.

    :ivar kind: they enter or leave each of ``targets``, or are kicked. Then ``targets`` is ``("",)``.
    :ivar rooms: the rooms whose members move. ``""`` is everybody.
    :ivar unstored: sids without a session that move, too.
    :ivar skip_sids: sids that stay.
    :ivar skip_rooms: rooms whose members stay.
    """

    kind: Kind
    namespace: str
    rooms: tuple[str, ...]
    targets: tuple[str, ...]
    unstored: tuple[str, ...] = ()
    skip_sids: tuple[str, ...] = ()
    skip_rooms: tuple[str, ...] = ()


@value
class Written:
    """The outcome of an entry.

    :ivar offset: the offset of its record, or of an earlier record that had done the same. 0 if there is none.
    :ivar refused: the room is a client's own, so nothing was written.
    :ivar result: the answer of a session function.
    :ivar duplicate: the log has an event with the same key, so nothing was written.
    """

    offset: int
    result: Any = None
    refused: bool = False
    duplicate: bool = False
