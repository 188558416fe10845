"""Clients of any node, for the synchronous server."""

from __future__ import annotations

from sio_pg_adapter.cluster.sockets import RemoteSocket, SocketFields

from .background import Background
from .calls import blocking


class BlockingSocket(SocketFields):
    """A client of any node, as :class:`sio_pg_adapter.Server` returns it.

    It has the attributes of a :class:`RemoteSocket`. Its methods are the same, too, and block.
    """

    __slots__ = ()

    def _ready(self) -> tuple[Background, RemoteSocket]:
        background, server = self._server._ready()  # noqa: SLF001 - they are one
        return background, self.bound(RemoteSocket, server)

    emit = blocking(RemoteSocket.emit)  # type: ignore[arg-type]  # mypy asks more of **options
    join = blocking(RemoteSocket.join)
    leave = blocking(RemoteSocket.leave)
    disconnect = blocking(RemoteSocket.disconnect)
