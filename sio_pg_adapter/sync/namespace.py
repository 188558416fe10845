"""Class-based namespaces with all that :class:`sio_pg_adapter.Server` can do."""

from __future__ import annotations

import socketio

from sio_pg_adapter.server.namespace import of_server

from .server import Server


class Namespace(socketio.Namespace):
    """A ``socketio.Namespace`` for :class:`sio_pg_adapter.Server`.

    Its methods are the server's. They act in the namespace of the class if none is given.
    """

    emit = of_server(Server.emit)
    send = of_server(Server.send)
    call = of_server(Server.call)
    enter_room = of_server(Server.enter_room)
    leave_room = of_server(Server.leave_room)
    close_room = of_server(Server.close_room)
    rooms = of_server(Server.rooms)
    get_session = of_server(Server.get_session)
    save_session = of_server(Server.save_session)
    session = of_server(Server.session)
    disconnect = of_server(Server.disconnect)
    recovered = of_server(Server.recovered)
    fetch_rooms = of_server(Server.fetch_rooms)
    last_position = of_server(Server.last_position)
    position = of_server(Server.position)
    history = of_server(Server.history)
    fetch_sockets = of_server(Server.fetch_sockets)
    broadcast_call = of_server(Server.broadcast_call)
    on_server_event = of_server(Server.on_server_event)
    server_side_emit = of_server(Server.server_side_emit)
    server_side_call = of_server(Server.server_side_call)
    sockets_join = of_server(Server.sockets_join)
    sockets_leave = of_server(Server.sockets_leave)
    disconnect_sockets = of_server(Server.disconnect_sockets)
