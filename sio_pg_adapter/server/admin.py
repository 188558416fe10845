"""What ``AsyncServer.instrument()`` installs for the Socket.IO Admin UI: upstream's, for clients that come back.

A sid here may end on one connection while it already lives on another, its connection may be gone while its
connect is still being decided, and its node may be another one than the operator's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from typing import Any

from socketio.async_admin import InstrumentedAsyncServer
from socketio.exceptions import ConnectionRefusedError as Refused


class Instrumented(InstrumentedAsyncServer):
    """Reports to the Admin UI and does what its operator asks for; see :meth:`AsyncServer.instrument`."""

    stats_task: asyncio.Future[Any] | None

    def instrument(self) -> None:
        """Upstream's, whose counting of what goes over websockets is this package's to do."""
        super().instrument()
        self.sio.eio.sio_pg_on_read = functools.partial(self._count, "packetsIn", "bytesIn")
        self.sio.eio.sio_pg_on_write = functools.partial(self._count, "packetsOut", "bytesOut")

    def _count(self, packets: str, octets: str, count: int, size: int) -> None:
        self.event_buffer.push(packets, count)
        self.event_buffer.push(octets, size)

    async def admin_connect(self, sid: str, environ: dict[str, Any], client_auth: Any) -> None:
        """Let an operator in, and tell the features and the clients of this node."""
        if self.auth and not await self._authentic(client_auth):
            raise Refused("authentication failed")
        self.sio.manager.spawn(self._greet(sid), "sio_pg admin")

    async def _authentic(self, client_auth: Any) -> bool:
        if isinstance(self.auth, dict):
            return bool(client_auth == self.auth)
        if isinstance(self.auth, list):
            return client_auth in self.auth
        answer = self.auth(client_auth)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    async def _greet(self, operator: str) -> None:
        # Upstream loses the operator's sid in the list of sockets, and the whole list to one that is closed.
        await self.sio.sleep(0.1)  # as upstream: the UI registers its handlers after it is connected
        features = ["AGGREGATED_EVENTS"]
        if not self.read_only:
            features += ["EMIT", "JOIN", "LEAVE", "DISCONNECT", "MJOIN", "MLEAVE", "MDISCONNECT"]
        if self.mode == "development":
            features.append("ALL_EVENTS")
        await self._tell(operator, "config", {"supportedFeatures": features})
        if self.mode == "development":
            manager, sockets = self.sio.manager, []
            for namespace in manager.get_namespaces():
                for sid, eio_sid in manager.get_participants(namespace, None):
                    with contextlib.suppress(KeyError):
                        sockets.append(self.serialize_socket(sid, namespace, eio_sid))
            await self._tell(operator, "all_sockets", sockets)

    async def _tell(self, operator: str, event: str, data: Any) -> None:
        await self.sio.emit(event, data, to=operator, namespace=self.admin_namespace)

    # -- what an operator asks for: clients of this node, or one sid of any -----------------------------------
    def _meant(self, namespace: str, room_filter: Any) -> list[str]:
        here = [sid for sid, _ in self.sio.manager.get_participants(namespace, room_filter)]
        return here or ([room_filter] if isinstance(room_filter, str) and room_filter else [])

    async def admin_enter_room(self, _: str, namespace: str, room: str, room_filter: Any = None) -> None:
        for sid in self._meant(namespace, room_filter):
            await self.sio.enter_room(sid, room, namespace=namespace)

    async def admin_leave_room(self, _: str, namespace: str, room: str, room_filter: Any = None) -> None:
        for sid in self._meant(namespace, room_filter):
            await self.sio.leave_room(sid, room, namespace=namespace)

    async def admin_disconnect(self, _: str, namespace: str, close: bool, room_filter: Any = None) -> None:
        for sid in self._meant(namespace, room_filter):
            await self.sio.disconnect(sid, namespace=namespace)

    # -- what upstream reports --------------------------------------------------------------------------------
    async def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        stamps = self.sio.manager._timestamps
        if event == "disconnect":
            # The same sid may have been taken over, and its stamp be gone: upstream's `del` would raise, and the
            # application's handler not run.
            stamps.setdefault(args[0], 0.0)
        elif event == "connect":
            eio_sid = self.sio.manager.eio_sid_from_sid(args[0], namespace)
            socket = self.sio.eio.sockets.get(eio_sid)
            if socket is None or socket.closed:  # nothing to report: the handler sees that for itself
                return await self.sio._InstrumentedAsyncServer__trigger_event(event, namespace, *args)
        return await super()._trigger_event(event, namespace, *args)

    async def shutdown(self) -> None:
        """Stop reporting. Safe to call twice."""
        if self.stats_task is not None:
            self.stats_task.cancel()
            self.stats_task = None
