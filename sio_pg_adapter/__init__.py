"""Socket.IO connection state recovery for python-socketio, on nothing but PostgreSQL."""

from .client import AsyncClient, AsyncSimpleClient
from .cluster.sockets import RemoteSocket
from .emitter import emit, emit_async
from .errors import (
    ConfigurationError,
    HandlerFailed,
    NoAnswer,
    NotSerializable,
    PayloadTooLarge,
    PositionLost,
    SchemaMismatch,
    SessionConflict,
    SioPgError,
    StoreUnavailable,
)
from .lifespan import lifespan
from .log.records import StoredEvent
from .manager import AsyncPostgresManager
from .node import Health
from .options import ConnectionStateRecovery
from .server.namespace import AsyncNamespace
from .server.server import AsyncServer

__all__ = [
    "AsyncClient",
    "AsyncNamespace",
    "AsyncPostgresManager",
    "AsyncServer",
    "AsyncSimpleClient",
    "ConfigurationError",
    "ConnectionStateRecovery",
    "HandlerFailed",
    "Health",
    "NoAnswer",
    "NotSerializable",
    "PayloadTooLarge",
    "PositionLost",
    "RemoteSocket",
    "SchemaMismatch",
    "SessionConflict",
    "SioPgError",
    "StoreUnavailable",
    "StoredEvent",
    "emit",
    "emit_async",
    "lifespan",
]
