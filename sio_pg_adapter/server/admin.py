"""The Socket.IO Admin UI, as python-socketio connects it, for clients that come back.

A sid may end on one connection while it already lives on another. Its connection may be gone while its connect is
still being decided. Its node may be another one than the operator's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from typing import Any

from socketio.async_admin import InstrumentedAsyncServer
from socketio.exceptions import ConnectionRefusedError as Refused

from sio_pg_adapter.wire import upstream


class Instrumented(InstrumentedAsyncServer):
    """Reports to the Admin UI, and does what its operator asks for. See :meth:`AsyncServer.instrument`."""

    stats_task: asyncio.Future[Any] | None

    def __init__(self, sio: Any, *, server_id: str | None = None, **options: Any) -> None:
        self._given_id = server_id
        super().__init__(sio, server_id=server_id, **options)

    @property
    def server_id(self) -> str:
        """The id of this server in the Admin UI. Processes that were forked after the import differ in it."""
        node = self.sio.manager.node
        return self._given_id or ("" if node is None else node.id)

    @server_id.setter
    def server_id(self, drawn: str) -> None:
        """Ignore what python-socketio draws at the import."""

    def instrument(self) -> None:
        """Install the reports. This package counts the traffic of websockets itself."""
        super().instrument()
        traffic = self.sio.manager.traffic
        traffic.on_read = functools.partial(self._count, "packetsIn", "bytesIn")
        traffic.on_write = functools.partial(self._count, "packetsOut", "bytesOut")

    def _count(self, packets: str, octets: str, count: int, size: int) -> None:
        self.event_buffer.push(packets, count)
        self.event_buffer.push(octets, size)

    async def admin_connect(self, sid: str, environ: dict[str, Any], client_auth: Any) -> None:
        """Let an operator in, and report the features and the clients of this node."""
        if self.auth and not await self._authentic(client_auth):
            raise Refused("authentication failed")
        (await self.sio.manager.started()).tasks.spawn(self._greet(sid), "admin")

    async def _authentic(self, client_auth: Any) -> bool:
        if isinstance(self.auth, dict):
            return bool(client_auth == self.auth)
        if isinstance(self.auth, list):
            return client_auth in self.auth
        answer = self.auth(client_auth)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    async def _greet(self, operator: str) -> None:
        # python-socketio loses the operator's sid in the list of sockets, and the whole list to a closed socket.
        await self.sio.sleep(0.1)  # as in python-socketio: the UI registers its handlers after it is connected
        features = ["AGGREGATED_EVENTS"]
        if not self.read_only:
            features += ["EMIT", "JOIN", "LEAVE", "DISCONNECT", "MJOIN", "MLEAVE", "MDISCONNECT"]
        if self.mode == "development":
            features.append("ALL_EVENTS")
        await self._report(operator, "config", {"supportedFeatures": features})
        if self.mode == "development":
            manager, sockets = self.sio.manager, []
            for namespace in manager.get_namespaces():
                for sid, eio_sid in manager.get_participants(namespace, None):
                    with contextlib.suppress(KeyError):
                        sockets.append(self.serialize_socket(sid, namespace, eio_sid))
            await self._report(operator, "all_sockets", sockets)

    async def _report(self, operator: str, event: str, data: Any) -> None:
        await self.sio.emit(event, data, to=operator, namespace=self.admin_namespace)

    # -- what an operator asks for: clients of this node, or a sid of any node ---------------------------------
    def _meant(self, namespace: str, room_filter: Any) -> list[str]:
        sids = [sid for sid, _ in self.sio.manager.get_participants(namespace, room_filter)]
        return sids or ([room_filter] if isinstance(room_filter, str) and room_filter else [])

    async def admin_enter_room(self, _: str, namespace: str, room: str, room_filter: Any = None) -> None:
        for sid in self._meant(namespace, room_filter):
            await self.sio.enter_room(sid, room, namespace=namespace)

    async def admin_leave_room(self, _: str, namespace: str, room: str, room_filter: Any = None) -> None:
        for sid in self._meant(namespace, room_filter):
            await self.sio.leave_room(sid, room, namespace=namespace)

    async def admin_disconnect(self, _: str, namespace: str, close: bool, room_filter: Any = None) -> None:
        for sid in self._meant(namespace, room_filter):
            await self.sio.disconnect(sid, namespace=namespace)

    # -- what python-socketio reports --------------------------------------------------------------------------------
    async def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        if event == "disconnect":
            # If the sid was taken over, its timestamp is gone. python-socketio's `del` would raise, and the
            # application's handler would not run.
            upstream.admin_timestamps(self.sio.manager).setdefault(args[0], 0.0)
        elif event == "connect":
            eio_sid = self.sio.manager.eio_sid_from_sid(args[0], namespace)
            socket = self.sio.eio.sockets.get(eio_sid)
            if socket is None or socket.closed:  # there is nothing to report
                return await upstream.trigger_unreported(self.sio, event, namespace, *args)
        return await super()._trigger_event(event, namespace, *args)

    async def shutdown(self) -> None:
        """Stop reporting. Safe to call twice."""
        if self.stats_task is not None:
            self.stats_task.cancel()
            self.stats_task = None
