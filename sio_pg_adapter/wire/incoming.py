"""Packets that clients send: Socket.IO packets are put together from the messages of a connection, and checked.

A client that sends something else is disconnected, as Socket.IO's own server does it. It reconnects, and recovers its
session. No handler sees anything of the message, and none of its binary parts are waited for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engineio.exceptions import EngineIOError, UnknownPacketError
from engineio.packet import NOOP, Packet
from engineio.payload import Payload
from socketio import packet

from sio_pg_adapter.errors import NotSerializable
from sio_pg_adapter.log.names import RESERVED_EVENTS
from sio_pg_adapter.log.payload import levels

from .transport import TrafficCounter

if TYPE_CHECKING:
    from engineio.async_socket import AsyncSocket

MAX_PARTS = 1_000
"""How many binary parts a packet may announce."""

MAX_PARTS_SIZE = 64
"""How large the binary parts of a packet may be together, as a multiple of ``max_http_buffer_size``."""

EVENTS = (packet.EVENT, packet.BINARY_EVENT)
ACKS = (packet.ACK, packet.BINARY_ACK)


class NotAPacket(Exception):
    """A client sent something that is not a packet. The message says why."""


def engine_packet(encoded: str | bytes) -> Packet:
    """Decode a packet of Engine.IO.

    :raises NotAPacket: if it is not one.
    """
    try:
        decoded = Packet(encoded_packet=encoded)
    except Exception as e:  # Engine.IO may raise anything: the bytes are the client's
        raise NotAPacket(f"not a packet of Engine.IO: {e!r}") from e
    if decoded.packet_type > NOOP:
        raise NotAPacket("a packet of Engine.IO with an unknown type")
    return decoded


class Incoming:
    """Puts packets of Socket.IO together.

    :param packet_class: the server's packet class.
    :param pending: by connection, packets whose binary parts are still to come.
    :param eio: the Engine.IO server. A message may have ``max_http_buffer_size`` bytes.
    :param is_connected: whether an Engine.IO connection has a client that is connected. Binary parts take memory, so
                         nobody else may announce any.
    """

    def __init__(
        self,
        packet_class: type[packet.Packet],
        pending: dict[str, Any],
        eio: Any,
        is_connected: Callable[[str], bool],
    ) -> None:
        self._packet_class = packet_class
        self._pending = pending
        self._eio = eio
        self._is_connected = is_connected

    def take(self, eio_sid: str, data: Any) -> Any:
        """Return the packet that a message completes, or ``None`` if binary parts are still to come.

        :raises NotAPacket: if it is not a packet. A pending packet is dropped.
        """
        pending = self._pending.pop(eio_sid, None)
        try:
            decoded = self._packet_class(encoded_packet=data) if pending is None else self._with_part(pending, data)
            if decoded is None or self._announces_parts(eio_sid, decoded, pending):
                self._pending[eio_sid] = decoded or pending
                return None
            if self._packet_class.decode is not packet.Packet.decode:
                decoded.data, decoded.id = _without_undefined(decoded.data), _without_undefined(decoded.id)
        except NotAPacket:
            raise
        except Exception as e:  # a serializer may raise anything: the bytes are the client's
            raise NotAPacket(f"{type(e).__name__}: {str(e)[:100]}") from e
        _check(decoded)
        return decoded

    def is_pending(self, eio_sid: str) -> bool:
        """Whether binary parts of a packet are still to come."""
        return eio_sid in self._pending

    def forget(self, eio_sid: str) -> None:
        """Drop the pending packet of a connection."""
        self._pending.pop(eio_sid, None)

    def _announces_parts(self, eio_sid: str, decoded: Any, pending: Any) -> bool:
        if pending is not None or decoded.packet_type not in (packet.BINARY_EVENT, packet.BINARY_ACK):
            return False
        if not 0 < decoded.attachment_count <= MAX_PARTS:
            raise NotAPacket("a binary packet without binary parts, or with too many")
        if not self._is_connected(eio_sid):
            raise NotAPacket("a binary packet from a client that is not connected")
        return True

    def _with_part(self, pending: Any, data: Any) -> Any:
        if not isinstance(data, bytes | bytearray):
            raise NotAPacket("text in place of a binary part")
        if sum(map(len, pending.attachments)) + len(data) > MAX_PARTS_SIZE * self._eio.max_http_buffer_size:
            raise NotAPacket("binary parts that are too large together")
        return pending if pending.add_attachment(data) else None


def _check(decoded: Any) -> None:
    """Check that a client may send the packet, and that it has what its type needs."""
    kind, data = decoded.packet_type, decoded.data
    if not isinstance(decoded.namespace, str | None):
        raise NotAPacket("a namespace that is not text")
    if kind in EVENTS:
        if not isinstance(data, list) or not data or not isinstance(data[0], str):
            raise NotAPacket("an event without a name")
        if data[0] in RESERVED_EVENTS:  # its handler would take the event for what the server itself reports
            raise NotAPacket(f"an event with the name {data[0]!r}, which Socket.IO keeps for itself")
        if not isinstance(decoded.id, int | None):
            raise NotAPacket("an event whose id is not a number")
    elif kind in ACKS:
        if not isinstance(data, list) or not isinstance(decoded.id, int):
            raise NotAPacket("an acknowledgement without arguments or id")
        _check_answer(data)
    elif kind not in (packet.CONNECT, packet.DISCONNECT):
        raise NotAPacket("a type that clients do not send")


def _without_undefined(value: Any) -> Any:
    """Return a value with ``None`` where JavaScript had ``undefined``: the extension type 0 of its msgpack parser."""
    if isinstance(value, dict):
        return {key: _without_undefined(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_undefined(child) for child in value]
    msgpack = sys.modules.get("msgpack")
    return None if msgpack is not None and isinstance(value, msgpack.ExtType) and value.code == 0 else value


def _check_answer(data: list[Any]) -> None:
    """Check that an acknowledgement can be sent on: the node that asked may be another one."""
    try:
        for level in levels(data, "an acknowledgement"):
            if not all(math.isfinite(value) for value in level if isinstance(value, float)):
                raise NotAPacket("an acknowledgement with a number that JSON does not have")
    except NotSerializable as e:
        raise NotAPacket(str(e)) from e


async def take_post(socket: AsyncSocket, environ: dict[str, Any], traffic: TrafficCounter) -> None:
    """Handle a POST of a client that polls, in place of Engine.IO's ``handle_post_request``.

    Engine.IO's hangs where it closes a connection without a poll, and answers what it cannot read with a traceback
    and "ok".

    :raises EngineIOError: the request is answered with status 400, and the caller closes the connection.
    """
    length = int(environ.get("CONTENT_LENGTH", "0"))
    if length > socket.server.max_http_buffer_size:
        raise EngineIOError("a request that is too large")
    body = await environ["wsgi.input"].read(length)
    try:
        packets = Payload(encoded_payload=body.decode()).packets
        unknown = any(decoded.packet_type > NOOP for decoded in packets)
    except Exception as e:  # Engine.IO may raise anything
        raise EngineIOError(f"not packets of Engine.IO: {type(e).__name__}") from e  # no text: it may hold a pid
    if unknown:
        raise EngineIOError("a packet of Engine.IO with an unknown type")
    if traffic.on_read is not None:
        traffic.on_read(len(packets), length)
    for decoded in packets:
        try:
            await socket.receive(decoded)
        except UnknownPacketError as e:
            raise EngineIOError("a packet that clients do not send") from e
        except EngineIOError:
            raise
        except Exception:  # an application's handler that runs here
            socket.server.logger.exception("post request handler error")
        if socket.closed:
            return
