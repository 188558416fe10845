"""``AsyncPostgresManager``: the client manager that python-socketio talks to.

Each hook is a line or two that calls the node. The module is longer than others because python-socketio asks for all
hooks in one class, and because the class is public and documented.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal, Self

from socketio import AsyncManager
from socketio.packet import Packet

from .cluster.members import member_move
from .counters import Counters
from .emitter import emit_outgoing, read_position
from .errors import ConfigurationError, SioPgError, StoreUnavailable
from .lifecycle import Lifecycle
from .local.client import Client, QueueLimit, State
from .local.clients import Clients
from .local.handling import handled
from .local.plain_endings import PlainEndings
from .local.protocols import Endings
from .local.rooms import Rooms
from .local.watch import Watch
from .log.memberships import Memberships
from .log.names import EVERYBODY, namespace_name, room_name, text_name
from .log.records import Entry, Kind, MemberMove, Outgoing, StoredEvent
from .node import Health, MakeEndings, Node, Setup
from .options import ConnectionStateRecovery, checked_durability, retention_seconds
from .rooms import change_members, close_room_async, disconnect_async, enter_room_async, leave_room_async
from .store.database import Database, Pool
from .tasks import Tasks
from .wire import upstream, websocket
from .wire.frames import FrameMaker
from .wire.transport import Connections, Cork, TrafficCounter

logger = logging.getLogger("sio_pg_adapter")

FOREIGN_OPTIONS = {
    "url": "Pass the URL of a PostgreSQL database as dsn=.",
    "channel": "Servers of one schema are one cluster. Pass schema= to have several in a database.",
    "redis_options": "Pass options of the connection in the URL, or an asyncpg pool as pool=.",
}
"""Options of python-socketio's other client managers, and what to do instead."""


