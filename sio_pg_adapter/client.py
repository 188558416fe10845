"""The Python client that recovers: what socket.io-client 4.8 does with pid and offset, for python-socketio.

A server with connection state recovery gives each namespace a private session id (pid) in its CONNECT reply
and appends an offset, a string, to each stored event. A client that comes back presents both, and is sent
what it missed::

    C>S 40{}                         S>C 40{"sid":"GN..","pid":"YH.."}
    S>C 42["order",{"id":7},"Mz.."]  handler(data) is called with {"id": 7}; "Mz.." is remembered
    C>S 40{"pid":"YH..","offset":"Mz..","token":"t"}   after a drop; the application's auth wins over both

Which last argument is not the application's. JavaScript leaves it to the listeners, where one argument more
does not matter; a Python handler of fixed arity would break, so it is taken off here. In a namespace with a
pid, of an event *without an acknowledgement id*:

- a string is the offset of a stored event;
- ``None`` was appended by the server to an unstored event that ended in a string, which would be taken for an
  offset, or in ``None``. The latter is for this client alone: so that one trailing ``None`` always goes, and
  the application's own stays. ("x", None) comes as ``["v","x",null,null]``;
- anything else is the application's.

Events with an acknowledgement id never bear an offset, and neither do those of a namespace without a pid.

When the offset moves: in the tick in which its event is handed to its handler. Engine.IO starts one task per
message, in order of arrival; handlers that await run at the same time and end in any order. So the offset
follows the order of arrival, never goes back, and never passes an event whose handler was not called.
JavaScript does the same with asynchronous listeners: it takes the offset when they return their promise.
Waiting for a handler's end would hand its event out a second time after a drop, while the first call still
goes on. A handler that raises has had its event, too: that is neither repeated (a poisoned event would come
back on every reconnection) nor does it hold up later offsets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import engineio
import socketio
from engineio import packet as engine_packet
from socketio import packet

from sio_pg_adapter.handler_types import Event, On

# A server that has trouble with its database answers or closes a connection within 15 s; a recovery may wait
# 2 s for the node that held the session. Upstream's reconnect gives up after 1 s, and would do so again and
# again.
_WAIT_TIMEOUT = 20.0


@dataclass
class _Session:
    """What a namespace presents on its next CONNECT."""

    pid: str | None = None
    offset: str | None = None  # of the last stored event handed to a handler
    recovered: bool = False


class _Poll:
    """What is left of the answer to a poll."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._body = body

    async def read(self) -> bytes:
        return self._body


class _Engine(engineio.AsyncClient):
    """Engine.IO's client, where three things are as in JavaScript.

    A CLOSE packet is the end of a connection, not of the session: a server sends it when it goes down, or cuts
    a client that shall come back. Upstream gives up for good, as if it were the server's ``disconnect(sid)``,
    which is a packet of Socket.IO's.

    An answer to a poll may hold any number of packets. Upstream drops a connection for more than 16: a replay
    would be asked for again and again.

    ``disconnect()`` does not wait for the end of a poll, which may take as long as a server's ping interval and
    timeout together.
    """

    closed_sid: str | None = None  # of the connection that the server has closed
    leaving: asyncio.Future[None] | None = None  # done: a poll shall end

    async def disconnect(self, abort: bool = False, reason: str | None = None) -> None:
        if self.leaving is not None and not self.leaving.done():
            self.leaving.set_result(None)
        await super().disconnect(abort, reason)

    async def _receive_packet(self, pkt: engine_packet.Packet) -> None:
        if pkt.packet_type != engine_packet.CLOSE:
            await super()._receive_packet(pkt)
        elif self.state == "connected":
            self.closed_sid = self.sid  # no further poll
            if self.current_transport == "websocket":
                await self.ws.close()  # the read loop finds it gone

    async def _send_request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        polls = method == "GET" and self.state == "connected"
        if polls and self.sid == self.closed_sid:
            return "the server closed the connection"
        if not polls:
            response = await super()._send_request(method, url, *args, **kwargs)
            if method == "POST" and hasattr(response, "release"):
                response.release()  # upstream looks at its status only
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
                response.release()  # upstream looks at its status only
            return response
        try:
            *first, last = (await response.read()).split(b"\x1e")
        except Exception as e:  # noqa: BLE001 - aiohttp's, an extra; upstream's read loop would end, and nobody know
            return f"an answer to a poll broke off: {e!r}"
        try:
            packets = [engine_packet.Packet(encoded_packet=one.decode()) for one in first]
        except ValueError:
            return response  # upstream says so
        for pkt in packets:
            await self._receive_packet(pkt)
        return _Poll(response.status, last)


