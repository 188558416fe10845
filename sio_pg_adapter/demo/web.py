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

from .cluster import EVENTS_PER_SECOND, Cluster

_HERE = Path(__file__).parent
# where the acceptance tests of a checkout have it
_CHECKOUT_CLIENT = _HERE.parents[1] / "tests/acceptance/js/node_modules/sio-4-8/dist/socket.io.min.js"
_CDN_CLIENT = "https://cdn.socket.io/4.8.1/socket.io.min.js"
_CDN_INTEGRITY = "sha384-mkQ3/7FUtcGyoppY6bz/PORYoGqOl7/aSUMn2ymDOJcapfS6PHqxhRTMh1RR0Q6+"

_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def listen(port: int) -> socket.socket:
    """Take the page's port on the loopback interface; 0: any.

    :raises ConfigurationError: it is taken.
    """
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as e:
        raise ConfigurationError(f"port {port} cannot be had ({e.strerror}): choose another with --port") from e
    # By its protocol's number: for a socket of protocol 0 asyncio leaves TCP_NODELAY off, and answers wait 40 ms.
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, listening.detach())


def origins(listening: socket.socket) -> tuple[str, ...]:
    """Give the origins that the page may have in a browser; the first is the one to print."""
    port = listening.getsockname()[1]
    return (f"http://127.0.0.1:{port}", f"http://localhost:{port}")


async def serve(cluster: Cluster, listening: socket.socket, client_js: Path | None) -> None:
    """Serve the page until Ctrl-C, which then goes on to the caller.

    :param client_js: the socket.io-client to load; ``None``: the checkout's, else a CDN's.
    """
    if client_js is None and _CHECKOUT_CLIENT.is_file():
        client_js = _CHECKOUT_CLIENT
    app = Page(cluster, client_js)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    print(f"\nthe same by hand: {origins(listening)[0]}    (Ctrl-C ends it)", flush=True)
    await uvicorn.Server(config).serve(sockets=[listening])


class Page:
    """The ASGI application: the page, the client library, and the nodes' state and death."""

    def __init__(self, cluster: Cluster, client_js: Path | None) -> None:
        self._cluster = cluster
        self._client_js = client_js

    async def __call__(self, scope: dict[str, Any], _: Any, send: _Send) -> None:
        """Answer one request."""
        match scope["method"], scope["path"]:
            case "GET", "/":
                await _answer(send, "text/html", await self._html())
            case "GET", "/socket.io.js" if self._client_js is not None:
                await _answer(send, "text/javascript", await asyncio.to_thread(self._client_js.read_bytes))
            case "GET", "/nodes":
                await _answer(send, "application/json", self._nodes())
            case "POST", "/nodes/A/kill" | "/nodes/B/kill":
                self._cluster.nodes[scope["path"].split("/")[2]].kill()
                await _answer(send, "application/json", self._nodes())
            case _:
                await _answer(send, "text/plain", b"nothing here", status=404)

    async def _html(self) -> bytes:
        if self._client_js is None:
            script = f'src="{_CDN_CLIENT}" integrity="{_CDN_INTEGRITY}" crossorigin="anonymous"'
        else:
            script = 'src="/socket.io.js"'
        page = await asyncio.to_thread((_HERE / "page.html").read_text, "utf-8")
        config = {
            "ports": {node.name: node.port for node in self._cluster.nodes.values()},
            "rate": EVENTS_PER_SECOND,
        }
        return page.replace("{{CLIENT}}", script).replace("{{CONFIG}}", json.dumps(config)).encode()

    def _nodes(self) -> bytes:
        return json.dumps({node.name: node.up.is_set() for node in self._cluster.nodes.values()}).encode()


async def _answer(send: _Send, kind: str, body: bytes, status: int = 200) -> None:
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
