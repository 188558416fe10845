"""Connections that are kept from the start of a node to its end, and the check whether they still serve."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from sio_pg_adapter.errors import SioPgError, StoreUnavailable

from .failures import BROKEN, LOST, is_about_value, translated

if TYPE_CHECKING:
    from .database import Database

LOCK_SHARE = 0.8
"""How much of a check's time may be spent on waiting for the log's lock."""

HOLDER_WAIT = 1.0
"""How long the name of the backend that holds the log's lock may take, in seconds."""

Connection: TypeAlias = asyncpg.Connection
"""An asyncpg connection, or the proxy of one that a pool hands out."""


def is_closed(connection: Connection) -> bool:
    """Whether a connection was lost."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # lost while nobody used it: the pool took it back by itself
        return True


class KeptConnection:
    """A connection that is kept: ``async with kept as connection``, one at a time.

    It is replaced when it was lost, when the node follows another server, and when the probe finds it unfit. It is
    also replaced after every error that another connection might not give.

    :ivar fault: why the last use failed. Empty if it did not.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._connection: Connection | None = None
        self._era = 0
        self._lock = asyncio.Lock()
        self.fault = ""

    @property
    def at_hand(self) -> Connection | None:
        """The connection, if it can be used without a wait."""
        if self._connection is None or self._lock.locked() or self._era != self._database.followed.era:
            return None
        return None if is_closed(self._connection) else self._connection

    async def __aenter__(self) -> Connection:
        await self._lock.acquire()
        try:
            if self._connection is None or self._era != self._database.followed.era or is_closed(self._connection):
                await self.drop()
                self._era = self._database.followed.era
                self._connection = await self._database.kept_connection(self._name)
        except BaseException as e:  # cancelled, too: nobody else would ever get it
            self.fault = str(e) or type(e).__name__
            self._lock.release()
            raise
        return self._connection

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None:
                self.fault = ""
            elif another_may_serve(error):
                self.fault = f"{type(error).__name__}: {error}"
                await self.drop()
        finally:
            self._lock.release()

    async def check(self, timeout: float, then: Callable[[Connection], Awaitable[None]] | None = None) -> None:
        """Ask whether the connection is still fit, and note the fault if it is not.

        :param then: another check, which is called with the connection.
        """
        try:
            async with asyncio.timeout(timeout), self as connection:
                try:
                    await self._database.judge(connection, self._name)
                    if then is not None:
                        await then(connection)
                except (SioPgError, *LOST):
                    await self.drop()
                    raise
        except TimeoutError:
            self.fault = f"the connection of the {self._name} has not answered in {timeout:g} s"
        except (SioPgError, *LOST) as e:
            self.fault = f"{e}"

    async def drop(self) -> None:
        """Close the connection. If it were given back open, its pool would hand it out next."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if is_closed(connection):
                await self._database.expire_connections()
            await self._database.discard(connection)

    async def give_back(self) -> None:
        """Give the connection back to its pool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._database.release(connection)


def another_may_serve(error: BaseException) -> bool:
    """Whether another connection might not give this error."""
    return isinstance(error, (asyncpg.PostgresError, *BROKEN)) and not is_about_value(error)


# -- the check of both ----------------------------------------------------------------------------------
async def check_kept(database: Database, timeout: float) -> None:
    """Check that the kept connections are still fit, and that an append could be made. Note a fault in each."""

    async def could_append(connection: Connection) -> None:
        wait = timeout * LOCK_SHARE
        with translated("waiting for the log's lock", may_be_stored=None):
            try:
                await connection.execute(database.queries["wait_for_lock"], int(wait * 1000), timeout=timeout)
            except asyncpg.LockNotAvailableError as e:
                raise StoreUnavailable(f"the log's lock was not free for {wait:g} s", may_be_stored=None) from e

    await asyncio.gather(database.writer.check(timeout, could_append), database.reader.check(timeout))
    if database.writer.fault:
        with contextlib.suppress(SioPgError, TimeoutError):
            async with asyncio.timeout(HOLDER_WAIT):
                database.writer.fault += await _lock_holder(database)


async def _lock_holder(database: Database) -> str:
    """Return a sentence about the backend that holds the log's lock. Empty if there is none."""
    if not (rows := await database.fetch("lock_holder")):
        return ""
    pid, application, waits_for = rows[0]
    standby = waits_for == "SyncRep"
    reason = ", and its commit waits for a synchronous standby (synchronous_standby_names)" if standby else ""
    return f". Process {pid} of the server ({application or 'without a name'}) holds the log's lock{reason}"
