"""Sids entering and leaving rooms: by records of the log, or in memory for this node's clients without a session."""

from __future__ import annotations

from typing import Any

from sio_pg_adapter.log.names import namespace_name, room_name, text_name
from sio_pg_adapter.log.records import Entry, Kind, MemberMove, Record

from .appender import Appender
from .client import Client, State
from .clients import Clients
from .cursor import Cursor
from .handling import handled
from .rooms import Rooms


class Moves:
    """Moves a client of any node, or a session that is away, in and out of rooms."""

    def __init__(self, clients: Clients, rooms: Rooms, cursor: Cursor, appender: Appender) -> None:
        self._clients = clients
        self._rooms = rooms
        self._cursor = cursor
        self._appender = appender

    async def enter(self, sid: str, namespace: str, room: str, *, member: bool = False) -> int | None:
        """Add a sid to a room. It has taken effect on return.

        Returns the offset above which it is in the room, ``None`` if its connection has ended.

        :param member: change nothing, and only return the offset at which the sid entered the room.
        :raises ValueError: if the room is another client's own.
        """
        room, sid, namespace = room_name(room), text_name(sid, "sid"), namespace_name(namespace)
        self._rooms.refuse_own_room("enter", namespace, room, but=sid)
        return await self._move(Kind.ENTER, sid, namespace, room, {"member": True} if member else {})

    async def leave(self, sid: str, namespace: str, room: str) -> None:
        """Remove a sid from a room. It has taken effect on return."""
        await self._move(Kind.LEAVE, text_name(sid, "sid"), namespace_name(namespace), room_name(room), {})

    async def expel(self, record: Record, sid: str) -> None:
        """Take all others out of the own room of a client.

        :param record: the record by which others have entered the room.
        :param sid: the client, and its room.
        """
        try:
            await self._appender.change(Entry(Kind.CLOSE, record.namespace, (sid,)))
        except ValueError:  # its session is stored by now, so nobody else can enter from here on
            intruder = () if record.sid is None else (record.sid,)
            move = MemberMove(Kind.LEAVE, record.namespace, (sid,), (sid,), unstored=intruder, skip_sids=(sid,))
            await self._appender.change(move)

    async def close(self, room: str, namespace: str | None) -> None:
        """Remove everybody from a room. It has taken effect on return.

        :raises ValueError: if the room is a client's own.
        """
        room, namespace = room_name(room), namespace_name(namespace)
        self._rooms.refuse_own_room("close", namespace, room)
        await self._appender.change(Entry(Kind.CLOSE, namespace, (room,)))

    async def _move(self, kind: Kind, sid: str, namespace: str, room: str, args: dict[str, Any]) -> int | None:
        """Return the offset of the move, or of the one that had already done the same."""
        client = self._clients.addressed(sid, namespace)
        if room == sid:  # a client is in its own room as long as it lives
            return None if client is None else client.memberships.entered(room)
        if client is not None:
            await client.opened_or_failed()
            if client.state is State.LEFT and handled() is client:
                return None  # in its disconnect handler: its rooms were taken down when that began
            if client.held is None:
                self._move_in_memory(kind, client, room)
                return client.memberships.entered(room)
            if handled() is client:  # elsewhere the sid means the connection that has the session now
                args["generation"] = client.held.generation
            own_handler = handled() is client and client.state is State.CONNECTING
            if kind is Kind.ENTER and own_handler and self._is_certainly_in(client, room):
                return client.memberships.entered(room)
            if kind is Kind.LEAVE and own_handler:
                args["as_of"] = client.after
        offset = await self._appender.change(Entry(kind, namespace, (room,), sid=sid, args=args))
        if offset == 0 and client is not None and client.memberships.entered(room) == 0:
            return 0  # it entered the room while the log was empty
        return offset or None

    def _is_certainly_in(self, client: Client, room: str) -> bool:
        """Whether a client that has just claimed its session is in a room, known without a query.

        Most connect handlers enter the same rooms on recovery, and need no query for it. The rooms came with the
        claim, so they are certain only in that tick. They are not certain if an earlier call on this node is about to
        take clients out of the room.
        """
        now = client.claimed is not None and client.claimed.lasts
        return now and room in client.memberships.current() and not self._appender.is_leaving(client.namespace, room)

    def _move_in_memory(self, kind: Kind, client: Client, room: str) -> None:
        """Move a client that has no session, or none yet. If it gets one, its rooms are stored with that."""
        live = client.state is State.LIVE
        if kind is Kind.ENTER:
            client.memberships.enter(room, self._cursor.offset)
            if live:
                self._rooms.enter(client, room)
        else:
            client.leave_since(room)
            client.memberships.leave(room, self._cursor.offset + 1)
            if live:
                self._rooms.leave(client, room)
