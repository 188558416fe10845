"""The one connection that listens: connects, probes, reconnects; knows channels and payloads, no packet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from sio_pg_adapter.errors import SioPgError, StoreUnavailable

from .database import LOST, Connection, Database, translated

PROBE_INTERVAL = 15.0
PROBE_TIMEOUT = 5.0
"""Seconds. A peer that vanished without a word is found within their sum."""

BACKOFF = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each further try to reconnect; the last one again and again. Reset by each success."""

logger = logging.getLogger("sio_pg_adapter")


class Listener:
    """Hears what is notified on some channels, through lost connections.

    What was notified while it was away is not heard: ``on_ready`` is called after each (re)connect, when it
    listens again, so that the owner can look what it missed.

    :param channels: the channels.
    :param on_message: called with the pid of the backend that notified, a channel and a payload, synchronously, in
                       order.
    :param on_ready: awaited with the connection on each (re)connect, before anything else; if it raises, the
                     connection counts as failed.
    """

    def __init__(
        self,
        database: Database,
        channels: list[str],
        on_message: Callable[[int, str, str], None],
        on_ready: Callable[[Connection], Awaitable[None]],
    ) -> None:
        self._database = database
        self._channels = channels
        self._on_message = on_message
        self._on_ready = on_ready
        self._connection: Connection = None
        self._pooled = False
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        self.reconnects = 0

    async def start(self) -> None:
        """Listen; the first connect fails fast.

        :raises StoreUnavailable: if it does.
        """
        await self._connect()
        self._task = asyncio.create_task(self._run(), name="sio_pg listener")

    async def close(self) -> None:
        """Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._disconnect()

    async def _run(self) -> None:
        failures = 0
        while True:
            if self.connected:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._lost.wait(), PROBE_INTERVAL)
                if not self._lost.is_set() and await self._probe():
                    failures = 0
                    continue
                logger.warning("the LISTEN connection was lost, reconnecting")
            await self._disconnect()
            await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)] * random.uniform(0.5, 1.0))  # noqa: S311
            failures += 1
            try:
                await self._connect()
                self.reconnects += 1
            except SioPgError as e:
                logger.warning("LISTEN: %s", e)

    async def _connect(self) -> None:
        self._connection, self._pooled = await self._database.listen_connection()
        self._lost.clear()
        try:
            with translated("LISTEN"):
                self._connection.add_termination_listener(self._on_termination)
                for channel in self._channels:
                    await self._connection.add_listener(channel, self._on_notify)
                await self._on_ready(self._connection)
        except BaseException:  # cancelled, too: half a connection is none
            await self._disconnect()
            raise
        self.connected = True

    async def _disconnect(self) -> None:
        self.connected = False
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(*LOST):
            connection.remove_termination_listener(self._on_termination)
            if not connection.is_closed():
                for channel in self._channels:
                    await asyncio.wait_for(connection.remove_listener(channel, self._on_notify), 2)
        if self._pooled:
            await self._database.release(connection)
            return
        with contextlib.suppress(*LOST):
            await connection.close(timeout=2)

    async def _probe(self) -> bool:
        try:
            await self._connection.fetchval(self._database.queries["probe"], timeout=PROBE_TIMEOUT)
        except (*LOST, StoreUnavailable):
            return False
        return True

    def _on_termination(self, _connection: Connection) -> None:
        self.connected = False
        self._lost.set()

    def _on_notify(self, _connection: Connection, backend: int, channel: str, payload: Any) -> None:
        try:
            self._on_message(backend, channel, payload)
        except Exception:  # asyncpg would only log it, too, and so far from here
            logger.exception("a notification could not be handled")
