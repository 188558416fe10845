"""``PostgresManager``: the client manager of the synchronous server, and what writes from threads and scripts."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Self

from sio_pg_adapter.errors import ConfigurationError, StoreUnavailable
from sio_pg_adapter.green_threads import refuse_green_threads
from sio_pg_adapter.lifespan import Goodbye
from sio_pg_adapter.manager import AsyncPostgresManager

from .background import INSTEAD, Background
from .calls import blocking


class PostgresManager:
    """A client manager on PostgreSQL for synchronous applications.

    Its methods are those of :class:`AsyncPostgresManager`, and block until they have their result. They may be called
    in any thread. The manager itself runs in an event loop in a background thread, which starts at the first use in
    each process. So it may be made before a server or a task queue forks its workers.

    :param dsn: an asyncpg or libpq URL. ``None``: the ``SIO_PG_DSN`` environment variable, then libpq's ``PG*``
                variables.
    :param options: the options of :class:`AsyncPostgresManager`, except ``pool``. A process that serves no clients,
                    such as a Celery worker, needs ``write_only=True``.
    :raises ConfigurationError: naming the option that is wrong.
    """

    name = "postgres"

    def __init__(self, dsn: str | None = None, **options: Any) -> None:
        refuse_green_threads(INSTEAD)
        if options.get("pool") is not None:
            raise ConfigurationError(
                "PostgresManager takes no pool=. An asyncpg pool belongs to an event loop, and PostgresManager has "
                "one of its own. Give it dsn=."
            )
        self._make: Callable[[], AsyncPostgresManager] = lambda: AsyncPostgresManager(dsn, **options)
        self._manager = self._make()
        self._background: Background | None = None
        self._adopter: Any = None
        self._readopt: Callable[[AsyncPostgresManager], None] = _nothing
        self._starting = threading.RLock()  # a signal handler may close it
        self._used = self._closing = self._closed = False
        self._goodbye: Goodbye | None = None
        self._inherited: list[Any] = []
        _managers.add(self)

    # -- the event loop of this process --------------------------------------------------------------------
    def _ready(self) -> tuple[Background, AsyncPostgresManager]:
        background = self._background or self._open()
        return background, self._manager

    def _open(self) -> Background:
        with self._starting:
            if self._closed:
                raise StoreUnavailable("the manager was closed")
            if self._background is None:
                if self._used:  # its locks and connections belong to another event loop
                    self._manager = self._make()
                    self._readopt(self._manager)
                self._used = True
                self._background = Background()
                atexit.register(self.close)
            return self._background

    def _forked(self) -> None:
        """Forget the event loop of the parent process, whose thread does not exist in this process.

        The objects are kept: their finalizers would take connections out of the selector of the parent.
        """
        self._starting = threading.RLock()  # a signal handler may close it
        if self._background is not None:
            self._inherited += [self._background, self._manager]
            self._background = self._goodbye = None
            self._closing = False

    def adopt(self, server: Any, readopt: Callable[[AsyncPostgresManager], None]) -> AsyncPostgresManager:
        """Serve :class:`sio_pg_adapter.Server`. Return the manager for its server in the event loop.

        :param readopt: gets the manager that takes its place in a forked process.
        """
        if self._adopter is not None:
            raise ConfigurationError("PostgresManager serves one server. Make a manager for each server.")
        self._adopter, self._readopt = server, readopt
        return self._manager

    def set_server(self, server: Any) -> None:
        """Refuse python-socketio's own server, whose sockets this manager cannot write to."""
        if server is not self._adopter:
            raise ConfigurationError(
                f"PostgresManager serves sio_pg_adapter.Server, not a {type(server).__module__}."
                f"{type(server).__name__}. Use sio_pg_adapter.Server, or sio_pg_adapter.AsyncServer with "
                "AsyncPostgresManager."
            )

    def initialize(self) -> None:
        """Do nothing: python-socketio calls this at the first connection, and the manager starts by itself."""

    # -- start and end -----------------------------------------------------------------------------------
    def start(self) -> None:
        """Connect, and begin to follow the log. Safe to call twice, and after :meth:`close`.

        In the main thread of a web server that handles SIGTERM, that signal sends the clients away from then on. A
        web server waits for open requests before it ends the process, and a long-polling client has one open.

        :raises ConfigurationError: before anything is opened, if it has no server and is not ``write_only``.
        :raises StoreUnavailable: if the database cannot be reached, or another thread is closing the manager.
        :raises SchemaMismatch: if it is not migrated. The message names the command to run.
        """
        with self._starting:
            if self._closing:
                raise StoreUnavailable("the manager is being closed. Call start() once close() has returned")
            self._closed = False
        background, manager = self._ready()
        background.call(manager.start)
        if self._adopter is None:
            return
        goodbye = background.call(Goodbye, manager)
        with self._starting:  # another thread may have started it, too, or may be closing it
            if self._background is background and self._goodbye is None and not self._closing:
                self._goodbye = goodbye
                goodbye.chain([signal.SIGTERM])

    def close(self) -> None:
        """Write the waiting entries, leave the cluster, and end the background thread.

        Safe to call twice, or unstarted. After that only :meth:`start` connects again.
        """
        self._end(lambda: self._manager.aclose())  # noqa: PLW0108 - of the manager that is there then

    def _end(self, close: Callable[[], Awaitable[None]]) -> None:
        with self._starting:
            background = self._background
            if background is None:
                self._closed = True
            if background is None or self._closing:
                return
            self._closing = True
            goodbye = self._goodbye
        atexit.unregister(self.close)
        try:
            if goodbye is not None:
                goodbye.unchain()
                background.call(goodbye.said)
            background.call(close)  # the disconnect handlers run meanwhile, and may call
        finally:
            with self._starting:
                self._background = self._goodbye = None
                self._closing, self._closed = False, True
            background.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    health = blocking(AsyncPostgresManager.health)

    # -- calls ---------------------------------------------------------------------------------------------
    emit = blocking(AsyncPostgresManager.emit)
    position = blocking(AsyncPostgresManager.position)
    history = blocking(AsyncPostgresManager.history)
    enter_room = blocking(AsyncPostgresManager.enter_room)
    leave_room = blocking(AsyncPostgresManager.leave_room)
    close_room = blocking(AsyncPostgresManager.close_room)
    sockets_join = blocking(AsyncPostgresManager.sockets_join)
    sockets_leave = blocking(AsyncPostgresManager.sockets_leave)
    disconnect_sockets = blocking(AsyncPostgresManager.disconnect_sockets)
    server_side_emit = blocking(AsyncPostgresManager.server_side_emit)
    disconnect = blocking(AsyncPostgresManager.disconnect)  # type: ignore[arg-type]  # mypy asks more of **kwargs
    get_rooms = blocking(AsyncPostgresManager.get_rooms)
    is_connected = blocking(AsyncPostgresManager.is_connected)
    eio_sid_from_sid = blocking(AsyncPostgresManager.eio_sid_from_sid)
    sid_from_eio_sid = blocking(AsyncPostgresManager.sid_from_eio_sid)
    get_namespaces = blocking(AsyncPostgresManager.get_namespaces)

    def get_participants(self, namespace: str, room: Any) -> list[tuple[str, str]]:
        """Return the sid and the Engine.IO sid of each client of this node in a room."""
        background, manager = self._ready()
        return background.call(lambda: list(manager.get_participants(namespace, room)))


_managers: weakref.WeakSet[PostgresManager] = weakref.WeakSet()


def _forked() -> None:
    for manager in _managers:
        manager._forked()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _nothing(_manager: AsyncPostgresManager) -> None:
    """Nobody has adopted the manager."""
