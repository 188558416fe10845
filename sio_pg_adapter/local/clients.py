"""The clients of this node: what each is, and how far it has been sent the log."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sio_pg_adapter.log.entries import Held
from sio_pg_adapter.log.verdict import Memberships
from sio_pg_adapter.wire.frames import Frames
from sio_pg_adapter.wire.transport import Wire

from .tick import Moment


class State(enum.Enum):
    """Where a client stands. Only a live one is in a room of the node, or counted among its participants."""

    CONNECTING = "its connect is being decided"
    REPLAYING = "it is connected, and being sent what it missed"
    LIVE = "it is sent each record as the cursor meets it"
    LEFT = "its connection has ended"


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """What may wait for a client that takes little: more, and it is cut, to recover from the log."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Who waits for a client's acknowledgement.

    :ivar answered: called with its arguments.
    :ivar gone: called if the connection ends without one.
    """

    answered: Callable[..., None]
    gone: Callable[[], None] | None = None


@dataclass(eq=False, slots=True)
class Client:
    """One client in one namespace.

    :ivar socket: its Engine.IO socket.
    :ivar recoverable: it has, or will have, a session: it is given offsets.
    :ivar held: its session, once that is stored.
    :ivar opening: set while the session is being stored.
    :ivar sent: the offset up to which it has been sent what it is due. What is not above it is never sent:
                replays read the log beyond the cursor, and the cursor comes by later.
    :ivar asked: the auth of its CONNECT packet, and ``answered_at``: when that was accepted, by the monotonic clock.
    :ivar after: the offset that a recovered client presented.
    :ivar claimed: the moment since when its claim is known to be the newest, and its memberships to be whole.
    :ivar data: session data that is not, or not any more, in the store.
    :ivar waiting: what must not overtake its replay.
    :ivar ended: its session has ended for good: kicked, or by its own DISCONNECT packet.
    :ivar closed: why its connection was closed while its connect was still being decided.
    :ivar cut: its connection is being closed because too much waited for it.
    :ivar gone: set when all that its end takes has been done.
    :ivar frames_put: how many frames were put on its socket's queue; ``frames_replayed``: by then, when it went
                      live; ``bytes_put``: bytes of live ones since they were last counted.
    """

    namespace: str
    sid: str
    eio_sid: str
    socket: Any
    memberships: Memberships
    sent: int
    recoverable: bool = False
    recovered: bool = False
    asked: Any = None
    answered_at: float = 0.0
    after: int = 0
    claimed: Moment | None = None
    held: Held | None = None
    opening: asyncio.Future[None] | None = None
    state: State = State.CONNECTING
    data: Any = field(default_factory=dict)
    waiting: list[Frames] = field(default_factory=list)
    acks: dict[int, Ack] = field(default_factory=dict)
    ended: bool = False
    closed: str | None = None
    accepted: bool = False
    cut: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    frames_put: int = 0
    frames_replayed: int = 0
    bytes_put: int = 0

    @property
    def connected(self) -> bool:
        return self.state in (State.REPLAYING, State.LIVE)

    def put(self, frames: Frames) -> None:
        """Write frames to its socket, or queue them there, as one piece.

        Not through the socket's own ``send``: that may find that the client timed out, and run the
        application's disconnect handler right here.
        """
        socket = self.socket
        if socket.closed or socket.closing:
            return
        wire: Wire | None = getattr(socket, "sio_pg_wire", None)
        if wire is not None and wire.write(frames):
            return
        for frame in frames:
            socket.queue.put_nowait(frame)
            self.frames_put += 1
            self.bytes_put += len(frame.data)

    def over(self, limit: QueueLimit) -> bool:
        """Does it take so little that too much waits for it? What a replay sent does not count."""
        queue = self.socket.queue
        if queue.empty():
            return False
        live = self.frames_put - max(self.frames_replayed, self.frames_put - queue.qsize())
        if live > limit.packets:
            return True
        if self.bytes_put > limit.bytes:  # since the last count: what was sent meanwhile is not known, so count
            waiting = list(queue._queue)[-live:] if live > 0 else []
            sizes = [len(frame.data or "") for frame in waiting if frame is not None]
            self.bytes_put = sum(sizes) - max(sizes, default=0)  # one that is large is no fault of its
        return self.bytes_put > limit.bytes

    def begin_live(self) -> None:
        """From here on what waits for it counts."""
        self.frames_replayed, self.bytes_put = self.frames_put, 0

    def put_behind_replay(self, frames: Frames) -> None:
        """Queue frames now if the client is live, else when it is."""
        if self.state is State.LIVE:
            self.put(frames)
        elif self.state is not State.LEFT:
            self.waiting.append(frames)


class Clients:
    """The clients of this node, by namespace and sid, and by connection."""

    def __init__(self) -> None:
        self.by_sid: dict[str, dict[str, Client]] = {}
        self.by_socket: dict[str, dict[str, Client]] = {}
        self.unsettled: dict[str, set[Client]] = {}
        # Not from 1 for each: a late answer to the former connection of a sid must not answer a new question.
        self.ack_ids = itertools.count(random.randrange(1, 1 << 31))  # noqa: S311 - not a secret

    def __iter__(self) -> Iterator[Client]:
        return (client for of_namespace in self.by_sid.values() for client in of_namespace.values())

    def add(self, client: Client) -> None:
        self.by_sid.setdefault(client.namespace, {})[client.sid] = client
        self.by_socket.setdefault(client.eio_sid, {})[client.namespace] = client
        self.unsettled.setdefault(client.namespace, set()).add(client)

    def settle(self, client: Client) -> None:
        """It is live, or has left: it needs no history of its rooms any more."""
        _take(self.unsettled, client.namespace, client)

    def rename(self, client: Client, sid: str) -> None:
        """It is a sid that was here before; under that it is entered by :meth:`add`."""
        if self.by_sid.get(client.namespace, {}).get(client.sid) is client:
            _drop(self.by_sid, client.namespace, client.sid)
        client.sid = sid

    def remove(self, client: Client) -> None:
        """Forget a client, unless another one has taken its place."""
        if self.by_sid.get(client.namespace, {}).get(client.sid) is client:
            _drop(self.by_sid, client.namespace, client.sid)
        if self.by_socket.get(client.eio_sid, {}).get(client.namespace) is client:
            _drop(self.by_socket, client.eio_sid, client.namespace)
        self.settle(client)

    def get(self, sid: str, namespace: str) -> Client | None:
        """The client of that sid; in a handler of its own, the client that the handler is about."""
        handled = handling.get()
        if handled is not None and handled.sid == sid and handled.namespace == namespace:
            return handled
        return self.by_sid.get(namespace, {}).get(sid)

    def of_socket(self, eio_sid: str, namespace: str) -> Client | None:
        return self.by_socket.get(eio_sid, {}).get(namespace)


# Whose connect or disconnect handler runs: in it, the sid means the connection that it is about, even when
# another one has already taken the sid over.
handling: contextvars.ContextVar[Client | None] = contextvars.ContextVar("sio_pg_handling", default=None)


def _take(of: dict[str, set[Client]], key: str, client: Client) -> None:
    if key in of:
        of[key].discard(client)
        if not of[key]:
            del of[key]


def _drop(of: dict[str, dict[str, Client]], key: str, name: str) -> None:
    del of[key][name]
    if not of[key]:
        del of[key]
