"""The replay of one client: the events that it missed, up to where it goes live.

A page of the log is read, and sent behind the former one. Once the recent records of this node have everything above
the client's mark, the rest is sent from memory, and the client goes live in the same tick. The first page may have
come with the claim of the session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from socketio import packet

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.local.client import Client, State
from sio_pg_adapter.log.records import Kind, Record
from sio_pg_adapter.log.verdict import Claimed
from sio_pg_adapter.node import Node

from .checks import ConnectAborted, require_lasting, session_of
from .host import Host, hang_up

PAGE = 500
"""How many events a page of a replay has."""

PAGE_BYTES = 4 * 1024 * 1024
"""How much of a page is sent before the next one is read, in bytes. At most two pages of a client are in memory."""

logger = logging.getLogger("sio_pg_adapter")


class Replay:
    """Answers a CONNECT, and sends a client the events that it missed.

    :param leave: ends a connection that did not last.
    """

    def __init__(
        self, node: Node, host: Host, client: Client, leave: Callable[[Client], Coroutine[Any, Any, None]]
    ) -> None:
        self._node = node
        self._host = host
        self._client = client
        self._leave = leave

    # -- CONNECT, and the first page -------------------------------------------------------------------------
    def connect_out(self, pid: str | None) -> None:
        """Send the CONNECT.

        :param pid: what the client comes back with. ``None``: it has no session.
        """
        client = self._client
        data = {"sid": client.sid} if pid is None else {"sid": client.sid, "pid": pid}
        client.put(self._node.frames.packet(packet.CONNECT, client.namespace, data))
        client.answered()

    def carried_page(self, session: Claimed, pid: str | None) -> bool:
        """Send the page that came with the claim, behind the CONNECT. ``False`` if a page has to be read.

        In this same tick :meth:`Claiming.follow_log` applied all that the cursor met after the claim. So the answer
        to the claim still holds.
        """
        client = self._client
        if session.upto is None and not self._node.cursor.recent.covers(client.sent):
            return False
        self._begin(pid)
        for record in session.page:
            self._node.delivery.replay(client, record)
        client.skip_to(session.upto or 0)
        return True

    def _begin(self, pid: str | None) -> None:
        if pid is not None:
            self.connect_out(pid)
        self._client.begin_replay()

    async def next_page(self, pid: str | None) -> None:
        """Read a page and send it, behind the CONNECT if that is still to be sent.

        :param pid: the pid of a CONNECT that is still to be sent.
        """
        node, client = self._node, self._client
        page = await node.sessions.page(session_of(client), client.sent, PAGE)
        require_lasting(client)
        if page is None:
            raise ConnectAborted
        if page.lost:
            await self._lose("was deleted")
        for record in page.records:
            await self._require_readable(record)
        if page.records and not node.epochs.knows(page.records[-1].offset):
            await node.continuity.check()  # a new epoch has begun. Its key signs the offsets on the wire
            require_lasting(client)
        self._begin(pid)
        size = 0
        for record in page.records:
            if size > PAGE_BYTES:
                return  # the rest is read again, once these have left the queue
            whole = record if record.attachment is None else await node.reader.whole(record)
            require_lasting(client)
            await self._require_readable(whole)
            node.delivery.replay(client, whole)
            size += whole.size
        if len(page.records) < PAGE:
            client.skip_to(page.head)

    # -- until it is live ------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Send the events that the client is due up to the cursor, each once, then let it go live.

        A short replay is done here. A longer one runs in a task, so that the client's packets are read meanwhile.
        """
        if not self._finish():
            self._node.tasks.spawn(self._replay_pages(), "replay")

    async def _replay_pages(self) -> None:
        client = self._client
        try:
            while not self._finish():
                await self._taken()
                await self.next_page(None)
        except ConnectAborted:
            await self._leave(client)
        except SioPgError as e:
            logger.warning("a replay broke, and its client comes back: %s: %s", client.label, e)
            self._node.counters.broken += 1
            await hang_up(self._host, client.eio_sid)
        except Exception:  # a fault of this package: the client recovers over a new connection
            logger.exception("a replay broke, and its client comes back: %s", client.label)
            self._node.counters.broken += 1
            await hang_up(self._host, client.eio_sid)

    def _finish(self) -> bool:
        """If the rest is among the recent records, send it and let the client go live, in this tick."""
        client = self._client
        if client.state is not State.REPLAYING:
            return True
        cursor = self._node.cursor
        if client.held is not None and not cursor.recent.covers(client.sent):
            return False
        self._node.delivery.catch_up(client, cursor.recent, cursor.offset)
        return True

    async def _require_readable(self, record: Record) -> None:
        if record.kind is Kind.UNREADABLE:
            await self._lose(f"cannot be read (record {record.offset}, {record.data})")

    async def _lose(self, why: str) -> NoReturn:
        """End the session of a client that cannot be sent all it missed. It comes back, and gets a new one."""
        client = self._client
        logger.warning("what a client missed %s, and its session ends: %s", why, client.label)
        self._node.counters.broken += 1
        if await self._node.sessions.end(session_of(client)) is not None:
            client.lose_session()  # else a newer claim holds it, and waits until this client lets it go
        await hang_up(self._host, client.eio_sid)
        raise ConnectAborted

    async def _taken(self) -> None:
        """Wait until the connection's queue is empty and all of it is sent, or the client is gone."""
        client = self._client
        queue = asyncio.ensure_future(client.connection.socket.queue.join())
        gone = asyncio.ensure_future(client.gone.wait())
        await asyncio.wait((queue, gone), return_when=asyncio.FIRST_COMPLETED)
        queue.cancel()
        gone.cancel()