class AsyncClient(socketio.AsyncClient):
    """A ``socketio.AsyncClient`` whose sessions survive a dropped connection.

    Every option, method and decorator of upstream works unchanged. One client object belongs to one cluster:
    it presents what it got from a server to the next one it connects to, whatever the URL. A reconnection may
    go to another node: ``connect(url)`` takes a callable.

    Sessions end by ``disconnect()`` and by the server's ``disconnect(sid)``. As upstream, ``connect()`` and
    each reconnection want all of their namespaces: where one is refused, the others are closed and tried
    again with it.
    """

    event: Event
    on: On
    namespaces: dict[str, str]  # connected ones, each with its sid
    failed_namespaces: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sessions: dict[str, _Session] = {}
        self._wait_timeout = _WAIT_TIMEOUT
        self._connecting: asyncio.Task[Any] | None = None  # the task inside connect()

    def recovered(self, namespace: str = "/") -> bool:
        """Whether the latest connection to ``namespace`` continues the session before it: same sid, no gap.

        Valid from the ``connect`` handler on. False after a first connection and after a fresh session: what
        was derived from events must then be fetched anew.
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
        """Connect to a Socket.IO server; ``socketio.AsyncClient.connect`` says what is not said here.

        :param wait_timeout: seconds to wait for each namespace's answer, which comes after the server's
                             ``connect`` handler. Default: 20 (upstream: 1). Reconnections wait as long, or
                             longer where more was asked for here (upstream: 1).
        """
        if wait_timeout is None:
            wait_timeout = self._wait_timeout
        else:
            self._wait_timeout = max(wait_timeout, _WAIT_TIMEOUT)
        outer, self._connecting = self._connecting, asyncio.current_task()  # `retry` calls this from within
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
            # connect() gives up, because a namespace was slow or refused. Upstream sends DISCONNECT to the
            # others, which would end sessions that the next try can recover; closing the transport does not.
            self.namespaces = {}
        await super().disconnect()

    async def shutdown(self) -> None:
        """Disconnect, or stop trying to reconnect; at once also where a reconnection waits for the server."""
        if not self.connected and self._connecting is not None and self._connecting is self._reconnect_task:
            self._reconnect_abort.set()
            if self.eio.state == "connected":
                await self.eio.disconnect()  # wakes connect()
        await super().shutdown()
        if self.connected:  # a reconnection that succeeded while it was waited for
            await self.disconnect()

    # -- upstream's inner methods; tests/unit/test_client.py names the one whose signature changed ------

    def _engineio_client_class(self) -> type[engineio.AsyncClient]:
        return _Engine

    async def _handle_eio_connect(self) -> None:
        # Messages are tasks: the head of a binary event can be seen after the drop that cut its attachments
        # off, and would swallow the first message of this connection as one.
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
                # JavaScript keeps the old offset until the next event. It belongs to a session that is over,
                # perhaps to another history of the log; without one the new session is replayed from its
                # start.
                self._sessions[namespace] = _Session(pid or None)
        await super()._handle_connect(namespace, data)

    async def _handle_event(self, namespace: str | None, id: int | None, data: list[Any]) -> None:  # noqa: A002
        # Not buffered until CONNECT, as JavaScript does: that buffer survives a drop, and what is in it is
        # then sent again. Upstream calls the handler at once, so the offset moves at once.
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
            # Upstream's connect() would go on waiting for namespaces on a connection that is gone, or find
            # them all there and take it for an open one, never to reconnect again. This makes it fail, and be
            # tried again.
            self.namespaces = {}
            self.failed_namespaces = list(self.connection_namespaces)
            self._connect_event.set()


class AsyncSimpleClient(socketio.AsyncSimpleClient):
    """A ``socketio.AsyncSimpleClient`` whose session survives a dropped connection."""

    client: AsyncClient | None
    namespace: str
    client_class = AsyncClient

    def recovered(self) -> bool:
        """As :meth:`AsyncClient.recovered`, of its one namespace."""
        return self.client is not None and self.client.recovered(self.namespace)
