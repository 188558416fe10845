"""``Inbox``, ``quick_client``, ``drop`` and ``hold``: Python clients, whose handler calls wait in a queue."""

from __future__ import annotations

import asyncio
from typing import Any

from engineio import packet

from sio_pg_adapter import AsyncClient

TIMEOUT = 20.0  # seconds until a test that waits in vain fails


class Inbox:
    """What a client's handlers of one namespace were called with, in order."""

    def __init__(self, client: AsyncClient, namespace: str = "/") -> None:
        self._calls: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.connects: asyncio.Queue[bool] = asyncio.Queue()
        client.on("*", self._on_event, namespace=namespace)
        client.on("connect", lambda: self.connects.put_nowait(client.recovered(namespace)), namespace=namespace)

    def _on_event(self, event: str, *args: Any) -> None:
        self._calls.put_nowait((event, *args))

    async def connected(self) -> bool:
        """The next connect: was it a recovery?"""
        async with asyncio.timeout(TIMEOUT):
            return await self.connects.get()

    async def until(self, last: str) -> list[tuple[Any, ...]]:
        """All calls up to that of the event `last`, which is not returned."""
        found = []
        async with asyncio.timeout(TIMEOUT):
            while (call := await self._calls.get())[0] != last:
                found.append(call)
        return found


def quick_client(**options: Any) -> AsyncClient:
    """A client that comes back at once."""
    return AsyncClient(**{"reconnection_delay": 0.02, "randomization_factor": 0, **options})


async def drop(client: AsyncClient) -> None:
    """Lose the connection."""
    if client.eio.current_transport == "websocket":
        await client.eio.ws.close()
    else:
        await client.eio._receive_packet(packet.Packet(packet.CLOSE))


def hold(client: AsyncClient, url: str | None = None) -> asyncio.Event:
    """Keep a client away after its next drop until the event is set.

    :param url: where it then goes, if elsewhere.
    """
    gate = asyncio.Event()
    url = url or client.connection_url

    async def when_open() -> Any:
        await gate.wait()
        client.connection_url = url
        return url

    client.connection_url = when_open  # a client asks for its address each time
    return gate
