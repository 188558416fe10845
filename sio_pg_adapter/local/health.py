"""The state of this node: for health checks, the other nodes, and the application's ``error_handler``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.listener import Listener
from sio_pg_adapter.store.pruner import Pruner
from sio_pg_adapter.store.relay import Relay
from sio_pg_adapter.store.writer import LogWriter
from sio_pg_adapter.tasks import Tasks

from .clients import Clients
from .cursor import Cursor

logger = logging.getLogger("sio_pg_adapter")


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a node.

    :ivar ok: it listens, and its cursor has reached the end of the log as far as the node knows it.
    :ivar cursor: the offset up to which it has applied the log.
    :ivar lag: offsets between the cursor and the last one that it knows of.
    :ivar listener: ``"listening"``, ``"reconnecting"`` or ``"stopped"``.
    :ivar sessions: sessions that are held by clients of this node.
    :ivar reason: why it is not ok, in words. If it is ok, a fault that keeps no event from a client, or nothing.
    :ivar durability: ``"flush"`` or ``"memory"``, the option of its manager.
    """

    ok: bool
    cursor: int
    lag: int
    listener: str
    sessions: int
    reason: str = ""
    durability: str = "flush"


class Diagnosis:
    """Finds the faults of a node, without asking the database.

    :param follows: whether the node follows the log. A process that only emits does not.
    :ivar listener: what brings the notifications, once the node has started.
    """

    def __init__(
        self,
        database: Database,
        clients: Clients,
        cursor: Cursor,
        writer: LogWriter,
        relay: Relay,
        pruner: Pruner,
        *,
        follows: bool,
    ) -> None:
        self._database = database
        self._clients = clients
        self._cursor = cursor
        self._writer = writer
        self._relay = relay
        self._pruner = pruner
        self._follows = follows
        self.listener: Listener | None = None

    @property
    def reconnects(self) -> int:
        """How often the LISTEN connection was replaced."""
        return 0 if self.listener is None else self.listener.reconnects

    @property
    def listening(self) -> bool:
        return self.listener is not None and self.listener.connected

    def health(self) -> Health:
        """Return the state of the node."""
        reason = self.fault()
        ok = not reason
        durability = self._database.durability.value
        if not self._follows:
            return Health(ok, 0, 0, "stopped", 0, reason, durability)
        if ok and not self._pruner.running:
            reason = "the pruner's task has ended: this node deletes nothing that has expired"
        elif ok and self._relay.faults:
            reason = (
                f"relay: {self._relay.faults} rows of sio_relay cannot be moved to the log. See their column fault"
            )
        held = sum(client.held is not None for client in self._clients)
        state = "listening" if self.listening else "reconnecting"
        return Health(ok, self._cursor.offset, self._cursor.lag, state, held, reason, durability)

    def fault(self) -> str:
        """Return why events from this node, or for its clients, may not arrive."""
        database = self._database
        if self.listener is not None and not self.listener.connected:
            return f"LISTEN: {self.listener.fault or 'not connected'}"
        if self.listener is not None and self.listener.ended:
            return "LISTEN: the task has ended"
        if self._follows and not self._cursor.running:
            return "the cursor's task has ended"
        if not self._writer.running:
            return "the writer's task has ended"
        if not database.followed.confirmed:
            return "the node is checking which log the server has"
        for name, kept in (("writer", database.writer), ("reader", database.reader)):
            if kept.fault:
                return f"{name}: {kept.fault}"
        if self._relay.fault:
            return f"relay: {self._relay.fault}"
        if self._follows and self._cursor.lag:
            return f"the cursor is {self._cursor.lag} offsets behind the log"
        return ""


class FaultReports:
    """Reports to the application that the database is away, or is back. Once each.

    :param handler: the application's ``error_handler``.
    """

    def __init__(self, handler: Callable[[StoreUnavailable | None], Any] | None, tasks: Tasks) -> None:
        self._handler = handler
        self._tasks = tasks
        self._is_away = False

    def report(self, fault: str) -> None:
        """Report why the database is away. Nothing: it is back."""
        if self._handler is None or bool(fault) is self._is_away:
            return
        self._is_away = bool(fault)
        error = StoreUnavailable(fault, may_be_stored=None) if fault else None
        self._tasks.spawn(self._call(self._handler, error), "error handler")

    async def _call(self, handler: Callable[[StoreUnavailable | None], Any], error: StoreUnavailable | None) -> None:
        try:
            result = handler(error)
            if inspect.isawaitable(result):
                await result
        except Exception:  # the application's function failed. The node goes on
            logger.exception("the error_handler failed")
