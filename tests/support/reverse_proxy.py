"""``Proxy``: a reverse proxy, sticky by a cookie as HAProxy and nginx do it, or taking the servers in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

HEAD_END = b"\r\n\r\n"


class Proxy:
    """:param ports: of the servers behind it.
    :param sticky: a client stays with the server whose number its cookie bears, as long as that accepts connections.
    """

    def __init__(self, ports: list[int], *, sticky: bool) -> None:
        self._ports = ports
        self._sticky = sticky
        self._turns = itertools.count()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._connection, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            line, *fields = (await reader.readuntil(HEAD_END))[: -len(HEAD_END)].split(b"\r\n")
            index, upstream_reader, upstream = await self._open(fields)
            with contextlib.closing(upstream):
                if not any(field.lower().startswith(b"upgrade:") for field in fields):
                    # one request of each connection
                    fields = [f for f in fields if not f.lower().startswith(b"connection:")] + [b"Connection: close"]
                upstream.write(b"\r\n".join([line, *fields]) + HEAD_END)
                sending = asyncio.create_task(self._pipe(reader, upstream))
                try:
                    head = await upstream_reader.readuntil(HEAD_END)
                    cookie = b"\r\nSet-Cookie: worker=%d; Path=/" % index if self._sticky else b""
                    writer.write(head[: -len(HEAD_END)] + cookie + HEAD_END)
                    await self._pipe(upstream_reader, writer)
                finally:
                    sending.cancel()

    async def _open(self, fields: list[bytes]) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        cookies = [f for f in fields if self._sticky and f.lower().startswith(b"cookie:") and b"worker=" in f]
        first = int(cookies[0].split(b"worker=")[1].split(b";")[0]) if cookies else next(self._turns)
        for turn in range(len(self._ports)):
            index = (first + turn) % len(self._ports)
            try:
                return index, *await asyncio.open_connection("127.0.0.1", self._ports[index])
            except OSError:
                continue
        raise ConnectionError("no server is up")

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
