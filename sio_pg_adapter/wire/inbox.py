"""The messages that a web server hands to a websocket, and a shortcut for those that need no task to take them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


class Inbox:
    """The messages of a websocket of uvicorn, in place of its ``asyncio.Queue``.

    uvicorn puts each message in a queue, and stops reading from the client until the application has taken it. That
    costs a turn of the event loop and two changes of its selector. While the reader waits and nothing else does, a
    message is offered to :attr:`take` instead.

    :param protocol: uvicorn's protocol, which reads from the client.
    :ivar take: called with a message. It returns whether it has handled it. It never awaits.
    """

    __slots__ = ("_getter", "_messages", "_protocol", "take")

    def __init__(self, protocol: Any) -> None:
        self.take: Callable[[dict[str, Any]], bool] | None = None
        self._protocol = protocol
        self._messages: deque[dict[str, Any]] | None = None
        self._getter: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        return self._messages is None

    def put_nowait(self, message: dict[str, Any]) -> None:
        waits = self._getter is not None and not self._getter.done()
        if waits:
            # While the reader waits, uvicorn reads from the client. It pauses that after this call, unless it finds
            # that it has done so.
            self._protocol.read_paused = taken = self.take is not None and self.take(message)
            if taken:
                return
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)

    async def get(self) -> dict[str, Any]:
        while self._messages is None:
            self._getter = asyncio.get_running_loop().create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        message = self._messages.popleft()
        if not self._messages:
            self._messages = None
        return message
