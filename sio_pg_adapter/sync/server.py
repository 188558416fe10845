"""``Server``: python-socketio's synchronous server, with connection state recovery."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import socketio

from sio_pg_adapter.errors import ConfigurationError, NoAnswer
from sio_pg_adapter.green_threads import REFUSED
from sio_pg_adapter.handler_types import Event, On
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import ConnectionStateRecovery
from sio_pg_adapter.server.cluster_api import FETCH_TIMEOUT
from sio_pg_adapter.server.server import AsyncServer

from .background import Background
from .calls import blocking
from .event_api import EventMethods
from .loop_server import LoopServer
from .manager import PostgresManager
from .sockets import BlockingSocket
from .wsgi import serve

REFUSED_MODES = {**REFUSED, "gevent_uwsgi": REFUSED["gevent"]}
"""Asynchronous modes of python-socketio that cannot work here, and why."""

INSTEAD = 'Use async_mode="threading", for example under `gunicorn -k gthread`. A websocket takes no thread there.'


class Server(EventMethods, socketio.Server):
    """A ``socketio.Server`` whose clients recover their connections.

    All of python-socketio's options, methods and decorators work unchanged, under any threaded WSGI server. Handlers
    are plain functions, which run in threads. Methods may be called in any thread, and block until they have their
    result.

    :param client_manager: a :class:`PostgresManager`.
    :param connection_state_recovery: a :class:`ConnectionStateRecovery`, ``True`` for its defaults, or a dict of its
                                      keys. ``None`` or ``False``: off. ``accepts`` and ``identity`` run in threads.
    :raises ConfigurationError: naming the option that is wrong.
    """

    event: Event
    on: On
    manager: PostgresManager

    def __init__(
        self,
        client_manager: Any = None,
        *args: Any,
        connection_state_recovery: ConnectionStateRecovery | Mapping[str, Any] | bool | None = None,
        async_mode: str | None = None,
        **options: Any,
    ) -> None:
        _check_mode(async_mode)
        if not isinstance(client_manager, PostgresManager):
            raise ConfigurationError(  # only the type is shown: it may be a DSN
                f"client_manager takes PostgresManager(...), not a {type(client_manager).__name__}. With another "
                "manager use socketio.Server."
            )
        EventMethods.__init__(self)
        self._make: Callable[[AsyncPostgresManager], LoopServer] = lambda manager: LoopServer(
            manager,
            *args,
            connection_state_recovery=connection_state_recovery,
            run_in_thread=self._run_in_thread,
            **options,
        )
        self._server = self._make(client_manager.adopt(self, self._remake))
        socketio.Server.__init__(self, client_manager, *args, async_mode="threading", **options)
        self.handlers, self.namespace_handlers = self._server.handlers, self._server.namespace_handlers
        self._share()

    def _remake(self, manager: AsyncPostgresManager) -> None:
        """Make the server of a forked process, or of a start after a shutdown."""
        self._server = self._make(manager)
        self._server.handlers, self._server.namespace_handlers = self.handlers, self.namespace_handlers
        self._register_again()
        self._share()

    def _share(self) -> None:
        self.environ, self.eio.sockets = self._server.environ, self._server.eio.sockets

    def _ready(self) -> tuple[Background, LoopServer]:
        background, _ = self.manager._ready()  # noqa: SLF001 - they are one
        return background, self._server

    # -- events ------------------------------------------------------------------------------------------
    emit = blocking(AsyncServer.emit)
    send = blocking(AsyncServer.send)
    call = blocking(AsyncServer.call)
    broadcast_call = blocking(AsyncServer.broadcast_call)
    server_side_emit = blocking(AsyncServer.server_side_emit)
    server_side_call = blocking(AsyncServer.server_side_call)

    # -- clients, rooms and sessions -----------------------------------------------------------------------
    enter_room = blocking(AsyncServer.enter_room)
    leave_room = blocking(AsyncServer.leave_room)
    close_room = blocking(AsyncServer.close_room)
    rooms = blocking(AsyncServer.rooms)
    fetch_rooms = blocking(AsyncServer.fetch_rooms)
    sockets_join = blocking(AsyncServer.sockets_join)
    sockets_leave = blocking(AsyncServer.sockets_leave)
    disconnect = blocking(AsyncServer.disconnect)
    disconnect_sockets = blocking(AsyncServer.disconnect_sockets)
    recovered = blocking(AsyncServer.recovered)
    get_session = blocking(AsyncServer.get_session)
    save_session = blocking(AsyncServer.save_session)
    transport = blocking(AsyncServer.transport)
    get_environ = blocking(AsyncServer.get_environ)
    server_count = blocking(AsyncServer.server_count)

    def fetch_sockets(
        self, room: Any = None, namespace: str | None = None, *, local: bool = False, timeout: float = FETCH_TIMEOUT
    ) -> list[BlockingSocket]:
        """Return the clients of all nodes that are connected now. See :meth:`AsyncServer.fetch_sockets`."""
        try:
            sockets = self._fetch_sockets(room, namespace, local=local, timeout=timeout)
        except NoAnswer as error:
            error.answers = [socket.bound(BlockingSocket, self) for socket in error.answers]
            raise
        return [socket.bound(BlockingSocket, self) for socket in sockets]

    _fetch_sockets = blocking(AsyncServer.fetch_sockets)

    def session(self, sid: str, namespace: str | None = None) -> AbstractContextManager[Any]:
        """Return a context manager with the user session of a client, which saves the changes that its block makes.

        See :meth:`AsyncServer.session`. Blocks of other threads wait, and the thread itself may enter it again.
        """
        return self._session(sid, namespace)

    @contextlib.contextmanager
    def _session(self, sid: str, namespace: str | None) -> Iterator[Any]:
        background, server = self._ready()
        block = background.call(server.session, sid, namespace)
        session = background.call(block.__aenter__)
        try:
            yield session
        except BaseException:  # as the end of an `async with` gets it
            if not background.call(block.__aexit__, *sys.exc_info()):
                raise
        else:
            background.call(block.__aexit__, None, None, None)

    # -- positions and history -------------------------------------------------------------------------------
    position = blocking(AsyncServer.position)
    last_position = blocking(AsyncServer.last_position)
    history = blocking(AsyncServer.history)

    # -- requests, start and end -----------------------------------------------------------------------------
    def handle_request(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        """Serve a request of a WSGI server. ``socketio.WSGIApp`` calls this."""
        background, server = self._ready()
        return serve(background, server.handle_request, environ, start_response, self.eio.max_http_buffer_size)

    def start(self) -> None:
        """Connect, and begin to follow the log. Safe to call twice.

        Nothing needs this: the first connection or call starts the server. It shows a wrong DSN, or a database that
        is not migrated, before the first client comes.

        :raises StoreUnavailable: if the database cannot be reached.
        :raises SchemaMismatch: if it is not migrated.
        """
        self.manager.start()

    def shutdown(self) -> None:
        """Send the clients away, so that they come back to another node, and stop. Safe to call twice."""
        self.manager._end(lambda: self._server.shutdown())  # noqa: PLW0108, SLF001 - the one that is there then


def _check_mode(mode: str | None) -> None:
    if mode in REFUSED_MODES:
        raise ConfigurationError(f"async_mode={mode!r} is not supported: {REFUSED_MODES[mode]}. {INSTEAD}")
    if mode not in {None, "threading"}:
        raise ConfigurationError(f'async_mode takes "threading" or None, not {mode!r}.')
