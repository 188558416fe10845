"""Which clients are connected, on all nodes.

The nodes are asked, and not the tables. A session in the tables may be away, or of a node that has died and is not
found dead yet, and clients without recovery are in no table. A node's answer holds as of a cursor that is not before
the asker's. Only session data is read from the tables, since any node may change it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from sio_pg_adapter.errors import NoAnswer, NotSerializable, SioPgError
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.rooms import Rooms, belongs
from sio_pg_adapter.log.payload import encode_event
from sio_pg_adapter.log.verdict import read_auth
from sio_pg_adapter.store.epochs import Epochs
from sio_pg_adapter.store.sessions import Sessions, encode_session

from .requests import Answers, Requests, Service


@dataclass(frozen=True, slots=True)
class Handshake:
    """How a client connected.

    :ivar headers: the headers of the request that opened the connection, by name in lower case. Several of a name are
                   joined by commas.
    :ivar query: the parameters of that request's URL. Of several of a name the last one counts.
    :ivar address: the IP address that the request came from, which may be a proxy's. ``""`` if the web server does
                   not say it.
    :ivar time: when the client connected to the namespace, in UTC, by its node's clock.
    :ivar auth: the client's ``auth``, as its connect handler got it. ``None`` for a client of another node if it has
                no JSON form, and for the clients of a plain ``socketio.AsyncServer``.
    """

    headers: Mapping[str, str]
    query: Mapping[str, str]
    address: str
    time: datetime
    auth: Any


class _OfServer:
    """Holds the server whose methods a socket calls. It is no field: ``asdict`` would copy the server."""

    __slots__ = ("_server",)
    _server: Any


@dataclass(frozen=True, slots=True)
class SocketFields(_OfServer):
    """The attributes of a client of any node, as they were when the nodes were asked."""

    sid: str
    namespace: str
    rooms: tuple[str, ...]
    session: Any
    node: str
    recovered: bool
    handshake: Handshake = field(compare=False, repr=False)

    def bound(self, kind: type[S], server: Any) -> S:
        """Return the same client as a socket whose methods call this server."""
        socket = kind(*(getattr(self, field.name) for field in fields(self)))
        object.__setattr__(socket, "_server", server)
        return socket


S = TypeVar("S", bound=SocketFields)


class RemoteSocket(SocketFields):
    """A client of any node, as it was when the nodes were asked. Its methods act on it wherever it is by then.

    :ivar sid: its session id, which the server's methods take.
    :ivar namespace: the namespace it is connected to.
    :ivar rooms: its rooms, its own first.
    :ivar session: its user session. ``None`` for a client of another node without recovery, if its session has no
                   JSON form.
    :ivar node: the id of its node.
    :ivar recovered: whether its connection has recovered an earlier session.
    :ivar handshake: how it connected, this time.
    """

    __slots__ = ()

    async def emit(self, event: str, data: Any = None, **options: Any) -> Any:
        """Send it an event. ``options`` are those of :meth:`AsyncServer.emit`, without the recipients."""
        return await self._server.emit(event, data, to=self.sid, namespace=self.namespace, **options)

    async def join(self, room: str | Iterable[str]) -> None:
        """Add it to a room, or to several in a list, as :meth:`AsyncServer.enter_room`."""
        for name in (room,) if isinstance(room, str) else room:
            await self._server.enter_room(self.sid, name, namespace=self.namespace)

    async def leave(self, room: str) -> None:
        """Remove it from a room, as :meth:`AsyncServer.leave_room`."""
        await self._server.leave_room(self.sid, room, namespace=self.namespace)

    async def disconnect(self) -> None:
        """Disconnect it, and end its session for good, as :meth:`AsyncServer.disconnect`."""
        await self._server.disconnect(self.sid, namespace=self.namespace)


class Sockets:
    """Finds the clients of all nodes.

    :param node: this node's id.
    :param environ_of: returns the WSGI environment of an Engine.IO connection. ``None`` if it has ended.
    """

    def __init__(
        self,
        rooms: Rooms,
        sessions: Sessions,
        requests: Requests,
        epochs: Epochs,
        node: str,
        environ_of: Callable[[str], Mapping[str, Any] | None],
    ) -> None:
        self._rooms = rooms
        self._sessions = sessions
        self._requests = requests
        self._epochs = epochs
        self._node = node
        self._environ_of = environ_of
        requests.serve(Service.SOCKETS, lambda request, _parts: self._live_here(**request.fields))
        requests.serve(Service.UNSTORED, lambda request, _parts: self._unstored_here(**request.fields))

    async def fetch(
        self, namespace: str, rooms: tuple[str, ...], timeout: float, server: Any, *, local: bool = False
    ) -> list[RemoteSocket]:
        """Return the live clients in any of the rooms.

        :param server: the server whose methods those of the sockets call.
        :param local: only those of this node.
        :raises NoAnswer: if a node that lives did not answer in time. It has the answers of the others.
        """
        question: dict[str, Any] = {"namespace": namespace, "rooms": rooms}
        answers = Answers()
        if not local:
            await self._requests.gather(Service.SOCKETS, question, (), answers, timeout=timeout)
        answers.answers[self._node] = self._live_here(namespace, rooms, portable=False)
        newest: dict[str, tuple[str, dict[str, Any]]] = {}
        for node, sockets in answers.answers.items():
            for socket in sockets:  # a client that moves from node to node may be at both
                sid = socket["sid"]
                if sid not in newest or newest[sid][1]["generation"] < socket["generation"]:
                    newest[sid] = (node, socket)
        stored = await self._sessions.data_of(namespace, [sid for sid, (_, s) in newest.items() if s["generation"]])
        sockets = [
            SocketFields(
                sid=sid,
                namespace=namespace,
                rooms=tuple(socket["rooms"]),
                session=stored[sid] if socket["generation"] else socket["session"],
                node=node,
                recovered=socket["recovered"],
                handshake=_handshake(socket["handshake"]),
            ).bound(RemoteSocket, server)
            for sid, (node, socket) in newest.items()
            if sid in stored or not socket["generation"]  # else its session has just ended
        ]
        if missing := answers.missing():
            raise NoAnswer("fetch_sockets", "node", missing, sockets)
        return sockets

    async def unstored(
        self, namespace: str, rooms: tuple[str, ...], skip_rooms: tuple[str, ...], timeout: float
    ) -> tuple[list[str], set[str]]:
        """Return the sids without a session in the tables, and the nodes that did not answer.

        :param rooms: only clients in any of these.
        :param skip_rooms: only clients in none of these.
        """
        answers = Answers()
        question = {"namespace": namespace, "rooms": rooms, "skip_rooms": skip_rooms}
        await self._requests.gather(Service.UNSTORED, question, (), answers, timeout=timeout)
        sids = {sid for answer in answers.answers.values() for sid in answer}
        return sorted(sids | set(self._unstored_here(namespace, rooms, skip_rooms))), answers.missing()

    # -- the answers of this node ------------------------------------------------------------------------
    def _live_here(self, namespace: str, rooms: tuple[str, ...], *, portable: bool = True) -> list[dict[str, Any]]:
        return [
            {
                "sid": client.sid,
                "rooms": [client.sid, *client.memberships.current()],
                "generation": 0 if client.held is None else client.held.generation,
                "session": None if client.held else _portable(client) if portable else client.data,
                "recovered": client.recovered,
                "handshake": self._handshake_of(client, portable=portable),
            }
            for client in self._rooms.belonging(namespace, rooms)
            if client.state is State.LIVE
        ]

    def _handshake_of(self, client: Client, *, portable: bool) -> dict[str, Any]:
        environ = self._environ_of(client.eio_sid) or {}
        # Without the secrets of recovery.
        auth = read_auth(client.presented, client.namespace, self._epochs.codec).auth
        if portable:
            try:
                encode_event("", (auth,))
            except SioPgError:
                auth = None
        return {
            "headers": {
                name.removeprefix("HTTP_").replace("_", "-").lower(): value
                for name, value in environ.items()
                if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
            },
            "query": dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)),
            "address": _address(environ),
            "time": client.connected_at,
            "auth": auth,
        }

    def _unstored_here(self, namespace: str, rooms: tuple[str, ...], skip_rooms: tuple[str, ...]) -> list[str]:
        return [
            client.sid
            for client in self._rooms.belonging(namespace, rooms)
            if client.held is None and not belongs(client, skip_rooms)
        ]


def _portable(client: Client) -> Any:
    try:
        encode_session(client.data)
    except NotSerializable:
        return None
    return client.data


def _address(environ: Mapping[str, Any]) -> str:
    """Return the address of a connection. Engine.IO's REMOTE_ADDR is always 127.0.0.1 with these web servers."""
    if "asgi.scope" in environ:
        client = environ["asgi.scope"].get("client")
        return str(client[0]) if client else ""
    if "aiohttp.request" in environ:
        return str(environ["aiohttp.request"].remote or "")
    return str(environ.get("REMOTE_ADDR", ""))


def _handshake(answer: dict[str, Any]) -> Handshake:
    return Handshake(**{**answer, "time": datetime.fromtimestamp(answer["time"], UTC)})
