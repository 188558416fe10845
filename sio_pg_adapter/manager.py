"""``AsyncPostgresManager``: the client manager that python-socketio talks to.

It takes the options, and has the methods that send events, change rooms and disconnect. It inherits the others:
those that the server has, too (``shared_api``), python-socketio's hooks (``plain_server`` and
``local/client_manager``), the start and the stop (``lifecycle``). The module is longer than others because the class
is public and documented.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal, Self

from socketio.packet import Packet

from .counters import Counters
from .emitter import emit_outgoing
from .errors import ConfigurationError, StoreUnavailable
from .local.client import QueueLimit
from .local.handling import refuse_in_connect
from .local.health import Health
from .local.registry import Registry
from .local.watch import Watch
from .log.names import EVERYBODY, namespace_name, room_name, text_name
from .log.records import Entry, Kind, Outgoing
from .node import MakeEndings, Node, Setup
from .options import (
    FOREIGN_OPTIONS,
    MANAGER_RULES,
    ConnectionStateRecovery,
    Durability,
    check_options,
    retention_seconds,
)
from .plain_server import PlainServerManager
from .rooms import close_room_async, disconnect_async, enter_room_async, leave_room_async
from .shared_api import SharedMethods
from .store.database import Database
from .store.endpoints import Pool
from .wire import upstream, websocket
from .wire.frames import FrameMaker
from .wire.transport import Cork, TrafficCounter


class AsyncPostgresManager(SharedMethods, PlainServerManager):
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
        super().__init__(self._make_node)
        check_options(
            MANAGER_RULES,
            write_only=write_only,
            logger=logger,
            json=json,
            max_queued_packets=max_queued_packets,
            max_queued_bytes=max_queued_bytes,
            retention=retention,
            durability=durability,
            error_handler=error_handler,
        )
        if retention is not None and write_only:
            raise ConfigurationError(
                "retention counts while a server runs. Give it to the manager of a server, not with write_only=True."
            )
        self._retention_seconds = retention_seconds(retention)
        self._error_handler = error_handler
        self.logger = logger
        if json is not None:
            self.json = json
        self.write_only = write_only
        self.database = Database(
            dsn,
            pool=pool,
            listen_dsn=listen_dsn,
            schema=schema,
            durability=Durability(durability),
            must_fit=True,
        )
        self.traffic = TrafficCounter()
        self.counters = Counters()
        self.cork = Cork()
        self.recovery: ConnectionStateRecovery | None = None
        self.unstored: set[str] = set()  # namespaces whose events are not stored: the Admin UI's
        self.watch = Watch(Registry(self.unstored))
        self.server_event_handlers: dict[tuple[str, str], Callable[..., Any]] = {}
        self.expiry_namespaces: list[str] = []
        self._limit = QueueLimit(max_queued_packets, max_queued_bytes)
        self._make_endings: MakeEndings = self.plain_endings
        self._on_expired: Callable[[str, str, Any], Awaitable[None]] = _nobody
        self._frames = FrameMaker(Packet)

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
        self.start_early()

    @property
    def _manager(self) -> Self:
        return self

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
            rooms=self.live_rooms,
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

    async def health(self) -> Health:
        """Return the state of this node, without asking the database."""
        if self.node is None:
            reason = "the manager is not started"
            return Health(False, 0, 0, "stopped", 0, reason, self.database.durability.value)
        health = self.node.diagnosis.health()
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
            self.live_rooms.refuse_own_room("enter", namespace_name(namespace), room_name(room), but=sid)
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
        refuse_in_connect("leave_room", sid, namespace)
        await leave_room_async(connection, sid, room, namespace=namespace, schema=self.database.schema)

    async def close_room(self, room: str, namespace: str | None = None, *, connection: Any = None) -> None:
        """Remove everybody from a room, on all nodes, and sessions that are away. It has taken effect on return.

        :param connection: as for :meth:`enter_room`.
        """
        if connection is None:
            await (await self.started()).moves.close(room, namespace)
            return
        self.live_rooms.refuse_own_room("close", namespace_name(namespace), room_name(room))
        await close_room_async(connection, room, namespace=namespace, schema=self.database.schema)

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

    async def disconnect(self, sid: str, namespace: str, *, connection: Any = None, **kwargs: Any) -> None:
        if connection is not None:
            if kwargs.get("ignore_queue"):
                raise ConfigurationError("connection= goes through the log: ignore_queue does not")
            refuse_in_connect("disconnect", sid, namespace)
            await disconnect_async(connection, sid, namespace=namespace, schema=self.database.schema)
        elif kwargs.get("ignore_queue"):
            self.basic_disconnect(sid, namespace)
        else:
            await self.kick(sid, namespace)


def _no_environ(_eio_sid: str) -> None:
    """A process that only emits has no connections."""


async def _nobody(_sid: str, _namespace: str, _session: Any) -> None:
    """Nobody is called when a session's time is up."""


def _full_name(server: Any) -> str:
    kind = type(server)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
