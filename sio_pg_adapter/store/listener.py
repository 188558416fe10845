"""The connection that listens: it connects, probes and reconnects. It knows channels and payloads, not their
meaning."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.tasks import cancelled

from .backends import QUERY_TIMEOUT
from .database import Database
from .failures import LOST, translated
from .kept import Connection

PROBE_INTERVAL = 15.0
"""Seconds between two probes."""

PROBE_TIMEOUT = 5.0
"""Seconds that a probe may take. A peer that vanished silently is noticed within the sum of both."""

BACKOFF = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each try to reconnect. The last one repeats. A success that holds until the next probe resets it."""

logger = logging.getLogger("sio_pg_adapter")


class Listener:
    """Listens on some channels, through lost connections.

    Notifications sent while the connection was away are lost. So ``on_ready`` is called after each (re)connect, when
    it listens again, and its owner looks for what it missed.

    :param channels: returns the names of the channels. It is called at each connect.
    :param on_message: called with the process id of the backend that notified, the channel and the payload, in order.
                       It never awaits.
    :param on_probe: awaited with the connection and the seconds that it may take, while nothing else happens. It
                     returns why the connection has to be replaced, or nothing.
    :param on_ready: awaited with the connection on each (re)connect, before anything else. If it raises, the
                     connection counts as failed.
    :param on_state: called with why it does not listen, and with nothing when it listens again.
    :ivar fault: why it does not listen.
    """

    def __init__(
        self,
        database: Database,
        channels: Callable[[], list[str]],
        on_message: Callable[[int, str, str], None],
        on_ready: Callable[[Connection], Awaitable[None]],
        on_probe: Callable[[Connection, float], Awaitable[str]] | None = None,
        on_state: Callable[[str], None] | None = None,
    ) -> None:
        self._database = database
        self._channels = channels
        self._heard: list[str] = []
        self._on_message = on_message
        self._on_ready = on_ready
        self._on_probe = on_probe
        self._on_state = on_state
        self._connection: Connection | None = None
        self._pooled = False
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        self.reconnects = 0
        self.fault = ""

    @property
    def ended(self) -> bool:
        """Whether it has stopped trying."""
        return self._task is None or self._task.done()

    def renew(self) -> None:
        """Replace the connection, also one that is being opened."""
        if self.connected:
            self.connected = False
            self.fault = "it is being replaced"
        self._lost.set()

    async def start(self) -> None:
        """Listen. The first connect fails fast.

        :raises StoreUnavailable: if it fails.
        """
        await self._connect()
        self._task = asyncio.create_task(self._run(), name="sio_pg listener")

    async def close(self) -> None:
        """Stop listening. Safe to call twice."""
        task, self._task = self._task, None
        await cancelled(task)
        await self._disconnect(for_good=True)

    async def _run(self) -> None:
        failures = 0
        while True:
            if self.connected:
                # Not wait_for(), which forgets a cancel in Python 3.11 if what it waits for comes at the same time.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_INTERVAL):
                        await self._lost.wait()
                if not self._lost.is_set() and await self._probe():
                    failures = 0
                    continue
                logger.warning("the LISTEN connection is replaced: %s", self.fault)
                self._report(self.fault)
            await self._disconnect()
            pause = BACKOFF[min(failures, len(BACKOFF) - 1)]
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # so that nodes do not connect in step
            failures += 1
            try:
                await self._connect()
                if self.connected:
                    self.reconnects += 1
                    logger.info("the LISTEN connection is back")
                    self._report("")
            except SioPgError as e:
                self.fault = str(e)
                logger.warning("LISTEN: %s", e)
            except Exception as e:  # the loop goes on: nothing else would ever listen again
                self.fault = f"{type(e).__name__}: {e}"
                logger.exception("LISTEN failed")

    def _report(self, fault: str) -> None:
        if self._on_state is not None:
            self._on_state(fault)

    async def _connect(self) -> None:
        self._connection, self._pooled = await self._database.listen_connection()
        self._lost.clear()
        try:
            with translated("LISTEN", may_be_stored=None):
                self._connection.add_termination_listener(self._on_termination)
                self._heard = self._channels()
                for channel in self._heard:
                    async with asyncio.timeout(QUERY_TIMEOUT):
                        await self._connection.add_listener(channel, self._on_notify)
                await self._on_ready(self._connection)
        except BaseException:  # cancelled, too: half a connection is none
            await self._disconnect()
            raise
        if not self._lost.is_set():  # else it was lost or replaced meanwhile
            self.connected, self.fault = True, ""

    async def _disconnect(self, *, for_good: bool = False) -> None:
        self.connected = False
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(*LOST):
            connection.remove_termination_listener(self._on_termination)
        if not for_good:  # a silent server would not answer a goodbye. Waiting for it would cost seconds
            await self._database.discard(connection)
            return
        with contextlib.suppress(*LOST):
            if not connection.is_closed():
                for channel in self._heard:
                    async with asyncio.timeout(2):
                        await connection.remove_listener(channel, self._on_notify)
        if self._pooled:
            await self._database.release(connection)
            return
        with contextlib.suppress(*LOST):
            await connection.close(timeout=2)

    async def _probe(self) -> bool:
        if self._connection is None:
            return False
        try:
            with translated("the LISTEN connection", may_be_stored=None):
                if self._on_probe is None:
                    await self._connection.fetchval("SELECT 1", timeout=PROBE_TIMEOUT)
                else:
                    self.fault = await self._on_probe(self._connection, PROBE_TIMEOUT)
        except SioPgError as e:
            self.fault = str(e)
        except Exception as e:  # the loop goes on: a new connection may pass the probe
            self.fault = f"{type(e).__name__}: {e}"
            logger.exception("the probe of the LISTEN connection failed")
        return not self.fault

    def _on_termination(self, _connection: Connection) -> None:
        self.connected, self.fault = False, "the connection was lost"
        self._lost.set()

    def _on_notify(self, _connection: Connection, backend: int, channel: str, payload: Any) -> None:
        try:
            self._on_message(backend, channel, payload)
        except Exception:  # asyncpg would log it as well, but without a word on where it comes from
            logger.exception("a notification could not be handled")
