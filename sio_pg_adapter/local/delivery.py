"""From the log to the sockets of this node: what each record means for the clients here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from socketio.packet import Packet

from sio_pg_adapter.log.records import EVERYBODY, Kind, OffsetCodec, Record
from sio_pg_adapter.wire.frames import Frames, event_frames, stored_frames, unstored_tail

from .clients import Ack, Client, Clients, QueueLimit, State

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

logger = logging.getLogger("sio_pg_adapter")


class Delivery:
    """Applies records, and delivers events that are not stored.

    :param manager: whose rooms hold the live clients, as upstream keeps them.
    :param codec: tells how offsets look on the wire.
    :param on_taken: called with a client whose session was claimed by another connection.
    :param on_kicked: called with a client that was disconnected by the server, and its last session data.
    :param on_slow: called with a live client whose queue is over the limit.
    """

    def __init__(
        self,
        manager: AsyncPostgresManager,
        codec: Callable[[], OffsetCodec],
        on_taken: Callable[[Client], None],
        on_kicked: Callable[[Client, str | None], None],
        on_slow: Callable[[Client], None],
        limit: QueueLimit,
    ) -> None:
        self._manager = manager
        self._clients: Clients = manager.clients
        self._codec = codec
        self._on_taken = on_taken
        self._on_kicked = on_kicked
        self._on_slow = on_slow
        self._limit = limit

    @property
    def _packet_class(self) -> type[Packet]:
        packet_class: type[Packet] = self._manager.server.packet_class
        return packet_class

    # -- the log ---------------------------------------------------------------------------------------
    def apply(self, record: Record) -> None:
        """Do what a record says to the clients of this node; synchronous."""
        if record.kind is Kind.EVENT:
            self._event(record)
        elif record.kind is Kind.CLOSE:
            self._close(record)
        elif record.sid is not None:
            client = self._clients.by_sid.get(record.namespace, {}).get(record.sid)
            if client is not None:
                self._about(client, record)

    def _event(self, record: Record) -> None:
        clients = self._clients.by_sid.get(record.namespace)
        if not clients:
            return
        slow: list[Client] = []
        sent = 0
        for sid in self._members(record.namespace, record.rooms):
            client = clients.get(sid)
            if client is None or record.offset <= client.sent or sid in record.skip_sids:
                continue
            client.sent = record.offset
            frames = record.frames.get(client.recoverable)
            if frames is None:
                frames = self._frames(record, recoverable=client.recoverable)
            if client.over(self._limit):  # what waited already: one large packet on its own is no fault
                slow.append(client)
            try:
                client.put(frames)
            except Exception:  # one connection that breaks must not keep it from all that follow
                logger.exception("an event could not be put on a connection: it is cut, to recover from the log")
                slow.append(client)
            sent += 1
        self._manager.counters.stored += sent
        for client in slow:
            self._on_slow(client)

    def replay(self, client: Client, record: Record) -> None:
        """Send a client a record that it is due."""
        client.sent = record.offset
        client.put(self._frames(record, recoverable=client.recoverable))
        self._manager.counters.sent_from_log(recovered=client.recovered)

    def _frames(self, record: Record, *, recoverable: bool) -> Frames:
        """Those of a record, made once: with its offset for clients that keep it, else without."""
        frames: Frames | None = record.frames.get(recoverable)
        if frames is None:
            offset = self._codec().encode(record.offset, record.namespace) if recoverable else None
            frames = record.frames[recoverable] = stored_frames(record, self._packet_class, offset)
        return frames

    def _members(self, namespace: str, rooms: tuple[str, ...]) -> Iterator[str]:
        """The sids of live clients in any of the rooms, each once. No copy: nothing is awaited meanwhile."""
        of_namespace = self._manager.rooms.get(namespace)
        if not of_namespace:
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

    def _about(self, client: Client, record: Record) -> None:
        if record.kind is Kind.CLAIM:
            if client.held is not None and (record.generation or 0) > client.held.generation:
                self._on_taken(client)
        elif record.kind is Kind.KICK:
            self._on_kicked(client, record.body)
        else:
            client.memberships.apply(record)
            if client.state is State.LIVE:
                room = record.rooms[0]
                if record.kind is Kind.ENTER:
                    self._register(client, room)
                else:
                    self.unregister(client, room)

    def _close(self, record: Record) -> None:
        for client in self._clients.unsettled.get(record.namespace, ()):
            client.memberships.apply(record)
        for sid in list(self._members(record.namespace, record.rooms)):
            client = self._clients.by_sid[record.namespace][sid]
            self.unregister(client, record.rooms[0])

    # -- from replay to live -----------------------------------------------------------------------------
    def go_live(self, client: Client) -> None:
        """From here on each record reaches the client as the cursor meets it."""
        client.state = State.LIVE
        self._clients.settle(client)
        for frames in client.waiting:
            client.put(frames)
        client.waiting.clear()
        client.begin_live()
        rooms = client.memberships.current()
        # What it was a member of once is the store's to know.
        client.memberships.rooms = {room: client.memberships.rooms[room][-1:] for room in rooms}
        manager = self._manager
        manager.basic_enter_room(client.sid, client.namespace, None, eio_sid=client.eio_sid)
        manager.basic_enter_room(client.sid, client.namespace, client.sid, eio_sid=client.eio_sid)
        for room in rooms:
            self._register(client, room)

    def _register(self, client: Client, room: str) -> None:
        try:
            self._manager.basic_enter_room(client.sid, client.namespace, room, eio_sid=client.eio_sid)
        except ValueError:  # the room has the name of another client's sid: that one's alone
            logger.warning("a client cannot enter the room of another one's sid")

    def unregister(self, client: Client, room: str) -> None:
        """A live client has left a room: that it was in there once is the store's to know."""
        client.memberships.rooms.pop(room, None)
        self._manager.basic_leave_room(client.sid, client.namespace, room)

    # -- what is not stored --------------------------------------------------------------------------------
    def unstored(
        self, namespace: str, rooms: tuple[str, ...], skip_sids: tuple[str, ...], body: str, parts: tuple[bytes, ...]
    ) -> None:
        """Send an event to the live clients here, and forget it."""
        plain: Frames | None = None
        tailed: Frames | None = None
        recipients = [one for one in self.recipients(namespace, rooms, skip_sids) if one.state is State.LIVE]
        self._manager.counters.unstored += len(recipients)
        for client in recipients:
            if client.recoverable:
                if tailed is None:
                    tail = unstored_tail(body)
                    tailed = event_frames(self._packet_class, namespace, body, parts, tail=tail)
                client.put(tailed)
            else:
                if plain is None:
                    plain = event_frames(self._packet_class, namespace, body, parts)
                client.put(plain)

    def question(
        self,
        namespace: str,
        rooms: tuple[str, ...],
        skip_sids: tuple[str, ...],
        body: str,
        parts: tuple[bytes, ...],
        ack: Callable[[Client], Ack],
    ) -> list[tuple[Client, int]]:
        """Send an event that wants an acknowledgement to the clients here, behind their replays.

        :param ack: tells for each client who waits.
        :returns: who was asked, and the ids of the acknowledgements.
        """
        asked = [(client, next(self._clients.ack_ids)) for client in self.recipients(namespace, rooms, skip_sids)]
        self._manager.counters.unstored += len(asked)
        for client, ack_id in asked:
            client.acks[ack_id] = ack(client)
            client.put_behind_replay(event_frames(self._packet_class, namespace, body, parts, ack_id=ack_id))
        return asked

    def recipients(self, namespace: str, rooms: tuple[str, ...], skip_sids: tuple[str, ...]) -> list[Client]:
        """The connected clients here that are in any of the rooms."""
        clients = self._clients.by_sid.get(namespace, {})
        found = [clients[sid] for sid in self._members(namespace, rooms) if sid in clients]
        for client in self._clients.unsettled.get(namespace, ()):
            mine = {EVERYBODY, client.sid, *client.memberships.current()}
            if client.state is State.REPLAYING and not mine.isdisjoint(rooms):
                found.append(client)
        return [client for client in found if client.sid not in skip_sids]
