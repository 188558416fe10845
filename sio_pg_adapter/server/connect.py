"""One CONNECT packet, from its arrival to the client being live: the seam between what was and what is.

A first connect::

    CONNECT in -> middlewares, handler -> session stored -> CONNECT out -> what came meanwhile -> live

A recovery::

    CONNECT in -> claim -> verdict -> the former connection lets go -> middlewares, handler
               -> first page of what was missed -> CONNECT out -> pages -> live

The claim brings the first page along, unless this node has in memory what was missed: one round trip, where nothing
waits between the claim and the CONNECT. Where something did (the former connection, a middleware, the handler), the
page is read anew, with the generation: by then the session may have been claimed elsewhere, and this node not have
heard of it; and the handler may have left rooms as of the offset that the client presented.

Whatever awaits may find on return that the connection was closed, the client kicked, or the session claimed by
another connection; each is looked at where it would matter.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from socketio import exceptions, packet

from sio_pg_adapter.errors import SioPgError, StoreUnavailable
from sio_pg_adapter.local.clients import Client, State, handling
from sio_pg_adapter.local.tick import Moment
from sio_pg_adapter.log.entries import Held
from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.log.verdict import (
    FOREIGN,
    Claim,
    Claimed,
    Fresh,
    Presented,
    Recovered,
    new_pid,
    read_auth,
    verdict,
)
from sio_pg_adapter.options import ConnectionStateRecovery
from sio_pg_adapter.wire.frames import framed

from .endings import hang_up

if TYPE_CHECKING:
    from sio_pg_adapter.manager import AsyncPostgresManager

    from .server import AsyncServer

TAKEOVER_WAIT = 2.0
"""Seconds that a claim waits for the former connection's disconnect handler to end."""

CLAIM_TIMEOUT = 8.0
"""Seconds that a claim may take, while the database is slow or away; then the client shall try again."""

CURSOR_WAIT = 5.0
"""Seconds that a claim waits for this node's cursor to meet it."""

ANSWER_WAY = 10.0
"""Seconds that the answer to a CONNECT may be on its way: until then the same packet again is a repetition."""

PAGE = 500
PAGE_BYTES = 4 * 1024 * 1024
"""Packets of one page of a replay, and after how many bytes it ends: two of them are in memory at the most."""

logger = logging.getLogger("sio_pg_adapter")


class Lost(Exception):  # noqa: N818 - not an error
    """The connection cannot go on: closed, kicked, or its session claimed by another one."""


