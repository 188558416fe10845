"""Which server a node follows, and whether a connection leads to it.

A DSN, a pooler or a pool may lead to another server at any time, as after a failover. A node follows one server: the
one whose log its clients are served from. A connection that leads elsewhere is not used before the node has decided
which server to follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .failures import translated
from .fitness import UnfitConnection, fitness_of
from .kept import Connection
from .queries import Queries
from .version import check_range

CHECK_WAIT = 5.0
"""How long a new connection waits for the check of the server that it leads to, in seconds."""


class FollowedServer:
    """The server whose log a node follows.

    :param schema: the schema of the tables.
    :ivar name: the server, as ``sio_fingerprint()`` names it. ``None``: the next connection says it.
    :ivar channel: the channel that announces appends there.
    :ivar confirmed: whether it is certain that this server has the log that the node follows. Until then only the
                     reader is used.
    :ivar era: counts how often the connections had to be reopened.
    :ivar on_moved: called when a connection leads to another server. The future is done when the node has decided
                    which server to follow.
    """

    def __init__(self, queries: Queries, schema: str) -> None:
        self._queries = queries
        self._schema = schema
        self.name: str | None = None
        self.channel = ""
        self.confirmed = True
        self.era = 0
        self.on_moved: Callable[[], asyncio.Future[None]] | None = None

    def begin(self, channel: str) -> None:
        """Follow the server that the next connection leads to. Its log has this channel."""
        self.name, self.confirmed, self.channel = None, True, channel

    async def judge(self, connection: Connection, purpose: str) -> None:
        """Check that a connection is fit (see :mod:`.fitness`), and that it leads to this server.

        The errors are those of :meth:`.Database.judge`.
        """
        with translated("connecting to PostgreSQL", may_be_stored=None):
            fitness = await fitness_of(connection, self._queries)
        fitness.check_isolation()
        if fault := fitness.fault():
            raise UnfitConnection(f"connecting to PostgreSQL: {fault}", may_be_stored=None)
        check_range(fitness.version or 0, fitness.compatible or 0, self._schema)
        if self.name is None and (self.confirmed or purpose == "reader"):
            self.name, self.channel = fitness.server, fitness.channel or ""
        if not self._serves(fitness.server, purpose) and self.on_moved is not None:
            deciding = self.on_moved()
            if purpose != "reader":  # the check reads on that connection
                await asyncio.wait({deciding}, timeout=CHECK_WAIT)
        if not self._serves(fitness.server, purpose):
            raise UnfitConnection(
                "connecting to PostgreSQL: this is another server than that of the other connections. "
                "Check the hosts of the DSN, of listen_dsn and of the pooler",
                may_be_stored=None,
            )

    def _serves(self, server: str, purpose: str) -> bool:
        return server == self.name and (self.confirmed or purpose == "reader")

    def gave(self, server: str) -> bool:
        """Whether an answer that names its server came from this one.

        A pooler may be pointed to another server at any time, and a connection may be in use while the node decides.
        """
        if self.confirmed and server == self.name:
            return True
        if self.on_moved is not None:
            self.on_moved()
        if self.confirmed and self.name is None:  # a process that only emits: one server is as good as another
            self.name = server
        return self.confirmed and server == self.name

    def reopen(self) -> None:
        """Have all connections but the one that listens reopened at their next use."""
        self.era += 1

    def forget(self) -> None:
        """Follow whatever server the reader leads to next. Until :meth:`confirm` nothing else is used."""
        self.reopen()
        self.name, self.confirmed = None, False

    def confirm(self) -> None:
        """Follow the server that the reader leads to."""
        self.confirmed = True
