"""Positions: offsets as signed text for applications, which pass them from a page to the stream of events after it.

``sio_position()`` in SQL writes the same text. The checksum uses SHA-256, which every PostgreSQL has. Offsets on the
wire have another form, because they say what a client has received. A position says what a snapshot sees.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from sio_pg_adapter.errors import PositionInvalid, PositionLost

from .offsets import EPOCH_BITS, OffsetCodec

_FORM = re.compile(r"[A-Za-z0-9_-]{36}")
_OFFSET_BYTES = 8
_KEY_BYTES = 4
_CHECKSUM_BYTES = 15


def encode_position(offset: int, namespace: str, codec: OffsetCodec) -> str:
    """Return the position of a record: its offset, the name of its epoch's key, and a checksum.

    It is 36 characters of URL-safe base64.

    :param codec: knows the epoch of the offset.
    """
    key = codec.epochs[offset >> EPOCH_BITS].key
    raw = offset.to_bytes(_OFFSET_BYTES, "big") + _name(key) + _checksum(key, offset, namespace)
    return base64.urlsafe_b64encode(raw).decode()


def decode_position(text: object, namespace: str, codec: OffsetCodec, *, argument: str) -> int:
    """Return the offset of a position.

    :param argument: the name of the argument that took it, for messages.
    :raises PositionInvalid: if it is malformed, forged, or of another namespace.
    :raises PositionLost: if the log has no such epoch, or has lost the record since.
    """
    if not isinstance(text, str) or not _FORM.fullmatch(text):
        raise PositionInvalid(
            f"{argument} takes a position that sio.position(), sio_position() or enter_room() returned, "
            f"not {_shown(text)}"
        )
    raw = base64.urlsafe_b64decode(text)
    offset = int.from_bytes(raw[:_OFFSET_BYTES], "big")
    name, checksum = raw[_OFFSET_BYTES : _OFFSET_BYTES + _KEY_BYTES], raw[_OFFSET_BYTES + _KEY_BYTES :]
    epoch = codec.epochs.get(offset >> EPOCH_BITS)
    if epoch is None or _name(epoch.key) != name:
        raise PositionLost(
            "the position is of an epoch that this log does not have. It was lost in a restore or failover, or it is "
            "another log's. Load the page again."
        )
    if not hmac.compare_digest(_checksum(epoch.key, offset, namespace), checksum):
        raise PositionInvalid(
            f"{argument} has a position of another namespace than {namespace!r}, or a forged one. Pass namespace= "
            "where you read the position."
        )
    if not epoch.has(offset):
        raise PositionLost("the position was lost in a crash, restore or failover. Load the page again.")
    return offset


def _name(key: bytes) -> bytes:
    """Return the name of a key. If an epoch begins twice, as after a restore, its two keys have different names."""
    return hashlib.sha256(key + b"id").digest()[:_KEY_BYTES]


def _checksum(key: bytes, offset: int, namespace: str) -> bytes:
    value = b"position" + offset.to_bytes(_OFFSET_BYTES, "big") + namespace.encode()
    return hashlib.sha256(key + hashlib.sha256(key + value).digest()).digest()[:_CHECKSUM_BYTES]


def _shown(value: object) -> str:
    return repr(value[:80]) if isinstance(value, str) else f"a value of type {type(value).__name__}"
