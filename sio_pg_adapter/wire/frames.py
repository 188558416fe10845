"""Events as Engine.IO packets: made once from the encoded text, shared by all who receive them."""

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
from sio_pg_adapter.log.records import Record, encode_values, with_binary


class Frame(engineio_packet.Packet):
    """An Engine.IO message, in the forms that transports want: each is made once, for all recipients."""

    @functools.cached_property
    def wire(self) -> bytes:
        """As an unmasked, uncompressed, whole frame of a websocket (RFC 6455, section 5.2)."""
        payload: bytes = self.data if self.binary else self.encode().encode()
        opcode = 0x82 if self.binary else 0x81
        size = len(payload)
        if size < 126:
            return struct.pack("!BB", opcode, size) + payload
        if size < 1 << 16:
            return struct.pack("!BBH", opcode, 126, size) + payload
        return struct.pack("!BBQ", opcode, 127, size) + payload


logger = logging.getLogger("sio_pg_adapter")


class BinaryFrame(Frame):
    """A binary part for clients of any transport: upstream's packet keeps the form that was asked for first."""

    def encode(self, b64: bool = False) -> str | bytes:
        self.encode_cache = None
        encoded: str | bytes = super().encode(b64=b64)
        return encoded


Frames = list[Frame]

BINARY = BINARY_EVENT - EVENT
"""What a packet's type is raised by where it has binary parts (Socket.IO protocol, Packet format)."""


UNSTORED_TAIL = "null"
"""The last argument of an unstored event that would otherwise end in a string: clients keep that as an offset.
Also of one that ends in null, so that a client which strips it can always strip exactly one."""


def framed(encoded: str | bytes) -> Frame:
    """An encoded Socket.IO packet, or a binary part of one, as an Engine.IO message."""
    return (Frame if isinstance(encoded, str) else BinaryFrame)(MESSAGE, encoded)


def another_serializer(packet_class: type[Packet]) -> bool:
    """Is it another one than upstream's own, which is JSON?"""
    return packet_class.encode is not Packet.encode or packet_class.decode is not Packet.decode


def event_frames(
    packet_class: type[Packet],
    namespace: str,
    body: str,
    parts: Sequence[bytes],
    *,
    tail: str | None = None,
    ack_id: int | None = None,
) -> Frames:
    """The frames of an event: one, and one for each binary part.

    :param body: the JSON array of its name and arguments.
    :param tail: JSON text to add as the last argument.
    :raises NotSerializable: if the server's serializer cannot hold what JSON can.
    """
    if tail is not None:
        body = f"{body.rstrip()[:-1]},{tail}]"
    if another_serializer(packet_class):  # it gets the values, not the text
        try:
            values = with_binary(json.loads(body), parts)
        except (RecursionError, ValueError) as e:
            raise NotSerializable(f"{body[:80]} cannot be read: {e}") from e
        return _serialized(packet_class(EVENT, data=values, namespace=namespace, id=ack_id))
    return _text_frames(EVENT, namespace, ack_id, body, parts)


def ack_frames(acknowledgement: Packet, json: ModuleType | Any) -> Frames:
    """The frames of what a handler returned, for the client that asked.

    :param json: the server's module to encode with.
    :raises NotSerializable: if it has no form on the wire.
    """
    if another_serializer(type(acknowledgement)):
        return _serialized(acknowledgement)
    body, parts = encode_values(acknowledgement.data, "what a handler returned", json)
    return _text_frames(ACK, acknowledgement.namespace, acknowledgement.id, body, parts)


def _serialized(whole: Packet) -> Frames:
    try:
        encoded = whole.encode()
    except (ArithmeticError, RecursionError, TypeError, ValueError) as e:
        raise NotSerializable(f"{str(whole.data)[:80]} has no form in {type(whole).__name__}: {e}") from e
    return [framed(one) for one in (encoded if isinstance(encoded, list) else [encoded])]


def _text_frames(kind: int, namespace: str | None, ack_id: int | None, body: str, parts: Sequence[bytes]) -> Frames:
    head = f"{kind + BINARY}{len(parts)}-" if parts else str(kind)
    if namespace and namespace != "/":
        head += namespace + ","
    if ack_id is not None:
        head += str(ack_id)
    return [framed(head + body), *map(framed, parts)]


def stored_frames(record: Record, packet_class: type[Packet], offset: str | None) -> Frames:
    """The frames of a record, with its offset or, for clients that get none, without."""
    tail = None if offset is None else f'"{offset}"'
    try:
        return event_frames(packet_class, record.namespace, record.body or "", record.parts, tail=tail)
    except NotSerializable as e:  # SQL has emitted it, or a server of another serializer: left out, live or later
        logger.error("record %s of the log cannot be sent: %s", record.offset, e)  # noqa: TRY400
        return []


def unstored_tail(body: str) -> str | None:
    """The tail for an unstored event to clients that keep offsets."""
    text = body.rstrip()[:-1].rstrip()
    return UNSTORED_TAIL if text.endswith(('"', "null")) else None
