"""The Python client with connection state recovery, compatible with socket.io-client 4.8.

A server with connection state recovery gives each namespace a private session id (pid) in its reply to CONNECT. It
appends an offset, which is a string, to each stored event. A client that reconnects presents both, and the server
sends it what it missed::

    C>S 40{}                         S>C 40{"sid":"GN..","pid":"YH.."}
    S>C 42["order",{"id":7},"Mz.."]  handler(data) is called with {"id": 7}; the client remembers "Mz.."
    C>S 40{"pid":"YH..","offset":"Mz..","token":"t"}   after a drop; keys of the application's auth override both

The last argument of an event may not be the application's. In JavaScript it stays for the listeners, where an
additional argument does no harm. A Python handler with a fixed number of parameters would fail, so this client
removes it. In a namespace with a pid, the last argument of an event *without an acknowledgement id* means:

- A string is the offset of a stored event.
- ``None`` was appended by the server to an unstored event that ended in a string or in ``None``. A trailing string
  would be mistaken for an offset. The rule for ``None`` is for this client: it always removes one trailing ``None``,
  and the application's own stays. ("x", None) arrives as ``["v","x",null,null]``.
- Any other value belongs to the application.

Events with an acknowledgement id never have an offset. Neither do the events of a namespace without a pid.

The offset moves in the same tick in which its event is handed to its handler. Engine.IO starts one task for each
message, in order of arrival. Handlers that await run concurrently and end in any order. So the offset follows the
order of arrival, never moves back, and never passes an event whose handler was not called. JavaScript does the same
with asynchronous listeners: it takes the offset when they return their promise. An offset that waited for the end of
a handler would deliver the event a second time after a drop, while the first call is still running. A handler that
raises has received its event, too. The event is not repeated, because it would fail again on every reconnection, and
it does not hold up later offsets.

The client is one module, however long, because it is used without the rest of the package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any

import engineio
import socketio
from engineio import packet as engine_packet
from socketio import packet

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.handler_types import Event, On

_WAIT_TIMEOUT = 20.0
"""Seconds to wait for the reply to CONNECT.

A server whose database is in trouble answers, or closes the connection, within 15 s. A recovery may wait 2 s for the
node that held the session. python-socketio's reconnection gives up after 1 s, and would do so on every attempt.
"""

# The largest event that a server sends: 256 MiB of characters with up to four bytes. aiohttp's default is 4 MiB. A
# client that does not take an event is sent it again and again.
_MAX_MESSAGE_BYTES = 1 << 30


@dataclass
class _Session:
    """The session of one namespace, presented on its next CONNECT."""

    pid: str | None = None
    offset: str | None = None  # that of the last stored event handed to a handler
    recovered: bool = False


class _Poll:
    """The rest of a response to a poll, as python-engineio's read loop takes a response."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._body = body

    async def read(self) -> bytes:
        return self._body


