"""A node's answer to ``sio-pg status``. Nodes write nothing about themselves to the database: they are asked."""

from __future__ import annotations

import os
import socket
from typing import Any

from sio_pg_adapter.local.clients import Clients
from sio_pg_adapter.local.cursor import Cursor


def status(clients: Clients, cursor: Cursor, reconnects: int, reason: str, durability: str) -> dict[str, Any]:
    """Return where a node runs, how many clients and sessions it holds, and how far it has applied the log.

    :param reason: why the node is not well. Empty if it is.
    :param durability: the option of its manager.
    """
    return {
        "host": socket.gethostname()[:100],
        "process": os.getpid(),
        "clients": sum(client.connected for client in clients),
        "sessions": sum(client.held is not None for client in clients),
        "cursor": cursor.offset,
        "reconnects": reconnects,
        "reason": reason,
        "durability": durability,
    }
