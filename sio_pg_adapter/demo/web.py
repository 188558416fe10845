"""The demo's page and what its buttons ask for. The process that owns the nodes serves it: it outlives them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn

from sio_pg_adapter.errors import ConfigurationError

from .processes import EVENTS_PER_SECOND, Cluster

_HOSTS = ("127.0.0.1", "localhost")  # of the page's address; the socket is the first one's
_PAGE = Path(__file__).parent / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# where the acceptance tests of a checkout have it
_CHECKOUT_CLIENT = _PAGE.parents[2] / "tests/support/js/node_modules/sio-4-8/dist/socket.io.min.js"
_CDN = "https://cdn.socket.io"
_CDN_CLIENT = f"{_CDN}/4.8.1/socket.io.min.js"
_CDN_INTEGRITY = "sha384-mkQ3/7FUtcGyoppY6bz/PORYoGqOl7/aSUMn2ymDOJcapfS6PHqxhRTMh1RR0Q6+"

_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def listen(port: int) -> socket.socket:
    """Take the page's port on the loopback interface; 0: any.

    :raises ConfigurationError: it is taken.
    """
    # The protocol is named: asyncio sets TCP_NODELAY only on connections whose socket says that it is TCP's, and
    # an accepted one says what the listening one does (socket.create_server: 0).
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((_HOSTS[0], port))
        listening.listen()
    except OSError as e:
        listening.close()
        raise ConfigurationError(f"port {port} cannot be had ({e.strerror}): choose another with --port") from e
    return listening


def origins(listening: socket.socket) -> tuple[str, ...]:
    """Give the origins that the page may have in a browser; the first is the one to print."""
    port = listening.getsockname()[1]
    return tuple(f"http://{host}:{port}" for host in _HOSTS)


async def serve(cluster: Cluster, listening: socket.socket, client_js: Path | None) -> None:
    """Serve the page until Ctrl-C, which then goes on to the caller.

    :param client_js: the socket.io-client to load; ``None``: the checkout's, else a CDN's.
    """
    if client_js is None and _CHECKOUT_CLIENT.is_file():
        client_js = _CHECKOUT_CLIENT
    app = Page(cluster, client_js)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    print(f"\nA page to do the same by hand: {origins(listening)[0]}    (Ctrl-C ends it)", flush=True)
    await uvicorn.Server(config).serve(sockets=[listening])


class Page:
    """The ASGI application: the page, the client library, and the servers' state and what befalls them."""

    def __init__(self, cluster: Cluster, client_js: Path | None) -> None:
        self._cluster = cluster
        self._files = {f"/{path.name}": path for path in _PAGE.iterdir() if path.suffix in _KINDS}
        script = f'src="{_CDN_CLIENT}" integrity="{_CDN_INTEGRITY}" crossorigin="anonymous"'
        if client_js is not None:
            script = 'src="/socket.io.js"'
            self._files["/socket.io.js"] = client_js
        self._script = script.encode()
        self._policy = _policy([node.port for node in cluster.nodes.values()], cdn=client_js is None).encode()

    async def __call__(self, scope: dict[str, Any], _: Any, send: _Send) -> None:
        """Answer one request."""
        match scope["method"], scope["path"]:
            case "GET", "/":
                html = await asyncio.to_thread(self._files["/index.html"].read_bytes)
                await self._answer(send, "text/html", html.replace(b"{{CLIENT}}", self._script))
            case "GET", "/state":
                await self._answer(send, "application/json", self._state())
            case "GET", name if (path := self._files.get(name)) is not None:
                await self._answer(send, _KINDS[path.suffix], await asyncio.to_thread(path.read_bytes))
            case "POST", "/nodes/A/kill" | "/nodes/B/kill":
                self._cluster.nodes[scope["path"].split("/")[2]].kill()
                await self._answer(send, "application/json", self._state())
            case "POST", "/database/restart":
                self._cluster.restart_database()
                await self._answer(send, "application/json", self._state())
            case _:
                await self._answer(send, "text/plain", b"nothing here", status=404)

    def _state(self) -> bytes:
        nodes = {node.name: {"port": node.port, "up": node.up.is_set()} for node in self._cluster.nodes.values()}
        state = {
            "nodes": nodes,
            "database": self._cluster.database_up,
            "head": self._cluster.head,
            "rate": EVENTS_PER_SECOND,
        }
        return json.dumps(state).encode()

    async def _answer(self, send: _Send, kind: str, body: bytes, status: int = 200) -> None:
        headers = [
            (b"content-type", f"{kind}; charset=utf-8".encode()),
            (b"content-length", str(len(body)).encode()),
            (b"content-security-policy", self._policy),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _policy(ports: list[int], *, cdn: bool) -> str:
    """Whom the page may speak to: this server, the nodes, and for the client library the CDN where it is needed."""
    nodes = [f"{scheme}://{host}:{port}" for scheme in ("http", "ws") for host in _HOSTS for port in ports]
    scripts = ["'self'", _CDN] if cdn else ["'self'"]
    return (
        f"default-src 'none'; style-src 'self'; img-src data:; script-src {' '.join(scripts)}; "
        f"connect-src 'self' {' '.join(nodes)}"
    )