class _Engine(engineio.AsyncClient):
    """Engine.IO's client, with three differences that make it behave as in JavaScript.

    A CLOSE packet ends a connection, not the session. A server sends it when it shuts down, or when it disconnects
    a client that is to return. python-engineio gives up for good, as if the server had called ``disconnect(sid)``,
    which is a packet of Socket.IO.

    A response to a poll may hold any number of packets. python-engineio drops a connection for more than 16, and
    would ask for the same replay on every attempt.

    ``disconnect()`` does not wait for the end of a poll, which can take as long as a server's ping interval and
    timeout together.
    """

    closed_sid: str | None = None  # that of the connection that the server has closed
    leaving: asyncio.Future[None] | None = None  # done when the poll must end

    async def disconnect(self, abort: bool = False, reason: str | None = None) -> None:
        if self.leaving is not None and not self.leaving.done():
            self.leaving.set_result(None)
        await super().disconnect(abort, reason)

    async def _receive_packet(self, pkt: engine_packet.Packet) -> None:
        if pkt.packet_type != engine_packet.CLOSE:
            await super()._receive_packet(pkt)
        elif self.state == "connected":
            self.closed_sid = self.sid  # stops the polling
            if self.current_transport == "websocket":
                await self.ws.close()  # ends the read loop

    async def _send_request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        polls = method == "GET" and self.state == "connected"
        if polls and self.sid == self.closed_sid:
            return "the server closed the connection"
        if not polls:
            response = await super()._send_request(method, url, *args, **kwargs)
            if method == "POST" and hasattr(response, "release"):
                response.release()  # python-engineio reads only its status
            return response
        self.leaving = asyncio.get_running_loop().create_future()
        polling = asyncio.ensure_future(super()._send_request(method, url, *args, **kwargs))
        try:
            await asyncio.wait((polling, self.leaving), return_when=asyncio.FIRST_COMPLETED)
            if not polling.done():
                return "disconnecting"
        finally:
            polling.cancel()
        response = polling.result()
        if getattr(response, "status", None) != HTTPStatus.OK:
            if hasattr(response, "release"):
                response.release()  # python-engineio reads only its status
            return response
        try:
            *first, last = (await response.read()).split(b"\x1e")
        except Exception as e:  # noqa: BLE001 - aiohttp is an extra. The read loop would end without a log line
            return f"the response to a poll ended early: {e!r}"
        try:
            packets = [engine_packet.Packet(encoded_packet=encoded.decode()) for encoded in first]
        except ValueError:
            return response  # python-engineio logs the error
        for pkt in packets:
            await self._receive_packet(pkt)
        return _Poll(response.status, last)


