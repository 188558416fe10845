"""Names as the log stores them: namespaces, rooms, sids and event names."""

from __future__ import annotations

from sio_pg_adapter.errors import ConfigurationError, NotSerializable, PayloadTooLarge

MAX_NAME_BYTES = 512
"""The longest name, in bytes. An entry of a b-tree index holds 2.7 kB (PostgreSQL manual, chapter 64.1)."""

EVERYBODY = ""
"""The room of a broadcast. In python-socketio, too, an empty room means everybody."""

RESERVED_EVENTS = frozenset(
    ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener")
)
"""Names that are no event's. The parser of JavaScript clients closes the connection when it meets one."""


def text_name(value: object, what: str) -> str:
    """Return a name as it is stored.

    :param value: a namespace, room, sid or event name.
    :param what: what the name is, for the error message.
    :raises NotSerializable: if it is not text, or has a NUL character or an unpaired surrogate. Only text keeps its
                             type in the database.
    :raises PayloadTooLarge: if it is longer than 512 bytes.
    """
    if type(value) is not str:
        if not isinstance(value, str):
            raise NotSerializable(f"{what} takes text, not {value!r} of type {type(value).__name__}. Use str(...).")
        value = str(value)
    if "\0" in value:
        raise NotSerializable(f"{what} has a NUL character, which PostgreSQL does not store: {value[:80]!r}")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise NotSerializable(f"{what} has an unpaired surrogate, which is not text: {value[:80]!r}") from None
    if size > MAX_NAME_BYTES:
        raise PayloadTooLarge(f"{what} has {size} bytes. A name has at most {MAX_NAME_BYTES}: {value[:80]!r}...")
    return value


def text_names(value: object, what: str, *, needed: bool = False) -> tuple[str, ...]:
    """Return the names in a ``room`` or ``skip_sid`` argument. ``None`` names nothing.

    :param needed: whether there must be a name, so that ``None`` is refused, too.
    :raises ConfigurationError: if a room is given that has no name. It would reach everybody.
    :raises NotSerializable: see :func:`text_name`.
    """
    if value is None and not needed:
        return ()
    if type(value) is str and value:  # nearly always
        return (text_name(value, what),)
    several = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    names = tuple(dict.fromkeys(text_name(v, what) for v in several if v is not None and v != ""))
    if not names and needed:
        raise ConfigurationError(f"{what} takes one name or several, but {value!r} has no name.")
    if not names and what == "room":
        raise ConfigurationError(f"room takes one name or several, or None for everybody, but {value!r} has no name.")
    return names


def namespace_name(value: object) -> str:
    """Return a namespace as it is stored.

    This is python-socketio's ``namespace or "/"``, except that 0 is a wrong name and not the default namespace.

    :param value: ``None`` and empty text mean ``"/"``.
    :raises NotSerializable: see :func:`text_name`.
    """
    return "/" if value is None else text_name(value, "namespace") or "/"


def room_name(value: object) -> str:
    """Return the name of a room that is entered, left or closed.

    :raises ConfigurationError: if it is empty. Nobody enters or leaves the room that means everybody.
    :raises NotSerializable: see :func:`text_name`.
    """
    room = text_name(value, "room")
    if room == EVERYBODY:
        raise ConfigurationError("room takes a name that is not empty. An empty name means everybody.")
    return room


def key_name(value: object) -> str | None:
    """Return the idempotency key of an event as it is stored. ``None`` is no key.

    :raises ConfigurationError: if it is empty.
    :raises NotSerializable: see :func:`text_name`.
    """
    if value is None:
        return None
    key = text_name(value, "key")
    if not key:
        raise ConfigurationError("key takes text that is not empty, or None for an event without a key.")
    return key


def first_named(to: object, room: object) -> object:
    """Return ``to`` if it names a room, else ``room``.

    This is python-socketio's ``to or room``, except that 0 is a wrong name and not everybody.
    """
    empty = to is None or (isinstance(to, str | list | tuple | set | frozenset) and not to)
    return room if empty else to
