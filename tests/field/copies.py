"""``Copies``: a server and a copy of it, under one name, which change places."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from field.servers import query, terminate
from field.walk import Walk
from sio_pg_adapter.embedded import EmbeddedPostgres
from support.nodes import Node
from support.pgbouncer import pgbouncer
from support.proxy import Proxy
from support.replicas import REPLICATED, copy_files, copy_into, prepared, shut_down
from support.roles import node_dsn

SOON = "server_login_retry = 0.5"
"""A setting of PgBouncer. By default it waits for 15 s before it connects again to a server that was away."""


class Copies:
    """A server and a copy of it, under one name, which change places."""

    def __init__(self, programs: Path, *, pooled: bool) -> None:
        self.pooled = pooled
        self.server, self.copy = prepared(REPLICATED), prepared(REPLICATED)
        self.lost = 0
        self.way = Proxy(node_dsn(self.server.dsn()))
        self._programs = programs

    async def options(self, stack: contextlib.ExitStack) -> dict[str, str]:
        """Return the options of the nodes. A pooler runs until the stack is left."""
        if not self.pooled:
            return {"dsn": self.way.dsn}
        # in a thread: it waits for an answer, which comes through the proxy
        dsn = await asyncio.to_thread(stack.enter_context, pgbouncer(self.way.dsn, "transaction", SOON))
        return {"dsn": dsn, "listen_dsn": self.way.dsn}

    async def back_up(self) -> None:
        await asyncio.to_thread(copy_into, self.copy, self.server, self._programs, standby=False)

    async def back_up_files(self) -> None:
        """As :meth:`back_up`, by files, while the server is stopped."""
        await asyncio.to_thread(shut_down, self.server)
        await asyncio.to_thread(copy_files, self.copy, self.server)
        await asyncio.to_thread(self.server.start)

    def use_copy(self) -> None:
        """From here on new connections lead to the copy."""
        self.way.lead_to(node_dsn(self.copy.dsn()))
        self.server, self.copy = self.copy, self.server

    async def retire(self, walk: Walk) -> None:
        """Write the log of the server that was used before, and stop it."""
        await terminate(self.copy)
        self.lost += 1
        await walk.write_log(f"lost {self.lost}", self.copy.admin_dsn("app"))
        await asyncio.to_thread(shut_down, self.copy)

    def stop(self) -> None:
        for server in (self.server, self.copy):
            server.stop()


def connections(node: Node) -> dict[str, int]:
    """Return the backends of a node's connections."""
    database, listener = node.manager.database, node.manager.node.listener
    kept = {"writer": database.writer._connection, "reader": database.reader._connection}
    return {name: c.get_server_pid() for name, c in {**kept, "listener": listener._connection}.items() if c}


async def cut(server: EmbeddedPostgres, pid: int) -> bool:
    """End a backend. Return whether the server had it."""
    [row] = await query(server.admin_dsn(), "SELECT pg_terminate_backend($1)", pid)
    return bool(row[0])
