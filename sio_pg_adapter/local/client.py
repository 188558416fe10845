"""One client in one namespace: a state machine with a verb for each transition.

::

    state                  verb            becomes      what has happened
    CONNECTING             offer_session   CONNECTING   it gets a session, and offsets
    CONNECTING             begin_opening   CONNECTING   its new session is being stored
    any                    opened          the same     its new session is stored, or that failed
    CONNECTING             resume          CONNECTING   its claim of an earlier session was granted
    CONNECTING             confirm_claim   CONNECTING   the cursor met the claim in this tick
    CONNECTING             follow          CONNECTING   its rooms are those of the claimed session
    CONNECTING             present         CONNECTING   it proved up to where it received a session that is over
    CONNECTING             present_lost    CONNECTING   it presented an offset that this log does not have
    CONNECTING             enter_since     CONNECTING   it is in a room from an earlier position on
    any                    leave_since     the same     it left a room before the events since a position were sent
    CONNECTING             answered        CONNECTING   its CONNECT is answered
    CONNECTING, REPLAYING  begin_replay    REPLAYING    it is sent what it missed
    CONNECTING, REPLAYING  go_live         LIVE         each record reaches it as the cursor meets it
    any                    accept          the same     its handler, or always_connect, accepted it
    any                    lose_session    the same     its session ended, because what it missed is lost
    any                    end_session     the same     its session is over for good
    any                    close           the same     its connection is closed, for a reason
    any                    cut             the same     it is too slow, and its connection is being closed
    any                    begin_end       the same     the work of its end begins. True the first time
    any                    depart          LEFT         it is taken out of the node's lists. Safe to call twice
    any                    finish          the same     the work of its end is done

In any other state a verb raises :class:`InvalidTransition`, which is an error of this package. Code outside of this
file asks a client, and never assigns. The file is long because the table and its verbs are read together.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.wire.frames import Frames
from sio_pg_adapter.wire.transport import Connection

from .tick import Tick

_NOTHING: Mapping[str, tuple[int, str]] = MappingProxyType({})


class State(enum.Enum):
    """Where a client stands. Only a live one is in a room of the node, and counts among its participants."""

    CONNECTING = "its connect is being decided"
    REPLAYING = "it is connected, and is sent what it missed"
    LIVE = "it is sent each record as the cursor meets it"
    LEFT = "its connection has ended"


class InvalidTransition(Exception):
    """A verb was used in a state that does not allow it."""


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """How much may wait for a slow client. One over the limit is disconnected, and recovers from the log."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Ack:
    """What to do with the acknowledgement of a client.

    :ivar answered: called with its arguments.
    :ivar gone: called if the connection ends without one.
    """

    answered: Callable[..., None]
    gone: Callable[[], None] | None = None


