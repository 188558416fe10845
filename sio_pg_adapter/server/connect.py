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
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from typing import Any, NoReturn

from socketio import exceptions, packet

from sio_pg_adapter.errors import ConfigurationError, SioPgError, StoreUnavailable
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.handling import handling
from sio_pg_adapter.log.names import text_name
from sio_pg_adapter.log.records import Held, Kind, Record
from sio_pg_adapter.log.verdict import (
    PROVES,
    Claim,
    Claimed,
    Fresh,
    Presented,
    Reason,
    Recovered,
    new_pid,
    read_auth,
    verdict,
)
from sio_pg_adapter.node import Node
from sio_pg_adapter.options import ConnectionStateRecovery
from sio_pg_adapter.store.sessions import encode_session

from .endings import Endings
from .host import Host, hang_up
from .rate_limit import RateLimit

TAKEOVER_WAIT = 2.0
"""How long a claim waits for the former connection's disconnect handler, in seconds."""

CLAIM_TIMEOUT = 8.0
"""How long a claim may take while the database is slow or away, in seconds. Then the client tries again."""

CURSOR_WAIT = 5.0
"""How long a claim waits for this node's cursor to meet it, in seconds."""

ANSWER_TRAVEL = 10.0
"""How long the answer to a CONNECT may be on its way, in seconds. Until then the same packet is a repetition."""

PAGE = 500
"""How many events a page of a replay has."""

PAGE_BYTES = 4 * 1024 * 1024
"""How much of a page is sent before the next one is read, in bytes. At most two pages of a client are in memory."""

_REFUSED: dict[str, Any] = {"message": "Connection refused by server"}

logger = logging.getLogger("sio_pg_adapter")


class ConnectAborted(Exception):  # noqa: N818 - not an error
    """The connect cannot go on: closed, kicked, or its session claimed by another connection."""


