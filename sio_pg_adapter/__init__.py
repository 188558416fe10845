"""Socket.IO connection state recovery for python-socketio, on nothing but PostgreSQL."""

from .client import AsyncClient
from .errors import (
    ConfigurationError,
    NotSerializable,
    PayloadTooLarge,
    SchemaMismatch,
    SioPgError,
    StoreUnavailable,
)
from .manager import AsyncPostgresManager
from .options import ConnectionStateRecovery
from .server import AsyncServer

__all__ = [
    "AsyncClient",
    "AsyncPostgresManager",
    "AsyncServer",
    "ConfigurationError",
    "ConnectionStateRecovery",
    "NotSerializable",
    "PayloadTooLarge",
    "SchemaMismatch",
    "SioPgError",
    "StoreUnavailable",
]
