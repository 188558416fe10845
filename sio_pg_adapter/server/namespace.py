"""Class-based namespaces with all that :class:`sio_pg_adapter.AsyncServer` can do."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import socketio

from .server import AsyncServer

P = ParamSpec("P")
R = TypeVar("R")


def _of_server(method: Callable[Concatenate[AsyncServer, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Return a method of the server as one of a namespace. It acts in the namespace of the class if none is given."""
    name = method.__name__
    parameters = inspect.signature(method).parameters
    by_name = parameters["namespace"].kind is inspect.Parameter.KEYWORD_ONLY
    place = math.inf if by_name else list(parameters).index("namespace") - 1

    def named(self: Any, namespace: object) -> object:
        return self.namespace if namespace in (None, "") else namespace

    @functools.wraps(method)
    def of_namespace(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        values = list(args)
        if len(values) > place:
            values[int(place)] = named(self, values[int(place)])
        else:
            kwargs["namespace"] = named(self, kwargs.get("namespace"))
        result: R = getattr(self.server, name)(*values, **kwargs)
        return result

    return of_namespace


class AsyncNamespace(socketio.AsyncNamespace):
    """A ``socketio.AsyncNamespace`` for :class:`sio_pg_adapter.AsyncServer`.

    Its methods are the server's. They act in the namespace of the class if none is given.
    """

    emit = _of_server(AsyncServer.emit)
    send = _of_server(AsyncServer.send)
    call = _of_server(AsyncServer.call)
    enter_room = _of_server(AsyncServer.enter_room)
    leave_room = _of_server(AsyncServer.leave_room)
    close_room = _of_server(AsyncServer.close_room)
    rooms = _of_server(AsyncServer.rooms)
    get_session = _of_server(AsyncServer.get_session)
    save_session = _of_server(AsyncServer.save_session)
    session = _of_server(AsyncServer.session)
    disconnect = _of_server(AsyncServer.disconnect)
    recovered = _of_server(AsyncServer.recovered)
    fetch_rooms = _of_server(AsyncServer.fetch_rooms)
    last_position = _of_server(AsyncServer.last_position)
    position = _of_server(AsyncServer.position)
    history = _of_server(AsyncServer.history)
    fetch_sockets = _of_server(AsyncServer.fetch_sockets)
    broadcast_call = _of_server(AsyncServer.broadcast_call)
    on_server_event = _of_server(AsyncServer.on_server_event)
    server_side_emit = _of_server(AsyncServer.server_side_emit)
    server_side_call = _of_server(AsyncServer.server_side_call)
    sockets_join = _of_server(AsyncServer.sockets_join)
    sockets_leave = _of_server(AsyncServer.sockets_leave)
    disconnect_sockets = _of_server(AsyncServer.disconnect_sockets)
