"""Class-based namespaces with what our server can do beyond upstream's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import socketio

from .server import AsyncServer

P = ParamSpec("P")
R = TypeVar("R")


def _of_server(method: Callable[Concatenate[AsyncServer, P], R]) -> Callable[Concatenate[Any, P], R]:
    """The server's method as one of a namespace: in the namespace of the class, if none is given."""
    name = method.__name__
    place = list(inspect.signature(method).parameters).index("namespace") - 1

    @functools.wraps(method)
    def of_namespace(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        values = list(args)
        if len(values) > place:
            values[place] = values[place] or self.namespace
        else:
            kwargs["namespace"] = kwargs.get("namespace") or self.namespace
        result: R = getattr(self.server, name)(*values, **kwargs)
        return result

    return of_namespace


class AsyncNamespace(socketio.AsyncNamespace):
    """Upstream's, for :class:`sio_pg_adapter.AsyncServer`.

    Its methods are the server's, of the namespace of the class where they name none.
    """

    emit = _of_server(AsyncServer.emit)
    recovered = _of_server(AsyncServer.recovered)
    fetch_rooms = _of_server(AsyncServer.fetch_rooms)
    fetch_sockets = _of_server(AsyncServer.fetch_sockets)
    broadcast_call = _of_server(AsyncServer.broadcast_call)
    sockets_join = _of_server(AsyncServer.sockets_join)
    sockets_leave = _of_server(AsyncServer.sockets_leave)
    disconnect_sockets = _of_server(AsyncServer.disconnect_sockets)
