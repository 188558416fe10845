"""The options of connection state recovery, checked when they are given."""

from __future__ import annotations

import asyncio
import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from sio_pg_adapter.errors import ConfigurationError

CENTURY = 100 * 365.25 * 86_400
"""A century in seconds: the longest finite duration. A longer one could pass the end of PostgreSQL's timestamps."""

MAX_MISSED = 2**31 - 2
"""Largest ``max_missed_packets``. The database counts one record more than that, in an ``integer``."""

MAX_NAME_BYTES = 63
"""The longest name of a schema, in bytes. PostgreSQL would cut a longer one silently, and two schemas become one."""

Accepts = Callable[[dict[str, Any], Any], bool]
"""The type of ``accepts``: a function of ``environ`` and ``auth``."""

Identity = Callable[[dict[str, Any], Any], str | None]
"""The type of ``identity``: a function of ``environ`` and ``auth``."""


class Durability(enum.StrEnum):
    """Values of ``durability=``: where an event is when ``emit`` returns.

    :cvar FLUSH: on disk, as the setting ``synchronous_commit`` of the database says.
    :cvar MEMORY: in the memory of the database. A crash of PostgreSQL loses the last events.
    """

    FLUSH = "flush"
    MEMORY = "memory"


def checked_durability(durability: object) -> Durability:
    """Return a value of ``durability=``.

    :raises ConfigurationError: for any other value.
    """
    if not isinstance(durability, str) or durability not in list(Durability):
        raise ConfigurationError(f'durability takes "flush" or "memory". It was {durability!r}')
    return Durability(durability)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionStateRecovery:
    """The options of connection state recovery: how long, how far back and for which connections.

    :param max_disconnection_duration: seconds that a session outlives its connection, by the clock of the
                                       database. ``math.inf`` keeps sessions and events for ever.
    :param skip_middlewares: ``True`` skips the functions given to ``sio.use()`` on recovery. The ``connect``
                             handler still runs.
    :param max_missed_packets: the number of missed events up to which a session is recovered. A client that
                               missed more gets a new session, never a partial replay.
    :param accepts: ``callable(environ, auth) -> bool`` that selects the connections that get a session, a
                    ``pid`` and offsets. ``None`` selects all. Leave out clients whose handlers cannot take
                    the offset as an additional argument.
    :param identity: ``callable(environ, auth) -> str | None`` that says whose session it is, such as the id of the
                     user whose token is in ``auth``. It is stored with the session. A client with another identity
                     gets a new session. It neither sees nor disturbs the old one. ``None`` equals only ``None``. An
                     exception closes the connection, and the client comes back by itself.
    """

    max_disconnection_duration: float = 120.0
    skip_middlewares: bool = False
    max_missed_packets: int = 10_000
    accepts: Accepts | None = None
    identity: Identity | None = None

    def __post_init__(self) -> None:
        duration = self.max_disconnection_duration
        if not is_seconds(duration) or not duration > 0:
            raise ConfigurationError(
                f"max_disconnection_duration takes a number of seconds above 0, or math.inf. It was {duration!r}"
            )
        if CENTURY < duration < math.inf:
            raise ConfigurationError(
                "max_disconnection_duration is over a century. Use math.inf to keep sessions for ever"
            )
        missed = self.max_missed_packets
        if isinstance(missed, bool) or not isinstance(missed, int) or not 0 <= missed <= MAX_MISSED:
            raise ConfigurationError(
                f"max_missed_packets takes a whole number from 0 to {MAX_MISSED}. It was {missed!r}"
            )
        if not isinstance(self.skip_middlewares, bool):
            raise ConfigurationError(f"skip_middlewares takes True or False. It was {self.skip_middlewares!r}")
        for name, function in (("accepts", self.accepts), ("identity", self.identity)):
            if function is not None and not callable(function):
                raise ConfigurationError(f"{name} takes a callable(environ, auth) or None. It was {function!r}")
            if is_async(function):  # its coroutine would never be awaited, and is always true
                raise ConfigurationError(f"{name} takes a function that is not async. It was {function!r}")

    @property
    def window(self) -> float | None:
        """The duration as the database takes it: seconds, or ``None`` for ever."""
        return None if math.isinf(self.max_disconnection_duration) else float(self.max_disconnection_duration)


def is_async(function: object) -> bool:
    """Whether it is an ``async`` function, or an object whose ``__call__`` is one."""
    return asyncio.iscoroutinefunction(function) or asyncio.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - it is not called
    )


def is_seconds(value: object) -> TypeGuard[float]:
    """Whether it is a number: neither a ``bool`` nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def retention_seconds(retention: object) -> float | None:
    """Return a value of ``retention=`` as the database takes it: seconds, 0 for ``None``, or ``None`` for ever.

    :raises ConfigurationError: if it is not a duration.
    """
    if retention is None:
        return 0.0
    if not is_seconds(retention) or not retention > 0:
        raise ConfigurationError(
            f"retention takes a number of seconds above 0, math.inf, or None for as long as sessions need. "
            f"It was {retention!r}"
        )
    if CENTURY < retention < math.inf:
        raise ConfigurationError("retention is over a century. Use math.inf to keep events for ever")
    return None if math.isinf(retention) else float(retention)


def recovery_options(
    value: ConnectionStateRecovery | Mapping[str, Any] | bool | None,
) -> ConnectionStateRecovery | None:
    """Return the options that a value of ``connection_state_recovery=`` means, or ``None`` for off.

    :raises ConfigurationError: for any other value. The message names the key.
    """
    if value is None or value is False:
        return None
    if value is True:
        return ConnectionStateRecovery()
    if isinstance(value, ConnectionStateRecovery):
        return value
    if isinstance(value, Mapping):
        known = [f.name for f in fields(ConnectionStateRecovery)]
        if unknown := [key for key in value if key not in known]:
            raise ConfigurationError(
                f"connection_state_recovery has no key {unknown[0]!r}. It takes {', '.join(known)}"
            )
        return ConnectionStateRecovery(**value)
    raise ConfigurationError(
        "connection_state_recovery takes a ConnectionStateRecovery, True, a dict of its keys, or None. "
        f"It was {value!r}"
    )


def checked_schema(schema: str) -> str:
    """Return ``schema`` if PostgreSQL takes it as the name of a schema.

    :raises ConfigurationError: if it does not.
    """
    try:
        size = len(schema.encode())
    except (AttributeError, UnicodeError):  # not text, or text with a lone surrogate
        size = 0
    if not 1 <= size <= MAX_NAME_BYTES or "\0" in schema or schema.startswith("pg_"):
        raise ConfigurationError(
            f"schema takes a name of 1 to {MAX_NAME_BYTES} bytes, without NUL and not beginning with pg_: "
            f"not {schema!r}"
        )
    return schema


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def in_schema(sql: str, schema: str) -> str:
    """Return SQL that names its schema ``sio`` for another schema.

    All is replaced at once, because the name is data. It may look like a placeholder, or end a function's body.
    """
    name, tag, n = quoted(schema), "$$", 0
    while tag in name:
        tag, n = f"$sio{n}$", n + 1
    literal = name.replace("'", "''")
    by = {"sio.": f"{name}.", "'sio.": f"'{literal}.", "$$": tag}
    return re.sub(r"'?\bsio\.(?=sio_)|\$\$", lambda found: by[found[0]], sql)
