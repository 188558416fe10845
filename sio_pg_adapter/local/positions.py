"""Rooms that a client enters from a position on, while its connect is being decided."""

from __future__ import annotations

import contextlib

from sio_pg_adapter.errors import ConfigurationError, PositionLost, StoreUnavailable
from sio_pg_adapter.log.names import namespace_name, room_name, text_name
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.store.epochs import Epochs
from sio_pg_adapter.store.sessions import Sessions

from .client import Client, State
from .continuity import Continuity
from .cursor import CURSOR_WAIT, Cursor
from .handling import handled
from .moves import Moves
from .rooms import Rooms


class Positions:
    """Reads and writes positions for the clients of this node.

    :param limit: ``max_missed_packets``. ``None`` if recovery is off.
    """

    def __init__(
        self,
        cursor: Cursor,
        epochs: Epochs,
        continuity: Continuity,
        sessions: Sessions,
        rooms: Rooms,
        moves: Moves,
        limit: int | None,
    ) -> None:
        self._cursor = cursor
        self._epochs = epochs
        self._continuity = continuity
        self._sessions = sessions
        self._rooms = rooms
        self._moves = moves
        self._limit = limit

    async def of(self, offset: int, namespace: str) -> str:
        """Return the position of a record, by its offset."""
        if not self._epochs.knows(offset):
            await self._continuity.check()  # a new epoch has begun, and the cursor is behind
        return self._epochs.position(offset, namespace)

    async def enter(self, sid: str, namespace: str, room: str, position: object) -> int | None:
        """Add a client to a room from a position on.

        Returns the offset of the position. If the client is in the room already, it is the offset at which it
        entered. ``None`` if another connection has taken its session over.

        Its session is still to be stored, and nothing was sent to it. So its replay begins at the lowest of these
        positions. ``sio_open`` checks whether retention has deleted events in the meantime.

        :raises PositionInvalid: if the position is malformed, forged, or of another namespace.
        :raises ConfigurationError: if this is not the client's connect handler or middleware.
        :raises PositionLost: if not all events after it can be sent.
        :raises StoreUnavailable: if the database does not answer.
        """
        room, sid, namespace = room_name(room), text_name(sid, "sid"), namespace_name(namespace)
        client = self._connecting(sid, namespace)
        self._rooms.refuse_own_room("enter", namespace, room, but=sid)
        if client.state is State.LEFT:
            return None
        if client.recovered:
            return await self._stay(client, room, position)
        if (entered := client.memberships.entered(room)) is not None:
            return entered
        offset = await self._continuity.offset_of(position, namespace, argument="since")
        if client.lost and offset < self._epochs.codec.last_end:
            # It may have received some of the events after the position, and nobody knows which.
            raise PositionLost(
                "the position is older than a crash, restore or failover, which lost what the client has received "
                "since. Load the page again."
            )
        key = self._epochs.codec.epochs[offset >> EPOCH_BITS].key.hex()
        # Moves up to the position must be applied before the room is entered, because only later ones count.
        if not await self._cursor.passed(offset, CURSOR_WAIT):
            raise StoreUnavailable("this node is too far behind the log to enter a room from a position on")
        await self._check_stored(client, room, offset)
        self._connecting(sid, namespace)  # its handler may have returned without this task
        if (entered := client.memberships.entered(room)) is not None:
            return entered  # another task of its handler was faster
        client.enter_since(room, offset, key)
        return offset

    def _connecting(self, sid: str, namespace: str) -> Client:
        """Return the client whose connect handler or middleware is calling."""
        client = handled()
        if client is None or (client.sid, client.namespace) != (sid, namespace) or _has_ended(client):
            raise ConfigurationError(
                "since= works in the connect handler or a middleware, for the client that connects. Elsewhere leave "
                "since out, and read what came before with sio.history()."
            )
        if not client.recoverable or self._limit is None:
            raise ConfigurationError(
                "since= needs a client with a session. Switch on connection_state_recovery, and let accepts return "
                "True."
            )
        if client.state is State.REPLAYING or client.is_opening:
            raise ConfigurationError(
                "since= works before the client gets its answer. Leave always_connect out, and await enter_room() in "
                "the connect handler."
            )
        return client

    async def _stay(self, client: Client, room: str, position: object) -> int:
        """Return the offset at which a recovered client entered a room. Its replay begins at its own offset.

        In another room it could be due events below that offset. After another drop, nothing would show which of them
        it received.
        """
        with contextlib.suppress(PositionLost):  # it needs no position
            await self._continuity.offset_of(position, client.namespace, argument="since")
        offset = await self._moves.enter(client.sid, client.namespace, room, member=True)
        if offset is None:
            raise PositionLost(
                f"the client has recovered its session, which is not in room {room!r}. Load the page again."
            )
        return offset

    async def _check_stored(self, client: Client, room: str, offset: int) -> None:
        """Check that all events after the client's positions are stored, and that they are not too many."""
        assert self._limit is not None
        rooms = {room: offset for room, (offset, _) in client.since.items()} | {room: offset}
        missed, floor = await self._sessions.count_since(client.namespace, rooms, self._limit + 1)
        if offset < floor:
            raise PositionLost("events after the position are no longer stored. Load the page again.")
        if missed > self._limit:
            raise PositionLost(
                f"there are more than {self._limit} events after the position, which is max_missed_packets. Load the "
                "page again."
            )


def _has_ended(client: Client) -> bool:
    """Whether the caller is a disconnect handler."""
    return client.state in (State.LIVE, State.LEFT) and client.accepted
