"""A node, composed: everything that lives from a start of the manager to its stop.

An event goes down to the log, and from there to the clients of every node::

    server -> manager -> node -> store (the log) | store -> local (cursor, delivery) -> wire

Everything that changes what a client is due is a record of one log. The cursor passes each record once, in order, and
the delivery does what it says to the clients of this node. Notifications only announce records, or carry a copy of
them. The module is long because all parts of a node meet in it. ``docs/architecture.md`` is a map of the code.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from .cluster.broadcast_calls import BroadcastCalls
from .cluster.callbacks import Callbacks
from .cluster.members import Members
from .cluster.messages import MessageKind, Messages, UnstoredEvent
from .cluster.requests import Requests, Service
from .cluster.server_events import ServerEvents
from .cluster.sockets import Sockets
from .cluster.status import status
from .counters import Counters
from .errors import SioPgError, StoreUnavailable
from .local.appender import Appender
from .local.client import QueueLimit
from .local.clients import Clients
from .local.continuity import Continuity
from .local.cursor import Cursor
from .local.delivery import Delivery
from .local.handover import Handover
from .local.health import Diagnosis, FaultReports
from .local.history import History
from .local.moves import Moves
from .local.positions import Positions
from .local.protocols import Endings
from .local.returns import Returns
from .local.rooms import Rooms
from .local.watch import Watch
from .log.records import Outgoing
from .options import ConnectionStateRecovery
from .store.database import Database
from .store.epochs import Epochs
from .store.kept import Connection, check_kept
from .store.listener import PROBE_INTERVAL, PROBE_TIMEOUT, Listener
from .store.presence import Presence
from .store.pruner import ExpiryHandlers, Pruner
from .store.reader import LogReader, read_notification
from .store.relay import Relay
from .store.sessions import Sessions
from .store.writer import LogWriter
from .tasks import Tasks
from .wire.frames import FrameMaker
from .wire.transport import Cork

REPLAY_MARGIN = 120.0
"""How long a replay may last, in seconds: records are kept for that much longer than a session can be away."""

HEAD_WAIT = 2.0
"""How long a record that is in the log may take to be applied before the node is behind, in seconds."""

SESSIONS_AT_ONCE = 50
"""How many sessions are claimed or opened at a time. When thousands of clients come back at once, a batch of their
claims would hold the log's lock for long, and its answer the event loop. All emits would wait for both."""

LEAVE_WAIT = 5.0
"""How long a stop waits for the database when the node leaves the cluster, in seconds."""