class Connect:
    """The CONNECT of one client in one namespace."""

    def __init__(self, server: AsyncServer, eio_sid: str, namespace: str, auth: Any) -> None:
        self._server = server
        self._manager: AsyncPostgresManager = server.manager
        self._eio_sid = eio_sid
        self._namespace = namespace
        self._presented_auth = auth

    async def run(self) -> None:
        """Do all of it. Where it breaks, the Engine.IO connection is closed: the client then comes back by itself,
        while a CONNECT_ERROR would be final for it."""
        client = None
        try:
            await self._manager.ready()
            former = self._manager.clients.of_socket(self._eio_sid, self._namespace)
            if former is not None and former.ended and former.closed is not None:
                await former.gone.wait()  # its own DISCONNECT came before: it means to begin anew
            elif former is not None and self._repeats(former):
                return
            client = self._manager.admit(self._eio_sid, self._namespace)
            if client is None:  # as upstream: one CONNECT in a namespace
                await self._refuse_packet("Unable to connect")
                return
            client.asked = self._presented_auth
            await self._decide(client)
        except Lost:
            await self._end(client)
        except asyncio.CancelledError:
            self._manager.spawn(self._end(client), "sio_pg leave")
            raise
        except SioPgError as e:
            logger.warning("a connection is closed, so that the client tries again: %s", e)
            self._manager.counters.broken += 1
            self._manager.spawn(self._end(client), "sio_pg leave")
        except Exception:  # of the application's: neither accepted nor refused
            logger.exception("a connection is closed, so that the client tries again")
            self._manager.counters.broken += 1
            await self._end(client)

    def _repeats(self, former: Client) -> bool:
        """Was it sent before the first CONNECT was answered? Then that is its answer, too.

        socket.io-client sends one when an application calls ``connect()`` while it connects. A CONNECT_ERROR would
        be final for it, whichever answer came first.
        """
        if former.state is State.CONNECTING:
            return True
        return former.asked == self._presented_auth and time.monotonic() - former.answered_at < ANSWER_WAY

    async def _end(self, client: Client | None) -> None:
        if client is None:
            await hang_up(self._server, self._eio_sid)
        else:
            await self._leave(client)

    async def _decide(self, client: Client) -> None:
        recovery = self._manager.recovery
        if recovery is None or self._namespace in self._manager.unstored:
            await self._first(client, self._presented_auth, pid=None)
            return
        presented = await self._read_auth()
        if presented.rejected:
            logger.warning("not recovered: %s", presented.rejected)
            self._manager.counters.fresh[presented.rejected] += 1
        if recovery.accepts is not None and not recovery.accepts(self._environ(), presented.auth):
            await self._first(client, presented.auth, pid=None)
            return
        client.recoverable = True
        if presented.claim is not None:
            with self._manager.counters.spans.recovery(self._namespace):
                session = await self._claim(client, presented.claim, recovery)
                if session is not None:
                    await self._recover(client, session, presented.claim, presented.auth)
                    return
        await self._first(client, presented.auth, pid=new_pid())

    def _environ(self) -> dict[str, Any]:
        environ: dict[str, Any] | None = self._server.environ.get(self._eio_sid)
        if environ is None:
            raise Lost  # closed meanwhile
        return environ

    async def _read_auth(self) -> Presented:
        database = self._manager.database
        presented = read_auth(self._presented_auth, self._namespace, database.codec)
        if presented.rejected == FOREIGN and database.epochs_may_be_stale():
            await self._manager.history.check()  # of an epoch that another node has begun, perhaps
            presented = read_auth(self._presented_auth, self._namespace, database.codec)
        return presented

    # -- a new session ---------------------------------------------------------------------------------
    async def _first(self, client: Client, auth: Any, *, pid: str | None) -> None:
        server = self._server
        if server.always_connect:
            if pid is not None:
                await self._open(client, pid)
            self._connect_out(client, pid)
            client.state = State.REPLAYING
            client.accepted = True
        refusal = await self._ask_application(client, auth)
        if refusal is not None:
            await self._refuse(client, refusal)
            return
        client.accepted = True
        self._check(client)
        if not server.always_connect:
            if pid is not None:
                await self._open(client, pid)
                self._check(client)
            self._connect_out(client, pid)
            client.state = State.REPLAYING
        await self._replay(client)

    async def _open(self, client: Client, pid: str) -> None:
        """Store the session, with what its handler saved and entered: before the client knows its pid."""
        manager = self._manager
        data = manager.encode_session(client.data)
        client.opening = asyncio.get_running_loop().create_future()
        try:
            client.held = await manager.sessions.open(
                client.namespace,
                client.memberships,
                pid=pid,
                cursor=manager.dispatcher.cursor,
                data=data,
            )
        finally:
            client.opening.set_result(None)
            client.opening = None
        if client.held is None:
            client.ended = True
            raise Lost

    # -- an old one --------------------------------------------------------------------------------------
    async def _claim(self, client: Client, claim: Claim, recovery: ConnectionStateRecovery) -> Claimed | None:
        """The session, claimed, and met by this node's cursor; ``None``: it cannot come back."""
        manager, cap = self._manager, recovery.max_missed_packets
        await self._server.pace.wait(claim.pid)
        in_memory = claim.after is not None and manager.dispatcher.recent.cover(claim.after)
        claiming = manager.spawn(
            manager.sessions.claim(client.namespace, claim, cap, page=0 if in_memory else PAGE), "sio_pg claim"
        )
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT):
                session = await asyncio.shield(claiming)
        except (TimeoutError, asyncio.CancelledError) as e:
            claiming.add_done_callback(self._claimed_too_late)
            if isinstance(e, TimeoutError):
                raise StoreUnavailable("claiming a session", may_be_stored=True) from e
            raise
        decision = verdict(claim, session, cap)
        manager.counters.decided(decision)
        if session is None or not isinstance(decision, Recovered):
            if isinstance(decision, Fresh):
                logger.info("a fresh session: %s", decision.reason)
            if session is not None:  # it cannot be had whole, so its time is up
                await manager.sessions.release(Held(session.id, session.generation), seconds=0.0)
            return None
        manager.clients.rename(client, session.sid)  # it was taken in under a sid of its own
        client.held = Held(session.id, session.generation)
        client.after = client.sent = decision.after
        client.recovered = True
        client.data = json.loads(session.data)
        if not await manager.dispatcher.passed(session.offset, CURSOR_WAIT):
            raise StoreUnavailable("this node is too far behind the log to recover a session")
        client.claimed = Moment()
        return session

    def _claimed_too_late(self, claiming: asyncio.Task[Claimed | None]) -> None:
        """A claim that nobody waited for any more: its session can be claimed again."""
        session = None if claiming.cancelled() or claiming.exception() else claiming.result()
        recovery = self._manager.recovery
        if session is not None and recovery is not None:
            held = Held(session.id, session.generation)
            self._manager.spawn(self._manager.sessions.release(held, seconds=recovery.window), "sio_pg give back")

    async def _recover(self, client: Client, session: Claimed, claim: Claim, auth: Any) -> None:
        always_connect = self._server.always_connect
        await self._join_log(client, session)
        await self._take_over(client, session)
        if always_connect:
            self._connect_out(client, claim.pid)
            client.accepted = True
        refusal = await self._ask_application(client, auth)
        if refusal is not None:
            await self._refuse(client, refusal)
            return
        client.accepted = True
        self._check(client)
        # Known before CONNECT: by then it is sure that the session is still this connection's.
        then = None if always_connect else claim.pid
        if client.claimed is None or not client.claimed.lasts or not self._first_page(client, session, then):
            await self._next_page(client, then)
        await self._replay(client)

    async def _join_log(self, client: Client, session: Claimed) -> None:
        """What was loaded holds as of the claim's offset. Follow the log from there, without a gap."""
        manager = self._manager
        as_of, memberships = session.offset, session.memberships
        while not manager.dispatcher.recent.cover(as_of):
            loaded = await manager.sessions.memberships(self._held(client), session.sid, memberships.start)
            if loaded is None:
                raise Lost
            as_of, memberships = loaded
            await manager.dispatcher.passed(as_of, CURSOR_WAIT)
        for record in manager.dispatcher.recent.moves(client.namespace, client.sid, as_of):
            memberships.apply(record)
            if record.kind in (Kind.CLAIM, Kind.KICK):
                client.ended = record.kind is record.kind.KICK
                raise Lost
        client.memberships = memberships
        former = manager.clients.by_sid.get(client.namespace, {}).get(client.sid)
        if former is not None:  # its cursor has met the claim, so it has been told; the sid is ours now
            manager.depart(former)
        manager.clients.add(client)

    async def _take_over(self, client: Client, session: Claimed) -> None:
        """Where a connection still held the session, let it end first: its disconnect handler runs before our
        connect handler, and what it saves there counts. No longer than two seconds."""
        if session.former is None:
            return
        manager = self._manager
        manager.counters.takeovers += 1
        key = (session.id, session.former)
        event = manager.released(key)
        leaving = self._server.endings.leaving.get((client.namespace, client.sid))
        waiting = [asyncio.ensure_future(event.wait())]
        if leaving is not None:
            waiting.append(asyncio.ensure_future(leaving.gone.wait()))
        try:
            await asyncio.wait(waiting, timeout=TAKEOVER_WAIT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            manager.forget_released(key)
        self._check(client)
        data = await manager.sessions.settle(self._held(client))
        if data is None:
            raise Lost
        client.data = json.loads(data)

    # -- the application ---------------------------------------------------------------------------------
    async def _ask_application(self, client: Client, auth: Any) -> dict[str, Any] | None:
        """Run middlewares and the connect handler; what to refuse with, or ``None``: accepted."""
        server, recovery = self._server, self._manager.recovery
        environ = self._environ()
        token = handling.set(client)
        try:
            if not (client.recovered and recovery is not None and recovery.skip_middlewares):
                for middleware in server.middlewares.get(client.namespace, ()):
                    await middleware(client.sid, environ, auth)
            environ["sio_pg.recovered"] = client.recovered
            accepted = await self._call_handler(client, environ, auth)
        except exceptions.ConnectionRefusedError as e:
            return dict(e.error_args)
        except ConnectionRefusedError:
            return {"message": "Connection refused by server"}
        finally:
            handling.reset(token)
        return dict(exceptions.ConnectionRefusedError().error_args) if accepted is False else None

    async def _call_handler(self, client: Client, environ: dict[str, Any], auth: Any) -> Any:
        trigger, args = self._server._trigger_event, (client.sid, environ)
        if auth:
            return await trigger("connect", client.namespace, *args, auth)
        try:
            return await trigger("connect", client.namespace, *args, None)
        except TypeError as e:
            try:  # a handler of two arguments, as upstream allows
                return await trigger("connect", client.namespace, *args)
            except TypeError:
                raise e from None

    # -- ends ----------------------------------------------------------------------------------------------
    def _check(self, client: Client) -> None:
        if client.closed or client.ended or client.state is State.LEFT:
            raise Lost
        if client.socket.closed or client.socket.closing:
            raise Lost

    async def _refuse(self, client: Client, reason: dict[str, Any]) -> None:
        """Refused by the application: the session is over, nothing of it is told."""
        manager = self._manager
        connected = client.state is State.REPLAYING or (self._server.always_connect and client.accepted)
        manager.depart(client)
        kind = packet.DISCONNECT if connected else packet.CONNECT_ERROR
        if client.held is not None:
            await manager.sessions.end(client.held)
        client.gone.set()
        await self._send(self._server.packet_class(kind, data=reason, namespace=client.namespace))

    async def _refuse_packet(self, reason: str) -> None:
        await self._send(self._server.packet_class(packet.CONNECT_ERROR, data=reason, namespace=self._namespace))

    async def _leave(self, client: Client) -> None:
        """The connection did not last: the session can be recovered again, unless it was ended."""
        if client.state is not State.LEFT and client.ended and client.closed is None:
            pkt = self._server.packet_class(packet.DISCONNECT, namespace=client.namespace)
            await self._send(pkt)
        reason = client.closed or self._server.reason.TRANSPORT_CLOSE
        await self._server.endings.leave(client, reason)
        if not client.ended:
            await hang_up(self._server, self._eio_sid)

    # -- out -------------------------------------------------------------------------------------------------
    def _held(self, client: Client) -> Held:
        if client.held is None:
            raise Lost  # kicked meanwhile
        return client.held

    async def _send(self, pkt: packet.Packet) -> None:
        encoded = pkt.encode()
        for one in encoded if isinstance(encoded, list) else [encoded]:
            await self._server.eio.send(self._eio_sid, one)

    def _connect_out(self, client: Client, pid: str | None) -> None:
        data = {"sid": client.sid} if pid is None else {"sid": client.sid, "pid": pid}
        encoded = self._server.packet_class(packet.CONNECT, data=data, namespace=client.namespace).encode()
        client.put([framed(encoded)])
        client.answered_at = time.monotonic()

    # -- replay ------------------------------------------------------------------------------------------------
    async def _replay(self, client: Client) -> None:
        """Send what the client is due up to the cursor, then go live: without a gap, and nothing twice.

        A short one is done here; a longer one on its own, so that the client's packets are read meanwhile.
        """
        if self._finish(client):
            return
        self._manager.spawn(self._replay_pages(client), "sio_pg replay")

    async def _replay_pages(self, client: Client) -> None:
        try:
            while not self._finish(client):
                await self._drained(client)
                await self._next_page(client)
        except Lost:
            await self._leave(client)
        except SioPgError as e:
            logger.warning("a replay broke, the client will try again: %s", e)
            self._manager.counters.broken += 1
            await hang_up(self._server, self._eio_sid)

    def _finish(self, client: Client) -> bool:
        """If all that is left lies in the buffer of recent records, queue it and go live in this very tick."""
        if client.state is not State.REPLAYING:
            return True
        if client.held is not None and not self._manager.dispatcher.recent.cover(client.sent):
            return False
        self._manager.catch_up(client)
        return True

    def _first_page(self, client: Client, session: Claimed, then: str | None) -> bool:
        """Queue what came with the claim, behind the CONNECT; ``False``: it has to be read. In one moment with the
        claim's arrival: its rooms, its generation and whether anything is lost are still so."""
        if session.upto is None and not self._manager.dispatcher.recent.cover(client.sent):
            return False
        if then is not None:
            self._connect_out(client, then)
        client.state = State.REPLAYING
        for record in session.page:
            self._manager.delivery.replay(client, record)
        client.sent = max(client.sent, session.upto or 0)
        return True

    async def _next_page(self, client: Client, then: str | None = None) -> None:
        """Read a page and queue it, behind the CONNECT if that is still to be sent (``then``: its pid)."""
        manager = self._manager
        page = await manager.sessions.page(self._held(client), client.sent, PAGE)
        self._check(client)
        if page is None:
            raise Lost
        if page.lost:
            logger.warning("what a client missed was deleted before it could be sent: its session ends")
            manager.counters.broken += 1
            await manager.sessions.end(self._held(client))
            client.held = None
            await hang_up(self._server, self._eio_sid)
            raise Lost
        if then is not None:
            self._connect_out(client, then)
        client.state = State.REPLAYING
        size = 0
        for record in page.records:
            if size > PAGE_BYTES:
                return  # the rest is read again, once the client has taken these
            whole = record if record.attachment is None else await manager.log_reader.whole(record)
            self._check(client)
            manager.delivery.replay(client, whole)
            size += whole.size
        if len(page.records) < PAGE:
            client.sent = max(client.sent, page.head)

    async def _drained(self, client: Client) -> None:
        """Wait until the client has taken what was queued, or is gone."""
        queue = asyncio.ensure_future(client.socket.queue.join())
        gone = asyncio.ensure_future(client.gone.wait())
        await asyncio.wait((queue, gone), return_when=asyncio.FIRST_COMPLETED)
        queue.cancel()
        gone.cancel()
