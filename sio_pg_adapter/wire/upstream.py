"""The private names of python-socketio and python-engineio that this package reads or calls, each in one place.

With them stands what this package reads of the websockets of uvicorn and aiohttp. If a name is missing there, the
regular path is taken.

The names that it overrides are in the classes that override them. ``tests/unit/test_upstream.py`` names both, and
``docs/compatibility.md`` lists them: a release that changes one fails there, by name.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import sys
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import socketio
from engineio.async_socket import AsyncSocket

from .inbox import Inbox
from .outbox import Outbox

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


def pace_connections(eio: Any, turn: Callable[[], Awaitable[None]]) -> None:
    """Have an Engine.IO server await ``turn()`` before it begins a connection."""
    begin = eio._handle_connect

    async def begin_in_turn(*args: Any, **kwargs: Any) -> Any:
        await turn()
        return await begin(*args, **kwargs)

    eio._handle_connect = begin_in_turn


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


def handler_of(sio: Any, event: str, namespace: str) -> tuple[Callable[..., Any] | None, int]:
    """Return the application's handler of a reserved event in a namespace, and how many arguments precede the sid."""
    handler, args = sio._get_event_handler(event, namespace, ())
    if handler is None:
        namespace_handler, args = sio._get_namespace_handler(namespace, ())
        handler = getattr(namespace_handler, f"on_{event}", None)
    return handler, len(args)


def handle_event(
    sio: Any, eio_sid: str, namespace: str | None, ack_id: int | None, data: Any
) -> Coroutine[Any, Any, None]:
    """Have a server handle an event of a client."""
    handling: Coroutine[Any, Any, None] = sio._handle_event(eio_sid, namespace, ack_id, data)
    return handling


_SEND_PING = AsyncSocket._send_ping


def pings_are_reported() -> bool:
    """Whether the Admin UI has replaced what sends pings."""
    return AsyncSocket._send_ping is not _SEND_PING


def use_outboxes(eio: Any) -> None:
    """Have an Engine.IO server make the queues of its sockets small."""
    theirs = eio.create_queue

    def create_queue(*args: Any, **kwargs: Any) -> Any:
        return theirs(*args, **kwargs) if args or kwargs else Outbox()

    eio.create_queue = create_queue


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
    protocol = _uvicorn_protocol(ws.asgi_send)
    if protocol is None:
        return None
    connection = getattr(protocol, "conn", protocol)  # websockets-sansio and wsproto have one, "websockets" is one
    if not isinstance(connection.state, enum.Enum):
        return None
    opened = type(connection.state)["OPEN"]
    compresses = bool(protocol.config.ws_per_message_deflate)
    _trim(protocol, connection)
    return protocol.transport, lambda: connection.state is opened, compresses


def _uvicorn_protocol(method: Any) -> Any:
    """Return uvicorn's protocol, given one of its methods.

    Under another server, or inside some middlewares, the function is none of its methods.
    """
    protocol = getattr(method, "__self__", None)
    return protocol if type(protocol).__module__.startswith("uvicorn.protocols.websockets.") else None


def inbox(ws: Any) -> Inbox | None:
    """Have uvicorn put the messages of a websocket in an :class:`Inbox`, if that is possible."""
    protocol = _uvicorn_protocol(getattr(ws, "asgi_receive", None))
    theirs = getattr(protocol, "queue", None)
    if type(theirs) is not asyncio.Queue or not isinstance(getattr(protocol, "read_paused", None), bool):
        return None
    ours = protocol.queue = Inbox(protocol)
    while not theirs.empty():
        ours.put_nowait(theirs.get_nowait())
    return ours


# -- memory --------------------------------------------------------------------------------------------
class _NoBody:
    """The body of a request that opens a websocket."""

    async def read(self, length: int | None = None) -> bytes:
        return b""


_NO_BODY = _NoBody()


def trim_environ(environ: dict[str, Any]) -> None:
    """Take out of the environ of a websocket what takes memory, and nobody reads.

    Engine.IO's body of the request is an object of a class of its own. The names of headers are new strings.
    """
    scope = environ.get("asgi.scope")
    if scope is not None and scope["type"] == "websocket":
        environ["wsgi.input"] = _NO_BODY
        items = [(sys.intern(key), value) for key, value in environ.items()]
        environ.clear()
        environ.update(items)


class _LateDecoder:
    """Makes the decoder of a websocket when the client sends the first compressed message."""

    def __init__(self, extension: Any) -> None:
        self.extension = extension

    def decompress(self, data: bytes, max_length: int) -> bytes:
        extension = self.extension
        extension.decoder = zlib.decompressobj(wbits=-extension.remote_max_window_bits)
        inflated: bytes = extension.decoder.decompress(data, max_length)
        return inflated


def _trim(protocol: Any, connection: Any) -> None:
    """Free what a websocket of uvicorn keeps for nothing: its handshake, and the state of a compression.

    A server need not compress a message with what it has compressed before (RFC 7692, section 7.2.1). So the encoder,
    39 kB and more, is made for each compressed message.
    """
    if hasattr(protocol, "request") and hasattr(protocol, "response"):
        protocol.request = protocol.response = None
    for extension in getattr(connection, "extensions", None) or ():
        if type(extension).__module__ != "websockets.extensions.permessage_deflate":
            continue
        if not extension.local_no_context_takeover:
            extension.local_no_context_takeover = True
            del extension.encoder
        if not extension.remote_no_context_takeover:
            extension.decoder = _LateDecoder(extension)
