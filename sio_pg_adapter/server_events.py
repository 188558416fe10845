"""``server_side_emit`` and its ``server_side_emit_async``: server events in the transaction of the caller."""

from __future__ import annotations

import json as stdlib_json
from types import ModuleType
from typing import Any

from sio_pg_adapter.drivers import Values, run, run_async
from sio_pg_adapter.log.names import namespace_name
from sio_pg_adapter.log.payload import encode_event, pack


def server_side_emit(
    connection: Any,
    event: str,
    *args: Any,
    namespace: str | None = None,
    schema: str = "public",
    json: ModuleType | Any = stdlib_json,
) -> None:
    """Call the handlers of a server event in all server processes if and when the connection's transaction commits.

    The handlers are those of :meth:`AsyncServer.on_server_event`. Nothing is stored: only servers that live then get
    it. It is not ordered with the transaction's events and room changes.

    :param connection: as for :func:`sio_pg_adapter.emit`.
    :param schema: the schema of the tables.
    :param json: the module to encode with.
    :raises NotSerializable: before anything is sent.
    :raises ConfigurationError: the connection is of another kind.
    """
    run(connection, "server_side_emit", _server_event(event, args, namespace, json), schema, "server_side_emit")


async def server_side_emit_async(
    connection: Any,
    event: str,
    *args: Any,
    namespace: str | None = None,
    schema: str = "public",
    json: ModuleType | Any = stdlib_json,
) -> None:
    """Send a server event as :func:`server_side_emit` does, on an asynchronous connection.

    :param connection: as for :func:`sio_pg_adapter.emit_async`.
    """
    values = _server_event(event, args, namespace, json)
    await run_async(connection, "server_side_emit", values, schema, "server_side_emit")


def _server_event(event: str, args: tuple[Any, ...], namespace: object, json: ModuleType | Any) -> Values:
    body, parts = encode_event(event, args, json)
    return namespace_name(namespace), body, pack(parts) if parts else None
