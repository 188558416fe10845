"""``AsyncPostgresManager``: the client manager that python-socketio talks to, and what it is composed of.

A packet goes one way: manager -> log -> dispatcher -> socket. The listener only tells the dispatcher to look.
"""

from __future__ import annotations

import asyncio
import json as stdlib_json
import logging
import secrets
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self

from socketio import AsyncManager

from sio_pg_adapter.cluster.broadcast_calls import Polls
from sio_pg_adapter.cluster.callbacks import Callbacks
from sio_pg_adapter.cluster.messages import Ephemeral, Message
from sio_pg_adapter.cluster.requests import Peers
from sio_pg_adapter.cluster.server_events import ServerEvents
from sio_pg_adapter.cluster.sockets import Census
from sio_pg_adapter.cluster.status import Report
from sio_pg_adapter.counters import Counters
from sio_pg_adapter.emitter import emit_async
from sio_pg_adapter.errors import ConfigurationError, SioPgError, StoreUnavailable
from sio_pg_adapter.local.clients import Client, Clients, QueueLimit, State
from sio_pg_adapter.local.cursor import Dispatcher
from sio_pg_adapter.local.delivery import Delivery
from sio_pg_adapter.local.history import History
from sio_pg_adapter.local.rooms import Moves
from sio_pg_adapter.log.entries import Entry, Members
from sio_pg_adapter.log.records import (
    EVERYBODY,
    Kind,
    check_depth,
    encode_event,
    encode_json,
    first_named,
    namespace_name,
    text_name,
    text_names,
)
from sio_pg_adapter.log.verdict import Memberships
from sio_pg_adapter.options import ConnectionStateRecovery
from sio_pg_adapter.store.database import Connection, Database, Pool
from sio_pg_adapter.store.listener import Listener
from sio_pg_adapter.store.presence import Presence
from sio_pg_adapter.store.pruner import ExpiryHandlers, Pruner
from sio_pg_adapter.store.sessions import Sessions
from sio_pg_adapter.store.writer import LogReader, LogWriter, read_notification
from sio_pg_adapter.wire import websocket
from sio_pg_adapter.wire.frames import another_serializer, event_frames
from sio_pg_adapter.wire.transport import Cork

EMIT_WAIT = 5.0
"""Seconds that an emit waits for this node's cursor. It is in the log by then: the node is behind, not the emit."""

RELEASED = 20_000
"""Sessions of which is known that their former holder has let go, or that wait for it: more than one storm has."""

default_logger = logging.getLogger("sio_pg_adapter")


@dataclass(frozen=True, slots=True)
class Health:
    """How a node is.

    :ivar ok: it listens, and its cursor has reached what it knows of the log.
    :ivar cursor: the offset up to which it has applied the log.
    :ivar lag: offsets between the cursor and the last one that it knows of.
    :ivar listener: ``"listening"``, ``"reconnecting"`` or ``"stopped"``.
    :ivar sessions: sessions that are held by clients of this node.
    """

    ok: bool
    cursor: int
    lag: int
    listener: str
    sessions: int


