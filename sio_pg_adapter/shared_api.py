"""The methods that ``AsyncServer`` and ``AsyncPostgresManager`` have in common. They are about no single client.

They have the same parameters in both. A process that only emits has a manager and no server.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from .cluster.members import member_move
from .emitter import read_position
from .local.rooms import Rooms
from .log.names import namespace_name
from .log.records import Kind, StoredEvent
from .node import Node
from .rooms import change_members
from .store.database import Database


class Manager(Protocol):
    """The client manager, as these methods see it.

    :ivar live_rooms: the rooms of the live clients of this node.
    """

    database: Database
    live_rooms: Rooms

    async def started(self) -> Node: ...


class SharedMethods:
    """The methods that the server and its client manager have in common."""

    @property
    @abstractmethod
    def _manager(self) -> Manager:
        """The manager itself, or that of the server."""

    # -- the members of rooms --------------------------------------------------------------------------------
    async def sockets_join(
        self,
        room: Any,
        rooms: Any,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        skip_room: Any = None,
        connection: Any = None,
    ) -> None:
        """Let all members of a room enter others: clients of any node, and sessions that are away and recoverable.

        It takes effect at one place in the log, and has taken effect on return. Events emitted after it go to the new
        members, replayed ones included, and events emitted before it do not. It is one transaction that holds the
        log's lock: 5,000 members took 0.8 s on a busy machine, and all emits wait for it.

        :param room: the room whose members move, or several in a list. ``None``: everybody in the namespace.
        :param rooms: the room, or several in a list, that they enter.
        :param skip_sid: members that do not move.
        :param skip_room: a room, or several in a list, whose members do not move.
        :param connection: as for :meth:`enter_room`. The members are those at the commit.
        :raises ValueError: if one of ``rooms`` is a client's own. Nobody has moved then.
        :raises NoAnswer: if a node did not name in time its clients that are in no table, since they have no recovery
                          or are connecting. All others have moved.
        """
        await self._move_members(Kind.ENTER, namespace, room, rooms, skip_sid, skip_room, connection)

    async def sockets_leave(
        self,
        room: Any,
        rooms: Any,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        skip_room: Any = None,
        connection: Any = None,
    ) -> None:
        """Let all members of a room leave others, or that room itself. See :meth:`sockets_join`."""
        await self._move_members(Kind.LEAVE, namespace, room, rooms, skip_sid, skip_room, connection)

    async def disconnect_sockets(
        self,
        room: Any,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        skip_room: Any = None,
        connection: Any = None,
    ) -> None:
        """Disconnect all members of a room, and end their sessions for good: on any node, and sessions that are away.

        It takes effect as :meth:`sockets_join`. Disconnect handlers run after it.

        :param room: the room, or several in a list. ``None``: everybody in the namespace.
        :param skip_sid: members that stay.
        :param skip_room: a room, or several in a list, whose members stay.
        :param connection: as for :meth:`sockets_join`.
        :raises NoAnswer: as :meth:`sockets_join`.
        """
        await self._move_members(Kind.KICK, namespace, room, None, skip_sid, skip_room, connection)

    async def _move_members(
        self, kind: Kind, namespace: object, room: Any, rooms: Any, skip_sid: Any, skip_room: Any, connection: Any
    ) -> None:
        move = member_move(kind, namespace_name(namespace), room, rooms, skip_sid, skip_room)
        if connection is None:
            await (await self._manager.started()).members.move(move)
            return
        if kind is Kind.ENTER:
            self._manager.live_rooms.refuse_own_room("enter", move.namespace, *move.targets)
        await change_members(connection, move, self._manager.database.schema)

    # -- from server to server -------------------------------------------------------------------------------
    async def server_side_emit(self, event: str, *args: Any, namespace: str | None = None) -> None:
        """Send an event to all other nodes, and not to this one. It is not stored: only nodes that live now get it.

        :param namespace: the namespace whose handlers are called.
        :raises NotSerializable: before it is sent. It names the place of a value that has no JSON form.
        :raises StoreUnavailable: if it could not be sent.
        """
        name = namespace_name(namespace)
        await (await self._manager.started()).server_events.emit(name, event, args)

    # -- positions and history -------------------------------------------------------------------------------
    async def position(self, connection: Any = None, namespace: str | None = None) -> str:
        """Return the end of the log as a position, as a connection's snapshot sees it, or as it is now.

        Read it in the snapshot that reads the application's state, in one statement with ``sio_position()`` or in a
        transaction that is repeatable read. An event whose transaction the snapshot sees is then at or below it. All
        others are above it, and so are events of the transaction itself, which are not committed yet.

        :param connection: as in :meth:`emit`, also on a hot standby. Its errors pass through. A serialization failure
                           means that retention truncated the log in the meantime. Retry the transaction.
        :raises StoreUnavailable: if the database cannot be reached.
        """
        if connection is not None:
            return await read_position(connection, namespace, self._manager.database.schema)
        return await (await self._manager.started()).reader.position(namespace_name(namespace))

    async def history(
        self,
        room: str | None,
        namespace: str | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        """Return the events of a room that are stored, in the order of the log.

        They are all events that were emitted to the room, alone or together with other rooms. Events that
        ``skip_sid`` or ``skip_room`` kept from some clients are included. Events to everybody in the namespace belong
        to no room. ``None`` returns them. Volatile events are not stored. The option ``retention`` says how long the
        others are stored. An event that cannot be read is left out, and logged.

        Without ``since`` they are the last ``limit`` events. If there are fewer, the list begins where the log
        begins. With ``since`` they are the first ``limit`` events after it. The position of the last one is then the
        next ``since``.

        :param room: the name of one room. A client's sid is a room, too.
        :param since: a position, of :meth:`position`, ``enter_room`` or an event. Only events after it (exclusive).
        :param until: a position. Only events up to it (inclusive).
        :param limit: at most so many, from 1 to 10,000. Their bodies are read into memory.
        :raises PositionInvalid: if a position is malformed, forged, or of another namespace.
        :raises ConfigurationError: if ``limit`` is out of range.
        :raises PositionLost: if ``since`` is older than the oldest stored event, or was lost in a failover.
        :raises StoreUnavailable: if the database does not answer.
        """
        return await (await self._manager.started()).history.read(room, namespace, since, until, limit)
