"""Which clients are connected, on all nodes.

The nodes are asked, and not the tables. A session in the tables may be away, or of a node that has died and is not
found dead yet, and clients without recovery are in no table. A node's answer holds as of a cursor that is not before
the asker's. Only session data is read from the tables, since any node may change it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sio_pg_adapter.errors import NoAnswer, NotSerializable
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.rooms import Rooms, belongs
from sio_pg_adapter.store.sessions import Sessions, encode_session

from .requests import Answers, Requests, Service


@dataclass(frozen=True, slots=True)
class RemoteSocket:
    """A client of any node, as it was when the nodes were asked.

    :ivar sid: its session id, which the server's methods take.
    :ivar namespace: the namespace it is connected to.
    :ivar rooms: its rooms, its own first.
    :ivar session: its user session. ``None`` for a client of another node without recovery, if its session has no
                   JSON form.
    :ivar node: the id of its node.
    :ivar recovered: whether its connection has recovered an earlier session.
    """

    sid: str
    namespace: str
    rooms: tuple[str, ...]
    session: Any
    node: str
    recovered: bool


class Sockets:
    """Finds the clients of all nodes.

    :param node: this node's id.
    """

    def __init__(self, rooms: Rooms, sessions: Sessions, requests: Requests, node: str) -> None:
        self._rooms = rooms
        self._sessions = sessions
        self._requests = requests
        self._node = node
        requests.serve(Service.SOCKETS, lambda request, _parts: self._live_here(**request.fields))
        requests.serve(Service.UNSTORED, lambda request, _parts: self._unstored_here(**request.fields))

    async def fetch(self, namespace: str, rooms: tuple[str, ...], timeout: float) -> list[RemoteSocket]:
        """Return the live clients in any of the rooms.

        :raises NoAnswer: if a node that lives did not answer in time. It has the answers of the others.
        """
        fields: dict[str, Any] = {"namespace": namespace, "rooms": rooms}
        answers = Answers()
        await self._requests.gather(Service.SOCKETS, fields, (), answers, timeout=timeout)
        answers.answers[self._node] = self._live_here(namespace, rooms, portable=False)
        newest: dict[str, tuple[str, dict[str, Any]]] = {}
        for node, sockets in answers.answers.items():
            for socket in sockets:  # a client that moves from node to node may be at both
                sid = socket["sid"]
                if sid not in newest or newest[sid][1]["generation"] < socket["generation"]:
                    newest[sid] = (node, socket)
        stored = await self._sessions.data_of(namespace, [sid for sid, (_, s) in newest.items() if s["generation"]])
        sockets = [
            RemoteSocket(
                sid=sid,
                namespace=namespace,
                rooms=tuple(socket["rooms"]),
                session=stored[sid] if socket["generation"] else socket["session"],
                node=node,
                recovered=socket["recovered"],
            )
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
        fields = {"namespace": namespace, "rooms": rooms, "skip_rooms": skip_rooms}
        await self._requests.gather(Service.UNSTORED, fields, (), answers, timeout=timeout)
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
            }
            for client in self._rooms.belonging(namespace, rooms)
            if client.state is State.LIVE
        ]

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
