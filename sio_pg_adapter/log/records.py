"""What the log holds, as frozen values, and how an event and an offset look on the wire.

The protocol: https://github.com/socketio/socket.io-protocol, and how its clients use offsets: the last
argument of an event, if it is a string, is kept and sent back when the client reconnects.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import json as stdlib_json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, PayloadTooLarge

MAX_NAME_BYTES = 512
"""Of a namespace, room, sid or event name: an entry of a b-tree index holds 2.7 kB (PostgreSQL manual, 11)."""

MAX_BODY_BYTES = 256 * 1024 * 1024
"""Of one event, binary included: a quarter of what one value in PostgreSQL can be."""

EVERYBODY = ""
"""The room of a broadcast. Upstream, too, an empty room means everybody."""

_LENGTH = struct.Struct(">I")


class Kind(enum.IntEnum):
    """What an entry of the log, or of a batch to the store, does. Those from 10 on leave no record."""

    EVENT = 0
    ENTER = 1
    LEAVE = 2
    CLOSE = 3
    CLAIM = 4
    KICK = 5
    OPEN = 10
    SETTLE = 11
    RELEASE = 12
    END = 13
    SAVE = 14


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log.

    :ivar rooms: of an event: who it is for, ``("",)`` for everybody. Of a move: the room.
    :ivar body: of an event: its arguments, name first, as a JSON array without the offset. Of a kick: the
                session data, JSON.
    :ivar parts: the binary parts that ``{"_placeholder":true,"num":n}`` in the body stands for.
    :ivar generation: of a claim: the one it raised the session to. Of a leave: the offset that it counts
                      from, where that is not its own.
    :ivar attachment: where body and parts are instead, until they are fetched.
    """

    offset: int
    kind: Kind
    namespace: str
    rooms: tuple[str, ...] = (EVERYBODY,)
    skip_sids: tuple[str, ...] = ()
    sid: str | None = None
    generation: int | None = None
    node: str | None = None
    body: str | None = None
    parts: tuple[bytes, ...] = ()
    attachment: str | None = None
    frames: dict[bool, Any] = field(default_factory=dict, compare=False, repr=False)  # of delivery.py: made once

    @property
    def size(self) -> int:
        """Bytes, roughly: what it weighs in a buffer."""
        return 200 + len(self.body or "") + (sum(map(len, self.parts)) if self.parts else 0)


# -- names -------------------------------------------------------------------------------------------
def text_name(value: object, what: str) -> str:
    """The name as it is stored.

    :param value: a namespace, room, sid or event name.
    :param what: what it is, for the message.
    :raises NotSerializable: if it is not text, or has a NUL character or half of a surrogate pair: only
                             text survives storage with its type.
    :raises PayloadTooLarge: over 512 bytes.
    """
    if type(value) is not str:
        if not isinstance(value, str):
            raise NotSerializable(f"{what} takes text: not {value!r} of type {type(value).__name__}; use str(...)")
        value = str(value)
    if "\0" in value:
        raise NotSerializable(f"{what} has a NUL character, which PostgreSQL does not store: {value[:80]!r}")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise NotSerializable(f"{what} has half of a surrogate pair, which is no text: {value[:80]!r}") from None
    if size > MAX_NAME_BYTES:
        raise PayloadTooLarge(f"{what} has {size} bytes; a name has at most {MAX_NAME_BYTES}: {value[:80]!r}...")
    return value


def text_names(value: object, what: str) -> tuple[str, ...]:
    """One name or several, as ``room``, ``to`` and ``skip_sid`` take them; ``None`` and empty are none.

    :raises NotSerializable: see :func:`text_name`.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, list | tuple | set | frozenset):
        names = tuple(dict.fromkeys(text_name(v, what) for v in value if v is not None and v != ""))
        if value and not names and what == "room":
            raise ConfigurationError("room takes one name or several: a list that names none would reach everybody")
        return names
    return (text_name(value, what),)


def namespace_name(value: object) -> str:
    """The namespace as it is stored. As upstream's ``namespace or "/"``; but 0 is a wrong name, not the default one.

    :param value: ``None`` and empty text mean ``"/"``.
    :raises NotSerializable: see :func:`text_name`.
    """
    return "/" if value is None else text_name(value, "namespace") or "/"


def room_name(value: object) -> str:
    """The one room that is entered, left or closed.

    :raises ConfigurationError: if it is empty: nobody is in or out of the room that means everybody.
    :raises NotSerializable: see :func:`text_name`.
    """
    room = text_name(value, "room")
    if room == EVERYBODY:
        raise ConfigurationError("room takes a name that is not empty: an empty one means everybody")
    return room


def first_named(to: object, room: object) -> object:
    """Which of ``to`` and ``room`` is meant, as upstream's ``to or room``; but 0 is a wrong name, not everybody."""
    empty = to is None or (isinstance(to, str | list | tuple | set | frozenset) and not to)
    return room if empty else to


