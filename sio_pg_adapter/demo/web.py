"""The server of the demo's page and of its buttons. It runs in the process that owns the nodes, and outlives them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn

from sio_pg_adapter.errors import ConfigurationError, StoreUnavailable

from .processes import EVENTS_PER_SECOND, Cluster

_HOSTS = ("127.0.0.1", "localhost")
"""The hosts of the page's address. The socket listens on the first one."""

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def listen(port: int) -> socket.socket:
    """Listen on the page's port of the loopback interface, or on a free port if it is 0.

    :raises ConfigurationError: the port is not available.
    """
    # The protocol is given, because asyncio sets TCP_NODELAY only on a socket whose protocol is TCP. An accepted
    # socket has the protocol of the listening one, which is 0 with socket.create_server.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((_HOSTS[0], port))
        listening.listen()
    except OSError as e:
        listening.close()
        raise ConfigurationError(f"port {port} is not available ({e.strerror}). Choose another with --port") from e
    return listening


def origins(listening: socket.socket) -> tuple[str, ...]:
    """Return the origins that the page may have in a browser. The first one is printed."""
    port = listening.getsockname()[1]
    return tuple(f"http://{host}:{port}" for host in _HOSTS)


async def serve(cluster: Cluster, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C, which then interrupts the caller."""
    app = PageApplication(cluster)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    print(f"\nOpen a page to do the same by hand: {origins(listening)[0]}", flush=True)
    print("Press Ctrl-C to end the demo. docs/tutorial.md shows the next step: your own server.", flush=True)
    await uvicorn.Server(config).serve(sockets=[listening])


class PageApplication:
    """The ASGI application of the page: its files, the state of the servers, and the actions on them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._files = {f"/{path.name}": path for path in _PAGE.iterdir() if path.suffix in _TYPES}
        self._files["/"] = self._files.pop("/index.html")
        self._policy = _policy([node.port for node in cluster.nodes.values()]).encode()

    async def __call__(self, scope: dict[str, Any], _: Any, send: _Send) -> None:
        """Answer one request."""
        match scope["method"], scope["path"]:
            case "GET", "/state":
                await self._answer(send, "application/json", self._state())
            case "GET", "/load":
                await self._load(send)
            case "GET", name if (path := self._files.get(name)) is not None:
                await self._answer(send, _TYPES[path.suffix], await asyncio.to_thread(path.read_bytes))
            case "POST", "/nodes/A/kill" | "/nodes/B/kill":
                self._cluster.nodes[scope["path"].split("/")[2]].kill()
                await self._answer(send, "application/json", self._state())
            case "POST", "/database/restart":
                self._cluster.restart_database()
                await self._answer(send, "application/json", self._state())
            case _:
                await self._answer(send, "text/plain", b"Not found\n", status=404)

    async def _load(self, send: _Send) -> None:
        try:
            state = json.dumps(await self._cluster.load()).encode()
        except StoreUnavailable:  # the page tries again
            await self._answer(send, "text/plain", b"PostgreSQL restarts\n", status=503)
        else:
            await self._answer(send, "application/json", state)

    def _state(self) -> bytes:
        nodes = {node.name: {"port": node.port, "up": node.up.is_set()} for node in self._cluster.nodes.values()}
        state = {
            "nodes": nodes,
            "database": self._cluster.database_up,
            "head": self._cluster.head,
            "rate": EVENTS_PER_SECOND,
        }
        return json.dumps(state).encode()

    async def _answer(self, send: _Send, media_type: str, body: bytes, status: int = 200) -> None:
        headers = [
            (b"content-type", f"{media_type}; charset=utf-8".encode()),
            (b"content-length", str(len(body)).encode()),
            (b"content-security-policy", self._policy),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _policy(ports: list[int]) -> str:
    """Return the page's content security policy. It allows connections to this server and to the nodes only."""
    nodes = [f"{scheme}://{host}:{port}" for scheme in ("http", "ws") for host in _HOSTS for port in ports]
    return (
        "default-src 'none'; style-src 'self'; img-src data:; script-src 'self'; "
        f"connect-src 'self' {' '.join(nodes)}"
    )
