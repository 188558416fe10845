"""``AsyncServer``: python-socketio's server, with connection state recovery."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import engineio
import socketio

from sio_pg_adapter.errors import ConfigurationError, SioPgError
from sio_pg_adapter.handler_types import Event, On
from sio_pg_adapter.local.registry import Registry
from sio_pg_adapter.local.rooms import Rooms
from sio_pg_adapter.local.session_locks import SessionLocks
from sio_pg_adapter.log.names import first_named, namespace_name
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import ConnectionStateRecovery, is_seconds, recovery_options
from sio_pg_adapter.shared_api import SharedMethods
from sio_pg_adapter.store.pruner import Pruner
from sio_pg_adapter.store.sessions import Sessions
from sio_pg_adapter.tasks import Tasks
from sio_pg_adapter.wire import upstream
from sio_pg_adapter.wire.admission import Admission
from sio_pg_adapter.wire.incoming import ACKS, Incoming
from sio_pg_adapter.wire.pings import Pings, socket_class

from .admin import Instrumented
from .client_api import ClientMethods
from .cluster_api import ClusterMethods
from .endings import Endings
from .event_api import EventMethods, ExpiryHandler
from .host import Host
from .intake import Intake

logger = logging.getLogger("sio_pg_adapter")

UPSTREAM = {
    name
    for part in (*socketio.AsyncServer.__mro__, *engineio.AsyncServer.__mro__)
    if part is not object
    for name in inspect.signature(part.__init__).parameters
}
"""The options of python-socketio and python-engineio."""


def _meant(name: str) -> list[str]:
    """Return the option that a name resembles. No signature has all of upstream's: those must be closer."""
    near = difflib.get_close_matches
    return near(name, ["connection_state_recovery"]) or near(name, UPSTREAM, 1, 0.85)


