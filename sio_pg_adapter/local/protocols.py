"""What this package asks of python-socketio's client manager, and of the part that ends connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .client import Client


class RoomTable(Protocol):
    """The rooms of live clients, as python-socketio's client manager keeps them.

    :ivar rooms: Engine.IO sids by namespace, room and sid. The room ``None`` is everybody.
    """

    rooms: Mapping[str, Mapping[str | None, Mapping[str, str]]]

    def basic_enter_room(self, sid: str, namespace: str, room: str | None, eio_sid: str | None = None) -> None: ...

    def basic_leave_room(self, sid: str, namespace: str, room: str | None) -> None: ...


class Endings(Protocol):
    """Ends connections, for the cursor and the delivery. Only the last method awaits."""

    def taken(self, client: Client) -> None:
        """Another connection claimed the session of a client of this node."""

    def kicked(self, client: Client, data: str | None) -> None:
        """The server disconnected a client of this node. ``data`` is its last session data, as JSON."""

    def broken(self, client: Client) -> None:
        """An event could not be sent to a client of this node, so none of the later ones may be."""

    def slow(self, client: Client) -> None:
        """A client reads more slowly than it is sent."""

    async def say_goodbye(self) -> None:
        """Close all connections before the node stops, so that their clients come back on another node."""