class AsyncPostgresManager(AsyncManager):
    """A client manager on PostgreSQL: emits, rooms, disconnects and callbacks across nodes, in one order.

    Under :class:`sio_pg_adapter.AsyncServer` with ``connection_state_recovery`` it also keeps the sessions that
    clients come back to. Nothing is opened before the first use.

    :param dsn: an asyncpg or libpq URL. ``None``: the ``SIO_PG_DSN`` environment variable, then libpq's ``PG*``
                variables.
    :param pool: an ``asyncpg.Pool`` of the application's to use instead of an own one. Two or three of its
                 connections are kept as long as the manager runs.
    :param listen_dsn: a direct connection for LISTEN, where ``dsn`` goes through a transaction pooler.
    :param schema: where the tables are. One schema is one log and one cluster.
    :param write_only: ``True`` in a process that only emits.
    :param logger: a logger instead of the server's.
    :param json: a module with ``dumps`` and ``loads``, if ``write_only``; else the server's is used.
    :param max_queued_packets: what may wait for a client that takes little. One over it is cut, and recovers
                               what it missed from the log; what a replay sends does not count.
    :param max_queued_bytes: the same, in bytes.
    """

    name = "asyncpostgres"

    def __init__(
        self,
        dsn: str | None = None,
        *,
        pool: Pool | None = None,
        listen_dsn: str | None = None,
        schema: str = "public",
        write_only: bool = False,
        logger: logging.Logger | None = None,
        json: Any = None,
        max_queued_packets: int = 10_000,
        max_queued_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        super().__init__()
        if not isinstance(write_only, bool):
            raise ConfigurationError(f"write_only takes True or False: not {write_only!r}")
        if logger is not None and not _has(logger, "debug", "info", "warning", "error"):
            raise ConfigurationError(f"logger takes a logging.Logger or None: not {logger!r}")
        if json is not None and not _has(json, "dumps", "loads"):
            raise ConfigurationError(f"json takes a module with dumps and loads, or None: not {json!r}")
        self.logger = logger
        if json is not None:
            self.json = json
        self.write_only = write_only
        self.host_id = uuid.uuid4().hex
        self.database = Database(dsn, pool=pool, listen_dsn=listen_dsn, schema=schema)
        self.clients = Clients()
        self.counters = Counters()
        self.cork = Cork()
        for name, value in (("max_queued_packets", max_queued_packets), ("max_queued_bytes", max_queued_bytes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} takes a whole number from 1 on: not {value!r}")
        self.queue_limit = QueueLimit(max_queued_packets, max_queued_bytes)
        self.recovery: ConnectionStateRecovery | None = None
        self.unstored: set[str] = set()
        self.on_taken: Callable[[Client], None] = self._let_go
        self.on_kicked: Callable[[Client, str | None], None] = self._kicked
        self.on_slow: Callable[[Client], None] = self._let_go
        self.expiry_namespaces: list[str] = []
        self.on_expired: Callable[[str, str, Any], Awaitable[None]] | None = None
        self.on_closing: Callable[[], Awaitable[None]] | None = None
        self._starting: asyncio.Lock | None = None
        self._running = False
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.callbacks = Callbacks(self)
        self.moves = Moves(self)
        self.peers = Peers(self)
        self.census = Census(self)
        self.polls = Polls(self)
        self.server_events = ServerEvents(self)
        self.report = Report(self)

    # -- start and end -----------------------------------------------------------------------------------
    def set_server(self, server: Any) -> None:
        if self.write_only:
            raise ConfigurationError("a manager with write_only=True serves no server: leave write_only out")
        super().set_server(server)
        websocket.install(server.eio, self.cork)

    def initialize(self) -> None:
        """Upstream's hook at the first connection: synchronous, so this only begins to start."""
        super().initialize()
        self.spawn(self._start_early(), "sio_pg start")

    async def _start_early(self) -> None:
        try:
            await self.ready()
        except SioPgError as e:  # whoever needs it will be told
            self._get_logger().error("%s", e)

    async def start(self) -> None:
        """Connect, and begin to follow the log. Safe to call twice.

        :raises ConfigurationError: before anything is opened, if it has no server and is not ``write_only``.
        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated; says which command mends it.
        """
        self._closed = False
        await self.ready()

    async def ready(self) -> None:
        """Start at the first use; no further than :meth:`aclose`, after which only :meth:`start` starts anew.

        :raises StoreUnavailable: if the database cannot be reached, or the manager was closed.
        :raises SchemaMismatch: if it is not migrated.
        """
        if self._running:
            return
        if self._closed:
            raise StoreUnavailable("the manager was closed")
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if not self._running and not self._closed:
                await self._start()

    async def _start(self) -> None:
        if self.server is None and not self.write_only:
            raise ConfigurationError(
                "a manager without a server takes write_only=True; else give it to AsyncServer(client_manager=...)"
            )
        await self.database.open()
        try:
            self._compose()
        except BaseException:  # of upstream's options, say: its connections are given back
            await self.database.close()
            raise
        try:
            self.log.start()
            if not self.write_only:
                await self.listener.start()
                await self.dispatcher.start()
                if self.expiry_namespaces:
                    await self.database.fetch("expiry_handlers", self.expiry_namespaces)
                self.pruner.start()
        except BaseException:  # cancelled, too: nothing of it is left running
            await self._stop()
            raise
        self._running = True

    def _compose(self) -> None:
        self.node = uuid.uuid4().hex
        self.channel = "sio_" + secrets.token_hex(20)
        self.history = History(self)
        self.log_reader = LogReader(self.database, self.history.check)
        self.dispatcher = Dispatcher(self.log_reader, self._apply, self.history.hole, self.cork)
        self.log = LogWriter(self.database, self.dispatcher.offer, self.dispatcher.ring, self.node, self.counters)
        self.sessions = Sessions(self.database, self.log, self.node)
        self.delivery = Delivery(
            self,
            lambda: self.database.codec,
            self.on_taken,
            self.on_kicked,
            self.on_slow,
            self.queue_limit,
        )
        self.ephemeral = Ephemeral(
            self.database, self.node, lambda: self.dispatcher.cursor, self.dispatcher.when, self._on_message
        )
        self.listener = Listener(
            self.database, [self.database.channel, self.channel], self._on_notify, self._on_listening
        )
        self.pruner = Pruner(self.database, self._expiry_handlers())
        self.presence: Presence | None = None if self.write_only else self._presence()
        self._released: OrderedDict[tuple[int, int], asyncio.Event] = OrderedDict()

    def _presence(self) -> Presence:
        eio = self.server.eio
        # How long a drop can go unnoticed: engineio looks at each socket once in a ping_timeout.
        unnoticed = eio.ping_interval + 3 * eio.ping_timeout
        return Presence(
            self.database,
            self.node,
            self.channel,
            recovery_seconds=0.0 if self.recovery is None else self.recovery.window,
            margin_seconds=unnoticed + 120.0,
        )

    def _expiry_handlers(self) -> ExpiryHandlers | None:
        if not self.expiry_namespaces or self.on_expired is None:
            return None
        return ExpiryHandlers(self.node, self.expiry_namespaces, self.on_expired)

    async def aclose(self) -> None:
        """Write what is waiting, leave the cluster, close all connections. Safe to call twice, or unstarted."""
        self._closed = True
        if self._starting is None:
            return
        async with self._starting:
            if self._running:
                if self.on_closing is not None:
                    await self.on_closing()
                self._running = False
                await self._stop()
        self._starting = None  # an event loop's own: the next start may be in another

    async def _stop(self) -> None:
        for task in [t for t in self._tasks if t is not asyncio.current_task()]:
            task.cancel()
        await asyncio.gather(*(t for t in self._tasks if t is not asyncio.current_task()), return_exceptions=True)
        self.peers.close()
        await self.log.close()
        await self.ephemeral.close()
        await self.pruner.close()
        if self.presence is not None:
            try:
                async with asyncio.timeout(5):
                    await self.presence.leave()
            except (SioPgError, TimeoutError) as e:
                self._get_logger().warning("leaving the cluster: %s", e)
        await self.listener.close()
        await self.dispatcher.close()
        await self.database.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run application code, or what waits for it, apart from the loops; ended with the manager."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (e := task.exception()) is not None:
            self._get_logger().error("%s failed", task.get_name(), exc_info=e)

    async def health(self) -> Health:
        """How this node is, without asking the database."""
        if not self._running or self.write_only:
            return Health(self._running, 0, 0, "stopped", 0)
        lag = self.dispatcher.lag
        held = sum(client.held is not None for client in self.clients)
        listening = self.listener.connected
        state = "listening" if listening else "reconnecting"
        return Health(listening and lag == 0, self.dispatcher.cursor, lag, state, held)

    # -- what the loops tell -------------------------------------------------------------------------------
    def _apply(self, record: Any) -> None:
        self.counters.applied += 1
        self.counters.spans.deliver(record, self.delivery.apply)

    async def _on_listening(self, connection: Connection) -> None:
        assert self.presence is not None
        back = await self.presence.show(connection)
        await self.history.check()
        self.dispatcher.ring()  # what was notified before this connection listened was not heard
        await self.history.back(back)

    def _on_notify(self, backend: int, channel: str, payload: str) -> None:
        if payload.startswith("{"):
            self.ephemeral.receive(payload)
        elif channel == self.database.channel:
            # What this node appends, its own answer tells, with the records. Heard before that, it would be read.
            if backend != self.log.backend:
                self.dispatcher.offer(*read_notification(payload, self.dispatcher.cursor))
        elif payload.startswith("released "):
            _, session, generation = payload.split()
            self.released((int(session), int(generation))).set()

    def released(self, held: tuple[int, int]) -> asyncio.Event:
        """Set when the former holder of a session, by id and generation, has let go; it may be so already."""
        event = self._released.setdefault(held, asyncio.Event())
        if len(self._released) > RELEASED:  # told, and nobody asked
            self._released.popitem(last=False)
        return event

    def forget_released(self, held: tuple[int, int]) -> None:
        self._released.pop(held, None)

    def _on_message(self, message: Message, parts: tuple[bytes, ...]) -> None:
        if message["type"] == "answer":
            self.callbacks.answered(message, parts)
        elif message["type"] == "request":
            self.peers.requested(message, parts)
        elif message["type"] == "reply":
            self.peers.replied(message, parts)
        elif message["type"] == "question":
            self.callbacks.asked(message, parts)
        elif message["type"] == "event":
            rooms, skip_sids = tuple(message["rooms"]), tuple(message["skip"])
            self.delivery.unstored(message["namespace"], rooms, skip_sids, message["body"], parts)

    # -- emit ------------------------------------------------------------------------------------------------
    async def emit(
        self,
        event: str,
        data: Any,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: Any = None,
        callback: Callable[..., Any] | None = None,
        to: Any = None,
        *,
        ignore_queue: bool = False,
        volatile: bool = False,
        connection: Any = None,
    ) -> None:
        """Send an event to a client, a room, several rooms, or everybody in the namespace, on any node.

        Returns when this node has passed it on to its own clients' connections.

        :param volatile: not stored and never replayed.
        :param ignore_queue: to this node's clients only, not stored.
        :param connection: whose transaction the event is a part of: sent when that commits, see
                           :func:`sio_pg_adapter.emit_async`. Returns at once.
        :raises NotSerializable: before anything is stored; names the key or the argument.
        :raises PayloadTooLarge: before anything is stored.
        :raises StoreUnavailable: says whether the event may be stored.
        """
        if connection is not None:
            if callback is not None or volatile or ignore_queue:
                raise ConfigurationError("connection= stores the event: callback, volatile and ignore_queue do not")
            more = {"skip_sid": skip_sid, "namespace": namespace, "schema": self.database.schema, "json": self.json}
            await emit_async(connection, event, data, room=first_named(to, room), **more)
            return
        namespace = namespace_name(namespace)
        rooms = text_names(first_named(to, room), "room") or (EVERYBODY,)
        skip_sids = text_names(skip_sid, "skip_sid")
        body, parts = self._encoded(event, data)
        if callback is not None:
            self._may_ask(callback, rooms)
        await self.ready()
        if callback is not None:
            await self.callbacks.ask(namespace, rooms, skip_sids, body, parts, callback, only_here=ignore_queue)
        elif ignore_queue:
            self.delivery.unstored(namespace, rooms, skip_sids, body, parts)
        elif volatile or namespace in self.unstored:
            message = {"type": "event", "namespace": namespace, "rooms": rooms, "skip": skip_sids, "body": body}
            if not self.write_only:
                self.delivery.unstored(namespace, rooms, skip_sids, body, parts)
            await self.ephemeral.send(self.database.channel, message, parts)
        else:
            await self.append(Entry(Kind.EVENT, namespace, rooms, skip_sids, body=body, parts=parts))

    def _may_ask(self, callback: object, rooms: tuple[str, ...]) -> None:
        if not callable(callback):
            raise ConfigurationError(f"callback takes a function(*args): not {callback!r}")
        if self.server is None:
            raise RuntimeError("Callbacks can only be issued from the context of a server.")
        if rooms == (EVERYBODY,):
            raise ValueError("Cannot use callback without a room set.")

    def _encoded(self, event: str, data: Any) -> tuple[str, tuple[bytes, ...]]:
        body, parts = encode_event(event, data, self.json)
        if self.server is not None and another_serializer(self.server.packet_class):
            event_frames(self.server.packet_class, "/", body, parts)  # raises what must not be stored
        return body, parts

    async def append(self, entry: Entry | Members) -> None:
        """Append, and wait until it has taken effect here."""
        if not self._running:
            await self.ready()
        if isinstance(entry, Entry) and entry.kind is Kind.EVENT:
            written = await self.log.append_event(entry)
        else:
            appended = self.log.append(entry)
            self.moves.note_leaving(entry, appended)
            written = await appended
        if written.offset < 0:
            raise ValueError(f"cannot {'close' if entry.kind is Kind.CLOSE else 'enter'} a sid room")
        if written.offset <= self.dispatcher.cursor or self.write_only:
            return
        if not await self.dispatcher.passed(written.offset, EMIT_WAIT):
            self._get_logger().warning("this node is behind the log: at %s", self.dispatcher.cursor)

    async def trigger_callback(self, sid: str, id: int, data: Any) -> None:  # noqa: A002 - upstream's
        """A client acknowledged an event."""
        self.callbacks.acknowledged(sid, id, data)

    # -- rooms -------------------------------------------------------------------------------------------------
    async def enter_room(self, sid: str, namespace: str, room: str, eio_sid: str | None = None) -> None:
        """Add a client of any node, or a session that is away, to a room. It has taken effect on return."""
        await self.moves.enter(sid, namespace, room)

    async def leave_room(self, sid: str, namespace: str, room: str) -> None:
        """Remove a client of any node, or a session that is away, from a room; in effect on return."""
        await self.moves.leave(sid, namespace, room)

    async def close_room(self, room: str, namespace: str | None = None) -> None:
        """Remove everybody from a room, on all nodes, and sessions that are away. In effect on return."""
        await self.moves.close(room, namespace)

    def get_rooms(self, sid: str, namespace: str) -> list[str]:
        """The rooms of a client of this node, its own first."""
        client = self.clients.get(sid, namespace)
        return [] if client is None else [client.sid, *client.memberships.current()]

    # -- who is there ------------------------------------------------------------------------------------------
    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """Take a new client in, of a server without recovery; ``None`` if its connection has one already."""
        await self.ready()
        client = self.admit(eio_sid, namespace)
        return None if client is None else client.sid

    def admit(self, eio_sid: str, namespace: str) -> Client | None:
        """A new client whose connect is being decided; ``None`` if its connection has one in the namespace, or is
        closed."""
        if self.clients.of_socket(eio_sid, namespace) is not None:
            return None
        sid = self.server.eio.generate_id()
        start = self.dispatcher.cursor
        socket = self.server.eio.sockets.get(eio_sid)
        if socket is None:
            return None  # closed while the manager started
        client = Client(namespace, sid, eio_sid, socket, Memberships(sid, start), sent=start)
        self.clients.add(client)
        return client

    async def connect(self, sid: str, namespace: str) -> str:
        """The connect of a client without recovery was accepted: it is live."""
        client = self.clients.get(sid, namespace)
        if client is not None and client.state is State.CONNECTING:
            self.catch_up(client)
        return sid

    def catch_up(self, client: Client) -> None:
        """Send what was due while the connect was decided, as far as it is at hand, and go live; in one tick."""
        for record in self.dispatcher.recent.events(client.namespace, client.sent):
            if client.memberships.due(record):
                self.delivery.replay(client, record)
        client.sent = max(client.sent, self.dispatcher.cursor)
        self.delivery.go_live(client)

    def is_connected(self, sid: str, namespace: str) -> bool:
        client = self.clients.by_sid.get(namespace, {}).get(sid)
        pending = self.pending_disconnect.get(namespace, ())
        return client is not None and client.connected and sid not in pending

    def is_pre_connected(self, sid: str, namespace: str) -> bool:
        client = self.clients.by_sid.get(namespace, {}).get(sid)
        return client is not None and client.state is State.CONNECTING

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        client = self.clients.get(sid, namespace)
        return None if client is None else client.eio_sid

    def sid_from_eio_sid(self, eio_sid: str, namespace: str) -> str | None:
        client = self.clients.of_socket(eio_sid, namespace)
        return None if client is None else client.sid

    def get_namespaces(self) -> Any:
        return list(self.clients.by_sid)  # upstream awaits while it goes through them

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        self.pending_disconnect.setdefault(namespace, []).append(sid)
        return self.eio_sid_from_sid(sid, namespace)

    # -- disconnect --------------------------------------------------------------------------------------------
    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Upstream's question before it disconnects a client here; of other nodes, the log tells them."""
        client = self.clients.by_sid.get(namespace, {}).get(sid)
        if client is not None:
            return self.is_connected(sid, namespace)
        await self.kick(sid, namespace)
        return False

    async def kick(self, sid: str, namespace: str) -> None:
        """End the session of a sid for good, and its connection, wherever it is."""
        namespace = namespace_name(namespace)
        await self.append(Entry(Kind.KICK, namespace, sid=text_name(sid, "sid")))

    async def disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        if kwargs.get("ignore_queue"):
            self.basic_disconnect(sid, namespace)
        else:
            await self.kick(sid, namespace)

    def basic_disconnect(self, sid: str, namespace: str, **_: object) -> None:
        client = self.clients.by_sid.get(namespace, {}).get(sid)
        if client is not None:
            self.depart(client)
        pending = self.pending_disconnect.get(namespace, [])
        if sid in pending:
            pending.remove(sid)
            if not pending:
                del self.pending_disconnect[namespace]

    def depart(self, client: Client) -> None:
        """Take a client out of this node's lists: from here on it reads as away. Its memberships stay with it."""
        if client.state is State.LIVE:
            for room in (*client.memberships.current(), client.sid, None):
                if client.sid in self.rooms.get(client.namespace, {}).get(room, ()):
                    self.basic_leave_room(client.sid, client.namespace, room)
        client.state = State.LEFT
        client.waiting.clear()
        self.clients.remove(client)
        acks, client.acks = client.acks, {}
        for ack in acks.values():
            if ack.gone is not None:
                ack.gone()

    def _let_go(self, client: Client) -> None:
        """A server without recovery holds no sessions that could be claimed."""

    def _kicked(self, client: Client, _data: str | None) -> None:
        work = self.server.disconnect(client.sid, namespace=client.namespace, ignore_queue=True)
        self.spawn(work, "sio_pg disconnect")

    # -- session data --------------------------------------------------------------------------------------------
    def encode_session(self, session: object) -> str:
        """Session data as JSON.

        :raises NotSerializable: naming the key; also for what is nested too deeply to be read back.
        """
        data = encode_json(session, "session", stdlib_json)
        check_depth(session, "session")
        return data


def _has(one: object, *methods: str) -> bool:
    return all(callable(getattr(one, method, None)) for method in methods)
