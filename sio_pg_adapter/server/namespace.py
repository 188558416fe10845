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


def of_server(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
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

    emit = of_server(AsyncServer.emit)
    send = of_server(AsyncServer.send)
    call = of_server(AsyncServer.call)
    enter_room = of_server(AsyncServer.enter_room)
    leave_room = of_server(AsyncServer.leave_room)
    close_room = of_server(AsyncServer.close_room)
    rooms = of_server(AsyncServer.rooms)
    get_session = of_server(AsyncServer.get_session)
    save_session = of_server(AsyncServer.save_session)
    session = of_server(AsyncServer.session)
    disconnect = of_server(AsyncServer.disconnect)
    recovered = of_server(AsyncServer.recovered)
    fetch_rooms = of_server(AsyncServer.fetch_rooms)
    last_position = of_server(AsyncServer.last_position)
    position = of_server(AsyncServer.position)
    history = of_server(AsyncServer.history)
    fetch_sockets = of_server(AsyncServer.fetch_sockets)
    broadcast_call = of_server(AsyncServer.broadcast_call)
    on_server_event = of_server(AsyncServer.on_server_event)
    server_side_emit = of_server(AsyncServer.server_side_emit)
    server_side_call = of_server(AsyncServer.server_side_call)
    sockets_join = of_server(AsyncServer.sockets_join)
    sockets_leave = of_server(AsyncServer.sockets_leave)
    disconnect_sockets = of_server(AsyncServer.disconnect_sockets)
