"""The payload of an event: JSON text and binary parts, encoded once for the log and for all who receive it."""

from __future__ import annotations

import dataclasses
import decimal
import json as stdlib_json
import math
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, PayloadTooLarge

from .names import RESERVED_EVENTS, text_name

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The largest event in bytes, its binary parts included: a quarter of the largest value in PostgreSQL."""

MAX_DEPTH = 500
"""How deep lists and dicts may be nested in what has to be read back: half of what Python's stack can read."""

MAX_PARTS = 10
"""The most binary parts that clients take: socket.io-parser from 4.2.6 on closes its connection at more."""

_LENGTH = struct.Struct(">I")

compact = stdlib_json.JSONEncoder(separators=(",", ":")).encode
"""A value as JSON, in ASCII and without spaces. Made once: ``json.dumps`` with options makes an encoder for each
call, which takes 5 us."""


def event_arguments(data: object) -> list[Any]:
    """Return the arguments in ``emit``'s ``data``. A tuple is several, ``None`` is none, as in python-socketio."""
    if isinstance(data, tuple):
        return list(data)
    return [] if data is None else [data]


def encode_event(event: object, data: object, json: ModuleType | Any = stdlib_json) -> tuple[str, tuple[bytes, ...]]:
    """Encode an event.

    :param event: its name.
    :param data: one argument, a tuple of them, or ``None``.
    :param json: the module to encode with.
    :returns: the array ``[event, *arguments]`` as JSON text with placeholders for its binary parts, and the parts.
    :raises NotSerializable: naming the place of a value that has no JSON form.
    :raises PayloadTooLarge: if it is larger than 256 MiB.
    """
    return encode_values([text_name(event, "event"), *event_arguments(data)], f"event {event!r}", json)


def encode_client_event(
    event: object, data: object, json: ModuleType | Any = stdlib_json
) -> tuple[str, tuple[bytes, ...]]:
    """Encode an event for clients. See :func:`encode_event`.

    A client that is sent what it does not take closes its connection. Then it comes back, and is sent the same again.

    :raises ConfigurationError: if Socket.IO keeps the name for itself.
    :raises PayloadTooLarge: also if it has more binary parts than clients take.
    """
    if event in RESERVED_EVENTS:
        raise ConfigurationError(
            f"{event!r} cannot be emitted, because Socket.IO keeps this name for itself: clients close their "
            "connection when they receive it. Use another name."
        )
    body, parts = encode_event(event, data, json)
    check_parts(parts, f"event {event!r}")
    return body, parts


def check_parts(parts: Sequence[bytes], what: str) -> None:
    """Check that clients take so many binary parts.

    :param what: what has them, for the error message.
    :raises PayloadTooLarge: if they do not.
    """
    if len(parts) > MAX_PARTS:
        raise PayloadTooLarge(
            f"{what} has {len(parts)} binary values. Clients take at most {MAX_PARTS}. Join some of them, or "
            "send several events."
        )


def encode_values(
    values: list[Any], what: str, json: ModuleType | Any = stdlib_json
) -> tuple[str, tuple[bytes, ...]]:
    """Encode the data of a packet. See :func:`encode_event`.

    :param what: what the values are, for the error message.
    """
    body, parts = _plain_json(values) if _is_plain(json) else None, list[bytes]()
    if body is None:
        try:
            encoded = _without_binary(values, parts)
            if parts and _has_placeholder(values):
                raise NotSerializable(
                    f"{what}: next to binary values, clients take a dict with '_placeholder': True for one of them. "
                    "Rename the key."
                )
        except RecursionError as e:
            raise NotSerializable(f"{what}: {_culprit(values, only_floats=True) or e}") from e
        body = encode_json(encoded, what, json)
    if len(body) + sum(map(len, parts)) > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"{what} is larger than {MAX_BODY_BYTES} bytes")
    return body, tuple(parts)


def _is_plain(json: ModuleType | Any) -> bool:
    """Whether a module encodes as Python's own. Engine.IO's module does: only its ``loads`` differs."""
    return json.dumps is stdlib_json.dumps


def _plain_json(values: list[Any]) -> str | None:
    """Encode values without binary, which nearly all events are. ``None`` means that they may hold something else."""
    try:
        text = compact(values)
    except (TypeError, ValueError, RecursionError):
        return None
    return None if "NaN" in text or "Infinity" in text else text


def check_depth(value: object, what: str) -> None:
    """Check that a value can be read back.

    :raises NotSerializable: if it is nested more deeply than :data:`MAX_DEPTH`.
    """
    for _ in levels(value, what):
        pass


