"""``AsgiClient``: a client by hand in the test's own event loop, over an ASGI WebSocket.

The server is a real one, with real Engine.IO sockets. Only the web server is left out, so that a test decides
when a byte goes through::

    async with AsgiClient(node.sio) as wire:
        sid, pid = await wire.connect()
        assert await wire.recv() == '2["e","offset"]'  # without the Engine.IO packet type 4
        await wire.drop()
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

import socketio

TIMEOUT = 20.0  # seconds until a test that waits in vain fails; none measures by it


class Closed(Exception):
    """The server has closed the connection."""


class AsgiClient:
    def __init__(self, sio: socketio.AsyncServer) -> None:
        self._app = socketio.ASGIApp(sio)
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._in.put_nowait({"type": "websocket.connect"})  # comes first, even if the client is cut before it begins
        self._out: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._task: asyncio.Task[None] | None = None
        self.held = asyncio.Event()  # set when a frame waits at a stalled client
        self.offset: str | None = None  # of the last event that had one
        self.eio_sid = ""
        self.patience: float | None = TIMEOUT  # None: a frame may take as long as it likes

    async def __aenter__(self) -> Self:
        scope = {
            "type": "websocket",
            "path": "/socket.io/",
            "raw_path": b"/socket.io/",
            "query_string": b"EIO=4&transport=websocket",
            "headers": [(b"host", b"test"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")],
            "scheme": "ws",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "asgi": {"version": "3.0"},
        }
        self._task = asyncio.create_task(self._run(scope), name="wire")
        opening = await self._next()
        assert isinstance(opening, str) and opening[0] == "0"
        self.eio_sid = json.loads(opening[1:])["sid"]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.drop()

    async def _run(self, scope: dict[str, Any]) -> None:
        try:
            await self._app(scope, self._in.get, self._send)
        finally:
            self._out.put_nowait(None)

    async def _send(self, event: dict[str, Any]) -> None:
        if not self._flowing.is_set():
            self.held.set()
            await self._flowing.wait()
        if event["type"] == "websocket.send":
            data = event.get("bytes")
            self._out.put_nowait(event["text"] if data is None else data)
        elif event["type"] == "websocket.close":
            self._out.put_nowait(None)

    # -- the connection ---------------------------------------------------------------------------------
    def cut(self) -> None:
        """Lose the transport. The server notices at its next step."""
        self._flowing.set()
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def ended(self) -> None:
        """Wait until the server has done all that the end of the connection takes, however long."""
        if self._task is not None:
            await self._task

    async def cancel(self) -> None:
        """Cancel what the server does for the connection, as a web server may."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def drop(self) -> None:
        """The transport is gone, and the server has done all that this takes."""
        self.cut()
        if self._task is not None:
            await asyncio.wait_for(asyncio.shield(self._task), TIMEOUT)

    def stall(self) -> None:
        """Take nothing more from here on."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def _next(self) -> str | bytes | None:
        try:
            async with asyncio.timeout(self.patience):
                return await self._out.get()
        except TimeoutError:
            raise AssertionError("no frame came") from None

    # -- Socket.IO ----------------------------------------------------------------------------------------
    def send(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            self._in.put_nowait({"type": "websocket.receive", "bytes": frame, "text": None})
        else:
            self._in.put_nowait({"type": "websocket.receive", "bytes": None, "text": "4" + frame})

    async def recv(self) -> str | bytes:
        """The next packet or attachment.

        :raises Closed: if the server has closed.
        """
        while True:
            frame = await self._next()
            if frame is None or frame == "1":
                self._out.put_nowait(None)
                raise Closed
            if isinstance(frame, bytes):
                return frame
            if frame[0] == "4":
                self._note(frame[1:])
                return frame[1:]

    def _note(self, packet: str) -> None:
        if packet[0] in "25" and packet.endswith('"]'):
            self.offset = json.loads(packet[packet.index("[") :])[-1]

    def waiting(self) -> list[str | bytes]:
        """Return the frames that have come and were not read yet."""
        frames = []
        while not self._out.empty():
            frame = self._out.get_nowait()
            if frame is not None:
                frames.append(frame[1:] if isinstance(frame, str) else frame)
        return frames

    async def connect(self, namespace: str = "/", **auth: Any) -> tuple[str, str | None]:
        """Send CONNECT. The answer must be the next frame.

        :returns: sid and pid.
        """
        self.send(f"0{_prefix(namespace)}{json.dumps(auth) if auth else ''}")
        answer = await self.recv()
        assert isinstance(answer, str) and answer.startswith(f"0{_prefix(namespace)}{{"), answer
        reply = json.loads(answer[answer.index("{") :])
        return reply["sid"], reply.get("pid")

    async def event(self, namespace: str = "/") -> list[Any]:
        """The next frame, which must be a stored event: its name and arguments, without the offset."""
        frame = await self.recv()
        prefix = f"2{_prefix(namespace)}["
        assert isinstance(frame, str) and frame.startswith(prefix), frame
        *data, offset = json.loads(frame[len(prefix) - 1 :])
        assert isinstance(offset, str) and len(offset) == 22, frame
        return data

    async def events_until(self, name: str, namespace: str = "/") -> list[list[Any]]:
        """Return all stored events before the named one, which is read, too."""
        events: list[list[Any]] = []
        while (one := await self.event(namespace))[0] != name:
            events.append(one)
        return events

    async def rest(self) -> list[str | bytes]:
        """Return all frames until the server closes the connection."""
        frames: list[str | bytes] = []
        try:
            while True:
                frames.append(await self.recv())
        except Closed:
            return frames


def _prefix(namespace: str) -> str:
    return "" if namespace == "/" else f"{namespace},"
