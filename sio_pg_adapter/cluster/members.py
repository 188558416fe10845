"""Moves of all members of a room, on all nodes, including sessions that are away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sio_pg_adapter.errors import ConfigurationError, NoAnswer, StoreUnavailable
from sio_pg_adapter.local.appender import Appender
from sio_pg_adapter.local.rooms import Rooms
from sio_pg_adapter.log.names import EVERYBODY, text_names
from sio_pg_adapter.log.records import Kind, MemberMove
from sio_pg_adapter.rooms import move_values
from sio_pg_adapter.store.database import Database

from .sockets import Sockets

UNSTORED_WAIT = 5.0
"""How long a move waits for other nodes to name their clients that are in no table, in seconds."""

INVALID_PARAMETER_VALUE = "22023"
"""The SQLSTATE with which sio_change refuses to let others enter a client's own room."""


class Members:
    """Moves the members of rooms.

    :param asks: whether this node can ask the others. A process that only emits hears no answer.
    """

    def __init__(self, rooms: Rooms, appender: Appender, sockets: Sockets, database: Database, *, asks: bool) -> None:
        self._asks = asks
        self._rooms = rooms
        self._database = database
        self._appender = appender
        self._sockets = sockets

    async def move(self, move: MemberMove) -> None:
        """Let all members of some rooms enter or leave others, or kick them. It has taken effect on return.

        :raises ValueError: if one of the rooms is a client's own. Nobody has moved then.
        :raises NoAnswer: if a node did not name its clients that are in no table in time. All others have moved.
        """
        if not self._asks:
            await self._move_by_record(move)
            return
        if move.kind is Kind.ENTER:
            self._rooms.refuse_own_room("enter", move.namespace, *move.targets)
        unstored, silent = await self._sockets.unstored(move.namespace, move.rooms, move.skip_rooms, UNSTORED_WAIT)
        await self._appender.change(replace(move, unstored=tuple(unstored)))
        if silent:
            raise NoAnswer("clients without a stored session may be left out", "node", silent, None)

    async def _move_by_record(self, move: MemberMove) -> None:
        """Move the members as a transaction does, by one record, from which each node finds its clients.

        :raises ValueError: if one of the rooms to enter is a client's own.
        :raises StoreUnavailable: if the database did not answer. The move may be stored.
        """
        try:
            await self._database.fetch_value("change", *move_values(move))
        except StoreUnavailable as e:
            if getattr(e.__cause__, "sqlstate", None) == INVALID_PARAMETER_VALUE:
                raise ValueError("cannot enter a sid room") from e
            raise StoreUnavailable(f"moving the members of rooms: {e}", may_be_stored=True) from e


def member_move(
    kind: Kind, namespace: str, room: Any, rooms: Any = None, skip_sid: Any = None, skip_room: Any = None
) -> MemberMove:
    """Check the names of a move.

    :param room: whose members, several in a list. ``None``: everybody in the namespace.
    :param rooms: the rooms that they enter or leave. A kick has none.
    :raises ConfigurationError: if no room is named to enter or leave.
    """
    targets = (EVERYBODY,) if kind is Kind.KICK else text_names(rooms, "rooms")
    if not targets:
        raise ConfigurationError("rooms takes one name or several. None is given.")
    return MemberMove(
        kind,
        namespace,
        text_names(room, "room") or (EVERYBODY,),
        targets,
        skip_sids=text_names(skip_sid, "skip_sid"),
        skip_rooms=text_names(skip_room, "skip_room"),
    )