def levels(value: object, what: str) -> Iterator[list[Any]]:
    """Yield the value, then its children, then theirs.

    :param what: what the value is, for the error message.
    :raises NotSerializable: if it is nested more deeply than :data:`MAX_DEPTH`.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        yield level
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise NotSerializable(f"{what}: nested more than {MAX_DEPTH} deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def encode_json(value: object, what: str, json: ModuleType | Any = stdlib_json) -> str:
    """Encode a value as JSON that every parser accepts.

    :raises NotSerializable: naming the place of the value that has no JSON form.
    """
    try:
        text: str | bytes = compact(value) if _is_plain(json) else json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise NotSerializable(f"{what}: {_culprit(value) or e}") from e
    if isinstance(text, bytes):
        text = text.decode()
    if ("NaN" in text or "Infinity" in text) and (place := _culprit(value, only_floats=True)):
        raise NotSerializable(f"{what}: {place}")  # json.dumps writes them, but no JSON parser reads them
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = compact(value)
    return text


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
    """Whether a value holds a dict that clients replace by a binary part.

    A client that does not find the part reconnects, is sent the same event, and reconnects again.
    """
    if isinstance(value, dict):
        return value.get("_placeholder") is True or any(map(_has_placeholder, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_placeholder, value))


def with_binary(value: Any, parts: Sequence[bytes]) -> Any:
    """Put binary parts back in the place of their placeholders: the reverse of :func:`encode_event`."""
    if not parts:
        return value
    if isinstance(value, dict):
        if value.get("_placeholder") is True and isinstance(num := value.get("num"), int) and 0 <= num < len(parts):
            return parts[num]
        return {k: with_binary(v, parts) for k, v in value.items()}
    if isinstance(value, list):
        return [with_binary(v, parts) for v in value]
    return value


def decode_event(
    body: str, parts: Sequence[bytes], json: ModuleType | Any = stdlib_json
) -> tuple[str, tuple[Any, ...]]:
    """Return the name and the arguments of an event, as a client receives them.

    This is the reverse of :func:`encode_event`.

    :param json: the module to decode with.
    """
    try:
        values = json.loads(body)
    except ValueError:  # a module may read less than clients do: Engine.IO's refuses long numbers
        values = stdlib_json.loads(body)
    event, *args = with_binary(values, parts)
    return event, tuple(args)


def _culprit(value: object, path: str = "", *, only_floats: bool = False) -> str | None:
    """Describe the first value that JSON cannot hold, with its place and what to do, or return ``None``."""
    place = path or "the top"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value!r} at {place} has no JSON form. Use None or text instead"
    if value is None or isinstance(value, str | int):
        return None
    children: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        for key in value:
            if not (only_floats or key is None or isinstance(key, str | int | float)):
                return f"the key {key!r} at {place} is of type {type(key).__name__}. Convert it with str()"
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    elif only_floats:
        return None
    else:
        return f"the {type(value).__name__} at {place} has no JSON form. {_remedy(value)}"
    if len(path) > 200:  # deep enough to report; a value may contain itself
        return f"it is nested too deeply at {path[:80]}..."
    culprits = (_culprit(v, f"{path}[{k!r}]", only_floats=only_floats) for k, v in children)
    return next(filter(None, culprits), None)


def _remedy(value: object) -> str:
    """Say how a value becomes one that JSON can hold."""
    if callable(getattr(value, "isoformat", None)):
        return "Convert it with .isoformat()"
    if callable(getattr(value, "model_dump", None)):
        return 'Convert it with .model_dump(mode="json")'
    if dataclasses.is_dataclass(value):
        return "Convert it with dataclasses.asdict()"
    if isinstance(value, set | frozenset):
        return "Convert it with list()"
    if isinstance(value, uuid.UUID | decimal.Decimal):
        return "Convert it with str()"
    return "Convert it to text, a number, a list or a dict, or give json= a module that encodes it"


# -- several byte strings in one value --------------------------------------------------------------
def pack(parts: Iterable[bytes]) -> bytes:
    """Join byte strings, each behind its length in four bytes."""
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def unpack(data: bytes) -> Iterator[bytes]:
    """Yield the byte strings that :func:`pack` joined.

    :raises ValueError: if the data ends in the middle of one.
    """
    position = 0
    while position < len(data):
        start = position + _LENGTH.size
        if start > len(data) or start + _LENGTH.unpack_from(data, position)[0] > len(data):
            raise ValueError(f"{len(data)} bytes end in the middle of a packed string")
        (length,) = _LENGTH.unpack_from(data, position)
        position = start
        yield data[position : position + length]
        position += length
