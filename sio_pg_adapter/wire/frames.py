"""Events as Engine.IO packets, made once from the encoded text and shared by all who receive them."""

from __future__ import annotations

import functools
import json
import logging
import struct
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from engineio import packet as engineio_packet
from engineio.packet import MESSAGE
from socketio.packet import ACK, BINARY_EVENT, EVENT, Packet

from sio_pg_adapter.errors import NotSerializable
from sio_pg_adapter.log.payload import check_parts, encode_values, with_binary
from sio_pg_adapter.log.records import Outgoing, Record

from . import upstream

_BINARY = BINARY_EVENT - EVENT
"""What a packet's type is raised by if it has binary parts (Socket.IO protocol, "Packet format")."""

_UNSTORED_TAIL = "null"
"""The last argument of some unstored events. After a string, it keeps clients from taking the string for an offset.
After a ``null``, it lets a client that strips one ``null`` strip this one."""

logger = logging.getLogger("sio_pg_adapter")


class Frame(engineio_packet.Packet):
    """An Engine.IO message in the forms that transports want. Each form is made once, for all recipients."""

    @functools.cached_property
    def wire(self) -> bytes:
        """The message as an unmasked, uncompressed, single frame of a websocket (RFC 6455, section 5.2)."""
        payload: bytes = self.data if self.binary else self.encode().encode()
        opcode = 0x82 if self.binary else 0x81
        size = len(payload)
        if size < 126:
            return struct.pack("!BB", opcode, size) + payload
        if size < 1 << 16:
            return struct.pack("!BBH", opcode, 126, size) + payload
        return struct.pack("!BBQ", opcode, 127, size) + payload


class BinaryFrame(Frame):
    """A binary part for clients of any transport. Engine.IO's packet keeps the form that was asked for first."""

    def encode(self, b64: bool = False) -> str | bytes:
        self.encode_cache = None
        encoded: str | bytes = super().encode(b64=b64)
        return encoded


Frames = list[Frame]


class FrameMaker:
    """Makes the frames of everything that a server sends to clients.

    :param packet_class: the server's packet class, which is its serializer.
    """

    def __init__(self, packet_class: type[Packet]) -> None:
        self._packet_class = packet_class
        # python-socketio's own packet class is JSON, for which the encoded text is used as it stands.
        self._is_json = packet_class.encode is Packet.encode and packet_class.decode is Packet.decode

    def check(self, outgoing: Outgoing) -> None:
        """Check that the server's serializer can hold an event, before it is stored.

        :raises NotSerializable: if it cannot.
        """
        if not self._is_json:
            self.event(outgoing)

    def event(self, outgoing: Outgoing, *, tail: str | None = None, ack_id: int | None = None) -> Frames:
        """Return the frames of an event: one, and one for each binary part.

        :param tail: JSON text to add as the last argument.
        :raises NotSerializable: if the server's serializer cannot hold what JSON can.
        """
        return self._event(outgoing.namespace, outgoing.body, outgoing.parts, tail, ack_id)

    def unstored(self, outgoing: Outgoing) -> Frames:
        """Return the frames of an unstored event for clients that keep offsets."""
        text = outgoing.body.rstrip()[:-1].rstrip()
        return self.event(outgoing, tail=_UNSTORED_TAIL if text.endswith(('"', "null")) else None)

    def stored(self, record: Record, offset: str | None) -> Frames:
        """Return the frames of a record, with its offset or, for clients that get none, without.

        Empty if the server's serializer cannot hold it: it was emitted by SQL, or by a server of another serializer.
        """
        tail = None if offset is None else f'"{offset}"'
        try:
            return self._event(record.namespace, record.body or "", record.parts, tail, None)
        except NotSerializable as e:
            logger.error("record %s of the log cannot be sent: %s", record.offset, e)  # noqa: TRY400 - not this code's error
            return []

    def ack(self, acknowledgement: Packet, json: ModuleType | Any) -> Frames:
        """Return the frames of what a handler returned, for the client that asked.

        :param json: the server's module to encode with.
        :raises NotSerializable: if it has no form on the wire.
        :raises PayloadTooLarge: if it has more binary parts than clients take.
        """
        if not self._is_json:
            return _serialized(acknowledgement)
        body, parts = encode_values(acknowledgement.data, "what a handler returned", json)
        check_parts(parts, "what a handler returned")
        return _text_frames(ACK, acknowledgement.namespace, acknowledgement.id, body, parts)

    def packet(self, kind: int, namespace: str, data: Any = None) -> Frames:
        """Return the frames of a packet without binary parts: CONNECT, CONNECT_ERROR or DISCONNECT."""
        made = self._packet_class(kind, data=data, namespace=namespace)
        return _framed(upstream.encode_without_data(made) if data is None else made.encode())

    def _event(
        self, namespace: str, body: str, parts: Sequence[bytes], tail: str | None, ack_id: int | None
    ) -> Frames:
        if tail is not None:
            body = f"{body.rstrip()[:-1]},{tail}]"
        if self._is_json:
            return _text_frames(EVENT, namespace, ack_id, body, parts)
        try:  # another serializer gets the values, not the text
            values = with_binary(json.loads(body), parts)
        except (RecursionError, ValueError) as e:
            raise NotSerializable(f"{body[:80]} cannot be read: {e}") from e
        return _serialized(self._packet_class(EVENT, data=values, namespace=namespace, id=ack_id))


def _serialized(packet: Packet) -> Frames:
    try:
        return _framed(packet.encode())
    except (ArithmeticError, RecursionError, TypeError, ValueError) as e:
        raise NotSerializable(f"{str(packet.data)[:80]} has no form in {type(packet).__name__}: {e}") from e


def _framed(encoded: str | bytes | list[str | bytes]) -> Frames:
    return [frame(piece) for piece in (encoded if isinstance(encoded, list) else [encoded])]


def frame(encoded: str | bytes) -> Frame:
    """Wrap an encoded Socket.IO packet, or a binary part of one, in an Engine.IO message."""
    return (Frame if isinstance(encoded, str) else BinaryFrame)(MESSAGE, encoded)


def _text_frames(kind: int, namespace: str | None, ack_id: int | None, body: str, parts: Sequence[bytes]) -> Frames:
    head = f"{kind + _BINARY}{len(parts)}-" if parts else str(kind)
    if namespace and namespace != "/":
        head += namespace + ","
    if ack_id is not None:
        head += str(ack_id)
    return [frame(head + body), *map(frame, parts)]
