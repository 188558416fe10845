"""What a node tells about itself to who asks: ``sio-pg status``.

Nodes write nothing about themselves into the database, so that an idle one is silent. They are asked.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager


class Report:
    """Answers the request "status", in one notification.

    :param manager: of the node.
    """

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self._manager = manager
        manager.peers.serve("status", lambda _message, _parts: self.here())

    def here(self) -> dict[str, Any]:
        """Where it runs, how many clients and sessions it holds, and up to which offset it has applied the log."""
        manager = self._manager
        return {
            "host": socket.gethostname()[:100],
            "process": os.getpid(),
            "clients": sum(client.connected for client in manager.clients),
            "sessions": sum(client.held is not None for client in manager.clients),
            "cursor": manager.dispatcher.cursor,
            "reconnects": manager.listener.reconnects,
        }