class AsyncClient(socketio.AsyncClient):
    """A ``socketio.AsyncClient`` whose sessions survive a dropped connection.

    Every option, method and decorator of ``socketio.AsyncClient`` works unchanged. One client object belongs to one
    cluster: it presents what one server gave it to the next one, whatever the URL. ``connect(url)`` also takes a
    callable, so that a reconnection can go to another node.

    ``disconnect()`` and the server's ``disconnect(sid)`` end the sessions. As in python-socketio, ``connect()`` and
    each reconnection need all of their namespaces. If one is refused, the client closes the others and tries all of
    them again.
    """

    event: Event
    on: On
    namespaces: dict[str, str]  # the connected namespaces, each with its sid
    failed_namespaces: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        websocket = {"max_msg_size": _MAX_MESSAGE_BYTES, **(kwargs.pop("websocket_extra_options", None) or {})}
        super().__init__(*args, websocket_extra_options=websocket, **kwargs)
        self._sessions: dict[str, _Session] = {}
        self._wait_timeout = _WAIT_TIMEOUT
        self._connecting: asyncio.Task[Any] | None = None  # the task inside connect()

    def recovered(self, namespace: str = "/") -> bool:
        """Return whether the latest connection to ``namespace`` continues the previous session: same sid, no gap.

        Valid from the ``connect`` handler on. It is ``False`` after a first connection and in a new session. State
        that the application derived from events must then be loaded again.
        """
        session = self._sessions.get(namespace)
        return session is not None and session.recovered

    async def connect(
        self,
        url: str | Callable[[], Any],
        headers: Mapping[str, str] | Callable[[], Any] | None = None,
        auth: Any = None,
        transports: list[str] | str | None = None,
        namespaces: list[str] | str | None = None,
        socketio_path: str = "socket.io",
        wait: bool = True,
        wait_timeout: float | None = None,
        retry: bool = False,
    ) -> None:
        """Connect to a Socket.IO server. ``socketio.AsyncClient.connect`` documents the other parameters.

        :param wait_timeout: seconds to wait for the reply of each namespace, which the server sends after its
                             ``connect`` handler. The default is 20 (python-socketio: 1). Reconnections wait 20
                             seconds, or longer if this value is larger (python-socketio: 1).
        :raises ConfigurationError: aiohttp is not installed.
        """
        if find_spec("aiohttp") is None:
            # python-engineio only logs that, and this method would wait for a reply to nothing
            raise ConfigurationError("AsyncClient needs aiohttp. Run `pip install 'sio-pg-adapter[client]'`")
        if wait_timeout is None:
            wait_timeout = self._wait_timeout
        else:
            self._wait_timeout = max(wait_timeout, _WAIT_TIMEOUT)
        outer, self._connecting = self._connecting, asyncio.current_task()  # `retry` makes the method call itself
        try:
            await super().connect(
                url,
                headers={} if headers is None else headers,
                auth=auth,
                transports=transports,
                namespaces=namespaces,
                socketio_path=socketio_path,
                wait=wait,
                wait_timeout=wait_timeout,
                retry=retry,
            )
        finally:
            self._connecting = outer

    async def disconnect(self) -> None:
        """Disconnect from the server, and end the sessions."""
        if self._connecting is not None and asyncio.current_task() is self._connecting:
            # connect() gives up because a namespace was slow or refused. python-socketio sends DISCONNECT to the
            # others, which would end sessions that the next attempt can recover. Closing the transport does not.
            self.namespaces = {}
        await super().disconnect()

    async def shutdown(self) -> None:
        """Disconnect, or stop reconnecting, at once even while a reconnection waits for the server."""
        connected = self.connected
        if not connected and self._connecting is not None and self._connecting is self._reconnect_task:
            self._reconnect_abort.set()
            if self.eio.state == "connected":
                await self.eio.disconnect()  # wakes connect()
        await super().shutdown()
        if self.connected and not connected:  # a reconnection succeeded in the meantime
            await self.disconnect()

    # -- private methods of python-socketio. tests/unit/test_client.py names each changed signature ------

    def _engineio_client_class(self) -> type[engineio.AsyncClient]:
        return _Engine

    async def _handle_eio_connect(self) -> None:
        # Each message is a task. The head of a binary event can be handled after the drop that cut off its
        # attachments. It would then take the first message of this connection for an attachment.
        self._binary_packet = None
        await super()._handle_eio_connect()

    async def _send_packet(self, pkt: packet.Packet) -> None:
        if pkt.packet_type == packet.CONNECT:
            pkt.data = self._with_claim(pkt.namespace, pkt.data)
        await super()._send_packet(pkt)

    def _with_claim(self, namespace: str, auth: Any) -> Any:
        session = self._sessions.get(namespace)
        if session is None or session.pid is None or not isinstance(auth, dict):
            return auth
        claim = {"pid": session.pid}
        if session.offset is not None:
            claim["offset"] = session.offset
        return claim | auth

    async def _handle_connect(self, namespace: str | None, data: Any) -> None:
        namespace = namespace or "/"
        if namespace not in self.namespaces:
            pid = data.get("pid") if isinstance(data, dict) else None
            session = self._sessions.get(namespace)
            if session is not None and pid and session.pid == pid:
                session.recovered = True
            else:
                # JavaScript keeps the old offset until the next event. That offset belongs to a session that is
                # over, and maybe to another epoch. A new session without an offset is replayed from its start.
                self._sessions[namespace] = _Session(pid or None)
        await super()._handle_connect(namespace, data)

    async def _handle_event(self, namespace: str | None, id: int | None, data: list[Any]) -> None:
        # Not buffered until CONNECT. JavaScript does that: its buffer survives a drop, and the server then sends
        # the same events again. python-socketio calls the handler at once, so the offset moves at once.
        session = self._sessions.get(namespace or "/")
        if id is None and session is not None and session.pid is not None and len(data) > 1:
            last = data[-1]
            if isinstance(last, str):
                session.offset = last
            if last is None or isinstance(last, str):
                data = data[:-1]
        await super()._handle_event(namespace, id, data)

    async def _handle_eio_disconnect(self, reason: str) -> None:
        await super()._handle_eio_disconnect(reason)
        if self._connecting is not None and asyncio.current_task() is not self._connecting:
            # python-socketio's connect() would keep waiting for namespaces on a connection that is gone. Or it
            # would find all of them connected, return, and never reconnect. This makes it fail and try again.
            self.namespaces = {}
            self.failed_namespaces = list(self.connection_namespaces)
            self._connect_event.set()


class AsyncSimpleClient(socketio.AsyncSimpleClient):
    """A ``socketio.AsyncSimpleClient`` whose session survives a dropped connection."""

    client: AsyncClient | None
    namespace: str
    client_class = AsyncClient

    def recovered(self) -> bool:
        """Return :meth:`AsyncClient.recovered` of the client's one namespace."""
        return self.client is not None and self.client.recovered(self.namespace)
