"""The private names of python-socketio and python-engineio that this package reads or calls, each in one place.

The names that it overrides are in the classes that override them. ``tests/unit/test_upstream.py`` names both, and
``docs/compatibility.md`` lists them: a release that changes one fails there, by name.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import socketio

Below = tuple[asyncio.Transport, Callable[[], bool], bool]
"""A websocket's transport, whether it is open for data, and whether the server may compress what goes there."""


def engineio_options(server: Any) -> dict[str, Any]:
    """Return the keywords that a server passes to Engine.IO, while the server is being made.

    Engine.IO ignores those that it does not know.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_locals.get("self") is server and "engineio_options" in frame.f_locals:
            return dict(frame.f_locals["engineio_options"])
        frame = frame.f_back
    return {}


def websocket_class(eio: Any) -> Any:
    """Return the class that an Engine.IO server makes its websockets with, ``None`` if it has none."""
    return eio._async.get("websocket")


def replace_websocket_class(eio: Any, websocket: Callable[..., Any]) -> None:
    """Have one Engine.IO server make its websockets with another class."""
    eio._async = {**eio._async, "websocket": websocket}


def replace_driver(eio: Any, driver: dict[str, Any]) -> None:
    """Have one Engine.IO server get its requests and websockets from another web framework."""
    eio._async = driver


def expect_polls_of_closed_connections(eio: Any) -> None:
    """Have an Engine.IO server log no error for the first poll with an unknown sid.

    It is how a client learns that its connection was closed, so it is nothing for an operator.
    """
    eio.log_message_keys.add("bad-sid")


def encode_without_data(pkt: Any) -> Any:
    """Encode a packet that has no data. JavaScript's parser of msgpack takes no ``null`` in place of it."""
    values = {key: value for key, value in pkt._to_dict().items() if key != "data"}
    pkt._to_dict = lambda: values
    return pkt.encode()


def socket_of(handler: Any) -> Any:
    """Return the Engine.IO socket whose bound method is given to a websocket as its handler."""
    return handler.__self__


def pending_packets(sio: Any) -> dict[str, Any]:
    """Return the packets of a server whose binary parts are still to come, by Engine.IO sid."""
    pending: dict[str, Any] = sio._binary_packet
    return pending


async def trigger(sio: Any, event: str, namespace: str, *args: Any) -> Any:
    """Call the application's handler of an event. The Admin UI wraps this."""
    return await sio._trigger_event(event, namespace, *args)


def trigger_blocking(sio: Any, event: str, namespace: str, *args: Any) -> Any:
    """Call the application's handler of an event as the synchronous server of python-socketio does."""
    return socketio.Server._trigger_event(sio, event, namespace, *args)


def connect_handler(sio: Any, namespace: str) -> tuple[Callable[..., Any] | None, int]:
    """Return the application's connect handler in a namespace, and how many arguments precede the sid."""
    handler, args = sio._get_event_handler("connect", namespace, ())
    if handler is None:
        namespace_handler, args = sio._get_namespace_handler(namespace, ())
        handler = getattr(namespace_handler, "on_connect", None)
    return handler, len(args)


def handle_event(sio: Any, eio_sid: str, namespace: str | None, ack_id: int | None, data: Any) -> Awaitable[None]:
    """Have a server handle an event of a client."""
    handling: Awaitable[None] = sio._handle_event(eio_sid, namespace, ack_id, data)
    return handling


def queued(queue: asyncio.Queue[Any]) -> list[Any]:
    """Return the packets that wait in a socket's queue, in order."""
    return list(queue._queue)  # type: ignore[attr-defined]


def admin_timestamps(manager: Any) -> dict[str, float]:
    """Return when each sid connected, as the Admin UI keeps it in a client manager."""
    timestamps: dict[str, float] = manager._timestamps
    return timestamps


async def trigger_unreported(sio: Any, event: str, namespace: str, *args: Any) -> Any:
    """Call the application's handler of an event without a report to the Admin UI."""
    return await sio._InstrumentedAsyncServer__trigger_event(event, namespace, *args)


# -- below a websocket -------------------------------------------------------------------------------
def below(ws: Any) -> Below | None:
    """Return what is below a websocket of Engine.IO, if that is known."""
    if (transport := getattr(ws, "transport", None)) is not None:  # this package's, under a WSGI server
        return transport, ws.is_open, False
    try:
        return _below_aiohttp(ws) if hasattr(ws, "_sock") else _below_uvicorn(ws)
    except (AttributeError, KeyError):  # a server of another version: the regular path
        return None


def _below_aiohttp(ws: Any) -> Below | None:
    response = ws._sock  # set before its handler is called
    transport = ws.environ["aiohttp.request"].transport
    return None if transport is None else (transport, lambda: not response.closed, bool(response.compress))


def _below_uvicorn(ws: Any) -> Below | None:
    # ``send`` is a method of uvicorn's protocol. Under another server, or inside some middlewares, it is not.
    protocol: Any = getattr(ws.asgi_send, "__self__", None)
    if not type(protocol).__module__.startswith("uvicorn.protocols.websockets."):
        return None
    connection = getattr(protocol, "conn", protocol)  # websockets-sansio and wsproto have one, "websockets" is one
    if not isinstance(connection.state, enum.Enum):
        return None
    opened = type(connection.state)["OPEN"]
    compresses = bool(protocol.config.ws_per_message_deflate)
    return protocol.transport, lambda: connection.state is opened, compresses
