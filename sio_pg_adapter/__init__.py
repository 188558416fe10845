"""Socket.IO connection state recovery for python-socketio, on nothing but PostgreSQL."""

from .client import AsyncClient, AsyncSimpleClient
from .cluster.sockets import Handshake, RemoteSocket
from .emitter import emit, emit_async
from .errors import (
    ConfigurationError,
    HandlerFailed,
    NoAnswer,
    NotSerializable,
    PayloadTooLarge,
    PositionInvalid,
    PositionLost,
    SchemaMismatch,
    SessionConflict,
    SioPgError,
    StoreUnavailable,
)
from .lifespan import lifespan
from .local.health import Health
from .log.records import StoredEvent
from .manager import AsyncPostgresManager
from .options import ConnectionStateRecovery
from .rooms import (
    close_room,
    close_room_async,
    disconnect,
    disconnect_async,
    enter_room,
    enter_room_async,
    leave_room,
    leave_room_async,
)
from .server.namespace import AsyncNamespace
from .server.server import AsyncServer
from .server_events import server_side_emit, server_side_emit_async
from .sync.manager import PostgresManager
from .sync.namespace import Namespace
from .sync.server import Server
from .sync.sockets import BlockingSocket
from .sync_client import Client, SimpleClient

__all__ = [
    "AsyncClient",
    "AsyncNamespace",
    "AsyncPostgresManager",
    "AsyncServer",
    "AsyncSimpleClient",
    "BlockingSocket",
    "Client",
    "ConfigurationError",
    "ConnectionStateRecovery",
    "HandlerFailed",
    "Handshake",
    "Health",
    "Namespace",
    "NoAnswer",
    "NotSerializable",
    "PayloadTooLarge",
    "PositionInvalid",
    "PositionLost",
    "PostgresManager",
    "RemoteSocket",
    "SchemaMismatch",
    "Server",
    "SessionConflict",
    "SimpleClient",
    "SioPgError",
    "StoreUnavailable",
    "StoredEvent",
    "close_room",
    "close_room_async",
    "disconnect",
    "disconnect_async",
    "emit",
    "emit_async",
    "enter_room",
    "enter_room_async",
    "leave_room",
    "leave_room_async",
    "lifespan",
    "server_side_emit",
    "server_side_emit_async",
]
