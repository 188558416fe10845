"""What a connection must be. One statement checks that when a connection is opened. The probe checks it again.

A connection is fit if it leads to the server whose log the node follows, and if that server lets the node write. The
connection that listens must also listen on its channels, and hold the lock that shows that the node lives. A
connection that is not fit is closed, and another one is opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import asyncpg

from sio_pg_adapter.errors import ConfigurationError, StoreUnavailable

from .backends import QUERY_TIMEOUT
from .failures import NODE_RIGHTS
from .queries import Queries

ISOLATION = "read committed"
"""The isolation level of all statements. In a stricter one, a statement reads as of a moment before it got the log's
lock. It misses the records that were committed while it waited."""


class UnfitConnection(StoreUnavailable):
    """A connection cannot be used. Another one may be fit."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """The facts about a connection that decide whether it is fit.

    :ivar server: the server and database that it leads to, as ``sio_fingerprint()`` names them.
    :ivar channel: the channel that announces appends there.
    :ivar role: its role.
    :ivar version: the version of the tables. ``compatible`` is the oldest that still works with them.
    :ivar lacks: a right of a node that its role does not have.
    """

    server: str
    channel: str | None
    role: str
    version: int | None
    compatible: int | None
    isolation: str
    recovering: bool
    read_only: bool
    lacks: str | None

    def fault(self) -> str:
        """Return why nothing can be written on it. Empty if it is fit."""
        if self.channel is None:
            return "the tables of sio_pg_adapter are empty, or row level security hides their rows"
        if self.recovering:
            return "the server is a standby, which takes no writes"
        if self.read_only:
            return "its transactions are read-only (default_transaction_read_only)"
        if self.lacks:
            return f"the role {self.role!r} lacks {self.lacks}. {NODE_RIGHTS}"
        return ""

    def check_isolation(self) -> None:
        """Refuse an isolation level in which recovered clients would miss events.

        :raises ConfigurationError: naming the setting.
        """
        if self.isolation != ISOLATION:
            raise ConfigurationError(
                f"the transactions of role {self.role!r} are {self.isolation!r}, and recovered clients would miss "
                "events. Set default_transaction_isolation to 'read committed' for this role, database or pool, for "
                f"example with ALTER ROLE \"{self.role}\" SET default_transaction_isolation = 'read committed'."
            )


@dataclass(frozen=True, slots=True)
class Probe:
    """The facts about the connection that listens.

    :ivar alive: whether other nodes see that this node lives. ``None``: its row is gone.
    :ivar head: the last offset of the log.
    :ivar relay_state: what the relay does, 0 if it is off.
    :ivar relay_waiting: how many rows of the relay wait, up to 10,000.
    :ivar relay_seconds: for how long the first of them has waited.
    :ivar relay_faults: how many rows of the relay cannot be moved.
    """

    server: str
    channels: frozenset[str]
    alive: bool | None
    head: int
    relay_state: int
    relay_waiting: int
    relay_seconds: float | None
    relay_faults: int

    def fault(self, server: str | None, channels: list[str]) -> str:
        """Return why it has to be replaced. Empty if it is fit."""
        if server is not None and self.server != server:
            return "it leads to another server than the connection that writes"
        if not self.channels.issuperset(channels):
            return "it does not listen any more"
        if not self.alive:
            return "it does not hold the lock that shows that this node lives"
        return ""


PLAIN = {
    "smallint": 1,
    "integer": 2,
    "bigint": 3,
    "boolean": True,
    "double precision": 1.5,
    "text": "x",
    "bytea": b"x",
}
"""The types that the statements of this package use, each with a value. All others are cast to text."""


async def check_codecs(connection: Any) -> None:
    """Refuse a pool whose connections turn a type that this package uses into something else.

    :raises ConfigurationError: naming the type.
    """
    for name, value in PLAIN.items():
        try:
            got = await connection.fetchval(f"SELECT $1::{name}", value, timeout=QUERY_TIMEOUT)
        except (asyncpg.DataError, TypeError, ValueError, AttributeError):
            got = None
        if type(got) is not type(value) or got != value:
            raise ConfigurationError(
                f"the pool has a codec for the type {name!r}, which this package needs as asyncpg reads it. Remove "
                "the codec, or give the manager a pool of its own."
            )


async def support_of(connection: Any, queries: Queries) -> dict[str, Any]:
    """Return the facts about a server that :func:`~sio_pg_adapter.servers.check_support` takes."""
    facts: dict[str, Any] = json.loads(await connection.fetchval(queries["support"], timeout=QUERY_TIMEOUT))
    return facts


async def fitness_of(connection: Any, queries: Queries) -> Fitness:
    """Return the facts about a connection."""
    return Fitness(**json.loads(await connection.fetchval(queries["fitness"], timeout=QUERY_TIMEOUT)))


async def probe_of(connection: Any, queries: Queries, node: str, timeout: float) -> Probe:
    """Return the facts about the connection that listens."""
    facts = json.loads(await connection.fetchval(queries["probe"], node, timeout=timeout))
    return Probe(**{**facts, "channels": frozenset(facts["channels"])})
