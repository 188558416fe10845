"""The methods of the server about one client of any node: calls, its rooms, its session, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import socketio

from sio_pg_adapter.errors import ConfigurationError, SessionConflict
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.handling import handled
from sio_pg_adapter.local.protocols import Endings
from sio_pg_adapter.local.session_locks import SessionLocks
from sio_pg_adapter.log.names import first_named, namespace_name, text_name
from sio_pg_adapter.manager import AsyncPostgresManager
from sio_pg_adapter.options import is_seconds
from sio_pg_adapter.store.sessions import encode_session

logger = logging.getLogger("sio_pg_adapter")


class ClientMethods(socketio.AsyncServer):
    """The methods of :class:`sio_pg_adapter.AsyncServer` about one client.

    They also act on clients of other nodes, and on sessions that are away and still recoverable. A namespace that is
    0 is a wrong name here. python-socketio takes it for the default one.
    """

    manager: AsyncPostgresManager
    _session_locks: SessionLocks

    async def call(
        self,
        event: str,
        data: Any = None,
        to: str | None = None,
        sid: str | None = None,
        namespace: str | None = None,
        timeout: float | None = 60,
        ignore_queue: bool = False,
    ) -> Any:
        """Send an event to a client of any node, and wait for its acknowledgement. Nothing is stored.

        :raises socketio.exceptions.TimeoutError: if none came in time.
        """
        if to is None and sid is None:
            raise ValueError("Cannot use call() to broadcast.")
        if not self.async_handlers:
            raise RuntimeError("Cannot use call() when async_handlers is False.")
        if timeout is not None and not is_seconds(timeout):
            raise ConfigurationError(f"timeout takes seconds, or None to wait for ever, not {timeout!r}")
        answered: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()

        def callback(*args: Any) -> None:
            if not answered.done():
                answered.set_result(args)

        try:
            await self.emit(
                event,
                data,
                room=first_named(to, sid),
                namespace=namespace,
                callback=callback,
                ignore_queue=ignore_queue,
            )
            args = await asyncio.wait_for(answered, timeout)
        except TimeoutError:
            raise socketio.exceptions.TimeoutError from None
        finally:
            if self.manager.node is not None:
                self.manager.node.callbacks.forget(callback)
        return args if len(args) > 1 else args[0] if args else None

    async def enter_room(
        self, sid: str, room: str, namespace: str | None = None, *, since: str | None = None, connection: Any = None
    ) -> str | None:
        """Add a client of any node, or a session that is away, to a room. It has taken effect on return.

        Returns the position from which the client is in the room. If the client is already in the room, this is the
        position at which it entered. ``None`` if its connection has ended, and with ``connection=``.

        :param since: a position, in the client's connect handler or a middleware. The client gets the room's events
                      after it, in the order of the log with everything else, and goes on live. If the client has
                      recovered and is still in the room, this changes nothing. ``None``: from now on.
        :param connection: a connection as for :meth:`emit`. The change is part of its transaction, at its place among
                           the transaction's events, and takes effect when that commits. The call returns at once. A
                           transaction stricter than READ COMMITTED is refused.
        :raises PositionLost: if not all events after the position can be sent. Nothing was sent. If the handler does
                              not catch it, the client is refused.
        :raises PositionInvalid: if ``since`` is malformed, forged, or of another namespace. If the handler does not
                                 catch it, the client is refused.
        :raises ConfigurationError: if ``since`` is given elsewhere.
        :raises ValueError: if the room is another client's own.
        """
        namespace = namespace_name(namespace)
        self.logger.info("%s is entering room %s [%s]", sid, room, namespace)
        return await self.manager.enter_room(sid, namespace, room, since=since, connection=connection)

    async def leave_room(self, sid: str, room: str, namespace: str | None = None, *, connection: Any = None) -> None:
        """Remove a client of any node, or a session that is away, from a room. It has taken effect on return.

        :param connection: as for :meth:`enter_room`. No event that is emitted later in the transaction, or commits
                           after it, reaches the client in that room.
        :raises ConfigurationError: with ``connection=`` in the connect handler of the same client.
        """
        namespace = namespace_name(namespace)
        self.logger.info("%s is leaving room %s [%s]", sid, room, namespace)
        await self.manager.leave_room(sid, namespace, room, connection=connection)

    async def close_room(self, room: str, namespace: str | None = None, *, connection: Any = None) -> None:
        """Remove everybody from a room, on all nodes, and sessions that are away. It has taken effect on return.

        :param connection: as for :meth:`enter_room`.
        :raises ValueError: if the room is a client's own.
        """
        namespace = namespace_name(namespace)
        self.logger.info("room %s is closing [%s]", room, namespace)
        await self.manager.close_room(room, namespace, connection=connection)

    def rooms(self, sid: str, namespace: str | None = None) -> list[str]:
        """Return the rooms of a client of this node. :meth:`fetch_rooms` knows those of any node."""
        rooms: list[str] = super().rooms(sid, namespace_name(namespace))
        return rooms

    async def fetch_rooms(self, sid: str, namespace: str = "/") -> list[str]:
        """Return the rooms of a client of any node, or of a session that is away, its own first.

        :raises KeyError: if there is no such client.
        """
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        client = self.manager.clients.addressed(sid, namespace)
        if client is not None and client.held is None:
            return list(self.manager.get_rooms(sid, namespace))
        rooms = await (await self.manager.started()).sessions.rooms(namespace, sid)
        if rooms is None:
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")
        return [sid, *rooms]

    # -- sessions ----------------------------------------------------------------------------------------
    def recovered(self, sid: str, namespace: str = "/") -> bool:
        """Whether the connection of a client of this node has recovered an earlier session."""
        client = self.manager.clients.addressed(text_name(sid, "sid"), namespace_name(namespace))
        return client is not None and client.recovered

    def last_position(self, sid: str, namespace: str | None = None) -> str | None:
        """Return the position up to which a client of this node has received events in a session that is over.

        The offset that the client presents as it connects proves this, for the rooms that it was in. ``None`` if the
        client has recovered its session, has no session, or presented no valid offset.
        """
        namespace = namespace_name(namespace)
        client, node = self.manager.clients.addressed(text_name(sid, "sid"), namespace), self.manager.node
        if client is None or client.proved is None or node is None:
            return None
        return node.epochs.position(client.proved, namespace)

    async def get_session(self, sid: str, namespace: str | None = None) -> Any:
        """Return the user session of a client of any node, or of one that is away.

        :raises KeyError: if there is none.
        """
        session, _ = await self._load(text_name(sid, "sid"), namespace_name(namespace))
        return session

    def session(self, sid: str, namespace: str | None = None) -> AbstractAsyncContextManager[Any]:
        """Return a context manager with the user session of a client, which saves the changes that its block makes.

        The blocks of one sid run one after another on a node, so a block is no place to wait for the client. If
        another node, :meth:`save_session` or a block inside of the block changes the session meanwhile, nothing is
        saved.

        :raises SessionConflict: at the end of the block, if the session was changed elsewhere.
        :raises NotSerializable: at the end of the block, as :meth:`save_session`.
        :raises KeyError: at its start, if there is no such client.
        """
        return self._session(text_name(sid, "sid"), namespace_name(namespace))

    @contextlib.asynccontextmanager
    async def _session(self, sid: str, namespace: str) -> AsyncIterator[Any]:
        async with self._session_locks.holding(namespace, sid):
            session, stored = await self._load(sid, namespace)
            before = None if stored is None else encode_session(session)
            try:
                yield session
            finally:
                if stored is None or encode_session(session) != before:
                    await self._save(sid, session, namespace, expected=stored)

    async def _load(self, sid: str, namespace: str) -> tuple[Any, str | None]:
        """Return a user session, and its text in the store if it is there."""
        client = self.manager.clients.addressed(sid, namespace)
        if client is not None and (client.held is None or client.ended):
            return client.data, None
        text = await (await self.manager.started()).sessions.text(namespace, sid)
        if text is not None:
            return json.loads(text), text
        if client is None:
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")
        return client.data, None

    async def save_session(self, sid: str, session: Any, namespace: str | None = None) -> None:
        """Store the user session of a client of any node, or of one that is away. It is stored on return.

        If a handler outlives its connection, and another connection has the session by then, nothing is saved. A
        warning is logged.

        :raises NotSerializable: if it has no JSON form, naming the key. Then nothing has changed. Clients without a
                                 recoverable session take any object, as in python-socketio.
        :raises KeyError: if there is no such client.
        """
        await self._save(text_name(sid, "sid"), session, namespace_name(namespace))

    async def _save(self, sid: str, session: Any, namespace: str, *, expected: str | None = None) -> None:
        client = self.manager.clients.addressed(sid, namespace)
        if client is not None:
            await client.opened_or_failed()
            if not client.recoverable:
                client.save(session)
                return
        data = encode_session(session)
        if client is not None and (client.held is None or client.ended):
            client.save(session)
            return
        sessions = (await self.manager.started()).sessions
        # In its own handlers a sid means that connection. Elsewhere it means the connection that has the session.
        held = client.held if client is not None and handled() is client else None
        saved = await sessions.save(namespace, sid, data, held, expected=expected)
        if not saved and await sessions.text(namespace, sid) is not None:
            if expected is None:
                logger.warning("a session was not saved: another connection has it by now: %s [%s]", sid, namespace)
                return
            raise SessionConflict(
                f"the session of {sid} [{namespace}] was changed elsewhere in the meantime, and nothing was saved. "
                "Enter it again, and repeat the change."
            )
        if client is not None:
            client.save(session)
        elif not saved:
            raise KeyError(f"no session {sid!r} in namespace {namespace!r}")

    async def disconnect(
        self, sid: str, namespace: str | None = None, ignore_queue: bool = False, *, connection: Any = None
    ) -> None:
        """Disconnect a client of any node, and end its session for good, also while it is away.

        :param connection: as for :meth:`enter_room`. Disconnect handlers run after the commit.
        :raises ConfigurationError: with ``connection=`` in the connect handler of the same client.
        """
        sid, namespace = text_name(sid, "sid"), namespace_name(namespace)
        if connection is not None:
            await self.manager.disconnect(sid, namespace, ignore_queue=ignore_queue, connection=connection)
            return
        client = self.manager.clients.addressed(sid, namespace)
        node = await self.manager.started()
        if client is not None and client.held is None:
            if not client.recoverable:
                _end_unstored(node.endings, client)
                await _gone(client)
                return
            if client.state is State.CONNECTING and not client.is_opening:
                client.end_session()  # in its own connect handler: nothing is stored yet
                return
            await client.opened_or_failed()
        await self.manager.kick(sid, namespace)
        if client is not None:
            await _gone(client)


def _end_unstored(endings: Endings, client: Client) -> None:
    """Disconnect a client without a session. The log has no record for it."""
    if client.connected:
        endings.kicked(client, None)
    elif client.state is State.CONNECTING:
        client.end_session()


async def _gone(client: Client) -> None:
    """Wait until a client that was disconnected has left, but not in its own handler."""
    if handled() is not client and client.state is State.LEFT:
        await client.gone.wait()
