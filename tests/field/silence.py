"""``Trap``: a proxy before PostgreSQL that falls silent at a statement, in one direction."""

from __future__ import annotations

import asyncio
from enum import Enum

from support.proxy import Proxy

ENDS = b"SQ"
"""The types of the messages that end a round trip: Sync, and Query (PostgreSQL manual, chapter 54.7)."""


class Direction(Enum):
    """The data that is lost from the statement on."""

    TO_SERVER = "the statement and all that follows"
    TO_CLIENT = "the answer and all that follows"
    LATE = "the statement and all that follows, until :meth:`Trap.deliver`"


class Statements:
    """Counts the round trips in what a client sends.

    :ivar listens: whether the connection is one that listens.
    """

    def __init__(self, *, listens: bool) -> None:
        self.listens = listens
        self._rest = b""
        self._started = False

    def count(self, data: bytes) -> int:
        """Return how many round trips end in the data."""
        rest, ends = self._rest + data, 0
        while True:
            head = 1 if self._started else 0  # the first message has no type
            size = head + int.from_bytes(rest[head : head + 4], "big")
            if len(rest) < head + 4 or len(rest) < size:
                break
            ends += self._started and rest[0] in ENDS
            self._started, rest = True, rest[size:]
        self._rest = rest
        return ends


class Trap(Proxy):
    """A proxy before PostgreSQL that falls silent at the chosen statement.

    :ivar count: how many statements went to the server since it was armed.
    :ivar sprung: set when it has fallen silent.
    """

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.count = 0
        self.sprung = asyncio.Event()
        self._at: int | None = None
        self._direction = Direction.TO_SERVER
        self._whole = False
        self._silent = False
        self._listens = False
        self._statements: dict[asyncio.StreamWriter, Statements] = {}
        self._client_of: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._late: dict[asyncio.StreamWriter, bytes] = {}

    def arm(
        self,
        statement: int | None,
        direction: Direction = Direction.TO_SERVER,
        *,
        whole: bool = False,
        listens: bool = False,
    ) -> None:
        """Fall silent at a statement, counted from 1 on.

        :param statement: ``None`` only counts.
        :param listens: whether it counts over the connections that listen, or over all others.
        :param whole: whether all connections fall silent, and new ones stay so, until :meth:`heal`. Otherwise it is
                      only the connection of the statement.
        """
        self.count = 0
        self._at, self._direction, self._whole, self._listens = statement, direction, whole, listens
        self.sprung.clear()

    def silence_listeners(self) -> None:
        """Silence connections that listen, and new connections until :meth:`heal`."""
        self._silent = True
        for server, statements in self._statements.items():
            if statements.listens:
                self._deaf |= {server, self._client_of[server]}

    def heal(self) -> None:
        """Serve new connections. Silent ones stay silent."""
        self._at = None
        self._silent = False

    def deliver(self) -> None:
        """Let the server have what was to be late."""
        for server, data in self._late.items():
            if not server.is_closing():
                server.write(data)
        self._late.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._silent:
            self._writers.add(writer)
            return
        await super()._serve(reader, writer)

    def _before(self, data: bytes, sink: asyncio.StreamWriter, other: asyncio.StreamWriter) -> None:
        if sink in self._clients:
            return
        if sink not in self._statements:
            self._statements[sink] = Statements(listens=b"sio_pg_adapter listen" in data)
            self._client_of[sink] = other
        statements = self._statements[sink]
        statements.listens |= b"LISTEN" in data  # a connection of a pool has no name of its own
        ends = statements.count(data)
        if statements.listens is self._listens:
            self._note(ends, sink, other)
        if sink in self._deaf and self._direction is Direction.LATE:
            self._late[sink] = self._late.get(sink, b"") + data

    def _note(self, ends: int, server: asyncio.StreamWriter, client: asyncio.StreamWriter) -> None:
        before, self.count = self.count, self.count + ends
        if self._at is None or not before < self._at <= self.count:
            return
        self._at = None
        self.sprung.set()
        if self._whole:
            self._silent = True
            # in the direction that is not lost, this statement still gets through
            self._deaf |= self._writers - {server} if self._direction is Direction.TO_CLIENT else self._writers
        else:
            self._deaf.add(client if self._direction is Direction.TO_CLIENT else server)
