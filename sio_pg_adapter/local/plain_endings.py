"""How the connections of a plain ``socketio.AsyncServer`` end."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from sio_pg_adapter.tasks import Tasks

from .client import Client


class PlainEndings:
    """Ends the connections of a server without sessions that could be claimed.

    :param disconnect: has the server disconnect a client of this node.
    """

    def __init__(self, disconnect: Callable[[Client], Coroutine[Any, Any, None]], tasks: Tasks) -> None:
        self._disconnect = disconnect
        self._tasks = tasks

    def taken(self, client: Client) -> None:
        pass

    def kicked(self, client: Client, data: str | None) -> None:
        self._tasks.spawn(self._disconnect(client), "disconnect")

    def broken(self, client: Client) -> None:
        self.slow(client)

    def slow(self, client: Client) -> None:
        self._tasks.spawn(client.connection.cut(), "cut")

    async def say_goodbye(self) -> None:
        pass
