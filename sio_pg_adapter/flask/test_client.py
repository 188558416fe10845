"""Flask-SocketIO's test client on this package's server, which runs in an event loop of its own.

Flask-SocketIO's class stays as it is. It gets a :class:`_Wire` in place of its server, which hands its packets to the
event loop, and the server's packets to it.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import flask
import flask_socketio
from engineio import packet
from engineio.async_socket import AsyncSocket

TEST_CLIENT = "sio_pg.test_client"
"""The key that the environ of a test client has."""

MARK = "sio_pg.mark"
"""The event behind everything that a test client is to receive."""

TIMEOUT = 10.0
"""Seconds until an event that a test client has to receive is given up."""


class SocketIOTestClient(flask_socketio.SocketIOTestClient):
    """A ``flask_socketio.SocketIOTestClient`` for :class:`sio_pg_adapter.flask.SocketIO`.

    It needs the database. Its connection has no recovery, and it receives what is stored like every other client.
    """

    def __init__(self, app: flask.Flask, socketio: Any, *args: Any, **kwargs: Any) -> None:
        self._wire = _Wire(socketio.server)
        super().__init__(app, SimpleNamespace(server=self._wire), *args, **kwargs)

    def is_connected(self, namespace: str | None = None) -> bool:
        """Return whether the client is connected to a namespace."""
        self._wire.receive(self.eio_sid)
        return bool(super().is_connected(namespace))

    def get_received(self, namespace: str | None = None) -> list[dict[str, Any]]:
        """Return the events that were sent to the client since the last call, those of a moment ago included."""
        if self.is_connected(namespace):
            self._wire.mark(self.eio_sid, namespace or "/", self.queue)
        received: list[dict[str, Any]] = super().get_received(namespace)
        return received


class _Wire:
    """The names of a ``socketio.Server`` that Flask-SocketIO's test client uses."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.eio = SimpleNamespace()
        self.environ: dict[str, Any] = {}  # the connection's own is made when it is opened
        self.manager = SimpleNamespace(initialize=lambda: None, sid_from_eio_sid=server.manager.sid_from_eio_sid)
        self._background, self._loop_server = server._ready()  # noqa: SLF001 - they are one
        self._loop_server.async_handlers = False  # a handler has ended when emit() returns

    def _send_eio_packet(self, eio_sid: str, pkt: packet.Packet) -> None:
        """Take a packet of the server. The test client replaces this method."""

    def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        environ[TEST_CLIENT] = True
        self._background.call(self._open, eio_sid, environ)

    async def _open(self, eio_sid: str, environ: dict[str, Any]) -> None:
        server = self._loop_server
        if eio_sid not in server.eio.sockets:
            server.eio.sockets[eio_sid] = AsyncSocket(server.eio, eio_sid)
        await server._handle_eio_connect(eio_sid, environ)  # noqa: SLF001 - as Engine.IO calls it

    def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        try:
            self._background.call(self._loop_server._handle_eio_message, eio_sid, data)  # noqa: SLF001 - as above
        finally:
            self.receive(eio_sid)

    def receive(self, eio_sid: str) -> None:
        """Hand over the packets that wait for the client."""
        for pkt in self._background.call(self._waiting, eio_sid):
            if pkt.packet_type == packet.MESSAGE:
                self._send_eio_packet(eio_sid, packet.Packet(encoded_packet=pkt.encode(b64=False)))

    async def _waiting(self, eio_sid: str) -> list[packet.Packet]:
        socket = self._loop_server.eio.sockets.get(eio_sid)
        if socket is None or socket.queue.empty():
            return []
        packets: list[packet.Packet] = await socket.poll()
        return packets

    def mark(self, eio_sid: str, namespace: str, queue: list[dict[str, Any]]) -> None:
        """Wait until the client has received everything that was stored for it before."""
        sid = self._server.manager.sid_from_eio_sid(eio_sid, namespace)
        self._server.emit(MARK, to=sid, namespace=namespace)
        until = time.monotonic() + TIMEOUT
        while True:
            self.receive(eio_sid)
            marks = [event for event in queue if event["name"] == MARK and event["namespace"] == namespace]
            if marks:
                queue[:] = [event for event in queue if event not in marks]
                return
            if time.monotonic() > until:
                raise TimeoutError("the server has sent nothing to the test client. Does it reach the database?")
            time.sleep(0.001)  # the queue of the test client announces nothing
