"""PostgreSQL backends: which one serves a connection, and waiting until it is gone."""

from __future__ import annotations

import asyncio

from sio_pg_adapter.store.backends import Backend, backend_of, end_backend
from sio_pg_adapter.store.queries import Queries

QUERIES = Queries("public")
STARTED = 1_767_312_000_000_000


class Connection:
    """A stand-in for an asyncpg connection that gives the answers in order."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.statements = []

    async def fetch(self, query, *arguments, timeout):
        self.statements.append((query, arguments))
        return self.answers.pop(0)

    fetchrow = fetch


async def test_a_backend_is_known_by_its_process_id_and_its_start():
    connection = Connection({"pid": 7, "started": STARTED})
    assert await backend_of(connection, QUERIES) == Backend(7, STARTED)
    assert connection.statements == [(QUERIES["backend"], ())]


async def test_a_backend_that_postgresql_does_not_show_is_none():
    assert await backend_of(Connection(None), QUERIES) is None


async def test_a_backend_is_ended_until_it_is_gone(monkeypatch):
    async def sleep(_):
        """Ask again at once."""

    monkeypatch.setattr(asyncio, "sleep", sleep)
    connection = Connection([(True,)], [(True,)], [])
    await end_backend(connection, QUERIES, Backend(7, STARTED))
    assert connection.statements == [(QUERIES["end_backend"], (7, STARTED))] * 3