logger = logging.getLogger("sio_pg_adapter")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a node serves, and how.

    :ivar clients: the clients of this process.
    :ivar rooms: the rooms of the live ones.
    :ivar frames: makes the frames of the server's serializer.
    :ivar recovery: the options of connection state recovery. ``None``: off.
    :ivar unnoticed_seconds: how long the end of a connection may go unnoticed.
    :ivar retention_seconds: how long events are kept, whatever sessions need. ``None``: for ever.
    :ivar follows: whether the node follows the log. A process that only emits does not.
    :ivar json: the module that encodes events.
    :ivar server_event_handlers: handlers of server events, by namespace and name.
    :ivar environ_of: returns the WSGI environment of an Engine.IO connection. ``None`` if it has ended.
    :ivar watch: the listeners for the events that are sent to clients.
    :ivar on_store: called when the database is away, with the error, and when it is back, with ``None``.
    :ivar expiry_namespaces: the namespaces with a handler of expired sessions.
    :ivar on_expired: calls that handler.
    """

    clients: Clients
    rooms: Rooms
    frames: FrameMaker
    cork: Cork
    counters: Counters
    limit: QueueLimit
    recovery: ConnectionStateRecovery | None
    unnoticed_seconds: float
    retention_seconds: float | None
    follows: bool
    json: ModuleType | Any
    server_event_handlers: Mapping[tuple[str, str], Callable[..., Any]]
    environ_of: Callable[[str], Mapping[str, Any] | None]
    watch: Watch
    on_store: Callable[[StoreUnavailable | None], Any] | None
    expiry_namespaces: list[str]
    on_expired: Callable[[str, str, Any], Awaitable[None]]


class MakeEndings(Protocol):
    """Makes what ends the connections of a node."""

    def __call__(self, *, rooms: Rooms, sessions: Sessions, pruner: Pruner, tasks: Tasks) -> Endings: ...


class Node:
    """A node of the cluster.

    :param database: where its tables are. It is opened by :meth:`start` and closed by :meth:`stop`.
    :param make_endings: makes what ends its connections.
    """

    def __init__(self, database: Database, setup: Setup, make_endings: MakeEndings) -> None:
        self.id = uuid.uuid4().hex
        self.channel = "sio_" + secrets.token_hex(20)  # a secret: NOTIFY has no permissions
        self.database = database
        self.counters = setup.counters
        self.recovery = setup.recovery
        self.frames = setup.frames
        self._follows = setup.follows

        # what is on its way
        self.tasks = Tasks()
        self.handover = Handover()
        self.turns = asyncio.Semaphore(SESSIONS_AT_ONCE)
        self._reports = FaultReports(setup.on_store, self.tasks)

        # the log
        self.epochs = Epochs(database)
        self.reader = LogReader(database, self.epochs)
        self.cursor = Cursor(self.reader, setup.cork)
        self.writer = LogWriter(
            database, self.cursor.offer, self.cursor.ring, self.id, setup.counters, lambda: self.cursor.reached
        )
        self.appender = Appender(self.writer, self.cursor, follows=setup.follows)
        self.sessions = Sessions(database, self.writer, self.id)
        self.presence = self._presence(setup)
        self.pruner = Pruner(database, _expiry_handlers(self.id, setup))
        self.relay = Relay(database, self.id, setup.counters)

        # the clients of this node
        self.clients = setup.clients
        self.rooms = setup.rooms
        self.endings = make_endings(rooms=self.rooms, sessions=self.sessions, pruner=self.pruner, tasks=self.tasks)
        self.returns = Returns()
        self.delivery = Delivery(
            setup.clients,
            self.rooms,
            setup.frames,
            self.epochs,
            self.endings,
            setup.limit,
            setup.counters,
            setup.watch,
        )
        self.moves = Moves(setup.clients, self.rooms, self.cursor, self.appender)
        self.delivery.on_intruder = lambda *intruder: self.tasks.spawn(self.moves.expel(*intruder), "sid room")
        self.continuity = Continuity(
            database, setup.clients, self.cursor, self.epochs, self.reader, self.sessions, self.endings
        )
        self.positions = Positions(
            self.cursor,
            self.epochs,
            self.continuity,
            self.sessions,
            self.rooms,
            self.moves,
            None if setup.recovery is None else setup.recovery.max_missed_packets,
        )
        self.history = History(self.reader, self.epochs, self.continuity, setup.json)

        # the other nodes
        self.messages = Messages(database, self.id, self.cursor)
        self.messages.on(MessageKind.EVENT, self._on_event)
        self.requests = Requests(self.messages, self.presence, self.tasks, self.id, self.channel)
        self.callbacks = Callbacks(setup.clients, self.delivery, self.messages, self.tasks, self.channel)
        self.sockets = Sockets(self.rooms, self.sessions, self.requests, self.epochs, self.id, setup.environ_of)
        self.members = Members(self.rooms, self.appender, self.sockets, database, asks=setup.follows)
        self.broadcast_calls = BroadcastCalls(self.delivery, self.requests, self.id)
        self.server_events = ServerEvents(self.requests, setup.server_event_handlers, setup.json)
        self.listener: Listener | None = None
        self.diagnosis = Diagnosis(
            database, setup.clients, self.cursor, self.writer, self.relay, self.pruner, follows=setup.follows
        )
        self._following: asyncio.Future[None] | None = None
        self.requests.serve(
            Service.STATUS,
            lambda *_: status(
                self.clients,
                self.cursor,
                self.diagnosis.reconnects,
                self.diagnosis.health().reason,
                database.durability,
            ),
        )

    def _presence(self, setup: Setup) -> Presence:
        return Presence(
            self.database,
            self.id,
            self.channel,
            recovery_seconds=0.0 if setup.recovery is None else setup.recovery.window,
            margin_seconds=setup.unnoticed_seconds + REPLAY_MARGIN,
            retention_seconds=setup.retention_seconds,
        )

    # -- from start to stop ------------------------------------------------------------------------------
    async def start(self) -> None:
        """Connect, enter the cluster, and begin to follow the log.

        :raises StoreUnavailable: if the database cannot be reached. Nothing is left open then.
        :raises SchemaMismatch: if it is not migrated.
        """
        await self.database.open(listens=self._follows)
        try:
            await self.epochs.open()
            self.database.followed.on_moved = self._on_moved
            await self.relay.drain()
            self.writer.start()
            if self._follows:
                self.relay.start()
                self.listener = self.diagnosis.listener = Listener(
                    self.database,
                    self._channels,
                    self._on_notify,
                    self._on_listening,
                    self._on_probe,
                    self._reports.report,
                )
                await self.listener.start()
                await self.cursor.start(self.delivery.apply, self.continuity)
                await self.pruner.announce_handlers()
                self.pruner.start()
            else:
                self.cursor.jump(await self.reader.head())
                self.tasks.spawn(self._check_connections(), "check of connections")
        except BaseException:  # cancelled, too: nothing of it is left running
            await self.stop()
            raise

    async def stop(self) -> None:
        """Write the waiting entries, leave the cluster, and close all connections."""
        self.database.followed.on_moved = None
        await self.tasks.close()
        await self.relay.close()
        self.requests.close()
        await self.writer.close()
        await self.messages.close()
        await self.pruner.close()
        if self.listener is not None:
            try:
                async with asyncio.timeout(LEAVE_WAIT):
                    await self.presence.leave()
            except (SioPgError, TimeoutError) as e:
                logger.warning("leaving the cluster: %s", e)
            await self.listener.close()
        await self.cursor.close()
        await self.database.close()

    # -- what the LISTEN connection brings -----------------------------------------------------------------
    async def _on_listening(self, connection: Connection) -> None:
        if self.cursor.running:
            self.database.followed.reopen()  # the others may be on a server that is not the primary any more
        counted_dead = await self.presence.show(connection)
        await self.continuity.check()
        self.cursor.ring()  # whatever was announced before this connection listened was not heard
        self.relay.ring()
        await self.continuity.returned(counted_dead=counted_dead)

    async def _on_probe(self, connection: Connection, timeout: float) -> str:
        checking = asyncio.create_task(check_kept(self.database, timeout), name="sio_pg check of connections")
        try:
            probe = await self.presence.probe(connection, timeout)
        finally:
            await checking
        if fault := probe.fault(self.database.followed.name, self._channels()):
            return fault  # its head may be that of another log
        self.relay.look(probe)
        # Usually the notification is on its way. If it is not, this node is behind until it has read on.
        if not await self.cursor.passed(probe.head, HEAD_WAIT):
            self.cursor.offer(probe.head, probe.head, None)
        return ""

    async def _check_connections(self) -> None:
        """Check the connections of a process that only emits. It has none that listens, whose probe would do so."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL)  # the pace of the probes
            await check_kept(self.database, PROBE_TIMEOUT)
            self._reports.report(self.diagnosis.fault())

    def _channels(self) -> list[str]:
        return [self.database.channel, self.channel]

    def _on_moved(self) -> asyncio.Future[None]:
        """Decide which server to follow: a connection leads to another one."""
        if self._following is None or self._following.done():
            self._following = self.tasks.spawn(self._follow(), "server check")
        return self._following

    async def _follow(self) -> None:
        if not self._follows:
            self.database.followed.forget()
            self.cursor.jump(0)  # the offsets of the other log may be lower
            self.database.followed.confirm()
            return
        await self.continuity.follow()
        if self.listener is not None:
            self.listener.renew()

    def _on_notify(self, backend: int, channel: str, payload: str) -> None:
        if payload.startswith("{"):
            self.messages.receive(payload)
        elif payload.startswith("relay"):
            if moved := payload[6:]:
                self.cursor.offer(*read_notification(moved, self.cursor.offset))
            else:
                self.relay.ring()
        elif channel == self.database.channel:
            # The answer to this node's own append brings its records. If a notification that comes first were not
            # skipped, the cursor might read them from the table.
            if backend != self.writer.backend:
                self.cursor.offer(*read_notification(payload, self.cursor.offset))
        elif payload.startswith("released "):
            _, session, generation = payload.split()
            self.handover.of(int(session), int(generation)).set()

    # -- events that are not stored ------------------------------------------------------------------------
    async def send_unstored(self, outgoing: Outgoing, *, volatile: bool) -> None:
        """Send an event to the clients of all nodes that are live now.

        :param volatile: clients for which anything waits do not get it.
        :raises StoreUnavailable: if it cannot be sent to the other nodes.
        """
        if self._follows:
            self.delivery.unstored(outgoing, volatile=volatile)
        await self.messages.send_to_all(UnstoredEvent.of(outgoing, volatile=volatile), outgoing.parts)

    def _on_event(self, event: UnstoredEvent, parts: tuple[bytes, ...]) -> None:
        self.delivery.unstored(event.outgoing(parts), volatile=event.volatile)


def _expiry_handlers(node: str, setup: Setup) -> ExpiryHandlers | None:
    if not setup.expiry_namespaces:
        return None
    return ExpiryHandlers(uuid.UUID(node), setup.expiry_namespaces, setup.on_expired)
