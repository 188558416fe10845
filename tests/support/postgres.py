"""``Postgres``: a stand-in for an asyncpg connection, and a database of ours that is open on it."""

from __future__ import annotations

from typing import Any

from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.version import SCHEMA_VERSION


class Postgres:
    """One asyncpg connection, and the pool that hands it out. It answers statements by their names.

    :ivar answers: the answers to ``fetch``, ``fetchrow`` and ``fetchval``, by the statement's name.
    :ivar failures: what the next statements raise, in order.
    :ivar statements: the statements that succeeded, by name, with their arguments. The pool adds
        ``expire_connections`` when it is called.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "version": {"version": SCHEMA_VERSION, "compatible": SCHEMA_VERSION, "channel": "sio_log"}
        }
        self.failures: list[BaseException] = []
        self.statements: list[tuple[str, tuple[Any, ...]]] = []
        self.database = Database(None, pool=self)
        self._names = {self.database.queries[name]: name for name in self.database.queries}

    @classmethod
    async def opened(cls, failures: list[BaseException] | None = None, *, is_own: bool = False) -> Postgres:
        """Return one whose database is open.

        :param failures: what the statements after that raise.
        :param is_own: whether the database has opened the pool itself.
        """
        postgres = cls()
        await postgres.database.open()
        if is_own:
            postgres.database._given_pool = None
        postgres.statements.clear()
        postgres.failures = failures or []
        return postgres

    def arguments_of(self, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of each statement with that name, in order."""
        return [arguments for statement, arguments in self.statements if statement == name]

    # -- what a pool has ---------------------------------------------------------------------------------
    async def acquire(self, timeout: float) -> Postgres:
        return self

    async def release(self, connection: Postgres, timeout: float) -> None: ...

    async def expire_connections(self) -> None:
        self.statements.append(("expire_connections", ()))

    # -- what a connection has ---------------------------------------------------------------------------
    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None: ...

    def get_server_pid(self) -> int:
        return 1

    async def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> Any:
        if query == "SELECT pg_backend_pid()":
            return 1
        if self.failures:
            raise self.failures.pop(0)
        name = self._names[query]
        self.statements.append((name, arguments))
        return self.answers.get(name)

    fetch = fetchrow = fetchval = execute
