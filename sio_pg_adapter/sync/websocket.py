"""A websocket on a socket that a WSGI server has accepted, in the event loop."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
from collections import deque
from typing import Any

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

CLOSE_WAIT = 5.0
"""How long a close waits for the client's close frame, in seconds."""

UNREAD_BYTES = 64 * 1024
"""From how many bytes of messages on that nobody has taken yet the socket is not read any further."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accepting(environ: dict[str, Any]) -> bytes | None:
    """Return the response to the request of a websocket (RFC 6455, section 4.2), or ``None`` if it is none."""
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid or environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip() != "13":
        return None
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    lines = (
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n"


def refusal(reason: str) -> dict[str, Any]:
    """Return Engine.IO's response to a request that cannot become a websocket."""
    return {"status": "400 BAD REQUEST", "headers": [("Content-Type", "text/plain")], "response": reason.encode()}


class LoopWebSocket(asyncio.Protocol):
    """A websocket as Engine.IO reads and writes it. It negotiates no compression.

    :param environ: the environ of its request.
    :param max_size: the largest message, in bytes. A larger one closes the websocket.
    """

    transport: asyncio.Transport

    def __init__(self, environ: dict[str, Any], max_size: int) -> None:
        self.environ = environ
        self._max_size = max_size
        self._ws = Connection(ConnectionType.SERVER)
        self._messages: deque[str | bytes] = deque()
        self._unread = 0
        self._fragments: list[Any] = []
        self._size = 0
        self._open = False
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self._paused = False

    def is_open(self) -> bool:
        """Whether data may be sent: no close frame has been sent or received."""
        return self._open

    # -- Engine.IO's side --------------------------------------------------------------------------------
    async def wait(self) -> str | bytes:
        """Return the next message.

        :raises OSError: if the websocket has ended, and all messages before the end are taken.
        """
        while not self._messages:
            if not self._open:
                raise OSError("the websocket has ended")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        self._unread -= len(message)
        if self._paused and self._unread < UNREAD_BYTES:
            self._paused = False
            self.transport.resume_reading()
        return message

    async def send(self, message: str | bytes) -> None:
        """Send a message, once the socket takes more.

        :raises OSError: if the websocket has ended.
        """
        if not self._open:
            raise OSError("the websocket has ended")
        event = BytesMessage(data=message) if isinstance(message, bytes) else TextMessage(data=message)
        self.transport.write(self._ws.send(event))
        await self._writable.wait()

    async def close(self) -> None:
        """Send a close frame, and wait for the client's. Safe to call twice."""
        self._end(CloseReason.NORMAL_CLOSURE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), CLOSE_WAIT)
        self.transport.abort()

    # -- the socket's side -------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                self._received(event)
        except RemoteProtocolError as e:
            hint = e.event_hint
            self._end(hint.code if isinstance(hint, CloseConnection) else CloseReason.PROTOCOL_ERROR)
            self.transport.close()

    def _received(self, event: object) -> None:
        if isinstance(event, Ping):
            if self._open:
                self.transport.write(self._ws.send(event.response()))
        elif isinstance(event, CloseConnection):
            if self._open:
                self.transport.write(self._ws.send(event.response()))
            self._ended()
            self.transport.close()
        elif isinstance(event, TextMessage | BytesMessage) and self._open:
            self._fragment(event)

    def _fragment(self, event: TextMessage | BytesMessage) -> None:
        self._fragments.append(event.data)
        self._size += len(event.data)
        if self._size > self._max_size:
            self._end(CloseReason.MESSAGE_TOO_BIG)
        elif event.message_finished:
            message = ("" if isinstance(event, TextMessage) else b"").join(self._fragments)
            self._fragments, self._size = [], 0
            self._messages.append(message)
            self._unread += len(message)
            self._wake()
            if self._unread >= UNREAD_BYTES and not self._paused:
                self._paused = True
                self.transport.pause_reading()

    def _end(self, code: int) -> None:
        if self._open:
            self.transport.write(self._ws.send(CloseConnection(code=code)))
            self._ended()

    def _ended(self) -> None:
        self._open = False
        if self._paused:  # to see the client's close frame
            self._paused = False
            self.transport.resume_reading()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        self._lost.set()
        self._writable.set()
        self._wake()
