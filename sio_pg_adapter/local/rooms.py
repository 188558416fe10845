"""Rooms entered and left: by records of the log where a client has a session, in memory where it has none."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from sio_pg_adapter.errors import ConfigurationError, NoAnswer
from sio_pg_adapter.log.entries import Entry, Members, Written
from sio_pg_adapter.log.records import EVERYBODY, Kind, namespace_name, room_name, text_name, text_names

from .clients import Client, State, handling

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

UNSTORED_WAIT = 5.0
"""Seconds that a move of a room's members waits for what other nodes have of them that is in no table."""


class Moves:
    """Moves clients of any node, and sessions that are away, in and out of rooms.

    :param manager: whose log the moves go to, and whose rooms hold the live clients.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        self._leaving: Counter[tuple[str, str]] = Counter()

    async def enter(self, sid: str, namespace: str, room: str) -> None:
        """Add a sid to a room; in effect on return."""
        room, sid, namespace = room_name(room), text_name(sid, "sid"), namespace_name(namespace)
        if room != sid and self._manager.is_sid_room(namespace, room):
            raise ValueError("cannot enter a sid room")
        await self._move(Kind.ENTER, sid, namespace, room)

    async def leave(self, sid: str, namespace: str, room: str) -> None:
        """Remove a sid from a room; in effect on return."""
        await self._move(Kind.LEAVE, text_name(sid, "sid"), namespace_name(namespace), room_name(room))

    async def close(self, room: str, namespace: str | None) -> None:
        """Remove everybody from a room; in effect on return."""
        room, namespace = room_name(room), namespace_name(namespace)
        if self._manager.is_sid_room(namespace, room):
            raise ValueError("cannot close a sid room")
        await self._manager.append(Entry(Kind.CLOSE, namespace, (room,)))

    async def members(
        self, kind: Kind, room: Any, namespace: str | None, rooms: Any = None, skip_sid: Any = None
    ) -> None:
        """Let all who are in a room, of any node or away, enter or leave others, or kick them; in effect on return.

        :param room: whose members, several in a list; ``None``: everybody in the namespace.
        :param rooms: what they enter or leave; of a kick none.
        """
        manager = self._manager
        namespace = namespace_name(namespace)
        of = text_names(room, "room") or (EVERYBODY,)
        targets = (EVERYBODY,) if kind is Kind.KICK else text_names(rooms, "rooms")
        skip = text_names(skip_sid, "skip_sid")
        if not targets:
            raise ConfigurationError("rooms takes one name or several: none is given")
        if kind is Kind.ENTER and any(manager.is_sid_room(namespace, target) for target in targets):
            raise ValueError("cannot enter a sid room")  # of a client here that is in no table, perhaps
        await manager.ready()
        unstored, silent = await manager.census.unstored(namespace, of, UNSTORED_WAIT)
        await manager.append(Members(kind, namespace, of, targets, tuple(unstored), skip))
        if silent:
            raise NoAnswer("clients without a stored session may be left out", "node", silent, None)

    async def _move(self, kind: Kind, sid: str, namespace: str, room: str) -> None:
        if room == sid:
            return  # its own room: it is in there as long as it lives
        await self._manager.ready()
        client = self._manager.clients.get(sid, namespace)
        args: dict[str, Any] = {}
        if client is not None:
            if client.opening is not None:
                await asyncio.wait((client.opening,))
            if client.state is State.LEFT and handling.get() is client:
                return  # in its disconnect handler: its rooms were taken down when that began
            if client.held is None:
                self._move_in_memory(kind, client, room)
                return
            args["generation"] = client.held.generation
            own_handler = handling.get() is client and client.state is State.CONNECTING
            if kind is Kind.ENTER and own_handler and self._is_in(client, room):
                return
            if kind is Kind.LEAVE and own_handler:
                args["as_of"] = client.after
        await self._manager.append(Entry(kind, namespace, (room,), sid=sid, args=args))

    def note_leaving(self, entry: Entry | Members, appended: asyncio.Future[Written]) -> None:
        """Clients of this node may be about to leave a room: until that has taken effect here, or has failed."""
        if self._manager.write_only or entry.kind not in (Kind.LEAVE, Kind.CLOSE):
            return
        left = entry.targets if isinstance(entry, Members) else entry.rooms
        rooms, leaving = [(entry.namespace, room) for room in left], self._leaving

        def over() -> None:
            leaving.subtract(rooms)
            for room in rooms:
                if not leaving[room]:
                    del leaving[room]

        def stored(appended: asyncio.Future[Written]) -> None:
            failed = appended.cancelled() or appended.exception() is not None
            self._manager.dispatcher.when(0 if failed else appended.result().offset, over)

        leaving.update(rooms)
        appended.add_done_callback(stored)

    def _is_in(self, client: Client, room: str) -> bool:
        """Is it certain, without the store, that a client that has just been claimed is in a room? Most connect
        handlers enter the same ones on recovery. Only in the claim's own moment, whose rooms those are; and not where
        this node is about to take it out, since what is called first comes first."""
        now = client.claimed is not None and client.claimed.lasts
        return now and room in client.memberships.current() and not self._leaving[client.namespace, room]

    def _move_in_memory(self, kind: Kind, client: Client, room: str) -> None:
        """Of a client that has no session, or none yet: its rooms are stored with it."""
        manager = self._manager
        if kind is Kind.ENTER:
            client.memberships.enter(room, manager.dispatcher.cursor)
            if client.state is State.LIVE:
                manager.basic_enter_room(client.sid, client.namespace, room, eio_sid=client.eio_sid)
        else:
            client.memberships.leave(room, manager.dispatcher.cursor + 1)
            if client.state is State.LIVE:
                manager.delivery.unregister(client, room)
