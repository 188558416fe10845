"""A client's claim of an earlier session, up to where its former connection has let go.

The claim is a record of the log. Once this node's cursor has passed it, the session's rooms are those at the cursor,
and the delivery keeps them by the log.
"""

from __future__ import annotations

import asyncio
import json
import logging

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.local.cursor import CURSOR_WAIT
from sio_pg_adapter.log.records import Held, Kind
from sio_pg_adapter.log.verdict import PROVES, Claim, Claimed, Fresh, Reason, Recovered, verdict
from sio_pg_adapter.node import Node
from sio_pg_adapter.options import ConnectionStateRecovery

from . import replay
from .checks import ConnectAborted, require_lasting, session_of
from .endings import Endings
from .rate_limit import RateLimit

TAKEOVER_WAIT = 2.0
"""How long a claim waits for the former connection's disconnect handler, in seconds."""

CLAIM_TIMEOUT = 8.0
"""How long a claim may take while the database is slow or away, in seconds. Then the client tries again."""

logger = logging.getLogger("sio_pg_adapter")


class Claiming:
    """Claims a session for one client.

    :param limit: how often a session may be claimed.
    :param identity: whose session it has to be.
    """

    def __init__(self, node: Node, endings: Endings, limit: RateLimit, client: Client, identity: str | None) -> None:
        self._node = node
        self._endings = endings
        self._limit = limit
        self._client = client
        self._identity = identity

    async def claim(self, claim: Claim, recovery: ConnectionStateRecovery) -> Claimed | None:
        """Claim the session, and wait until this node's cursor has passed the claim.

        ``None`` if it cannot be recovered.
        """
        node, client, cap = self._node, self._client, recovery.max_missed_packets
        await self._limit.wait(claim.pid)
        async with node.turns:
            if client.closed is not None or client.state is State.LEFT:
                raise ConnectAborted  # the session stays with its present holder
            session = await self._claimed(claim, cap)
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
                await node.sessions.give_up(Held(session.id, session.generation), seconds=0.0)
            return None
        node.clients.rename(client, session.sid)  # it was admitted under a sid of its own
        held = Held(session.id, session.generation)
        client.resume(held, after=decision.after, data=json.loads(session.data))
        await self._await_cursor(session.offset)
        require_lasting(client)
        client.confirm_claim()
        return session

    async def _claimed(self, claim: Claim, cap: int) -> Claimed | None:
        """Claim the session. ``None`` if the claim is not granted."""
        node, client = self._node, self._client
        in_memory = claim.after is not None and node.cursor.recent.covers(claim.after)
        claiming = node.tasks.spawn(
            node.sessions.claim(
                client.namespace, claim, cap, page=0 if in_memory else replay.PAGE, identity=self._identity
            ),
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
                self._node.sessions.give_up(held, seconds=self._node.recovery.window), "release late claim"
            )

    async def _await_cursor(self, offset: int) -> None:
        if not await self._node.cursor.passed(offset, CURSOR_WAIT):
            raise StoreUnavailable("this node is too far behind the log to recover a session", may_be_stored=None)

    async def follow_log(self, session: Claimed) -> None:
        """Bring the session's rooms from the offset of the claim up to the cursor, and follow the log from there."""
        node, client = self._node, self._client
        as_of, memberships = session.offset, session.memberships
        while not node.cursor.recent.covers(as_of):
            loaded = await node.sessions.memberships(session_of(client), memberships)
            if loaded is None:
                raise ConnectAborted
            as_of, memberships = loaded
            await self._await_cursor(as_of)
        for record in node.cursor.recent.moves(client.namespace, client.sid, as_of):
            memberships.apply(record)
            if record.kind is Kind.KICK:
                client.end_session()
                raise ConnectAborted
            if record.kind is Kind.CLAIM:
                raise ConnectAborted
        require_lasting(client)
        client.follow(memberships)
        former = node.clients.current(client.sid, client.namespace)
        if former is not None:  # the cursor has met the claim, so it is ending. The sid is this client's now
            node.rooms.depart(former)
        node.clients.add(client)

    async def take_over(self, session: Claimed) -> None:
        """Let a connection that still holds the session end first.

        Its disconnect handler runs before this connection's connect handler, and the session data that it saves
        counts. This waits for two seconds at most.
        """
        client = self._client
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
        require_lasting(client)
        data = await node.sessions.settle(session_of(client))
        if data is None:
            raise ConnectAborted
        client.save(json.loads(data))