class Connect:
    """The CONNECT of one client in one namespace.

    :param presented: the data of the packet.
    """

    _node: Node
    _endings: Endings

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
                session = await self._claim(client, presented.claim, recovery)
                if session is not None:
                    await self._recover(client, session, presented.claim, presented.auth)
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
            self._connect_out(client, pid)
            client.begin_replay()
            client.accept()
        refusal = await self._ask_application(client, auth)
        if refusal is not None:
            await self._refuse(client, refusal)
            return
        client.accept()
        self._check(client)
        if not always_connect:
            await self._open(client, pid)
            self._connect_out(client, pid)
            client.begin_replay()
        await self._replay(client)

    async def _open(self, client: Client, pid: str | None) -> None:
        """Store the session, with the data and rooms that its handler gave it, before the client knows its pid."""
        if pid is None:
            return
        async with self._node.turns:
            self._check(client)
            held = await self._stored(client, pid)
        if held is None:
            client.end_session()  # kicked meanwhile
        self._check(client)

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
    async def _claim(self, client: Client, claim: Claim, recovery: ConnectionStateRecovery) -> Claimed | None:
        """Claim the session, and wait until this node's cursor has passed the claim.

        ``None`` if it cannot be recovered.
        """
        node, cap = self._node, recovery.max_missed_packets
        await self._limit.wait(claim.pid)
        async with node.turns:
            if client.closed is not None or client.state is State.LEFT:
                raise ConnectAborted  # the session stays with its present holder
            session = await self._claimed(client, claim, cap)
        decision = verdict(claim, session, cap)
        if (
            session is not None
            and isinstance(decision, Recovered)
            and node.returns.are_over(session.id, decision.after)
        ):
            decision = Fresh(Reason.STUCK)
        node.counters.decided(decision)
        if session is None or isinstance(decision, Fresh):
            if isinstance(decision, Fresh):
                logger.info("a client gets a new session: %s: %s", client.label, decision.reason)
                if claim.after is not None and decision.reason in PROVES:
                    client.present(claim.after)
            if session is not None:  # it cannot be recovered exactly, so it expires at once
                await node.sessions.release(Held(session.id, session.generation), seconds=0.0)
            return None
        node.clients.rename(client, session.sid)  # it was admitted under a sid of its own
        held = Held(session.id, session.generation)
        client.resume(held, after=decision.after, data=json.loads(session.data))
        if not await node.cursor.passed(session.offset, CURSOR_WAIT):
            raise StoreUnavailable("this node is too far behind the log to recover a session")
        self._check(client)
        client.confirm_claim()
        return session

    async def _claimed(self, client: Client, claim: Claim, cap: int) -> Claimed | None:
        """Claim the session. ``None`` if the claim is not granted."""
        node = self._node
        in_memory = claim.after is not None and node.cursor.recent.covers(claim.after)
        claiming = node.tasks.spawn(
            node.sessions.claim(client.namespace, claim, cap, page=0 if in_memory else PAGE, identity=self._identity),
            "claim",
            awaited=True,
        )
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT):
                session = await asyncio.shield(claiming)
        except (TimeoutError, asyncio.CancelledError) as e:
            claiming.add_done_callback(self._claimed_too_late)
            if isinstance(e, TimeoutError):
                raise StoreUnavailable("claiming a session", may_be_stored=True) from e
            raise
        if client.state is State.LEFT:  # this node sent all clients away meanwhile. Nobody would hold the session
            self._claimed_too_late(claiming)
            raise ConnectAborted
        return session

    def _claimed_too_late(self, claiming: asyncio.Task[Claimed | None]) -> None:
        """Nobody waits for this claim any more. Let the session be claimed again."""
        session = None if claiming.cancelled() or claiming.exception() else claiming.result()
        if session is not None and self._node.recovery is not None:
            held = Held(session.id, session.generation)
            self._node.tasks.spawn(
                self._node.sessions.release(held, seconds=self._node.recovery.window), "release late claim"
            )

    async def _recover(self, client: Client, session: Claimed, claim: Claim, auth: Any) -> None:
        always_connect = self._host.always_connect
        await self._follow_log(client, session)
        await self._take_over(client, session)
        if always_connect:
            self._check(client)
            self._connect_out(client, claim.pid)
            client.accept()
        refusal = await self._ask_application(client, auth)
        if refusal is not None:
            await self._refuse(client, refusal)
            return
        client.accept()
        self._check(client)
        # The page is read before CONNECT goes out, because that shows that the session is still this connection's.
        pid = None if always_connect else claim.pid
        if client.claimed is None or not client.claimed.lasts or not self._carried_page(client, session, pid):
            await self._next_page(client, pid)
        await self._replay(client)

    async def _follow_log(self, client: Client, session: Claimed) -> None:
        """Bring the session's rooms from the offset of the claim up to the cursor, and follow the log from there."""
        node = self._node
        as_of, memberships = session.offset, session.memberships
        while not node.cursor.recent.covers(as_of):
            loaded = await node.sessions.memberships(self._held(client), memberships)
            if loaded is None:
                raise ConnectAborted
            as_of, memberships = loaded
            if not await node.cursor.passed(as_of, CURSOR_WAIT):
                raise StoreUnavailable("this node is too far behind the log to recover a session")
        for record in node.cursor.recent.moves(client.namespace, client.sid, as_of):
            memberships.apply(record)
            if record.kind is Kind.KICK:
                client.end_session()
                raise ConnectAborted
            if record.kind is Kind.CLAIM:
                raise ConnectAborted
        self._check(client)
        client.follow(memberships)
        former = node.clients.current(client.sid, client.namespace)
        if former is not None:  # the cursor has met the claim, so it is ending. The sid is this client's now
            node.rooms.depart(former)
        node.clients.add(client)

    async def _take_over(self, client: Client, session: Claimed) -> None:
        """Let a connection that still holds the session end first.

        Its disconnect handler runs before this connection's connect handler, and the session data that it saves
        counts. This waits for two seconds at most.
        """
        if session.former is None:
            return
        node = self._node
        node.counters.takeovers += 1
        released = node.handover.of(session.id, session.former)
        leaving = self._endings.leaving.get((client.namespace, client.sid))
        waiting = [asyncio.ensure_future(released.wait())]
        if leaving is not None and leaving.held is not None and leaving.held.generation == session.former:
            waiting.append(asyncio.ensure_future(leaving.gone.wait()))
        try:
            await asyncio.wait(waiting, timeout=TAKEOVER_WAIT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            node.handover.forget(session.id, session.former)
        self._check(client)
        data = await node.sessions.settle(self._held(client))
        if data is None:
            raise ConnectAborted
        client.save(json.loads(data))

    # -- the application ---------------------------------------------------------------------------------
    async def _ask_application(self, client: Client, auth: Any) -> dict[str, Any] | None:
        """Run middlewares and the connect handler. Return what to refuse with, or ``None`` if they accept."""
        host, recovery = self._host, self._node.recovery
        environ = self._environ()
        environ["sio_pg.recovered"] = client.recovered
        with handling(client):
            try:
                if not (client.recovered and recovery is not None and recovery.skip_middlewares):
                    for middleware in host.middlewares.get(client.namespace, ()):
                        self._asking = f"the middleware {getattr(middleware, '__qualname__', middleware)}"
                        await middleware(client.sid, environ, auth)
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
    def _check(self, client: Client) -> None:
        if not client.lasts:
            raise ConnectAborted

    async def _refuse(self, client: Client, reason: dict[str, Any]) -> None:
        """The application refused: the session is over, and nothing of it is shown."""
        connected = client.state is State.REPLAYING or (self._host.always_connect and client.accepted)
        self._node.rooms.depart(client)
        if client.held is not None:
            await self._node.sessions.end(client.held)
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
    def _held(self, client: Client) -> Held:
        if client.held is None:
            raise ConnectAborted  # kicked meanwhile
        return client.held

    async def _send(self, kind: int, data: Any = None) -> None:
        for frame in self._host.frames.packet(kind, self._namespace, data):
            await self._host.eio.send_packet(self._eio_sid, frame)

    def _connect_out(self, client: Client, pid: str | None) -> None:
        data = {"sid": client.sid} if pid is None else {"sid": client.sid, "pid": pid}
        client.put(self._node.frames.packet(packet.CONNECT, client.namespace, data))
        client.answered()

    # -- replay ------------------------------------------------------------------------------------------------
    async def _replay(self, client: Client) -> None:
        """Send what the client is due up to the cursor, then let it go live: without a gap, and nothing twice.

        A short replay is done here. A longer one runs in a task, so that the client's packets are read meanwhile.
        """
        if not self._finish(client):
            self._node.tasks.spawn(self._replay_pages(client), "replay")

    async def _replay_pages(self, client: Client) -> None:
        try:
            while not self._finish(client):
                await self._taken(client)
                await self._next_page(client, None)
        except ConnectAborted:
            await self._leave(client)
        except SioPgError as e:
            logger.warning("a replay broke, and its client comes back: %s: %s", client.label, e)
            self._node.counters.broken += 1
            await hang_up(self._host, self._eio_sid)
        except Exception:  # a fault of this package: the client recovers over a new connection
            logger.exception("a replay broke, and its client comes back: %s", client.label)
            self._node.counters.broken += 1
            await hang_up(self._host, self._eio_sid)

    def _finish(self, client: Client) -> bool:
        """If the rest is among the recent records, send it and let the client go live, in this tick."""
        if client.state is not State.REPLAYING:
            return True
        cursor = self._node.cursor
        if client.held is not None and not cursor.recent.covers(client.sent):
            return False
        self._node.delivery.catch_up(client, cursor.recent, cursor.offset)
        return True

    def _carried_page(self, client: Client, session: Claimed, pid: str | None) -> bool:
        """Send the page that came with the claim, behind the CONNECT. ``False`` if a page has to be read.

        In this same tick :meth:`_follow_log` applied all that the cursor met after the claim. So what the claim
        returned still holds.
        """
        if session.upto is None and not self._node.cursor.recent.covers(client.sent):
            return False
        self._begin_replay(client, pid)
        for record in session.page:
            self._node.delivery.replay(client, record)
        client.skip_to(session.upto or 0)
        return True

    def _begin_replay(self, client: Client, pid: str | None) -> None:
        if pid is not None:
            self._connect_out(client, pid)
        client.begin_replay()

    async def _next_page(self, client: Client, pid: str | None) -> None:
        """Read a page and send it, behind the CONNECT if that is still to be sent.

        :param pid: the pid of a CONNECT that is still to be sent.
        """
        node = self._node
        page = await node.sessions.page(self._held(client), client.sent, PAGE)
        self._check(client)
        if page is None:
            raise ConnectAborted
        if page.lost:
            await self._lose(client, "was deleted")
        for record in page.records:
            await self._require_readable(client, record)
        if page.records and not node.epochs.knows(page.records[-1].offset):
            await node.continuity.check()  # a new epoch has begun. Its key signs the offsets on the wire
            self._check(client)
        self._begin_replay(client, pid)
        size = 0
        for record in page.records:
            if size > PAGE_BYTES:
                return  # the rest is read again, once these have left the queue
            whole = record if record.attachment is None else await node.reader.whole(record)
            self._check(client)
            await self._require_readable(client, whole)
            node.delivery.replay(client, whole)
            size += whole.size
        if len(page.records) < PAGE:
            client.skip_to(page.head)

    async def _require_readable(self, client: Client, record: Record) -> None:
        if record.kind is Kind.UNREADABLE:
            await self._lose(client, f"cannot be read (record {record.offset}, {record.data})")

    async def _lose(self, client: Client, why: str) -> NoReturn:
        """End the session of a client that cannot be sent all it missed. It comes back, and gets a new one."""
        logger.warning("what a client missed %s, and its session ends: %s", why, client.label)
        self._node.counters.broken += 1
        await self._node.sessions.end(self._held(client))
        client.lose_session()
        await hang_up(self._host, self._eio_sid)
        raise ConnectAborted

    async def _taken(self, client: Client) -> None:
        """Wait until the connection's queue is empty and what was in it is sent, or the client is gone."""
        queue = asyncio.ensure_future(client.connection.socket.queue.join())
        gone = asyncio.ensure_future(client.gone.wait())
        await asyncio.wait((queue, gone), return_when=asyncio.FIRST_COMPLETED)
        queue.cancel()
        gone.cancel()


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
