"""What of python-socketio's server this package overrides, calls or stands in for: a version that changes one of
these fails here, by its name. Those of the client are in test_client.py."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import socketio
from engineio.async_drivers import aiohttp, asgi
from engineio.async_socket import AsyncSocket
from socketio.async_admin import InstrumentedAsyncServer

from sio_pg_adapter import AsyncPostgresManager, AsyncServer
from sio_pg_adapter.server.admin import Instrumented
from sio_pg_adapter.server.intake import HearingServer

WEBSOCKET = {"close": "(self)", "send": "(self, message)", "wait": "(self)"}

SIGNATURES = {
    socketio.AsyncServer: {
        "_handle_connect": "(self, eio_sid, namespace, data)",
        "_handle_disconnect": "(self, eio_sid, namespace, reason=None)",
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
        "_eio_websocket_handler": "(socket, self, ws)",  # which websocket.py leaves out
        "_trigger_event": "(self, event, namespace, *args)",
        "admin_connect": "(self, sid, environ, client_auth)",
        "admin_disconnect": "(self, _, namespace, close, room_filter=None)",
        "admin_enter_room": "(self, _, namespace, room, room_filter=None)",
        "admin_leave_room": "(self, _, namespace, room, room_filter=None)",
        "instrument": "(self)",
        "shutdown": "(self)",
    },
    AsyncSocket: {
        "_upgrade_websocket": "(self, environ)",
        "_websocket_handler": "(self, ws)",  # in whose place websocket.py runs
        "close": "(self, wait=True, abort=False, reason=None)",
        "handle_post_request": "(self, environ)",  # in whose place incoming.py stands
        "poll": "(self)",
        "receive": "(self, pkt)",
    },
    asgi.WebSocket: WEBSOCKET,
    aiohttp.WebSocket: WEBSOCKET,
}


@pytest.mark.parametrize(("of", "name"), [(of, name) for of, names in SIGNATURES.items() for name in names])
def test_upstreams_signature(of: Any, name: str) -> None:
    assert str(inspect.signature(getattr(of, name))) == SIGNATURES[of][name]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AsyncServer, socketio.AsyncServer),
        (HearingServer, socketio.AsyncServer),
        (AsyncPostgresManager, socketio.AsyncManager),
        (Instrumented, InstrumentedAsyncServer),
    ],
)
def test_all_that_is_overridden_is_named_here(ours: Any, theirs: Any) -> None:
    functions = {
        name for name, value in vars(ours).items() if inspect.isfunction(value) and not name.startswith("__")
    }
    assert {name for name in functions if hasattr(theirs, name)} <= SIGNATURES[theirs].keys()


@pytest.mark.parametrize("driver", [asgi, aiohttp])
def test_where_upstream_looks_up_its_websockets(driver: Any) -> None:
    assert driver._async["websocket"] is driver.WebSocket
