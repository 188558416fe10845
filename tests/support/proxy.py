"""``Proxy``: a connection to PostgreSQL, or to another TCP server, that can break, fall silent, refuse, or lead to
another server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict


class Proxy:
    """A TCP connection to PostgreSQL that can fall silent: nothing is forwarded, nothing is closed."""

    def __init__(self, dsn: str) -> None:
        self._to = conninfo_to_dict(dsn)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._deaf: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self.refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task] = set()

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def dsn(self) -> str:
        to = self._to
        user = quote(to["user"], safe="") + (f":{quote(to['password'], safe='')}" if to.get("password") else "")
        return f"postgresql://{user}@127.0.0.1:{self.port}/{to['dbname']}?sslmode=disable"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._flowing.set()
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, dsn: str) -> None:
        """Lead connections that come from now on to another server."""
        self._to = conninfo_to_dict(dsn)

    def cut(self) -> None:
        """Break what is connected now, as a network does."""
        for writer in self._writers:
            writer.transport.abort()

    def blackhole(self) -> None:
        """What is connected now stays silent for ever; what connects later is served."""
        self._deaf |= self._writers

    def mute(self) -> None:
        """Of what is connected now statements go through, and their answers are lost."""
        self._deaf |= self._clients

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.close()
            return
        host, port = self._to["host"], self._to["port"]
        try:
            if host.startswith("/"):
                there, back = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                there, back = await asyncio.open_connection(host, int(port))
        except OSError:  # the server is gone
            writer.close()
            return
        self._writers |= {writer, back}
        self._clients.add(writer)
        for source, sink, other in ((reader, back, writer), (there, writer, back)):
            task = asyncio.create_task(self._pump(source, sink, other), name="proxy")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _before(self, data: bytes, sink: asyncio.StreamWriter, other: asyncio.StreamWriter) -> None:
        """Look at data before it goes to one end of a connection.

        :param sink: the end that gets the data.
        :param other: the end that sent it.
        """

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, other: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                self._before(data, sink, other)
                if sink not in self._deaf:
                    sink.write(data)
                    await sink.drain()
            if sink not in self._deaf:
                sink.close()
