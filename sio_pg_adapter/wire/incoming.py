"""What clients send: Socket.IO packets, out of the messages of their connections; and what is none.

A client that sends what is no packet is cut, as Socket.IO's own server does it: it comes back, and its session with
it. Nothing of it reaches a handler, and none of its binary parts are waited for.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from engineio.exceptions import EngineIOError, UnknownPacketError
from engineio.packet import NOOP, Packet
from engineio.payload import Payload
from socketio import packet

from sio_pg_adapter.errors import NotSerializable
from sio_pg_adapter.log.records import levels

if TYPE_CHECKING:
    from engineio.async_socket import AsyncSocket

MAX_PARTS = 1_000
"""Binary parts that one packet may announce."""

MAX_PARTS_SIZE = 64
"""How many times ``max_http_buffer_size`` the binary parts of one packet may have together."""

EVENTS = (packet.EVENT, packet.BINARY_EVENT)
ACKS = (packet.ACK, packet.BINARY_ACK)

logger = logging.getLogger("sio_pg_adapter")


class NoPacket(Exception):  # noqa: N818 - no error of ours
    """A client sent what is no packet; says why."""


def engine_packet(encoded: str | bytes) -> Packet:
    """A packet of Engine.IO.

    :raises NoPacket: if it is none.
    """
    try:
        found = Packet(encoded_packet=encoded)
    except Exception as e:
        raise NoPacket(f"no packet of Engine.IO: {e!r}") from e
    if found.packet_type > NOOP:
        raise NoPacket("no packet of Engine.IO: an unknown type")
    return found


class Incoming:
    """Puts packets of Socket.IO together.

    :param packet_class: the server's.
    :param pending: by connection, packets whose binary parts are still to come.
    :param eio: whose ``max_http_buffer_size`` is what one message may have, in bytes.
    """

    def __init__(self, packet_class: type[packet.Packet], pending: dict[str, Any], eio: Any) -> None:
        self._packet_class = packet_class
        self._pending = pending
        self._eio = eio

    def take(self, eio_sid: str, data: Any) -> Any:
        """A message of a connection: the packet that is whole with it, or ``None``: binary parts are still to come.

        :raises NoPacket: if it is none; what was pending is forgotten.
        """
        pending = self._pending.pop(eio_sid, None)
        try:
            found = self._packet_class(encoded_packet=data) if pending is None else self._with_part(pending, data)
            if found is None or self._announces_parts(found, pending):
                self._pending[eio_sid] = found or pending
                return None
        except NoPacket:
            raise
        except Exception as e:  # whatever a serializer raises: the bytes are the client's
            raise NoPacket(f"{type(e).__name__}: {str(e)[:100]}") from e
        _check(found)
        return found

    def _announces_parts(self, found: Any, pending: Any) -> bool:
        if pending is not None or found.packet_type not in (packet.BINARY_EVENT, packet.BINARY_ACK):
            return False
        if not 0 < found.attachment_count <= MAX_PARTS:
            raise NoPacket("a binary packet without parts, or with too many")
        return True

    def _with_part(self, pending: Any, data: Any) -> Any:
        if not isinstance(data, bytes | bytearray):
            raise NoPacket("text where a binary part is due")
        if sum(map(len, pending.attachments)) + len(data) > MAX_PARTS_SIZE * self._eio.max_http_buffer_size:
            raise NoPacket("binary parts that are too large together")
        return pending if pending.add_attachment(data) else None


def _check(found: Any) -> None:
    """Is it one that a client may send, with what its kind needs?"""
    kind, data = found.packet_type, found.data
    if not isinstance(found.namespace, str | None):
        raise NoPacket("a namespace that is no text")
    if kind in EVENTS:
        if not isinstance(data, list) or not data or not isinstance(data[0], str):
            raise NoPacket("an event without a name")
        if not isinstance(found.id, int | None):
            raise NoPacket("an event whose id is no number")
    elif kind in ACKS:
        if not isinstance(data, list) or not isinstance(found.id, int):
            raise NoPacket("an acknowledgement without arguments or id")
        _check_answer(data)
    elif kind not in (packet.CONNECT, packet.DISCONNECT):
        raise NoPacket("a type that no client sends")


def _check_answer(data: list[Any]) -> None:
    """Whoever asked may be at another node: it has to get there."""
    try:
        for level in levels(data, "an acknowledgement"):
            if not all(math.isfinite(one) for one in level if isinstance(one, float)):
                raise NoPacket("an acknowledgement with a number that JSON does not have")
    except NotSerializable as e:
        raise NoPacket(str(e)) from e


async def take_post(socket: AsyncSocket, environ: dict[str, Any]) -> None:
    """A POST of a client that polls, in place of upstream's ``handle_post_request``: that hangs where it closes a
    connection without a poll, and answers what it cannot read with a traceback and "ok".

    :raises EngineIOError: the request is answered with status 400; the connection is to be closed.
    """
    length = int(environ.get("CONTENT_LENGTH", "0"))
    if length > socket.server.max_http_buffer_size:
        raise EngineIOError("a request that is too large")
    body = await environ["wsgi.input"].read(length)
    try:
        packets = Payload(encoded_payload=body.decode()).packets
        unknown = any(one.packet_type > NOOP for one in packets)
    except Exception as e:  # whatever upstream raises of what it cannot read
        raise EngineIOError(f"no packets of Engine.IO: {e!r}") from e
    if unknown:
        raise EngineIOError("no packets of Engine.IO: an unknown type")
    if (on_read := getattr(socket.server, "sio_pg_on_read", None)) is not None:
        on_read(len(packets), length)
    for one in packets:
        try:
            await socket.receive(one)
        except UnknownPacketError as e:
            raise EngineIOError("a packet that no client sends") from e
        except EngineIOError:
            raise
        except Exception:  # of an application whose handlers run here
            socket.server.logger.exception("post request handler error")
        if socket.closed:
            return
