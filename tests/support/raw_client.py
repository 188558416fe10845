"""``RawClient``: frames written by hand, over a WebSocket or by polling, compared to the letter.

For example:

    async with RawClient(node.url) as c:
        sid, pid = await c.open_namespace()
        frame = await c.recv()  # '2["e","offset"]', without the Engine.IO packet type 4
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from support.http_request import request

TIMEOUT = 20.0  # seconds until a test that waits in vain fails
Frame = str | bytes  # bytes: an attachment
_HANDSHAKE = "/socket.io/?EIO=4&transport="


class ServerClosedError(Exception):
    """The server has closed the connection."""


class RawClient:
    def __init__(self, url: str, transport: str = "websocket", answer_pings: bool = True) -> None:
        """:param transport: websocket, or polling."""
        self.handshake: dict[str, Any] = {}
        self.answer_pings = answer_pings
        self.seen: list[Frame] = []  # all that `recv` has returned
        self._address = url.removeprefix("http://")
        self._port = int(self._address.rsplit(":", 1)[1])
        self._polling = transport == "polling"
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._ws: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._polling:
            self._target = _HANDSHAKE + "polling"
            opening = (await self._get())[0]
            self.handshake = json.loads(opening[1:])
            self._target += f"&sid={self.handshake['sid']}"
            reading = self._poll()
        else:
            self._ws = await connect(
                f"ws://{self._address}{_HANDSHAKE}websocket",
                max_size=None,
                ping_interval=None,
                compression=None,
                proxy=None,
            )
            self.handshake = json.loads(str(await self._ws.recv())[1:])
            reading = self._listen(self._ws)
        self._reader = asyncio.create_task(reading, name="rawclient reader")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop_reading()
        if self._ws is not None:
            await self._ws.close()

    async def stop_reading(self) -> None:
        """Over polling: the client that has vanished. Over a WebSocket: one that hangs."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    def abort(self) -> None:
        """Reset the TCP connection without a close frame."""
        assert self._ws is not None
        self._ws.transport.abort()

    async def close(self) -> None:
        """A proper close: of the WebSocket, or by polling the Engine.IO packet CLOSE."""
        if self._ws is not None:
            await self._ws.close()
        else:
            await self._post("1")

    # -- Engine.IO ------------------------------------------------------------------------------
    async def _listen(self, ws: ClientConnection) -> None:
        try:
            async for frame in ws:
                await self._arrived(frame)
        except ConnectionClosed:
            pass
        finally:
            self._frames.put_nowait(None)

    async def _poll(self) -> None:
        try:
            while True:
                for frame in await self._get():
                    if frame == "1":
                        return
                    await self._arrived(base64.b64decode(frame[1:]) if frame.startswith("b") else frame)
        except (OSError, EOFError, ValueError):
            pass  # the server has no such connection any more, or is gone
        finally:
            self._frames.put_nowait(None)

    async def _get(self) -> list[str]:
        status, body = await request(self._port, "GET", self._target)
        if status != 200:
            raise ValueError(status)
        return body.decode().split("\x1e")

    async def _post(self, text: str) -> None:
        status, body = await request(
            self._port, "POST", self._target, text.encode("utf-8", "surrogatepass"), "text/plain"
        )
        if status != 200:
            raise ServerClosedError(body)

    async def _arrived(self, frame: Frame) -> None:
        if isinstance(frame, bytes):
            self._frames.put_nowait(frame)
        elif frame[0] == "2":
            if self.answer_pings:
                await self._write("3")
        elif frame[0] == "4":
            self._frames.put_nowait(frame[1:])

    async def _write(self, text: str) -> None:
        if self._ws is None:
            await self._post(text)
            return
        try:
            await self._ws.send(text)
        except ConnectionClosed as error:
            raise ServerClosedError from error

    # -- Socket.IO ------------------------------------------------------------------------------
    async def send(self, frame: Frame) -> None:
        """Send a Socket.IO packet ('0{"token":"t"}') or an attachment."""
        if isinstance(frame, str):
            await self._write("4" + frame)
        elif self._ws is not None:
            await self._ws.send(frame)
        else:
            await self._post("b" + base64.b64encode(frame).decode())

    async def recv(self, timeout: float = TIMEOUT) -> Frame:
        """The next packet or attachment; `ServerClosedError` where the server has closed."""
        try:
            async with asyncio.timeout(timeout):
                frame = await self._frames.get()
        except TimeoutError:
            raise AssertionError(f"no frame in {timeout} s; so far {self.seen[-20:]}") from None
        if frame is None:
            self._frames.put_nowait(None)
            raise ServerClosedError
        self.seen.append(frame)
        return frame

    async def recv_until(self, last: Callable[[Frame], bool]) -> list[Frame]:
        """All frames up to and with the first that `last` is true of."""
        frames = [await self.recv()]
        while not last(frames[-1]):
            frames.append(await self.recv())
        return frames

    async def recv_until_event(self, name: str, namespace: str = "/") -> list[Frame]:
        """All frames before that event, which is read and not returned."""
        prefix = "" if namespace == "/" else f"{namespace},"

        def is_it(frame: Frame) -> bool:
            return isinstance(frame, str) and frame.startswith(f'2{prefix}["{name}"')

        return (await self.recv_until(is_it))[:-1]

    async def recv_closed(self) -> list[Frame]:
        """Await the server's closing; returns what came before it."""
        frames = []
        with contextlib.suppress(ServerClosedError):
            while True:
                frames.append(await self.recv())
        return frames

    async def open_namespace(self, namespace: str = "/", **auth: Any) -> tuple[str, str | None]:
        """CONNECT, with what is given as auth; returns (sid, pid). The answer must be next."""
        prefix = "" if namespace == "/" else f"{namespace},"
        await self.send(f"0{prefix}{json.dumps(auth) if auth else ''}")
        answer = await self.recv()
        assert isinstance(answer, str) and answer.startswith(f"0{prefix}{{"), answer
        reply = json.loads(answer[1 + len(prefix) :])
        return reply["sid"], reply.get("pid")

    async def event(self, namespace: str = "/") -> tuple[list[Any], str]:
        """The next frame, which must be a stored event: (name and args, offset)."""
        return split_event(await self.recv(), namespace)


def split_event(frame: Frame, namespace: str = "/") -> tuple[list[Any], str]:
    """Split `2["e",1,"offset"]` into what the application sent and the offset."""
    prefix = "2" if namespace == "/" else f"2{namespace},"
    assert isinstance(frame, str) and frame.startswith(prefix + "["), frame
    *data, offset = json.loads(frame[len(prefix) :])
    assert isinstance(offset, str) and offset, frame
    return data, offset
