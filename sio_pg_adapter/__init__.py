"""Socket.IO connection state recovery for python-socketio, on nothing but PostgreSQL."""

from .census import RemoteSocket
from .client import AsyncClient, AsyncSimpleClient
from .emitter import emit, emit_async
from .errors import (
    ConfigurationError,
    HandlerFailed,
    NoAnswer,
    NotSerializable,
    PayloadTooLarge,
    SchemaMismatch,
    SioPgError,
    StoreUnavailable,
)
from .lifespan import lifespan
from .manager import AsyncPostgresManager
from .namespace import AsyncNamespace
from .options import ConnectionStateRecovery
from .server import AsyncServer

__all__ = [
    "AsyncClient",
    "AsyncNamespace",
    "AsyncPostgresManager",
    "AsyncServer",
    "AsyncSimpleClient",
    "ConfigurationError",
    "ConnectionStateRecovery",
    "HandlerFailed",
    "NoAnswer",
    "NotSerializable",
    "PayloadTooLarge",
    "RemoteSocket",
    "SchemaMismatch",
    "SioPgError",
    "StoreUnavailable",
    "emit",
    "emit_async",
    "lifespan",
]
