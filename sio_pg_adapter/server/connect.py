"""One CONNECT packet, from its arrival to the client being live: where replay and live delivery meet.

A first connect::

    CONNECT in -> middlewares, handler -> session stored -> CONNECT out -> events that came meanwhile -> live

A recovery::

    CONNECT in -> claim -> verdict -> the former connection lets go -> middlewares, handler
               -> first page of what was missed -> CONNECT out -> pages -> live

The claim brings the first page along. It does not if this node has the missed events in memory, or if another
connection may still hold the session. If no other task runs between the claim and the CONNECT, one round trip is
enough.

Otherwise the page is read after the handler. Another connection may have claimed the session by then, and this node
may not know it yet. So the statement names the generation, and returns no row if there is a newer one. The handler
may also have left rooms as of the offset that the client presented.

After every await the connection may be closed, the client kicked, or the session claimed by another connection. Each
is checked where it would matter.

:class:`Connect` decides. :class:`Claiming` has the steps from the claim to the handlers, :class:`Replay` those after
them. The module is longer than others because a connect and its ends are read together.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from socketio import exceptions, packet

from sio_pg_adapter.errors import ConfigurationError, SioPgError, StoreUnavailable
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.handling import handling
from sio_pg_adapter.log.names import text_name
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.log.verdict import (
    Claimed,
    Presented,
    Reason,
    new_pid,
    read_auth,
)
from sio_pg_adapter.node import Node
from sio_pg_adapter.store.sessions import encode_session

from .checks import ConnectAborted, require_lasting
from .claiming import Claiming
from .endings import Endings
from .host import Host, hang_up
from .rate_limit import RateLimit
from .replay import Replay

ANSWER_TRAVEL = 10.0
"""How long the answer to a CONNECT may be on its way, in seconds. Until then the same packet is a repetition."""

_REFUSED: dict[str, Any] = {"message": "Connection refused by server"}

logger = logging.getLogger("sio_pg_adapter")


class Connect:
    """The CONNECT of one client in one namespace.

    :param presented: the data of the packet.
    """

    _node: Node
    _endings: Endings
    _replay: Replay

    def __init__(self, host: Host, limit: RateLimit, eio_sid: str, namespace: str, presented: Any) -> None:
        self._host = host
        self._limit = limit
        self._eio_sid = eio_sid
        self._namespace = namespace
        self._presented = presented
        self._identity: str | None = None
        self._kept_offset: int | None = None  # what the client presents until it gets an event of a new session
        self._asking = ""  # which function of the application runs

    async def refuse(self) -> None:
        """Answer with CONNECT_ERROR, as python-socketio does."""
        await self._send(packet.CONNECT_ERROR, "Unable to connect")

    async def run(self) -> None:
        """Take the client from its CONNECT packet to live.

        If that breaks, the Engine.IO connection is closed, and the client comes back by itself. A CONNECT_ERROR would
        be final for the client.
        """
        client = None
        try:
            node = self._node = await self._host.node()
            assert isinstance(node.endings, Endings)
            self._endings = node.endings
            former = node.clients.of_socket(self._eio_sid, self._namespace)
            if former is not None and former.ended and former.closed is not None:
                await former.gone.wait()  # its own DISCONNECT came first: it begins again
            elif former is not None and self._repeats(former):
                return
            client = self._host.admit(node, self._eio_sid, self._namespace, self._presented)
            if client is None:
                await self.refuse()  # as python-socketio: one CONNECT in a namespace
                return
            self._replay = Replay(node, self._host, client, self._leave)
            await self._decide(client)
        except ConnectAborted:
            await asyncio.shield(self._end_apart(client))
        except asyncio.CancelledError:
            self._end_apart(client)
            raise
        except Exception as e:  # noqa: BLE001 - logged. The application neither accepted nor refused
            self._log_failure(client, e)
            self._host.counters.broken += 1
            self._end_apart(client)

    def _log_failure(self, client: Client | None, error: Exception) -> None:
        """Log why a connect broke. A database that does not answer needs no traceback, and a handler's fault does."""
        who = f"{self._eio_sid} [{self._namespace}]" if client is None else client.label
        where = f"{who}, in {self._asking}" if self._asking else who
        if isinstance(error, StoreUnavailable) or (isinstance(error, SioPgError) and not self._asking):
            logger.warning("a connection is closed, and its client comes back: %s: %s", where, error)
        else:
            logger.error("a connection is closed, and its client comes back: %s", where, exc_info=error)

    def _repeats(self, former: Client) -> bool:
        """Whether the packet was sent before the first CONNECT was answered. Then that answer is its answer, too.

        socket.io-client sends one when an application calls ``connect()`` while it connects. A CONNECT_ERROR would be
        final for it, whichever answer came first.
        """
        if former.state is State.CONNECTING:
            return True
        return former.presented == self._presented and former.answered_within(ANSWER_TRAVEL)

    async def _decide(self, client: Client) -> None:
        recovery = self._node.recovery
        if recovery is None or not self._host.stores(self._namespace):
            await self._first(client, self._presented, pid=None)
            return
        presented = await self._read_auth()
        if presented.rejected:
            logger.warning("a session is not recovered: %s: %s", client.label, presented.rejected)
            self._node.counters.fresh[presented.rejected] += 1
        if presented.rejected is Reason.FOREIGN_OFFSET:
            client.present_lost()
        if recovery.accepts is not None and not await self._host.ask(
            recovery.accepts, self._environ(), presented.auth
        ):
            await self._first(client, presented.auth, pid=None)
            return
        if recovery.identity is not None:
            identity = await self._host.ask(recovery.identity, self._environ(), presented.auth)
            self._identity = _checked_identity(identity)
        client.offer_session()
        if presented.claim is not None:
            self._kept_offset = presented.claim.after
            with self._node.counters.spans.recovery(self._namespace):
                claiming = Claiming(self._node, self._endings, self._limit, client, self._identity)
                session = await claiming.claim(presented.claim, recovery)
                if session is not None:
                    await self._recover(client, claiming, session, presented.claim.pid, presented.auth)
                    return
        await self._first(client, presented.auth, pid=new_pid())

    def _environ(self) -> dict[str, Any]:
        environ = self._host.environ.get(self._eio_sid)
        if environ is None:
            raise ConnectAborted  # closed meanwhile
        return environ

    async def _read_auth(self) -> Presented:
        epochs = self._node.epochs
        presented = read_auth(self._presented, self._namespace, epochs.codec)
        if presented.rejected == Reason.FOREIGN_OFFSET and epochs.may_be_stale():
            await self._node.continuity.check()  # another node may have begun an epoch
            presented = read_auth(self._presented, self._namespace, epochs.codec)
        return presented

    # -- a new session ---------------------------------------------------------------------------------
    async def _first(self, client: Client, auth: Any, *, pid: str | None) -> None:
        always_connect = self._host.always_connect
        if always_connect:
            await self._open(client, pid)
            self._replay.connect_out(pid)
            client.begin_replay()
            client.accept()
        refusal = await self._ask_application(client, auth)
        if refusal is not None:
            await self._refuse(client, refusal)
            return
        client.accept()
        require_lasting(client)
        if not always_connect:
            await self._open(client, pid)
            self._replay.connect_out(pid)
            client.begin_replay()
        await self._replay.run()

    async def _open(self, client: Client, pid: str | None) -> None:
        """Store the session, with the data and rooms that its handler gave it, before the client knows its pid."""
        if pid is None:
            return
        async with self._node.turns:
            require_lasting(client)
            held = await self._stored(client, pid)
        if held is None:
            client.end_session()  # kicked meanwhile
        require_lasting(client)

    async def _stored(self, client: Client, pid: str) -> Held | None:
        """Store the session of a client. ``None`` if the client was kicked meanwhile."""
        data = encode_session(client.data)
        client.begin_opening()
        held = None
        try:
            held = await self._node.sessions.open(
                client.namespace,
                client.memberships,
                pid=pid,
                cursor=self._node.cursor.offset,
                data=data,
                identity=self._identity,
                since=set(client.since.values()),
                stale=self._stale(client),
            )
        finally:
            client.opened(held)
        return held

    def _stale(self, client: Client) -> int | None:
        """Return the offset of an earlier session that the client keeps until its next event.

        Above the start of the new one it would look like an event that the client received in it.
        """
        stale = self._kept_offset
        return stale if stale is not None and stale > client.memberships.start else None

    # -- an earlier session ------------------------------------------------------------------------------
    async def _recover(self, client: Client, claiming: Claiming, session: Claimed, pid: str, auth: Any) -> None:
        always_connect = self._host.always_connect
        await claiming.follow_log(session)
        await claiming.take_over(session)
        if always_connect:
            require_lasting(client)
            self._replay.connect_out(pid)
            client.accept()
        refusal = await self._ask_application(client, auth)
        if refusal is not None:
            await self._refuse(client, refusal)
            return
        client.accept()
        require_lasting(client)
        # The page is read before CONNECT goes out, because that shows that the session is still this connection's.
        unsent = None if always_connect else pid
        if client.claimed is None or not client.claimed.lasts or not self._replay.carried_page(session, unsent):
            await self._replay.next_page(unsent)
        await self._replay.run()

    # -- the application ---------------------------------------------------------------------------------
    async def _ask_application(self, client: Client, auth: Any) -> dict[str, Any] | None:
        """Run middlewares and the connect handler. Return what to refuse with, or ``None`` if they accept."""
        host, recovery = self._host, self._node.recovery
        environ = self._environ()
        environ["sio_pg.recovered"] = client.recovered
        with handling(client):
            try:
                if not (client.recovered and recovery is not None and recovery.skip_middlewares):
                    for middleware, leading in host.middlewares.of(client.namespace):
                        self._asking = f"the middleware {getattr(middleware, '__qualname__', middleware)}"
                        await middleware(*leading, client.sid, environ, auth)
                args = (auth,) if host.takes_auth(client.namespace) else ()
                self._asking = "the connect handler"
                accepted = await host.trigger("connect", client.namespace, client.sid, environ, *args)
                self._asking = ""
            except exceptions.ConnectionRefusedError as e:
                return dict(e.error_args)
            except ConnectionRefusedError:
                return _REFUSED
        return dict(exceptions.ConnectionRefusedError().error_args) if accepted is False else None

    # -- ends ----------------------------------------------------------------------------------------------
    async def _refuse(self, client: Client, reason: dict[str, Any]) -> None:
        """The application refused: the session is over, and nothing of it is shown."""
        connected = client.state is State.REPLAYING or (self._host.always_connect and client.accepted)
        self._node.rooms.depart(client)
        held = client.held  # another end that is under way may take it from the client
        if held is not None and await self._node.sessions.end(held) is None:
            await self._node.sessions.release(held, seconds=0.0)  # a claim of another node waits for this
        client.finish()
        await self._turn_away(reason, connected=connected)

    async def _turn_away(self, reason: dict[str, Any], *, connected: bool) -> None:
        """Send the packet after which a client does not come back by itself."""
        if connected:
            await self._send(packet.DISCONNECT)  # JavaScript's parser takes no reason in it
        else:
            await self._send(packet.CONNECT_ERROR, reason)

    def _end_apart(self, client: Client | None) -> asyncio.Task[Any]:
        """End it in a task of its own, which a cancellation of this one does not reach."""
        if client is None:
            hanging: asyncio.Task[Any] = self._host.eio.start_background_task(hang_up, self._host, self._eio_sid)
            return hanging
        if self._host.running_node is not self._node:  # it has stopped, and runs no more tasks
            self._node.rooms.depart(client)
        return self._node.tasks.spawn(self._leave(client), "leave")

    async def _leave(self, client: Client) -> None:
        """The connection did not last. The session can be recovered again, unless it has ended."""
        if client.state is not State.LEFT and client.ended and client.closed is None:
            if client.recovered and not client.is_answered:
                # JavaScript clients stop at this packet. Python clients ignore it before CONNECT.
                await self._send(packet.DISCONNECT)
            await self._turn_away(_REFUSED, connected=client.is_answered)
        await self._endings.leave(client, client.closed or self._host.reason.TRANSPORT_CLOSE)
        if not client.ended:
            await hang_up(self._host, self._eio_sid)

    # -- out -------------------------------------------------------------------------------------------------
    async def _send(self, kind: int, data: Any = None) -> None:
        for frame in self._host.frames.packet(kind, self._namespace, data):
            await self._host.eio.send_packet(self._eio_sid, frame)


def _checked_identity(identity: object) -> str | None:
    """Return what the application's identity function returned.

    :raises ConfigurationError: if it is neither text nor ``None``.
    :raises NotSerializable: if PostgreSQL does not store the text.
    """
    if inspect.iscoroutine(identity):
        identity.close()  # else Python warns that nobody awaited it
    if not isinstance(identity, str | None):
        raise ConfigurationError(
            f"identity returned a {type(identity).__name__}. It returns text, or None for a client that has none."
        )
    return None if identity is None else text_name(identity, "identity")
