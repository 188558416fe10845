"""Offsets: positions in the log, and their form on the wire.

Socket.IO clients keep the last argument of an event, if it is a string, as an offset, and send it back when they
reconnect (https://socket.io/docs/v4/connection-state-recovery).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

EPOCH_BITS = 40
"""An epoch owns 2**40 offsets."""

_NUMBER = struct.Struct(">Q")
_CHECKSUM_BYTES = 8
_TEXT_LENGTH = 22
_CACHED_DIGESTS = 1_000


@dataclass(frozen=True, slots=True)
class Epoch:
    """An unbroken stretch of the log. It owns the offsets from ``number * 2**40`` up to the start of the next epoch.

    :ivar key: the key that signs its offsets. A restored log counts the same numbers under another key.
    :ivar end: the highest valid offset in it, once the next epoch has begun.
    """

    number: int
    key: bytes
    end: int | None = None

    def has(self, offset: int) -> bool:
        """Whether one of its offsets is valid. The others were lost before the next epoch began."""
        return self.end is None or offset <= self.end


class OffsetCodec:
    """The form of offsets on the wire: the number, and a checksum of namespace and number under the epoch's key.

    It is 22 characters of URL-safe base64. No client can make one up, or carry one into another namespace or epoch.
    """

    def __init__(self, epochs: Iterable[Epoch]) -> None:
        self.epochs = {epoch.number: epoch for epoch in epochs}
        self._digests: dict[tuple[int, str], Any] = {}

    def encode(self, offset: int, namespace: str) -> str:
        number = offset >> EPOCH_BITS
        digest = self._digests.get((number, namespace))
        if digest is None:
            key = self.epochs[number].key
            digest = hashlib.blake2b(namespace.encode(), digest_size=_CHECKSUM_BYTES, key=key)
            if len(self._digests) < _CACHED_DIGESTS:
                self._digests[number, namespace] = digest
        checksum = digest.copy()
        raw = _NUMBER.pack(offset)
        checksum.update(raw)
        return base64.urlsafe_b64encode(raw + checksum.digest()).decode().rstrip("=")

    @property
    def last_end(self) -> int:
        """The last offset before the running epoch."""
        return max((epoch.end for epoch in self.epochs.values() if epoch.end is not None), default=0)

    def knows(self, offset: int) -> bool:
        """Whether the epoch of the offset is known."""
        return offset >> EPOCH_BITS in self.epochs

    def continued_by(self, later: OffsetCodec, offset: int) -> bool:
        """Whether an offset that was valid by this codec is still valid by one that was read later."""
        known, read = self.epochs.get(offset >> EPOCH_BITS), later.epochs.get(offset >> EPOCH_BITS)
        return known is not None and read is not None and known.key == read.key and read.has(offset)

    def decode(self, text: str, namespace: str) -> int | None:
        """Return the number, or ``None`` if this log did not issue it for the namespace, or has lost it since."""
        if len(text) != _TEXT_LENGTH:
            return None
        try:
            offset = int(_NUMBER.unpack_from(base64.urlsafe_b64decode(text + "=="))[0])
        except (ValueError, struct.error):
            return None
        epoch = self.epochs.get(offset >> EPOCH_BITS)
        if epoch is None or not epoch.has(offset):
            return None
        valid = hmac.compare_digest(self.encode(offset, namespace), text)  # strict: one text for each number
        return offset if valid else None