# -- events ------------------------------------------------------------------------------------------
def event_arguments(data: object) -> list[Any]:
    """What ``emit`` was given as a list of arguments: a tuple is several, ``None`` is none (as upstream)."""
    if isinstance(data, tuple):
        return list(data)
    return [] if data is None else [data]


def encode_event(event: object, data: object, json: ModuleType | Any = stdlib_json) -> tuple[str, tuple[bytes, ...]]:
    """An event as JSON text and binary parts, encoded once for the log and for all who receive it.

    :param event: its name.
    :param data: one argument, a tuple of them, or ``None``.
    :param json: the module to encode with.
    :returns: the array ``[event, *arguments]`` as text, with placeholders for its binary parts; the parts.
    :raises NotSerializable: naming the place of a value that has no JSON form.
    :raises PayloadTooLarge: over 256 MiB.
    """
    return encode_values([text_name(event, "event"), *event_arguments(data)], f"event {event!r}", json)


def encode_values(
    values: list[Any], what: str, json: ModuleType | Any = stdlib_json
) -> tuple[str, tuple[bytes, ...]]:
    """The data of a packet as JSON text and binary parts; see :func:`encode_event`.

    :param what: what they are, for the message of an error.
    """
    body, parts = _plain_json(values) if _is_plain(json) else None, list[bytes]()
    if body is None:
        try:
            encoded = _without_binary(values, parts)
            if parts and _has_placeholder(values):
                raise NotSerializable(
                    f"{what}: a dict with '_placeholder': True would be taken for a binary part, beside binary"
                )
        except RecursionError as e:
            raise NotSerializable(f"{what}: {_culprit(values) or e}") from e
        body = encode_json(encoded, what, json)
    if len(body) + sum(map(len, parts)) > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"{what} is larger than {MAX_BODY_BYTES} bytes")
    return body, tuple(parts)


def _is_plain(json: ModuleType | Any) -> bool:
    """Does it encode as Python's own does? Engine.IO's module does, whose ``loads`` alone is another."""
    return json.dumps is stdlib_json.dumps


def _plain_json(values: list[Any]) -> str | None:
    """What nearly every event is: without anything binary, or that has no JSON form. ``None``: it may have that."""
    try:
        text = compact(values)
    except (TypeError, ValueError, RecursionError):
        return None
    return None if "NaN" in text or "Infinity" in text else text


MAX_DEPTH = 500
"""Lists and dicts in each other, in what has to be read back: half of what Python's own stack lets it read."""


def check_depth(value: object, what: str) -> None:
    """Can it be read back?

    :raises NotSerializable: if it is nested more deeply than :data:`MAX_DEPTH`.
    """
    for _ in levels(value, what):
        pass