@dataclass(eq=False, slots=True)
class Client:
    """One client in one namespace. See the module for its states.

    :ivar connection: its Engine.IO connection, shared with the clients of its other namespaces.
    :ivar memberships: its rooms over the log.
    :ivar sent: the offset up to which it has been sent what it is due. Nothing at or below it is sent any more. A
                replay may read beyond the cursor, which passes the same records later.
    :ivar presented: the data of its CONNECT packet.
    :ivar connected_at: when that came, as ``time.time()`` returns it.
    :ivar proved: the offset of the last event that it received in a former session. ``None`` after a recovery.
    :ivar lost: it has received events up to an offset that this log does not have.
    :ivar since: the rooms that it entered from a position, with the offset and the key of its epoch in hexadecimal.
    :ivar recoverable: it has a session, or will have one, and is given offsets.
    :ivar recovered: its connection continues an earlier session.
    :ivar after: the offset that a recovered client presented.
    :ivar claimed: the tick in which its claim was the newest that the cursor had met.
    :ivar held: its session, once that is stored.
    :ivar data: its session data as this node last knew it. Once it has a session, the data in the store counts.
    :ivar accepted: the application accepted it.
    :ivar ended: its session is over for good.
    :ivar closed: why its connection was closed.
    """

    namespace: str
    sid: str
    connection: Connection
    memberships: Memberships
    sent: int
    presented: Any = None
    connected_at: float = field(default_factory=time.time)
    proved: int | None = None
    lost: bool = False
    since: Mapping[str, tuple[int, str]] = field(default_factory=lambda: _NOTHING)
    recoverable: bool = False
    recovered: bool = False
    after: int = 0
    claimed: Tick | None = None
    held: Held | None = None
    state: State = State.CONNECTING
    data: Any = field(default_factory=dict)
    accepted: bool = False
    ended: bool = False
    closed: str | None = None
    acks: dict[int, Ack] | None = None  # made with the first one
    _gone: asyncio.Event | None = None
    _is_finished: bool = False
    _opening: asyncio.Future[None] | None = None
    _is_cut: bool = False
    _was_sent_missed: bool = False
    _is_ending: bool = False
    _answered_at: float = 0.0
    _waiting: list[Frames] = field(default_factory=list)
    _bytes_waiting: int = 0
    _filling: Tick | None = None
    _frames_put: int = 0
    _frames_replayed: int = 0
    _bytes_put: int = 0

    # -- what others ask ---------------------------------------------------------------------------------
    @property
    def eio_sid(self) -> str:
        sid: str = self.connection.socket.sid
        return sid

    @property
    def label(self) -> str:
        """Its sid and namespace, for log lines. Its ``repr`` has what it presented, which is secret."""
        return f"{self.sid} [{self.namespace}]"

    @property
    def connected(self) -> bool:
        return self.state in (State.REPLAYING, State.LIVE)

    @property
    def lasts(self) -> bool:
        """Whether its connect may go on: it is neither closed nor kicked."""
        return not (self.closed or self.ended or self.state is State.LEFT) and self.connection.is_open

    def answered_within(self, seconds: float) -> bool:
        """Whether its CONNECT was answered no longer ago than that."""
        return time.monotonic() - self._answered_at < seconds

    def exceeds(self, limit: QueueLimit) -> bool:
        """Whether too much waits for it. What a replay sent does not count."""
        queue = self.connection.socket.queue
        if queue.empty():
            return False
        live = self._frames_put - max(self._frames_replayed, self._frames_put - queue.qsize())
        if live > limit.packets:
            return True
        if self._bytes_put > limit.bytes:  # some of it may be sent by now, so only waiting frames are counted
            sizes = [len(frame.data or "") for frame in queue.waiting()[-live:] if frame is not None]
            self._bytes_put = sum(sizes) - max(sizes, default=0)  # a single large frame is not the client's fault
        return self._bytes_put > limit.bytes

    @property
    def breaks_off(self) -> bool:
        """Whether its connection, which ends now, shows that it may not get past an event that it missed.

        It does not if a ping is unanswered, or if the client was too slow. Then it may have received nothing.
        """
        may_have_received = self.connection.socket.last_ping is None and not self._is_cut
        return self.recovered and self._was_sent_missed and may_have_received

    @property
    def takes_more(self) -> bool:
        """Whether nothing waits for it but what was sent in this tick."""
        if not self.connection.socket.queue.empty():
            return self._filling is not None and self._filling.lasts
        return self.connection.wire is None or self.connection.wire.drains

    def exceeds_behind_replay(self, limit: QueueLimit) -> bool:
        """Whether too much waits for it that no replay brings again, such as acknowledgements."""
        if self.state is State.LIVE:
            return self.exceeds(limit)
        return len(self._waiting) > limit.packets or self._bytes_waiting > limit.bytes

    @property
    def is_answered(self) -> bool:
        """Whether its CONNECT was answered."""
        return self._answered_at > 0

    async def opened_or_failed(self) -> None:
        """Wait while its new session is being stored."""
        if self._opening is not None:
            await asyncio.wait((self._opening,))

    @property
    def is_opening(self) -> bool:
        return self._opening is not None

    # -- connecting --------------------------------------------------------------------------------------
    def offer_session(self) -> None:
        self._require(State.CONNECTING)
        self.recoverable = True

    def begin_opening(self) -> None:
        self._require(State.CONNECTING)
        self._opening = asyncio.get_running_loop().create_future()

    def opened(self, held: Held | None) -> None:
        """Its session is stored, or the try to store it has failed (``None``)."""
        if self._opening is None:
            raise InvalidTransition("opened without begin_opening")
        self._opening.set_result(None)
        self._opening = None
        self.held = held

    def resume(self, held: Held, *, after: int, data: Any) -> None:
        """Continue an earlier session above the offset ``after``."""
        self._require(State.CONNECTING)
        self.held = held
        self.after = self.sent = after
        self.recovered = True
        if self.closed is None:  # a DISCONNECT of the client closes it, and ends this session, too
            self.ended = False  # a kick of the sid that it was admitted with did not concern this session
        self.data = data

    def confirm_claim(self) -> None:
        """The cursor has passed the claim. What is known of the session holds for this tick."""
        self._require(State.CONNECTING)
        self.claimed = Tick()

    def follow(self, memberships: Memberships) -> None:
        self._require(State.CONNECTING)
        self.memberships = memberships

    def present(self, offset: int) -> None:
        """It has received all that it was due up to an offset, in a session that is over."""
        self._require(State.CONNECTING)
        self.proved = offset

    def present_lost(self) -> None:
        """It has received events up to an offset that this log does not have, or has lost since."""
        self._require(State.CONNECTING)
        self.lost = True

    def enter_since(self, room: str, offset: int, key: str) -> None:
        """It is in a room from an offset on, and is due the events of the room above that offset."""
        self._require(State.CONNECTING)
        self.memberships.enter_since(room, offset)
        self.since = {**self.since, room: (offset, key)}
        self.sent = min(self.sent, offset)

    def leave_since(self, room: str) -> None:
        """It leaves a room that it entered from a position, before its replay. It is sent no events of the room."""
        if room in self.since:
            offset, _ = self.since[room]
            self.since = {name: entered for name, entered in self.since.items() if name != room}
            self.memberships.leave(room, offset + 1)

    def accept(self) -> None:
        """It is accepted. Also if its connection ended while its handler ran: then its disconnect handler runs."""
        self.accepted = True

    def answered(self) -> None:
        """Its CONNECT was answered."""
        self._require(State.CONNECTING)
        self._answered_at = time.monotonic()

    def begin_replay(self) -> None:
        self._require(State.CONNECTING, State.REPLAYING)
        self.state = State.REPLAYING

    def go_live(self) -> list[str]:
        """Send what waited for the end of the replay. Return the rooms it is in."""
        self._require(State.CONNECTING, State.REPLAYING)
        self.state = State.LIVE
        for frames in self._waiting:
            self.put(frames)
        self._waiting.clear()
        self._frames_replayed, self._bytes_put = self._frames_put, 0  # from here on what waits for it counts
        return self.memberships.forget_past()  # the store has the rooms it was in earlier

    # -- sending -----------------------------------------------------------------------------------------
    def put(self, frames: Frames) -> None:
        """Write frames to its connection, or queue them there, as one piece.

        It does not use the ``send`` of the Engine.IO socket. If that finds that the client timed out, it runs the
        application's disconnect handler in the middle of a broadcast.
        """
        connection = self.connection
        socket = connection.socket
        if socket.closed or socket.closing or (connection.wire is not None and connection.wire.write(frames)):
            return
        if socket.queue.empty():
            self._filling = Tick()
        for frame in frames:
            socket.queue.put_nowait(frame)
            self._frames_put += 1
            self._bytes_put += len(frame.data)

    def send_event(self, offset: int, frames: Frames) -> None:
        """Send a stored event. It is not sent again."""
        self.sent = offset
        self.put(frames)

    def send_missed(self, offset: int, frames: Frames) -> None:
        """Send a stored event that it missed."""
        self._was_sent_missed = True
        self.send_event(offset, frames)

    def send_behind_replay(self, frames: Frames) -> None:
        """Send frames now if it is live, else when it goes live."""
        if self.state is State.LIVE:
            self.put(frames)
        elif self.state is not State.LEFT:
            self._waiting.append(frames)
            self._bytes_waiting += sum(len(frame.data) for frame in frames)

    def skip_to(self, offset: int) -> None:
        """It is due nothing more up to the offset."""
        self.sent = max(self.sent, offset)

    def save(self, data: Any) -> None:
        self.data = data

    def expect_ack(self, ack_id: int, ack: Ack) -> None:
        self.acks = self.acks or {}
        self.acks[ack_id] = ack

    def take_ack(self, ack_id: int) -> Ack | None:
        """Return who waits for an acknowledgement. Nobody waits for it any more."""
        return self.acks.pop(ack_id, None) if self.acks else None

    # -- ending ------------------------------------------------------------------------------------------
    def end_session(self, *, data: Any = None, deleted: bool = False) -> None:
        """Its session is over for good.

        :param data: its last session data, if it is known.
        :param deleted: whether the session is deleted already.
        """
        self.ended = True
        if data is not None:
            self.data = data
        if deleted:
            self.held = None

    def lose_session(self) -> None:
        """What it missed is lost, and its session has ended. Its connection may have ended meanwhile."""
        self.held = None

    def close(self, reason: str) -> None:
        """Its connection is closed. The latest reason counts."""
        self.closed = reason

    def cut(self) -> bool:
        """Mark it as too slow. Return whether that is new, and its connection still open."""
        if self._is_cut or not self.connection.is_open:
            return False
        self._is_cut = True
        return True

    def depart(self) -> None:
        """Take it out of the node. Acknowledgements are no longer waited for."""
        self.state = State.LEFT
        self._waiting.clear()
        self._bytes_waiting = 0
        acks, self.acks = self.acks or {}, None
        for ack in acks.values():
            if ack.gone is not None:
                ack.gone()

    def begin_end(self) -> bool:
        """Begin the work of its end. Return whether that is new."""
        begun, self._is_ending = self._is_ending, True
        return not begun

    @property
    def gone(self) -> asyncio.Event:
        """It is set when the work of its end is done. Made when somebody asks: an event takes 0.8 kB."""
        if self._gone is None:
            self._gone = asyncio.Event()
            if self._is_finished:
                self._gone.set()
        return self._gone

    def finish(self) -> None:
        self._is_finished = True
        if self._gone is not None:
            self._gone.set()

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise InvalidTransition(f"not allowed for a client that is {self.state.name}")
