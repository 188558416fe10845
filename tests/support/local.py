"""The local side of a node, made of this package's own objects: no database, no server and no network."""

from __future__ import annotations

from typing import Any

from socketio import AsyncManager
from socketio.packet import Packet

from sio_pg_adapter.counters import Counters
from sio_pg_adapter.local.client import Client, QueueLimit, State
from sio_pg_adapter.local.clients import Clients
from sio_pg_adapter.local.delivery import Delivery
from sio_pg_adapter.local.registry import Registry
from sio_pg_adapter.local.rooms import Rooms
from sio_pg_adapter.local.watch import Watch
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.offsets import Epoch, OffsetCodec
from sio_pg_adapter.log.records import Outgoing
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.epochs import Epochs
from sio_pg_adapter.wire.frames import FrameMaker
from sio_pg_adapter.wire.outbox import Outbox
from sio_pg_adapter.wire.transport import Connection


class Socket:
    """A stand-in for an Engine.IO socket."""

    def __init__(self, sid: str) -> None:
        self.sid = sid
        self.closed = self.closing = False
        self.queue = Outbox()

    def sent(self) -> list[Any]:
        """Take the packets that were queued, without Engine.IO's head."""
        return [self.queue.get_nowait().data for _ in range(self.queue.qsize())]


class Ended:
    """A record of the connections that the delivery wants ended."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def taken(self, client: Client) -> None:
        self.calls.append(("taken", client.sid))

    def kicked(self, client: Client, data: str | None) -> None:
        self.calls.append(("kicked", client.sid, data))

    def broken(self, client: Client) -> None:
        self.calls.append(("broken", client.sid))

    def slow(self, client: Client) -> None:
        self.calls.append(("slow", client.sid))

    async def say_goodbye(self) -> None:
        self.calls.append(("goodbye",))


def unopened_database() -> Database:
    """Return a database that is never connected to."""
    return Database("postgresql:///nowhere")


def client_of(sid: str, namespace: str = "/", *, eio_sid: str | None = None, sent: int = 0) -> Client:
    """Return a client whose connect is being decided."""
    connection = Connection(Socket(eio_sid or f"eio-{sid}"))
    return Client(namespace, sid, connection, Memberships(sid, sent), sent=sent)


def event(
    *rooms: str,
    body: str = '["e"]',
    namespace: str = "/",
    skip: tuple[str, ...] = (),
    skip_rooms: tuple[str, ...] = (),
) -> Outgoing:
    return Outgoing(namespace, rooms or ("",), skip, body, skip_rooms=skip_rooms)


class Local:
    """The clients of a node, their rooms and the delivery.

    :ivar table: python-socketio's client manager, which keeps the rooms.
    """

    def __init__(self, limit: QueueLimit | None = None, database: Database | None = None) -> None:
        self.clients = Clients()
        self.table = AsyncManager()
        self.rooms = Rooms(self.clients, self.table)
        self.epochs = Epochs(database or unopened_database())
        self.epochs.adopt(OffsetCodec([Epoch(0, b"k" * 32)]))
        self.ended = Ended()
        self.counters = Counters()
        self.watch = Watch(Registry(()))
        self.delivery = Delivery(
            self.clients,
            self.rooms,
            FrameMaker(Packet),
            self.epochs,
            self.ended,
            limit or QueueLimit(1_000, 1_000_000),
            self.counters,
            self.watch,
        )

    def client(
        self,
        sid: str,
        *rooms: str,
        state: State = State.LIVE,
        namespace: str = "/",
        sent: int = 0,
        recoverable: bool = False,
    ) -> Client:
        """Add a client in a state. It entered its rooms at the offset ``sent``."""
        client = client_of(sid, namespace, sent=sent)
        for room in rooms:
            client.memberships.enter(room, sent)
        if recoverable:
            client.offer_session()
        self.clients.add(client)
        if state is State.LIVE:
            self.rooms.go_live(client)
        elif state is State.REPLAYING:
            client.begin_replay()
        return client

    def members(self, room: str | None, namespace: str = "/") -> set[str]:
        """Return the sids that python-socketio has in a room."""
        return set(self.table.rooms.get(namespace, {}).get(room, ()))