def levels(value: object, what: str) -> Iterator[list[Any]]:
    """A value, what it holds, what that holds, and so on.

    :param what: what it is, for the message of an error.
    :raises NotSerializable: if it is nested more deeply than :data:`MAX_DEPTH`.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        yield level
        level = [child for one in level for child in _children(one)]
        if not level:
            return
    raise NotSerializable(f"{what}: it is nested more than {MAX_DEPTH} deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def encode_json(value: object, what: str, json: ModuleType | Any = stdlib_json) -> str:
    """JSON text that every JSON parser takes.

    :raises NotSerializable: naming the place of the value that has no JSON form.
    """
    try:
        text: str | bytes = compact(value) if _is_plain(json) else json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise NotSerializable(f"{what}: {_culprit(value) or e}") from e
    if isinstance(text, bytes):
        text = text.decode()
    if ("NaN" in text or "Infinity" in text) and (place := _culprit(value, only_floats=True)):
        raise NotSerializable(f"{what}: {place}")  # json.dumps writes them; no JSON parser reads them
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = compact(value)
    return text


# Made once: json.dumps makes an encoder anew for each call that is not of its defaults, 5 us of them.
compact = stdlib_json.JSONEncoder(separators=(",", ":")).encode
"""A value as JSON, in ASCII and without spaces."""


def _without_binary(value: Any, parts: list[bytes]) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        parts.append(bytes(value))  # a bytearray would end the connection in python-engineio
        return {"_placeholder": True, "num": len(parts) - 1}
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, dict):
        return {k: _without_binary(v, parts) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_binary(v, parts) for v in value]
    return value


def _has_placeholder(value: Any) -> bool:
    """Does it hold what a client would replace by a binary part? Where it finds no such part it breaks off, comes
    back, and is sent the same again."""
    if isinstance(value, dict):
        return value.get("_placeholder") is True or any(map(_has_placeholder, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_placeholder, value))


def with_binary(value: Any, parts: Sequence[bytes]) -> Any:
    """The reverse of what :func:`encode_event` does to binary values."""
    if not parts:
        return value
    if isinstance(value, dict):
        if value.get("_placeholder") is True and isinstance(num := value.get("num"), int) and 0 <= num < len(parts):
            return parts[num]
        return {k: with_binary(v, parts) for k, v in value.items()}
    if isinstance(value, list):
        return [with_binary(v, parts) for v in value]
    return value


def _culprit(value: object, path: str = "", *, only_floats: bool = False) -> str | None:
    """Where in a value stands what JSON cannot hold, in words; ``None`` if nowhere."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value!r} at {path or 'the top'} has no JSON form"
    if value is None or isinstance(value, str | int):
        return None
    children: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        for key in value:
            if not (only_floats or key is None or isinstance(key, str | int | float)):
                return f"the key {key!r} at {path or 'the top'} is a {type(key).__name__}, not text"
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    elif only_floats:
        return None
    else:
        return f"a {type(value).__name__} at {path or 'the top'} has no JSON form"
    if len(path) > 200:  # deep enough to be found; a value may hold itself
        return f"it is nested too deeply at {path[:80]}..."
    found = (_culprit(v, f"{path}[{k!r}]", only_floats=only_floats) for k, v in children)
    return next((place for place in found if place), None)


# -- bytes in one value ------------------------------------------------------------------------------
def pack(parts: Iterable[bytes]) -> bytes:
    """Several byte strings as one, each behind its length in four bytes."""
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def unpack(data: bytes) -> Iterator[bytes]:
    """The reverse of :func:`pack`."""
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield data[at : at + length]
        at += length


# -- offsets -----------------------------------------------------------------------------------------
EPOCH_BITS = 40
_NUMBER = struct.Struct(">Q")
_CHECK_BYTES = 8


@dataclass(frozen=True, slots=True)
class Epoch:
    """One history of the log: it owns the offsets from ``number * 2**40`` up to the next one's start.

    :ivar key: what its offsets are signed with; a restored history counts the same numbers under another.
    :ivar end: the highest good offset of it, once the next epoch has begun.
    """

    number: int
    key: bytes
    end: int | None = None


class OffsetCodec:
    """Offsets as clients see them: the number, and a checksum of namespace and number under the epoch's key.

    22 characters of URL-safe base64: no client can make one up, or carry one into another namespace or
    another history.
    """

    def __init__(self, epochs: Iterable[Epoch]) -> None:
        self.epochs = {epoch.number: epoch for epoch in epochs}
        self._bases: dict[tuple[int, str], Any] = {}

    def encode(self, offset: int, namespace: str) -> str:
        number = offset >> EPOCH_BITS
        base = self._bases.get((number, namespace))
        if base is None:
            base = hashlib.blake2b(namespace.encode(), digest_size=_CHECK_BYTES, key=self.epochs[number].key)
            if len(self._bases) < 1000:
                self._bases[number, namespace] = base
        check = base.copy()
        raw = _NUMBER.pack(offset)
        check.update(raw)
        return base64.urlsafe_b64encode(raw + check.digest()).decode().rstrip("=")

    def known(self, offset: int) -> bool:
        """Is the offset's epoch one of these?"""
        return offset >> EPOCH_BITS in self.epochs

    def same_history(self, offset: int, other: OffsetCodec) -> bool:
        """Does an offset that was good in this knowledge still belong to the history that the other knows?"""
        mine, theirs = (codec.epochs.get(offset >> EPOCH_BITS) for codec in (self, other))
        if theirs is None or mine is None or mine.key != theirs.key:
            return False
        return theirs.end is None or offset <= theirs.end

    def decode(self, text: str, namespace: str) -> int | None:
        """The number, or ``None`` if it was not issued here, for this namespace, in a history that counts."""
        if len(text) != 22 or not text.isascii():
            return None
        try:
            offset = int(_NUMBER.unpack_from(base64.urlsafe_b64decode(text + "=="))[0])
        except (ValueError, struct.error):
            return None
        epoch = self.epochs.get(offset >> EPOCH_BITS)
        if epoch is None or (epoch.end is not None and offset > epoch.end):
            return None
        good = hmac.compare_digest(self.encode(offset, namespace), text)  # strict: one text for a number
        return offset if good else None