class AsyncPostgresManager(AsyncManager):
    """A client manager on PostgreSQL: emits, rooms, disconnects and callbacks across nodes, in one order.

    Under :class:`sio_pg_adapter.AsyncServer` with ``connection_state_recovery`` it also keeps the sessions that
    clients come back to. Nothing is opened before the first use.

    :param dsn: an asyncpg or libpq URL. ``None``: the ``SIO_PG_DSN`` environment variable, then libpq's ``PG*``
                variables.
    :param pool: an application's ``asyncpg.Pool``, to use instead of one of its own. Two or three of its connections
                 are kept as long as the manager runs.
    :param listen_dsn: a direct connection for LISTEN, where ``dsn`` goes through a transaction pooler.
    :param schema: the schema of the tables. One schema is one log and one cluster.
    :param write_only: ``True`` in a process that only emits.
    :param logger: a logger for python-socketio's own lines about its client manager, instead of the server's. This
                   package logs to ``logging.getLogger("sio_pg_adapter")``.
    :param json: a module with ``dumps`` and ``loads``, if ``write_only``. Else the server's is used.
    :param max_queued_packets: how many packets may wait for a slow client. One over the limit is disconnected, and
                               recovers from the log. Packets of a replay do not count.
    :param max_queued_bytes: the same, in bytes.
    :param retention: seconds that events are kept at least, whatever sessions need. The longest of all servers
                      counts. ``None``: as long as sessions need them. ``math.inf``: for ever.
    :param durability: ``"flush"``: ``emit`` returns when the event is on disk. ``"memory"``: it does not wait for the
                       disk, and a crash of PostgreSQL loses the last events. All else is flushed in any case.
    :param error_handler: a function, which may be ``async``. It is called with a :class:`StoreUnavailable` when the
                          database is away, and with ``None`` when it is back. With ``write_only`` this is noticed
                          within about 15 seconds.
    :raises ConfigurationError: naming the option that is wrong.
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
        retention: float | None = None,
        durability: Literal["flush", "memory"] = "flush",
        error_handler: Callable[[StoreUnavailable | None], Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(write_only, bool):
            raise ConfigurationError(f"write_only takes True or False, not {write_only!r}")
        if logger is not None and not _has(logger, "debug", "info", "warning", "error"):
            raise ConfigurationError(f"logger takes a logging.Logger or None, not {logger!r}")
        if json is not None and not _has(json, "dumps", "loads"):
            raise ConfigurationError(f"json takes a module with dumps and loads, or None, not {json!r}")
        for name, value in (("max_queued_packets", max_queued_packets), ("max_queued_bytes", max_queued_bytes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} takes a whole number from 1 on, not {value!r}")
        if retention is not None and write_only:
            raise ConfigurationError(
                "retention counts while a server runs. Give it to the manager of a server, not with write_only=True."
            )
        if error_handler is not None and not callable(error_handler):
            raise ConfigurationError(f"error_handler takes a function(error), not {error_handler!r}")
        self._retention_seconds = retention_seconds(retention)
        self._error_handler = error_handler
        self.logger = logger
        if json is not None:
            self.json = json
        self.write_only = write_only
        self.database = Database(
            dsn, pool=pool, listen_dsn=listen_dsn, schema=schema, durability=checked_durability(durability)
        )
        self.clients = Clients()
        self.connections = Connections()
        self.traffic = TrafficCounter()
        self.counters = Counters()
        self.cork = Cork()
        self.watch = Watch()
        self.recovery: ConnectionStateRecovery | None = None
        self.unstored: set[str] = set()  # namespaces whose events are not stored: the Admin UI's
        self.server_event_handlers: dict[tuple[str, str], Callable[..., Any]] = {}
        self.expiry_namespaces: list[str] = []
        self._limit = QueueLimit(max_queued_packets, max_queued_bytes)
        self._make_endings: MakeEndings = self._plain_endings
        self._on_expired: Callable[[str, str, Any], Awaitable[None]] = _nobody
        self._frames = FrameMaker(Packet)
        self._early = Tasks()
        self._life = Lifecycle(self._make_node)

    def __new__(cls, *_args: Any, **options: Any) -> Self:
        """Refuse the options of python-socketio's other client managers, and name what replaces them."""
        for option, instead in FOREIGN_OPTIONS.items():
            if option in options:
                raise ConfigurationError(f"AsyncPostgresManager has no option {option!r}. {instead}")
        return super().__new__(cls)

    __new__.__wrapped__ = __init__  # type: ignore[attr-defined]  # the signature that inspect and IDEs show

    # -- start and end -----------------------------------------------------------------------------------
    def set_server(self, server: Any) -> None:
        if self.write_only:
            raise ConfigurationError("a manager with write_only=True serves no server. Leave write_only out.")
        if not server.is_asyncio_based():
            raise ConfigurationError(
                f"AsyncPostgresManager serves AsyncServer, not a {_full_name(server)}, which is synchronous. "
                "From a synchronous application use sio_pg_adapter.emit()."
            )
        if self.server not in {None, server}:
            raise ConfigurationError("AsyncPostgresManager serves one server. Make a manager for each server.")
        if "connection_state_recovery" in upstream.engineio_options(server):
            raise ConfigurationError(
                "socketio.AsyncServer has no option connection_state_recovery. Use sio_pg_adapter.AsyncServer."
            )
        super().set_server(server)
        self._frames = FrameMaker(server.packet_class)
        websocket.install(server.eio, self.connections, self.cork, self.traffic)

    def serve(
        self,
        recovery: ConnectionStateRecovery | None,
        make_endings: MakeEndings,
        on_expired: Callable[[str, str, Any], Awaitable[None]],
    ) -> None:
        """Serve :class:`sio_pg_adapter.AsyncServer`, from the next start on."""
        self.recovery = recovery
        self._make_endings = make_endings
        self._on_expired = on_expired

    def initialize(self) -> None:
        """Begin to start. python-socketio calls this at the first connection, and does not await it."""
        super().initialize()
        self._early.spawn(self._start_early(), "start")

    async def _start_early(self) -> None:
        try:
            await self.started()
        except SioPgError as e:  # the first connect or emit gets it as well
            logger.error("%s", e)  # noqa: TRY400 - one line is enough

    async def start(self) -> None:
        """Connect, and begin to follow the log. Safe to call twice.

        :raises ConfigurationError: before anything is opened, if it has no server and is not ``write_only``.
        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated. The message names the command to run.
        """
        await self._life.start()

    async def started(self) -> Node:
        """Return the node, started at the first use. After :meth:`aclose` only :meth:`start` starts one again.

        :raises StoreUnavailable: if the database cannot be reached, or the manager was closed.
        :raises SchemaMismatch: if it is not migrated.
        """
        return await self._life.started()

    @property
    def node(self) -> Node | None:
        """The node, from a start to the next stop. ``None`` in between."""
        return self._life.node

    def _make_node(self) -> Node:
        if self.server is None and not self.write_only:
            raise ConfigurationError(
                "a manager without a server takes write_only=True. Else give it to AsyncServer(client_manager=...)."
            )
        return Node(self.database, self._setup(), self._make_endings)

    def _setup(self) -> Setup:
        eio = self.server and self.server.eio
        return Setup(
            clients=self.clients,
            rooms=self,
            frames=self._frames,
            cork=self.cork,
            counters=self.counters,
            limit=self._limit,
            recovery=self.recovery,
            # Engine.IO looks at each socket once in a ping_timeout.
            unnoticed_seconds=eio.ping_interval + 3 * eio.ping_timeout if eio else 0.0,
            retention_seconds=self._retention_seconds,
            follows=not self.write_only,
            json=self.json,
            server_event_handlers=self.server_event_handlers,
            environ_of=self.server.environ.get if self.server else _no_environ,
            watch=self.watch,
            on_store=self._error_handler,
            expiry_namespaces=self.expiry_namespaces,
            on_expired=self._on_expired,
        )

    @property
    def leaving(self) -> bool:
        """Whether clients were sent away, because the process ends. New connections are refused."""
        return self._life.leaving

    async def say_goodbye(self) -> None:
        """Close all connections in a way that makes clients reconnect, to another node, and refuse new ones.

        The manager still emits until :meth:`aclose`, which does this as well.
        """
        await self._life.say_goodbye()

    async def aclose(self) -> None:
        """Write what is waiting, leave the cluster, close all connections. Safe to call twice, or unstarted."""
        await self._life.stop()
        await self._early.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def health(self) -> Health:
        """Return the state of this node, without asking the database."""
        if self.node is None:
            reason = "the manager is not started"
            return Health(False, 0, 0, "stopped", 0, reason, self.database.durability.value)
        health = self.node.health()
        if self.leaving:
            return replace(health, ok=False, reason="the clients were sent away: the process ends")
        return health

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
        skip_room: Any = None,
        ignore_queue: bool = False,
        volatile: bool = False,
        connection: Any = None,
        key: str | None = None,
    ) -> bool | None:
        """Send an event to a client, a room, several rooms, or everybody in the namespace, on any node.

        Returns when this node has passed it on to its own clients' connections.

        :param skip_room: a room, or several in a list, whose members do not get the event. Replays decide by the
                          members that the rooms had when the event was emitted.
        :param volatile: do not store the event, and do not send it to clients for which anything waits. It is never
                         replayed.
        :param ignore_queue: send it to this node's clients only. It is not stored.
        :param connection: the event becomes part of this connection's transaction, and is sent when that commits, see
                           :func:`sio_pg_adapter.emit_async`. Returns at once.
        :param key: an idempotency key. If the log has an event with this key in the namespace, this one is not
                    stored.
        :returns: ``None`` without a key. With one, whether the event was stored. With ``connection``, ``True`` means
                  that it will be, unless another event with the key is committed first.
        :raises ConfigurationError: if the key is empty, or the options do not store the event.
        :raises NotSerializable: before anything is stored. It names the key or the argument.
        :raises PayloadTooLarge: before anything is stored.
        :raises StoreUnavailable: says whether the event may be stored.
        """
        needs_log = "connection" if connection is not None else "key" if key is not None else None
        if needs_log is not None and (callback is not None or volatile or ignore_queue):
            raise ConfigurationError(f"{needs_log}= stores the event: callback, volatile and ignore_queue do not")
        outgoing = Outgoing.encoded(
            event,
            data,
            namespace=namespace,
            room=room,
            to=to,
            skip_sid=skip_sid,
            skip_room=skip_room,
            key=key,
            json=self.json,
        )
        if needs_log is not None and outgoing.namespace in self.unstored:
            raise ConfigurationError(
                f"{needs_log}= needs a stored event: those of {outgoing.namespace!r} are not, as the Admin UI's"
            )
        self._frames.check(outgoing)
        if connection is not None:
            return await emit_outgoing(connection, outgoing, self.database.schema)
        if callback is not None:
            self._check_question(callback, outgoing)
        node = await self.started()
        if callback is not None:
            await node.callbacks.ask(outgoing, callback, only_here=ignore_queue)
        elif ignore_queue:
            node.delivery.only_here(outgoing)
        elif volatile or outgoing.namespace in self.unstored:
            await node.send_unstored(outgoing, volatile=volatile)
        else:
            stored = await node.appender.event(outgoing)
            return stored if key is not None else None
        return None

    def _check_question(self, callback: object, outgoing: Outgoing) -> None:
        if not callable(callback):
            raise ConfigurationError(f"callback takes a function(*args), not {callback!r}")
        if self.server is None:
            raise RuntimeError("Callbacks can only be issued from the context of a server.")
        if outgoing.rooms == (EVERYBODY,):
            raise ValueError("Cannot use callback without a room set.")

    async def trigger_callback(self, sid: str, id: int, data: Any) -> None:  # noqa: A002 - python-socketio's name
        """A client acknowledged an event, under a plain ``socketio.AsyncServer``, which does not say in which
        namespace."""
        node = await self.started()
        clients = [
            client for namespace in list(self.clients.by_sid) if (client := self.clients.current(sid, namespace))
        ]
        if not any(node.callbacks.acknowledged(client, id, data) for client in clients):
            self._get_logger().warning("Unknown callback received, ignoring.")

    async def position(self, connection: Any = None, namespace: str | None = None) -> str:
        """Return the end of the log as a position, as a connection's snapshot sees it, or as it is now.

        Read it in the snapshot that reads the application's state, in one statement with ``sio_position()`` or in a
        transaction that is repeatable read. An event whose transaction the snapshot sees is then at or below it. All
        others are above it, and so are events of the transaction itself, which are not committed yet.

        :param connection: as in :meth:`emit`, also on a hot standby. Its errors pass through. A serialization failure
                           means that retention truncated the log in the meantime. Retry the transaction.
        :raises StoreUnavailable: if the database cannot be reached.
        """
        if connection is not None:
            return await read_position(connection, namespace, self.database.schema)
        return await (await self.started()).reader.position(namespace_name(namespace))

    async def history(
        self,
        room: str | None,
        namespace: str | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int = 100,
    ) -> list[StoredEvent]:
        """Return the events of a room that are stored, in the order of the log.

        They are all events that were emitted to the room, alone or together with other rooms. Events that
        ``skip_sid`` or ``skip_room`` kept from some clients are included. Events to everybody in the namespace belong
        to no room. ``None`` returns them. Volatile events are not stored. The option ``retention`` says how long the
        others are stored. An event that cannot be read is left out, and logged.

        Without ``since`` they are the last ``limit`` events. If there are fewer, the list begins where the log
        begins. With ``since`` they are the first ``limit`` events after it. The position of the last one is then the
        next ``since``.

        :param room: the name of one room. A client's sid is a room, too.
        :param since: a position, of :meth:`position`, ``enter_room`` or an event. Only events after it (exclusive).
        :param until: a position. Only events up to it (inclusive).
        :param limit: at most so many, from 1 to 10,000. Their bodies are read into memory.
        :raises PositionInvalid: if a position is malformed, forged, or of another namespace.
        :raises ConfigurationError: if ``limit`` is out of range.
        :raises PositionLost: if ``since`` is older than the oldest stored event, or was lost in a failover.
        :raises StoreUnavailable: if the database does not answer.
        """
        return await (await self.started()).history.read(room, namespace, since, until, limit)

    # -- rooms -------------------------------------------------------------------------------------------------
    async def enter_room(
        self,
        sid: str,
        namespace: str,
        room: str,
        eio_sid: str | None = None,
        *,
        since: str | None = None,
        connection: Any = None,
    ) -> str | None:
        """Add a client of any node, or a session that is away, to a room. It has taken effect on return.

        See :meth:`AsyncServer.enter_room`.

        :param connection: the change becomes part of this connection's transaction, see
                           :func:`sio_pg_adapter.enter_room_async`. Returns at once.
        """
        if connection is not None:
            if since is not None:
                raise ConfigurationError(
                    "enter_room takes since= or connection=, not both: it replays events at once"
                )
            self.check_rooms("enter", namespace, (room,), but=sid)
            await enter_room_async(connection, sid, room, namespace=namespace, schema=self.database.schema)
            return None
        node = await self.started()
        if since is None:
            offset = await node.moves.enter(sid, namespace, room)
        else:
            offset = await node.positions.enter(sid, namespace, room, since)
        return None if offset is None else await node.positions.of(offset, namespace_name(namespace))

    async def leave_room(self, sid: str, namespace: str, room: str, *, connection: Any = None) -> None:
        """Remove a client of any node, or a session that is away, from a room. It has taken effect on return.

        :param connection: as for :meth:`enter_room`.
        """
        if connection is None:
            await (await self.started()).moves.leave(sid, namespace, room)
            return
        self._check_handler("leave_room", namespace, sid)
        await leave_room_async(connection, sid, room, namespace=namespace, schema=self.database.schema)

    async def close_room(self, room: str, namespace: str | None = None, *, connection: Any = None) -> None:
        """Remove everybody from a room, on all nodes, and sessions that are away. It has taken effect on return.

        :param connection: as for :meth:`enter_room`.
        """
        if connection is None:
            await (await self.started()).moves.close(room, namespace)
            return
        self.check_rooms("close", namespace, (room,))
        await close_room_async(connection, room, namespace=namespace, schema=self.database.schema)

    async def sockets_join(
        self,
        room: Any,
        rooms: Any,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        skip_room: Any = None,
        connection: Any = None,
    ) -> None:
        """Let all members of a room enter others, see :meth:`AsyncServer.sockets_join`. Also with ``write_only``."""
        move = member_move(Kind.ENTER, namespace_name(namespace), room, rooms, skip_sid, skip_room)
        if connection is not None:
            self.check_rooms("enter", move.namespace, move.targets)
        await self._move(move, connection)

    async def sockets_leave(
        self,
        room: Any,
        rooms: Any,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        skip_room: Any = None,
        connection: Any = None,
    ) -> None:
        """Let all members of a room leave others, see :meth:`AsyncServer.sockets_leave`. Also with ``write_only``."""
        move = member_move(Kind.LEAVE, namespace_name(namespace), room, rooms, skip_sid, skip_room)
        await self._move(move, connection)

    async def disconnect_sockets(
        self,
        room: Any,
        namespace: str | None = None,
        *,
        skip_sid: Any = None,
        skip_room: Any = None,
        connection: Any = None,
    ) -> None:
        """Disconnect all members of a room, see :meth:`AsyncServer.disconnect_sockets`. Also with ``write_only``."""
        move = member_move(Kind.KICK, namespace_name(namespace), room, None, skip_sid, skip_room)
        await self._move(move, connection)

    async def _move(self, move: MemberMove, connection: Any) -> None:
        if connection is not None:
            await change_members(connection, move, self.database.schema)
            return
        node = await self.started()
        if self.write_only:  # no node can answer it, so it takes the path of a transaction, which asks none
            await node.members.move_by_record(move)
        else:
            await node.members.move(move)

    async def server_side_emit(self, event: str, *args: Any, namespace: str | None = None) -> None:
        """Send an event to all other nodes, see :meth:`AsyncServer.server_side_emit`. Also with ``write_only``."""
        name = namespace_name(namespace)
        await (await self.started()).server_events.emit(name, event, args)

    def check_rooms(
        self, verb: str, namespace: str | None, rooms: tuple[str, ...], *, but: str | None = None
    ) -> None:
        """Check the rooms that a transaction enters or closes. The database does not know all clients of this node.

        :param but: the sid that enters them.
        :raises ValueError: if a room is another client's own.
        :raises NotSerializable: if a room is not text.
        """
        name = namespace_name(namespace)
        if any(room != but and self.clients.current(room, name) for room in map(room_name, rooms)):
            raise ValueError(f"cannot {verb} a sid room")

    def _check_handler(self, call: str, namespace: str, sid: str) -> None:
        """Refuse a change in the connect handler of the client that it is about.

        Without ``connection=`` a room that is left there counts as left from the offset that the client presented. A
        commit comes behind that, and the client would be sent what it missed in the room.
        """
        client = handled()
        if client is not None and (client.sid, client.namespace) == (sid, namespace) and not client.is_answered:
            raise ConfigurationError(
                f"{call}() takes no connection= for the client whose connect is being decided. Leave connection= out,"
                " or refuse the client."
            )

    def get_rooms(self, sid: str, namespace: str) -> list[str]:
        """Return the rooms of a client of this node, its own first."""
        client = self.clients.addressed(sid, namespace)
        return [] if client is None else [client.sid, *client.memberships.current()]

    # -- clients -----------------------------------------------------------------------------------------------
    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """Admit a client of a server without recovery. ``None`` if its connection has one in the namespace."""
        client = self.admit(await self.started(), eio_sid, namespace, None)
        return None if client is None else client.sid

    def admit(self, node: Node, eio_sid: str, namespace: str, presented: Any) -> Client | None:
        """Return a new client whose connect is being decided.

        ``None`` if its connection is closed, or has a client in the namespace already.

        :param presented: the data of its CONNECT packet.
        """
        socket = self.server.eio.sockets.get(eio_sid)
        if socket is None or self.clients.of_socket(eio_sid, namespace) is not None:
            return None
        sid, start = self.server.eio.generate_id(), node.cursor.offset
        connection = self.connections.of(socket)
        client = Client(namespace, sid, connection, Memberships(sid, start), sent=start, presented=presented)
        self.clients.add(client)
        return client

    async def connect(self, sid: str, namespace: str) -> str:
        """The connect of a client without recovery was accepted: it goes live."""
        node = await self.started()
        client = self.clients.addressed(sid, namespace)
        if client is not None and client.state is State.CONNECTING:
            node.delivery.catch_up(client, node.cursor.recent, node.cursor.offset)
        return sid

    def is_connected(self, sid: str, namespace: str) -> bool:
        client = self.clients.current(sid, namespace)
        pending = self.pending_disconnect.get(namespace, ())
        return client is not None and client.connected and sid not in pending

    def is_pre_connected(self, sid: str, namespace: str) -> bool:
        client = self.clients.current(sid, namespace)
        return client is not None and client.state is State.CONNECTING

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        client = self.clients.addressed(sid, namespace)
        return None if client is None else client.eio_sid

    def sid_from_eio_sid(self, eio_sid: str, namespace: str) -> str | None:
        client = self.clients.of_socket(eio_sid, namespace)
        return None if client is None else client.sid

    def get_namespaces(self) -> Any:
        return list(self.clients.by_sid)  # python-socketio awaits while it goes through them

    # -- disconnect --------------------------------------------------------------------------------------------
    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Whether python-socketio disconnects a client itself. Clients of other nodes are kicked through the log."""
        if self.clients.current(sid, namespace) is not None:
            return self.is_connected(sid, namespace)
        await self.kick(sid, namespace)
        return False

    async def kick(self, sid: str, namespace: str) -> None:
        """End the session of a sid for good, and its connection, wherever it is."""
        entry = Entry(Kind.KICK, namespace_name(namespace), sid=text_name(sid, "sid"))
        await (await self.started()).appender.change(entry)

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        self.pending_disconnect.setdefault(namespace, []).append(sid)
        return self.eio_sid_from_sid(sid, namespace)

    async def disconnect(self, sid: str, namespace: str, *, connection: Any = None, **kwargs: Any) -> None:
        if connection is not None:
            if kwargs.get("ignore_queue"):
                raise ConfigurationError("connection= goes through the log: ignore_queue does not")
            self._check_handler("disconnect", namespace, sid)
            await disconnect_async(connection, sid, namespace=namespace, schema=self.database.schema)
        elif kwargs.get("ignore_queue"):
            self.basic_disconnect(sid, namespace)
        else:
            await self.kick(sid, namespace)

    def basic_disconnect(self, sid: str, namespace: str, **_: object) -> None:
        client = self.clients.current(sid, namespace)
        if client is not None:
            Rooms(self.clients, self).depart(client)  # the node may have stopped before its connections end
        pending = self.pending_disconnect.get(namespace, [])
        if sid in pending:
            pending.remove(sid)
            if not pending:
                del self.pending_disconnect[namespace]

    def _plain_endings(self, *, tasks: Tasks, **_: object) -> Endings:
        def disconnect(client: Client) -> Any:
            return self.server.disconnect(client.sid, namespace=client.namespace, ignore_queue=True)

        return PlainEndings(disconnect, tasks)


def _no_environ(_eio_sid: str) -> None:
    """A process that only emits has no connections."""


async def _nobody(_sid: str, _namespace: str, _session: Any) -> None:
    """Nobody is called when a session's time is up."""


def _full_name(server: Any) -> str:
    kind = type(server)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _has(value: object, *methods: str) -> bool:
    return all(callable(getattr(value, method, None)) for method in methods)
