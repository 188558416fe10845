"""Every private name of python-socketio and python-engineio that the server overrides, calls or replaces, by name.

A release that changes one fails here. The names of the client are in test_client.py.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import engineio
import pytest
import socketio
from engineio.async_drivers import aiohttp, asgi
from engineio.async_socket import AsyncSocket
from socketio.async_admin import InstrumentedAsyncServer

from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from sio_pg_adapter.server.admin import Instrumented
from sio_pg_adapter.wire import upstream

WEBSOCKET = {"close": "(self)", "send": "(self, message)", "wait": "(self)"}

SIGNATURES = {
    socketio.AsyncServer: {
        "_get_event_handler": "(self, event, namespace, args)",
        "_get_namespace_handler": "(self, namespace, args)",
        "_handle_event": "(self, eio_sid, namespace, id, data)",
        "_handle_event_internal": "(self, server, sid, eio_sid, data, namespace, id)",
        "_handle_eio_connect": "(self, eio_sid, environ)",
        "_handle_eio_disconnect": "(self, eio_sid, reason)",
        "_handle_eio_message": "(self, eio_sid, data)",
        "_send_packet": "(self, eio_sid, pkt)",
        "_trigger_event": "(self, event, namespace, *args)",
        "close_room": "(self, room, namespace=None)",
        "call": "(self, event, data=None, to=None, sid=None, namespace=None, timeout=60, ignore_queue=False)",
        "disconnect": "(self, sid, namespace=None, ignore_queue=False)",
        "emit": (
            "(self, event, data=None, to=None, room=None, skip_sid=None, namespace=None, callback=None, "
            "ignore_queue=False)"
        ),
        "enter_room": "(self, sid, room, namespace=None)",
        "get_session": "(self, sid, namespace=None)",
        "instrument": (
            "(self, auth=None, mode='development', read_only=False, server_id=None, namespace='/admin', "
            "server_stats_interval=2)"
        ),
        "leave_room": "(self, sid, room, namespace=None)",
        "rooms": "(self, sid, namespace=None)",
        "send": "(self, data, to=None, room=None, skip_sid=None, namespace=None, callback=None, ignore_queue=False)",
        "session": "(self, sid, namespace=None)",
        "save_session": "(self, sid, session, namespace=None)",
        "shutdown": "(self)",
    },
    socketio.AsyncManager: {
        "basic_disconnect": "(self, sid, namespace, **kwargs)",
        "can_disconnect": "(self, sid, namespace)",
        "close_room": "(self, room, namespace)",
        "connect": "(self, sid, namespace)",
        "disconnect": "(self, sid, namespace, **kwargs)",
        "eio_sid_from_sid": "(self, sid, namespace)",
        "emit": "(self, event, data, namespace, room=None, skip_sid=None, callback=None, to=None, **kwargs)",
        "enter_room": "(self, sid, namespace, room, eio_sid=None)",
        "get_namespaces": "(self)",
        "get_rooms": "(self, sid, namespace)",
        "initialize": "(self)",
        "is_connected": "(self, sid, namespace)",
        "is_pre_connected": "(self, sid, namespace)",
        "leave_room": "(self, sid, namespace, room)",
        "pre_connect": "(self, eio_sid, namespace)",
        "pre_disconnect": "(self, sid, namespace)",
        "set_server": "(self, server)",
        "sid_from_eio_sid": "(self, eio_sid, namespace)",
        "trigger_callback": "(self, sid, id, data)",
    },
    InstrumentedAsyncServer: {
        "_eio_websocket_handler": "(socket, self, ws)",  # which wire/websocket.py leaves out
        "_trigger_event": "(self, event, namespace, *args)",
        "admin_connect": "(self, sid, environ, client_auth)",
        "admin_disconnect": "(self, _, namespace, close, room_filter=None)",
        "admin_enter_room": "(self, _, namespace, room, room_filter=None)",
        "admin_leave_room": "(self, _, namespace, room, room_filter=None)",
        "instrument": "(self)",
        "shutdown": "(self)",
    },
    engineio.AsyncServer: {
        "_handle_connect": "(self, environ, transport, jsonp_index=None)",  # which is called with a delay
    },
    AsyncSocket: {
        "_upgrade_websocket": "(self, environ)",
        "_websocket_handler": "(self, ws)",  # which wire/websocket.py replaces
        "close": "(self, wait=True, abort=False, reason=None)",
        "handle_post_request": "(self, environ)",  # which wire/incoming.py replaces
        "poll": "(self)",
        "receive": "(self, pkt)",
    },
    asgi.WebSocket: WEBSOCKET,
    aiohttp.WebSocket: WEBSOCKET,
}


@pytest.mark.parametrize(("of", "name"), [(of, name) for of, names in SIGNATURES.items() for name in names])
def test_a_signature_of_python_socketio(of: Any, name: str) -> None:
    assert str(inspect.signature(getattr(of, name))) == SIGNATURES[of][name]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AsyncServer, socketio.AsyncServer),
        (AsyncPostgresManager, socketio.AsyncManager),
        (Instrumented, InstrumentedAsyncServer),
    ],
)
def test_every_override_is_named_here(ours: Any, theirs: Any) -> None:
    functions = {
        name for name, value in vars(ours).items() if inspect.isfunction(value) and not name.startswith("__")
    }
    assert {name for name in functions if hasattr(theirs, name)} <= SIGNATURES[theirs].keys()


ACCESSORS = {
    "_async": "websocket_class",
    "_handle_connect": "pace_connections",
    "__self__": "socket_of",
    "_binary_packet": "pending_packets",
    "_trigger_event": "trigger",
    "_get_event_handler": "handler_of",
    "_get_namespace_handler": "handler_of",
    "_handle_event": "handle_event",
    "_send_ping": "pings_are_reported",
    "_to_dict": "encode_without_data",
    "_timestamps": "admin_timestamps",
    "_InstrumentedAsyncServer__trigger_event": "trigger_unreported",
    "_sock": "below",
}
"""The private names that ``wire/upstream.py`` reads, and the accessor of each."""


def test_every_accessor_is_named_here_and_in_the_docs() -> None:
    source = inspect.getsource(upstream)
    read = set(re.findall(r"\.(_[a-zA-Z_]+)\b", source)) | {"__self__", "_sock"}
    assert read - {"__module__", "__name__"} <= ACCESSORS.keys()
    assert all(callable(getattr(upstream, accessor)) for accessor in ACCESSORS.values())
    docs = (Path(__file__).parents[2] / "docs/compatibility.md").read_text(encoding="utf-8")
    assert [name for name in ACCESSORS if f"`{name}`" not in docs] == []


@pytest.mark.parametrize("driver", [asgi, aiohttp])
def test_where_engineio_looks_up_its_websockets(driver: Any) -> None:
    assert driver._async["websocket"] is driver.WebSocket


def test_where_the_private_names_are() -> None:
    sio = socketio.AsyncServer(async_mode="asgi")
    assert upstream.pending_packets(sio) == {}
    assert upstream.handler_of(sio, "connect", "/") == (None, 0)

    @sio.on("connect", namespace="*")
    def connect(namespace: str, sid: str, environ: dict[str, Any]) -> None: ...

    assert upstream.handler_of(sio, "connect", "/chat") == (connect, 1)

    class Chat(socketio.AsyncNamespace):
        def on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> None: ...

    chat = Chat("/class")
    other = socketio.AsyncServer(async_mode="asgi")
    other.register_namespace(chat)
    assert upstream.handler_of(other, "connect", "/class") == (chat.on_connect, 0)
