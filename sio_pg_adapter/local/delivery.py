"""From the log to the connections of this node: what each record means for the clients."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Callable

from sio_pg_adapter.counters import Counters
from sio_pg_adapter.log.names import EVERYBODY
from sio_pg_adapter.log.records import Kind, Outgoing, Record
from sio_pg_adapter.store.epochs import Epochs
from sio_pg_adapter.wire.frames import FrameMaker, Frames

from .client import Ack, Client, QueueLimit, State
from .clients import Clients
from .protocols import Endings
from .recent import Recent
from .rooms import Rooms
from .watch import Watch

logger = logging.getLogger("sio_pg_adapter")


class Delivery:
    """Applies records, and delivers events that are not stored.

    :param epochs: encodes offsets for the wire.
    :param endings: ends connections.
    :param limit: how much may wait for a live client.
    :param watch: the listeners for the events that are sent.
    :ivar on_intruder: called if a client enters the own room of a client of this node. It takes the record and the
                       room.
    """

    def __init__(
        self,
        clients: Clients,
        rooms: Rooms,
        frames: FrameMaker,
        epochs: Epochs,
        endings: Endings,
        limit: QueueLimit,
        counters: Counters,
        watch: Watch,
    ) -> None:
        self._clients = clients
        self._rooms = rooms
        self._frames = frames
        self._epochs = epochs
        self._endings = endings
        self._limit = limit
        self._counters = counters
        self._watch = watch
        self.on_intruder: Callable[[Record, str], object] = lambda *_: None
        # Each node begins at a random number. If each sid began at 1, a late answer (of a former connection, or to
        # another node) could pass for the answer to a new question.
        self._ack_ids = itertools.count(secrets.randbelow(1 << 31) + 1)

    # -- the log ---------------------------------------------------------------------------------------
    def apply(self, record: Record) -> None:
        """Do what a record says to the clients of this node."""
        self._counters.applied += 1
        self._counters.spans.deliver(record, self._apply)

    def _apply(self, record: Record) -> None:
        if record.kind in (Kind.ENTER, Kind.MEMBERS_ENTER):
            self._guard_sid_rooms(record)
        if record.kind is Kind.EVENT:
            self._event(record)
        elif record.kind is Kind.CLOSE:
            self._close_room(record)
        elif record.kind is Kind.UNREADABLE:
            raise ValueError(f"it cannot be read: {record.data}")
        elif record.members:
            self._change_members(record)
        elif record.sid is not None:
            client = self._clients.current(record.sid, record.namespace)
            if client is not None:
                self._change(client, record)

    def _guard_sid_rooms(self, record: Record) -> None:
        """Have clients of another node leave the own room of a client of this node.

        The store refuses it once the session of that sid is stored. Until then only this node knows the sid.
        """
        for room in record.rooms:
            if self._rooms.is_of_another(record.namespace, room, record.sid):
                who = record.sid or "members of a room"
                logger.warning("%s cannot enter the room of another client's sid", f"{who} [{record.namespace}]")
                self.on_intruder(record, room)

    def _event(self, record: Record) -> None:
        clients = self._clients.by_sid.get(record.namespace)
        if not clients:
            return
        slow: list[Client] = []
        broken: list[Client] = []
        sent: list[str] = []
        for sid in self._rooms.members(record.namespace, record.rooms, record.skip_rooms):
            client = clients.get(sid)
            if client is None or record.offset <= client.sent or sid in record.skip_sids:
                continue
            frames = record.frames.get(client.recoverable)
            if frames is None:
                frames = self._stored(record, recoverable=client.recoverable)
            if client.exceeds(self._limit):  # before this event: a single large one is not the client's fault
                slow.append(client)
            try:
                client.send_event(record.offset, frames)
            except Exception:  # a connection that breaks must not keep the event from the others
                logger.exception(
                    "an event could not be sent: %s is disconnected, and recovers from the log", client.label
                )
                broken.append(client)
                continue
            sent.append(sid)
        self._counters.stored += len(sent)
        self._note_sent(record, sent)
        for client in broken:  # before the next record, so that none of the later ones is sent
            self._endings.broken(client)
        for client in slow:
            self._too_slow(client)

    def _too_slow(self, client: Client) -> None:
        if not client.cut():
            return  # it is being cut already. This is called for each further record of this tick
        self._counters.cut += 1
        logger.warning(
            "a client was disconnected: more than max_queued_packets or max_queued_bytes waited for %s", client.label
        )
        self._endings.slow(client)

    def _stored(self, record: Record, *, recoverable: bool) -> Frames:
        """Return a record's frames, with its offset for clients that keep offsets. Both forms are made once."""
        frames: Frames | None = record.frames.get(recoverable)
        if frames is None:
            offset = self._epochs.encode(record.offset, record.namespace) if recoverable else None
            frames = record.frames[recoverable] = self._frames.stored(record, offset)
        return frames

    def _change(self, client: Client, record: Record) -> None:
        if record.kind is Kind.CLAIM:
            if client.held is not None and (record.generation or 0) > client.held.generation:
                self._endings.taken(client)
        elif record.kind is Kind.KICK:
            self._endings.kicked(client, record.data)
        else:
            client.memberships.apply(record)
            if client.state is State.LIVE:
                move = self._rooms.enter if record.kind is Kind.ENTER else self._rooms.leave
                move(client, record.rooms[0])

    def _close_room(self, record: Record) -> None:
        for client in self._clients.unsettled(record.namespace):
            client.memberships.apply(record)
        for sid in list(self._rooms.members(record.namespace, record.rooms)):
            if sid == record.rooms[0]:
                continue  # it stays in its own room, whose name the store does not know yet
            if member := self._clients.current(sid, record.namespace):
                self._rooms.leave(member, record.rooms[0])

    def _change_members(self, record: Record) -> None:
        of_namespace = self._clients.by_sid.get(record.namespace, {})
        live = [of_namespace.get(sid) for sid in self._rooms.members(record.namespace, record.members)]
        for client in (*live, *self._clients.unsettled(record.namespace)):
            if client is None or not client.memberships.concerns(record):
                continue
            if of_namespace.get(client.sid) is not client:
                continue  # it has claimed a session, whose rooms follow the records after the claim
            if record.kind is Kind.MEMBERS_KICK:
                self._endings.kicked(client, None)
                continue
            client.memberships.apply(record)
            if client.state is State.LIVE:
                move = self._rooms.enter if record.kind is Kind.MEMBERS_ENTER else self._rooms.leave
                for room in record.rooms:
                    if room != client.sid:
                        move(client, room)

    # -- from replay to live -----------------------------------------------------------------------------
    def replay(self, client: Client, record: Record) -> None:
        """Send a client an event that it missed while it was away or its connect was decided."""
        client.send_missed(record.offset, self._stored(record, recoverable=client.recoverable))
        self._counters.sent_from_log(recovered=client.recovered)
        self._note_sent(record, [client.sid])

    def catch_up(self, client: Client, recent: Recent, cursor: int) -> None:
        """Send a client the recent events it is due, and let it go live, in one tick."""
        rooms = (EVERYBODY, client.sid, *client.memberships.rooms)
        for record in recent.events(client.namespace, rooms, client.sent):
            if client.memberships.due(record):
                self.replay(client, record)
        client.skip_to(cursor)
        self._rooms.go_live(client)

    # -- events that are not stored ------------------------------------------------------------------------
    def unstored(self, outgoing: Outgoing, *, volatile: bool = False) -> None:
        """Send an event to the live clients of this node. Clients for which too much waits do not get it.

        :param volatile: clients for which anything waits do not get it either.
        """
        plain: Frames | None = None
        tailed: Frames | None = None
        recipients = [
            client
            for client in self._rooms.recipients(outgoing)
            if client.state is State.LIVE and not client.exceeds(self._limit) and (client.takes_more or not volatile)
        ]
        self._counters.unstored += len(recipients)
        self._note_sent(outgoing, [client.sid for client in recipients])
        for client in recipients:
            if client.recoverable:
                tailed = tailed or self._frames.unstored(outgoing)
                client.put(tailed)
            else:
                plain = plain or self._frames.event(outgoing)
                client.put(plain)

    def only_here(self, outgoing: Outgoing) -> None:
        """Send an event that no other node gets.

        If it is for the sid of a client that is not live yet, that client gets it when it goes live.
        """
        self.unstored(outgoing)
        for client in self._rooms.awaited(outgoing):
            frames = self._frames.unstored(outgoing) if client.recoverable else self._frames.event(outgoing)
            self._note_sent(outgoing, [client.sid])
            self.send_behind_replay(client, frames)

    def _note_sent(self, event: Record | Outgoing, sids: list[str]) -> None:
        if event.body is not None:
            self._watch.sent(event.namespace, sids, event.body, event.parts)

    def question(self, outgoing: Outgoing, ack: Callable[[Client], Ack]) -> list[tuple[Client, int]]:
        """Send an event that wants an acknowledgement to the clients of this node, behind their replays.

        :param ack: returns what to do with a client's acknowledgement.
        :returns: the clients that were asked, with the ids of their acknowledgements.
        """
        recipients = self._rooms.recipients(outgoing)
        recipients += [client for client in self._rooms.awaited(outgoing) if client not in recipients]
        asked = [(client, next(self._ack_ids)) for client in recipients]
        self._counters.unstored += len(asked)
        self._note_sent(outgoing, [client.sid for client in recipients])
        for client, ack_id in asked:
            client.expect_ack(ack_id, ack(client))
            self.send_behind_replay(client, self._frames.event(outgoing, ack_id=ack_id))
        return asked

    def send_behind_replay(self, client: Client, frames: Frames) -> None:
        """Send frames that are not in the log, behind a client's replay. If too much waits, it is disconnected."""
        too_much = client.exceeds_behind_replay(self._limit)  # before these frames, which alone are no reason
        client.send_behind_replay(frames)
        if too_much:
            self._too_slow(client)
