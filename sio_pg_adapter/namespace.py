"""Class-based namespaces with the new keywords of ``emit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import socketio


class AsyncNamespace(socketio.AsyncNamespace):
    """Upstream's, for :class:`sio_pg_adapter.AsyncServer`."""

    async def emit(
        self,
        event: str,
        data: Any = None,
        to: Any = None,
        room: Any = None,
        skip_sid: Any = None,
        namespace: str | None = None,
        callback: Callable[..., Any] | None = None,
        ignore_queue: bool = False,
        *,
        connection: Any = None,
        volatile: bool = False,
    ) -> None:
        """As :meth:`AsyncServer.emit`, in the namespace of the class if none is given."""
        await self.server.emit(
            event,
            data,
            to=to,
            room=room,
            skip_sid=skip_sid,
            namespace=namespace or self.namespace,
            callback=callback,
            ignore_queue=ignore_queue,
            connection=connection,
            volatile=volatile,
        )

    def recovered(self, sid: str) -> bool:
        """As :meth:`AsyncServer.recovered`, in the namespace of the class."""
        return bool(self.server.recovered(sid, self.namespace))

    async def fetch_rooms(self, sid: str) -> list[str]:
        """As :meth:`AsyncServer.fetch_rooms`, in the namespace of the class."""
        rooms: list[str] = await self.server.fetch_rooms(sid, self.namespace)
        return rooms
