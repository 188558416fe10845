"""The measured systems: how the servers of each are started and stopped, and on which bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import install
import psutil
from children import Child

from sio_pg_adapter import embedded, migrate

HERE = Path(__file__).parent

DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_wal_size": "1GB",
}


@dataclass
class Backends:
    """The databases of a run: each is started when first needed, and ended with it."""

    dsn: str | None = None  # a server to use instead of the embedded one
    on_disk: bool = True
    settings: dict[str, str] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    redis_urls: dict[bool, str] = field(default_factory=dict)

    def postgres(self) -> str:
        if self.dsn is None:
            if self.on_disk:  # where nothing is durable, nothing is measured
                embedded._in_memory = list  # noqa: SLF001
            server = self.stack.enter_context(embedded.EmbeddedPostgres(settings={**DURABLE, **self.settings}))
            self.dsn = server.admin_dsn()
        return self.dsn

    def redis(self, *, durable: bool) -> str:
        if durable not in self.redis_urls:
            self.redis_urls[durable] = self.stack.enter_context(_redis(durable=durable))
        return self.redis_urls[durable]


@contextlib.contextmanager
def _redis(*, durable: bool) -> Any:
    program, env = install.redis_server()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        options += ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, env={**os.environ, **env})
        try:
            for _ in range(500):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


class Cluster:
    """The running servers of one peer."""

    def __init__(self, nodes: list[Child]) -> None:
        self.nodes = nodes
        self.urls = [f"http://127.0.0.1:{node.hello['port']}" for node in nodes]
        self._processes = [psutil.Process(node.pid) for node in nodes]

    @property
    def first(self) -> int:
        """Where events are emitted."""
        return 0

    @property
    def other(self) -> int:
        """Another node than the first, where there is one."""
        return len(self.nodes) - 1

    def cpu(self) -> list[float]:
        """CPU seconds of each node so far."""
        times = [process.cpu_times() for process in self._processes]
        return [t.user + t.system for t in times]

    def memory(self) -> list[float]:
        """MB that each node holds."""
        return [process.memory_info().rss / 1e6 for process in self._processes]


@dataclass(frozen=True)
class Peer:
    """:ivar nodes: how many of its servers can form a cluster.
    :ivar durable: whether an event is on disk when its emit has returned. ``None`` where nothing is stored.
    """

    name: str
    title: str
    nodes: int = 2
    recovers: bool = True
    node_js: str | None = None
    python: str | None = None
    durable: bool | None = None

    @contextlib.asynccontextmanager
    async def running(self, backends: Backends, nodes: int, **config: Any) -> AsyncIterator[Cluster]:
        """Fresh servers on a fresh schema, or an emptied Redis."""
        async with contextlib.AsyncExitStack() as stack:
            config |= await stack.enter_async_context(self._bus(backends))
            command = [install.node(), "js/server.mjs"] if self.node_js else [sys.executable, self._program]
            text = json.dumps({"kind": self.node_js or self.python or self.name, **config})
            children = [Child(*command, text) for _ in range(min(nodes, self.nodes))]
            yield Cluster([await stack.enter_async_context(child) for child in children])

    @property
    def threads(self) -> bool:
        """Whether its servers are synchronous."""
        return "-threads" in self.name

    @property
    def _program(self) -> str:
        return f"servers/{'threads' if self.threads else 'python'}_node.py"

    @contextlib.asynccontextmanager
    async def _bus(self, backends: Backends) -> AsyncIterator[dict[str, str]]:
        if (self.python or self.name).startswith("ours"):
            dsn, schema = await asyncio.to_thread(backends.postgres), f"bench_{secrets.token_hex(4)}"
            await asyncio.to_thread(migrate.upgrade, dsn, schema=schema)
            try:
                yield {"dsn": dsn, "schema": schema, "durability": "flush" if self.durable else "memory"}
            finally:
                connection = await asyncpg.connect(dsn)
                await connection.execute(f"DROP SCHEMA {schema} CASCADE")
                await connection.close()
        elif "redis" in self.name:
            import redis.asyncio as redis  # noqa: PLC0415 - installed by install.everything()

            url = await asyncio.to_thread(backends.redis, durable=bool(self.durable))
            async with redis.from_url(url) as client:
                await client.flushall()
            yield {"redis": url}
        else:
            yield {}


PEERS = {
    peer.name: peer
    for peer in (
        Peer("ours", "sio-pg-adapter", durable=True),
        Peer("ours-memory", 'sio-pg-adapter, `durability="memory"`', python="ours", durable=False),
        Peer("socketio-redis", "python-socketio + AsyncRedisManager", recovers=False),
        Peer("node-redis-streams", "Node.js + redis-streams, nothing on disk", node_js="redis-streams"),
        Peer(
            "node-redis-streams-fsync",
            "Node.js + redis-streams, `appendfsync always`",
            node_js="redis-streams",
            durable=True,
        ),
        Peer("node-memory", "Node.js in memory, one process", nodes=1, node_js="memory"),
        Peer("socketio", "python-socketio alone, no bus", nodes=1, recovers=False),
        Peer("ours-threads", "sio-pg-adapter, `Server`", durable=True),
        Peer("socketio-threads-redis", "python-socketio + RedisManager", recovers=False),
        Peer("postgres", "PostgreSQL's own limit", nodes=0, durable=True),
    )
}
