"""Which clients are there, on all nodes.

The nodes are asked, and not the tables: a session of the tables may be away, or of a node that is dead and not found
so yet, and clients without recovery are in no table. What a node answers holds as of a cursor that is not before the
asker's. Only session data is read from the tables, since there any node changes it.
"""

from __future__ import annotations

import json as stdlib_json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sio_pg_adapter.errors import NoAnswer, NotSerializable
from sio_pg_adapter.local.clients import Client, State
from sio_pg_adapter.log.records import EVERYBODY

from .messages import Message
from .requests import Gathering

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager


@dataclass(frozen=True, slots=True)
class RemoteSocket:
    """A client of any node, as it was when it was asked for.

    :ivar sid: its session id, which the server's methods take.
    :ivar namespace: where it is connected.
    :ivar rooms: its rooms, its own first.
    :ivar session: its user session. ``None`` for one without recovery, on another node, whose session has no JSON
                   form.
    :ivar node: the id of its node.
    :ivar recovered: its connection has recovered an earlier session.
    """

    sid: str
    namespace: str
    rooms: tuple[str, ...]
    session: Any
    node: str
    recovered: bool


class Census:
    """Counts the clients of all nodes.

    :param manager: whose clients are those here, and whose peers know the others.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        manager.peers.serve("sockets", lambda message, _parts: self._sockets_here(message))
        manager.peers.serve("unstored", lambda message, _parts: self._unstored_here(message))

    async def sockets(self, namespace: str, rooms: tuple[str, ...], timeout: float) -> list[RemoteSocket]:
        """The live clients in any of the rooms.

        :raises NoAnswer: if a node that is there did not answer in time; it has what the others did.
        """
        fields, manager = {"namespace": namespace, "rooms": rooms}, self._manager
        gathering = Gathering()
        await manager.ready()
        await manager.peers.gather("sockets", fields, (), gathering, timeout=timeout)
        gathering.answers[manager.node] = self._sockets_here(fields, encoded=False)
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for node, sockets in gathering.answers.items():
            for one in sockets:  # one that moves from node to node may be at both
                if one["sid"] not in found or found[one["sid"]][1]["generation"] < one["generation"]:
                    found[one["sid"]] = (node, one)
        stored = await self._sessions(namespace, [sid for sid, (_, one) in found.items() if one["generation"]])
        sockets = [
            RemoteSocket(
                sid=sid,
                namespace=namespace,
                rooms=tuple(one["rooms"]),
                session=stored[sid] if one["generation"] else one["session"],
                node=node,
                recovered=one["recovered"],
            )
            for sid, (node, one) in found.items()
            if sid in stored or not one["generation"]  # else its session has just ended
        ]
        if missing := gathering.owing() | gathering.failed.keys():
            raise NoAnswer("fetch_sockets", "node", missing, sockets)
        return sockets

    async def unstored(self, namespace: str, rooms: tuple[str, ...], timeout: float) -> tuple[list[str], set[str]]:
        """The sids in any of the rooms that have no session in the tables, or none yet; and which nodes did not
        tell theirs in time."""
        fields = {"namespace": namespace, "rooms": rooms}
        gathering = Gathering()
        await self._manager.peers.gather("unstored", fields, (), gathering, timeout=timeout)
        sids = {sid for answer in gathering.answers.values() for sid in answer} | set(self._unstored_here(fields))
        return sorted(sids), gathering.owing() | gathering.failed.keys()

    async def _sessions(self, namespace: str, sids: list[str]) -> dict[str, Any]:
        if not sids:
            return {}
        rows = await self._manager.database.fetch("sessions_data", namespace, sids)
        return {row["sid"]: stdlib_json.loads(row["data"]) for row in rows}

    # -- what this node answers --------------------------------------------------------------------------
    def _sockets_here(self, message: Message, *, encoded: bool = True) -> list[dict[str, Any]]:
        return [
            {
                "sid": client.sid,
                "rooms": [client.sid, *client.memberships.current()],
                "generation": 0 if client.held is None else client.held.generation,
                "session": None if client.held else self._portable(client) if encoded else client.data,
                "recovered": client.recovered,
            }
            for client in self._members(message)
            if client.state is State.LIVE
        ]

    def _unstored_here(self, message: Message) -> list[str]:
        return [client.sid for client in self._members(message) if client.held is None]

    def _members(self, message: Message) -> Iterable[Client]:
        clients = self._manager.clients.by_sid.get(message["namespace"], {})
        rooms = set(message["rooms"])
        for client in clients.values():
            mine = (EVERYBODY, client.sid, *client.memberships.current())
            if not rooms.isdisjoint(mine):
                yield client

    def _portable(self, client: Client) -> Any:
        try:
            self._manager.encode_session(client.data)
        except NotSerializable:
            return None
        return client.data
