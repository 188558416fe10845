"""``SocketIO``: Flask-SocketIO's extension with this package's server underneath."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import flask
import flask_socketio

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.options import ConnectionStateRecovery, recovery_options
from sio_pg_adapter.sync.manager import PostgresManager
from sio_pg_adapter.sync.server import Server

from .test_client import TEST_CLIENT, SocketIOTestClient

F = TypeVar("F", bound=Callable[..., Any])


class SocketIO(flask_socketio.SocketIO):
    """A ``flask_socketio.SocketIO`` whose clients recover their connections.

    Its decorators and methods are those of Flask-SocketIO. Its options are those of :class:`sio_pg_adapter.Server`.

    :param app: the Flask application. Without it, call :meth:`init_app` later.
    :param connection_state_recovery: as for :class:`sio_pg_adapter.Server`.
    :param database: the URL of the database, also one of SQLAlchemy's. Without it, ``SQLALCHEMY_DATABASE_URI`` of the
                     application's configuration, then the ``SIO_PG_DSN`` environment variable.
    :param schema: the schema of the tables.
    :param client_manager: a :class:`sio_pg_adapter.PostgresManager` with more options, instead of the last two.
    :raises ConfigurationError: naming the option that is wrong, such as ``message_queue``.
    """

    server: Server
    manage_session: bool

    def init_app(self, app: flask.Flask, **kwargs: Any) -> None:
        """Make the server, and put it in front of the application. The parameters are those of the class."""
        if app is None:
            raise ConfigurationError("init_app() takes a Flask application. Elsewhere use sio_pg_adapter.emit()")
        app.extensions["socketio"] = self
        options = self.server_options
        options.update(kwargs)
        self.manage_session = options.pop("manage_session", self.manage_session)
        for name in ("message_queue", "channel"):
            if options.pop(name, None):
                raise ConfigurationError(f"SocketIO takes no {name}=. The database connects all processes")
        path = (options.pop("path", None) or options.pop("resource", None) or "socket.io").lstrip("/")
        if options.get("json") is flask.json:
            options["json"] = _AppJSON(app)
        database, schema = options.pop("database", None), options.pop("schema", "public")
        if options.get("client_manager") is None:
            url = app.config.get("SQLALCHEMY_DATABASE_URI") if database is None else database
            options["client_manager"] = PostgresManager(_text(url), schema=schema)
        recovery = recovery_options(options.pop("connection_state_recovery", None))
        self.server = Server(**options, connection_state_recovery=recovery and _without_test_clients(recovery))
        self.async_mode = self.server.async_mode
        for event, handler, namespace in self.handlers:
            self.server.on(event, handler, namespace=namespace)
        for handler in self.namespace_handlers:
            self.server.register_namespace(handler)
        self.sockio_mw = flask_socketio._SocketIOMiddleware(self.server, app, socketio_path=path)  # noqa: SLF001 - as its own init_app does
        app.wsgi_app = self.sockio_mw  # type: ignore[method-assign]

    def on(self, message: str, namespace: str | None = None) -> Callable[[F], F]:
        """Register a handler, see ``flask_socketio.SocketIO.on``."""
        register = super().on(message, namespace)

        def decorator(handler: F) -> F:
            register(handler)
            registered = self.server.handlers[namespace or "/"][message] if self.server else self.handlers[-1][1]
            del registered.__wrapped__  # it takes the sid and more, which the signature of the handler does not say
            return handler

        return decorator

    def emit(self, event: str, *args: Any, session: Any = None, **kwargs: Any) -> None:
        """Send an event, see ``flask_socketio.SocketIO.emit`` and :meth:`sio_pg_adapter.Server.emit`.

        :param session: an SQLAlchemy ``Session``, such as ``db.session``, or another connection. The event is sent if
                        and when its transaction commits.
        """
        if session is not None:
            kwargs["connection"] = session
        super().emit(event, *args, **kwargs)

    def close_room(self, room: str, namespace: str | None = None, *, session: Any = None) -> None:
        """Remove all clients from a room, those of other processes and those that are away included."""
        self.server.close_room(room, namespace, connection=session)

    def recovered(self, sid: str, namespace: str = "/") -> bool:
        """Return whether a client's connection continues its previous session."""
        return self.server.recovered(sid, namespace)

    def test_client(self, app: flask.Flask, *args: Any, **kwargs: Any) -> SocketIOTestClient:
        """Return a test client, see ``flask_socketio.SocketIO.test_client``. It needs the database."""
        return SocketIOTestClient(app, self, *args, **kwargs)


class _AppJSON:
    """Flask's JSON module, which needs the application's context."""

    def __init__(self, app: flask.Flask) -> None:
        self._app = app

    def dumps(self, *args: Any, **kwargs: Any) -> str:
        with self._app.app_context():
            return flask.json.dumps(*args, **kwargs)

    def loads(self, *args: Any, **kwargs: Any) -> Any:
        with self._app.app_context():
            return flask.json.loads(*args, **kwargs)


def _text(url: Any) -> str | None:
    """Return a URL as text, out of SQLAlchemy's class if need be."""
    render: Callable[..., str] | None = getattr(url, "render_as_string", None)
    return url if render is None else render(hide_password=False)


def _without_test_clients(recovery: ConnectionStateRecovery) -> ConnectionStateRecovery:
    """Leave out test clients, which do not know of offsets."""
    accepts = recovery.accepts

    def also_accepts(environ: dict[str, Any], auth: Any) -> bool:
        return TEST_CLIENT not in environ and (accepts is None or accepts(environ, auth))

    return dataclasses.replace(recovery, accepts=also_accepts)