class AsyncServer(ClientMethods, ClusterMethods, EventMethods, SharedMethods, socketio.AsyncServer):
    """A ``socketio.AsyncServer`` whose clients recover their connections.

    All of python-socketio's options, methods and decorators work unchanged.

    :param client_manager: an :class:`AsyncPostgresManager`.
    :param connection_state_recovery: a :class:`ConnectionStateRecovery`, ``True`` for its defaults, or a dict of its
                                      keys. ``None`` or ``False``: off.
    :param connect_timeout: seconds after which a connection is closed that no client has joined a namespace over.
                            ``None``: it stays.
    :raises ConfigurationError: naming the option that is wrong.
    """

    reserved_events = (*socketio.AsyncServer.reserved_events, "disconnecting")
    event: Event
    on: On
    manager: AsyncPostgresManager

    def __init__(
        self,
        client_manager: Any = None,
        *args: Any,
        connection_state_recovery: ConnectionStateRecovery | Mapping[str, Any] | bool | None = None,
        connect_timeout: float | None = 45.0,
        **kwargs: Any,
    ) -> None:
        for name in kwargs:  # python-socketio takes any keyword: without this check, a typo would just be ignored
            if name not in UPSTREAM and (meant := _meant(name)):
                raise ConfigurationError(f"AsyncServer has no option {name!r}. Did you mean {meant[0]}?")
        recovery = recovery_options(connection_state_recovery)
        if not isinstance(client_manager, AsyncPostgresManager):
            raise ConfigurationError(  # only the type is shown: it may be a DSN
                f"client_manager takes AsyncPostgresManager(...), not a {type(client_manager).__name__}. With "
                "another manager use socketio.AsyncServer."
            )
        if connect_timeout is not None and not (is_seconds(connect_timeout) and connect_timeout > 0):
            raise ConfigurationError(f"connect_timeout takes seconds, more than 0, or None, not {connect_timeout!r}")
        apart = client_manager.unstored
        self.middlewares, self._event_middlewares, self._listeners = Registry(apart), Registry(apart), Registry(apart)
        self._expiry_handlers: dict[str, ExpiryHandler] = {}
        self._instrumented: list[Instrumented] = []
        self._session_locks = SessionLocks()
        super().__init__(client_manager, *args, **kwargs)
        self._host = Host(self, client_manager, self.middlewares)
        self._intake = Intake(
            self._host,
            client_manager.clients,
            self._host.frames,
            Incoming(
                self.packet_class, upstream.pending_packets(self), self.eio, client_manager.clients.any_connected
            ),
            client_manager.traffic,
            client_manager.json,
            connect_timeout,
        )
        self._socket_class = socket_class(Pings(client_manager.connections), self._intake.post)
        client_manager.connections.take_event = self._intake.event_at_once
        client_manager.serve(recovery, self._make_endings, self._expired)
        upstream.pace_connections(self.eio, Admission().turn)
        upstream.expect_polls_of_closed_connections(self.eio)
        if recovery is not None and hasattr(self.eio.logger, "addFilter"):
            self.eio.logger.addFilter(_without_pid)

    @property
    def _manager(self) -> AsyncPostgresManager:
        return self.manager

    def _make_endings(self, *, rooms: Rooms, sessions: Sessions, pruner: Pruner, tasks: Tasks) -> Endings:
        return Endings(
            self._host,
            self._host.frames,
            self.manager.recovery,
            clients=self.manager.clients,
            rooms=rooms,
            sessions=sessions,
            pruner=pruner,
            tasks=tasks,
        )

    def instrument(
        self,
        auth: Any = None,
        mode: str = "development",
        read_only: bool = False,
        server_id: str | None = None,
        namespace: str = "/admin",
        server_stats_interval: int = 2,
    ) -> Any:
        """Connect the Socket.IO Admin UI, as python-socketio does. Events in its namespace are not stored.

        This is best effort: no event or handler of the application fails because it could not be reported.
        """
        self.manager.unstored.add(namespace)
        instrumented = Instrumented(
            self,
            auth=auth,
            mode=mode,
            read_only=read_only,
            server_id=server_id,
            namespace=namespace,
            server_stats_interval=server_stats_interval,
        )
        self._instrumented.append(instrumented)
        return instrumented

    # -- events ------------------------------------------------------------------------------------------
    async def emit(
        self,
        event: str,
        data: Any = None,
        to: Any = None,
        room: Any = None,
        skip_sid: Any = None,
        namespace: str | None = None,
        callback: Callable[..., Any] | None = None,
        ignore_queue: bool = False,
        *,
        skip_room: Any = None,
        connection: Any = None,
        volatile: bool = False,
        key: str | None = None,
    ) -> bool | None:
        """Send an event. The parameters of ``socketio.AsyncServer.emit`` mean the same here.

        :param callback: called with the answer of a client. If the event is for several clients, it is called once,
                         with the first answer. :meth:`broadcast_call` returns all of them.
        :param skip_room: a room, or several in a list. Clients that are in one of them when the event is emitted do
                          not get it, and a recovery does not replay it to them.
        :param connection: an asyncpg connection, an SQLAlchemy ``AsyncConnection`` or ``AsyncSession``, or a psycopg
                           ``AsyncConnection``. The event is sent if and when its transaction commits. Errors of the
                           connection pass through.
        :param volatile: ``True``: the event is not stored, and so never replayed. A client that does not take what
                         it is sent, so that anything waits for it, does not get it.
        :param key: an idempotency key, up to 512 bytes. If the log has an event with this key in the namespace, this
                    one is not stored, which is no error.
        :returns: ``None`` without a key. With one, ``True`` if the event was stored, and ``False`` if the log had one
                  with this key. With ``connection``, ``True`` means that it will be stored, unless another event with
                  the key is committed first.
        :raises ConfigurationError: if the key is empty, or comes with ``volatile``, ``callback`` or ``ignore_queue``.
        :raises NotSerializable: before anything is stored or sent. It names the key or the argument.
        :raises StoreUnavailable: if the database does not answer. It says whether the event may be stored.
        """
        namespace, room = namespace_name(namespace), first_named(to, room)
        self.logger.info('emitting event "%s" to %s [%s]', event, room or "all", namespace)
        try:
            return await self.manager.emit(
                event,
                data,
                namespace,
                room=room,
                skip_sid=skip_sid,
                callback=callback,
                skip_room=skip_room,
                ignore_queue=ignore_queue,
                volatile=volatile,
                connection=connection,
                key=key,
            )
        except SioPgError as e:
            if namespace not in self.manager.unstored or key is not None:
                raise
            logger.debug("not reported to the Admin UI: %s", e)
            return None

    async def send(
        self,
        data: Any,
        to: Any = None,
        room: Any = None,
        skip_sid: Any = None,
        namespace: str | None = None,
        callback: Callable[..., Any] | None = None,
        ignore_queue: bool = False,
        *,
        skip_room: Any = None,
        connection: Any = None,
        volatile: bool = False,
        key: str | None = None,
    ) -> bool | None:
        """Send an event of the name ``message``. The parameters are those of :meth:`emit`."""
        return await self.emit(
            "message",
            data,
            to,
            room,
            skip_sid,
            namespace,
            callback,
            ignore_queue,
            skip_room=skip_room,
            connection=connection,
            volatile=volatile,
            key=key,
        )

    async def shutdown(self) -> None:
        """Stop background work, and the manager. Safe to call twice."""
        for instrumented in self._instrumented:
            await instrumented.shutdown()
        if self.eio.service_task_handle is not None:  # python-engineio awaits it even if it has ended
            await super().shutdown()
        await self.manager.aclose()

    async def _call_function(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the application that is not async. The synchronous server does it in a thread."""
        return function(*args)

    # -- python-socketio's private hooks -------------------------------------------------------------------
    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> Any:
        if self.manager.leaving:
            return False  # the client tries again, and reaches another node
        self.eio.sockets[eio_sid].__class__ = self._socket_class
        upstream.trim_environ(environ)
        self._intake.opened(eio_sid)
        return await super()._handle_eio_connect(eio_sid, environ)

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        await self._intake.message(eio_sid, data)

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        await self._intake.closed(eio_sid, reason)
        self.eio.sockets.pop(eio_sid, None)  # Engine.IO answers a POST to a closed socket with an uncaught KeyError

    async def _send_packet(self, eio_sid: str, pkt: socketio.packet.Packet) -> None:
        if pkt.packet_type not in ACKS or not self._intake.acknowledge(eio_sid, pkt):
            await super()._send_packet(eio_sid, pkt)


_PID = re.compile(r'("pid"\s*:\s*")[^"]*')


def _without_pid(record: logging.LogRecord) -> bool:
    """Hide pids in Engine.IO's log, which shows packets at level INFO. A pid is a secret."""
    if record.args and isinstance(record.args, tuple):
        record.args = tuple(_PID.sub(r"\1...", a) if isinstance(a, str) else a for a in record.args)
    return True
