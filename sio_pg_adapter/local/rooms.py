"""The rooms of this node's live clients, and who is in them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from sio_pg_adapter.log.records import Outgoing

from .client import Client, State
from .clients import Clients
from .protocols import RoomTable

logger = logging.getLogger("sio_pg_adapter")


class Rooms:
    """Keeps the rooms of live clients in step with their memberships.

    :param table: where python-socketio's client manager keeps the rooms.
    """

    def __init__(self, clients: Clients, table: RoomTable) -> None:
        self._clients = clients
        self._table = table

    def enter(self, client: Client, room: str) -> None:
        """Enter a live client in a room, unless that is another client's own."""
        if self.is_of_another(client.namespace, room, client.sid):
            logger.warning("%s cannot enter the room of another client's sid", client.label)
        else:
            self._table.basic_enter_room(client.sid, client.namespace, room, eio_sid=client.eio_sid)

    def leave(self, client: Client, room: str) -> None:
        """Take a live client out of a room. Only the store still knows that it was there."""
        client.memberships.forget(room)
        self._table.basic_leave_room(client.sid, client.namespace, room)

    def go_live(self, client: Client) -> None:
        """From here on each record reaches the client as the cursor meets it."""
        rooms = client.go_live()
        self._clients.settle(client)
        for own in (None, client.sid):
            self._table.basic_enter_room(client.sid, client.namespace, own, eio_sid=client.eio_sid)
        for room in rooms:
            self.enter(client, room)

    def depart(self, client: Client) -> None:
        """Take a client out of this node: from here on it counts as away. Its memberships stay with it."""
        if client.state is State.LIVE:
            for room in (*client.memberships.current(), client.sid, None):
                if client.sid in self._table.rooms.get(client.namespace, {}).get(room, ()):
                    self._table.basic_leave_room(client.sid, client.namespace, room)
        self._clients.remove(client)
        client.depart()

    def is_of_another(self, namespace: str, room: str, sid: str | None) -> bool:
        """Whether a room is the own room of a client of this node, and not of the one with this sid.

        This includes clients whose connect is being decided.
        """
        return room != sid and self._clients.current(room, namespace) is not None

    def refuse_own_room(self, verb: str, namespace: str, *rooms: str, but: str | None = None) -> None:
        """Check rooms that are entered or closed. The database does not know all clients of this node.

        :param but: the sid that enters them.
        :raises ValueError: if a room is another client's own.
        """
        if any(self.is_of_another(namespace, room, but) for room in rooms):
            raise ValueError(f"cannot {verb} a sid room")

    def members(self, namespace: str, rooms: tuple[str, ...], skip_rooms: tuple[str, ...] = ()) -> Iterator[str]:
        """Yield the sids of live clients in any of the rooms and none of ``skip_rooms``, each once.

        Do not await between two of them: the table is not copied, and may change.
        """
        of_namespace = self._table.rooms.get(namespace)
        if not of_namespace:
            return
        if skip_rooms:
            skipped = [of_namespace[room] for room in skip_rooms if room in of_namespace]
            for sid in self.members(namespace, rooms):
                if not any(sid in members for members in skipped):
                    yield sid
            return
        if len(rooms) == 1:
            yield from of_namespace.get(rooms[0] or None, ())
            return
        seen: set[str] = set()
        for room in rooms:
            for sid in of_namespace.get(room or None, ()):
                if sid not in seen:
                    seen.add(sid)
                    yield sid

    def recipients(self, outgoing: Outgoing) -> list[Client]:
        """Return the connected clients that an event is for, including those in a replay."""
        namespace = outgoing.namespace
        clients = self._clients.by_sid.get(namespace, {})
        recipients = [clients[sid] for sid in self.members(namespace, outgoing.rooms) if sid in clients]
        recipients += [
            client
            for client in self._clients.unsettled(namespace)
            if client.state is State.REPLAYING and belongs(client, outgoing.rooms)
        ]
        return [client for client in recipients if not skips(outgoing, client)]

    def awaited(self, outgoing: Outgoing) -> list[Client]:
        """Return the clients that are not live yet and whose sid an event is for.

        Most such events come from the connect handler of that client.
        """
        clients = [self._clients.current(room, outgoing.namespace) for room in outgoing.rooms]
        return [
            client
            for client in clients
            if client is not None
            and client.state in (State.CONNECTING, State.REPLAYING)
            and not skips(outgoing, client)
        ]

    def belonging(self, namespace: str, rooms: Iterable[str]) -> list[Client]:
        """Return the clients in any of the rooms, in whatever state."""
        wanted = set(rooms)
        return [client for client in self._clients.by_sid.get(namespace, {}).values() if belongs(client, wanted)]


def belongs(client: Client, rooms: Iterable[str]) -> bool:
    """Whether a client is in any of the rooms."""
    return client.memberships.is_in(rooms)


def skips(outgoing: Outgoing, client: Client) -> bool:
    """Whether an event is kept from a client, by its sid or by a room that it is in now."""
    return client.sid in outgoing.skip_sids or (bool(outgoing.skip_rooms) and belongs(client, outgoing.skip_rooms))
