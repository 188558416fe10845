"""The options of the manager and of connection state recovery, which are checked when they are given."""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from sio_pg_adapter.errors import ConfigurationError

CENTURY = 100 * 365.25 * 86_400
"""A century in seconds: the longest finite duration. A longer one could pass the end of PostgreSQL's timestamps."""

MAX_MISSED = 2**31 - 2
"""Largest ``max_missed_packets``. The database counts one record more than that, in an ``integer``."""

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


# -- which values an option takes ------------------------------------------------------------------------
def is_seconds(value: object) -> TypeGuard[float]:
    """Whether it is a number: neither a ``bool`` nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def is_async(function: object) -> bool:
    """Whether it is an ``async`` function, or an object whose ``__call__`` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - it is not called
    )


def has_methods(value: object, *names: str) -> bool:
    """Whether it is an object, or a module, with methods of these names."""
    return all(callable(getattr(value, name, None)) for name in names)


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that an option takes.

    :ivar values: the values in words, for the error message.
    :ivar allows: whether a value is one of them.
    """

    values: str
    allows: Callable[[Any], bool]

    def check(self, name: str, value: object) -> None:
        """Check a value of the option ``name``.

        :raises ConfigurationError: naming the option.
        """
        if not self.allows(value):
            raise ConfigurationError(f"{name} takes {self.values}, not {value!r}")


def whole_numbers(least: int, most: float = math.inf) -> Rule:
    """Return the rule of an option that takes a whole number in a range."""
    return Rule(
        f"a whole number from {least} on" if most == math.inf else f"a whole number from {least} to {most}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TIMEOUT = Rule("seconds, more than 0", lambda value: is_seconds(value) and 0 < value < math.inf)
PLAIN_FUNCTION = Rule(
    "a callable(environ, auth) that is not async, or None",  # a coroutine is never awaited, and is always true
    lambda value: value is None or (callable(value) and not is_async(value)),
)

MANAGER_RULES = {
    "write_only": FLAG,
    "logger": Rule(
        "a logging.Logger or None",
        lambda value: value is None or has_methods(value, "debug", "info", "warning", "error"),
    ),
    "json": Rule(
        "a module with dumps and loads, or None", lambda value: value is None or has_methods(value, "dumps", "loads")
    ),
    "max_queued_packets": whole_numbers(1),
    "max_queued_bytes": whole_numbers(1),
    "retention": Rule(
        "a number of seconds above 0, math.inf, or None for as long as sessions need",
        lambda value: value is None or (is_seconds(value) and value > 0),
    ),
    "durability": Rule('"flush" or "memory"', lambda value: isinstance(value, str) and value in list(Durability)),
    "error_handler": Rule("a function(error) or None", lambda value: value is None or callable(value)),
}
"""The options of ``AsyncPostgresManager`` that are checked here. ``Database`` checks those of its connections."""

RECOVERY_RULES = {
    "max_disconnection_duration": Rule(
        "a number of seconds above 0, or math.inf", lambda value: is_seconds(value) and value > 0
    ),
    "skip_middlewares": FLAG,
    "max_missed_packets": whole_numbers(0, MAX_MISSED),
    "accepts": PLAIN_FUNCTION,
    "identity": PLAIN_FUNCTION,
}
"""The options of connection state recovery."""


def check_options(rules: Mapping[str, Rule], **values: object) -> None:
    """Check options by their rules.

    :raises ConfigurationError: naming the first option that is wrong.
    """
    for name, value in values.items():
        rules[name].check(name, value)


def stored_seconds(name: str, duration: float) -> float | None:
    """Return a duration as the database takes it: seconds, or ``None`` for ever.

    :raises ConfigurationError: if the option ``name`` is finite, and over a century.
    """
    if CENTURY < duration < math.inf:
        raise ConfigurationError(f"{name} is over a century. Use math.inf for ever")
    return None if math.isinf(duration) else float(duration)


# -- the options of the manager --------------------------------------------------------------------------
FOREIGN_OPTIONS = {
    "url": "Pass the URL of a PostgreSQL database as dsn=.",
    "channel": "Servers of one schema are one cluster. Pass schema= to have several in a database.",
    "redis_options": "Pass options of the connection in the URL, or an asyncpg pool as pool=.",
}
"""Options of python-socketio's other client managers, and what to do instead."""


def retention_seconds(retention: float | None) -> float | None:
    """Return a value of ``retention=`` as the database takes it: seconds, 0 for ``None``, or ``None`` for ever.

    :raises ConfigurationError: if it is over a century.
    """
    return 0.0 if retention is None else stored_seconds("retention", retention)


# -- the options of connection state recovery --------------------------------------------------------------
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
        check_options(RECOVERY_RULES, **{option.name: getattr(self, option.name) for option in fields(self)})
        stored_seconds("max_disconnection_duration", self.max_disconnection_duration)

    @property
    def window(self) -> float | None:
        """The duration as the database takes it: seconds, or ``None`` for ever."""
        return stored_seconds("max_disconnection_duration", self.max_disconnection_duration)


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
        f"connection_state_recovery takes a ConnectionStateRecovery, True, a dict of its keys, or None, not {value!r}"
    )
