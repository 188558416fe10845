"""How requests get from the threads of a WSGI server to Engine.IO in the event loop, and back.

The thread of a request waits until the event loop has answered. A websocket is different: the event loop takes the
socket over and serves it from then on, and the thread returns to the server at once. So a websocket takes no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

from .background import Background, Caller
from .websocket import LoopWebSocket, accepting, refusal

SOCKETS = ("werkzeug.socket", "gunicorn.socket")
"""Where WSGI servers put the socket of a request."""

EXCHANGE = "sio_pg.exchange"
"""Where the exchange of a request is, until Engine.IO has begun with it."""

PUMPED_BYTES = 64 * 1024
"""How much of an encrypted connection is read at once."""

Response = tuple[str, list[tuple[str, str]], bytes]


class Exchange:
    """A request of a WSGI server, whose thread waits for the answer.

    :param max_body: how many bytes of a request's body are read. Engine.IO refuses one that is larger.
    """

    def __init__(self, environ: dict[str, Any], caller: Caller, max_body: int) -> None:
        self._caller = caller
        self._socket: socket.socket | None = next((environ[name] for name in SOCKETS if name in environ), None)
        self._pumped: tuple[ssl.SSLSocket, socket.socket] | None = None
        self.environ = environ
        if environ["REQUEST_METHOD"] == "POST":
            length = int(environ.get("CONTENT_LENGTH") or 0)
            body = environ["wsgi.input"].read(length) if length <= max_body else b""
            self.environ = {**environ, "wsgi.input": _Body(body)}
        self.environ[EXCHANGE] = self

    def take_socket(self) -> socket.socket | None:
        """Return the socket of the request for the event loop. ``None`` if the server does not give it away.

        The server keeps a socket of its own, which ends at once, so what it does with it reaches nobody.
        """
        theirs, self._socket = self._socket, None
        if theirs is None or theirs.fileno() < 0:
            return None
        if isinstance(theirs, ssl.SSLSocket):
            ours, near = socket.socketpair()
            self._pumped = (theirs, near)
        else:
            ours = socket.socket(fileno=os.dup(theirs.fileno()))
            end, other = socket.socketpair()
            with end, other:
                os.dup2(end.fileno(), theirs.fileno(), inheritable=False)
        ours.setblocking(False)
        return ours

    def hand_over(self) -> None:
        """Let the thread of the request go: the event loop serves its socket."""
        self._caller.answer(self)

    # -- in the thread of the request ------------------------------------------------------------------------
    def leave(self) -> None:
        """End the request in the thread of the server, in a way that makes it write nothing.

        :raises BaseException: which one depends on the server.
        """
        if self._pumped is not None:
            _pump(*self._pumped)
        if "gunicorn.socket" in self.environ:
            raise StopIteration
        raise ConnectionError("the event loop serves the websocket")


class _Body:
    """The body of a request, which its thread has read."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self, size: int) -> bytes:
        return self._body[:size]


def serve(
    background: Background, handle: Callable[[Any], Any], environ: dict[str, Any], start_response: Any, max_body: int
) -> list[bytes]:
    """Serve a request in the thread of a WSGI server.

    :param handle: Engine.IO's ``handle_request``, in the event loop.
    """
    caller = Caller(background.loop)
    exchange = Exchange(environ, caller, max_body)
    answer = background.begin(caller, handle, exchange.environ).wait()
    if answer is exchange:
        exchange.leave()
    status, headers, payload = answer
    start_response(status, headers)
    return [payload]


def _pump(secure: ssl.SSLSocket, plain: socket.socket) -> None:
    """Carry bytes between an encrypted socket, which asyncio cannot take over, and the event loop, until one ends."""
    secure.setblocking(False)
    plain.setblocking(False)
    wait = select.poll()
    inward = outward = b""
    with plain, contextlib.suppress(OSError):
        while True:
            with contextlib.suppress(*_NOT_YET):
                if not inward and not (inward := secure.recv(PUMPED_BYTES)):
                    return
            with contextlib.suppress(*_NOT_YET):
                if not outward and not (outward := plain.recv(PUMPED_BYTES)):
                    return
            before = len(inward) + len(outward)
            with contextlib.suppress(*_NOT_YET):
                inward = inward[plain.send(inward) if inward else 0 :]
            with contextlib.suppress(*_NOT_YET):
                outward = outward[secure.send(outward) if outward else 0 :]
            if len(inward) + len(outward) == before:
                wait.register(secure, (0 if inward else select.POLLIN) | (select.POLLOUT if outward else 0))
                wait.register(plain, (0 if outward else select.POLLIN) | (select.POLLOUT if inward else 0))
                wait.poll()


_NOT_YET = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


# -- Engine.IO's driver ----------------------------------------------------------------------------------
def _translate_request(environ: dict[str, Any]) -> dict[str, Any]:
    return environ


def _make_response(status: str, headers: list[tuple[str, str]], payload: bytes, _environ: object) -> Response:
    return status, headers, payload


class _WebSocket:
    """Engine.IO's websocket, on a socket that the event loop has taken over."""

    def __init__(self, handler: Callable[[LoopWebSocket], Any], server: Any) -> None:
        self._handler = handler
        self._max_size = server.max_http_buffer_size

    async def __call__(self, environ: dict[str, Any]) -> Any:
        exchange = environ.pop(EXCHANGE)
        response = accepting(environ)
        if response is None:
            return refusal("not a websocket request")
        sock = exchange.take_socket()
        if sock is None:
            return refusal("the web server gives no socket away: use long polling")
        ws = LoopWebSocket(environ, self._max_size)
        exchange.hand_over()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: ws, sock)
        transport.write(response)
        try:
            await self._handler(ws)
        finally:
            await ws.close()
        return ""


DRIVER = {
    "asyncio": True,
    "translate_request": _translate_request,
    "make_response": _make_response,
    "websocket": _WebSocket,
}
"""What Engine.IO's server for asyncio needs of a web framework."""
