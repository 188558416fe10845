"""The epochs of the log: which this node knows, and the offsets on the wire by their keys."""

from __future__ import annotations

import time

from sio_pg_adapter.log.offsets import Epoch, OffsetCodec
from sio_pg_adapter.log.positions import decode_position, encode_position

from .database import Database

FRESH = 1.0
"""For how many seconds after a read a node assumes that it knows all epochs."""


class Epochs:
    """The epochs that this node knows.

    :ivar codec: encodes and decodes offsets by them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read_at = 0.0
        self.codec = OffsetCodec(())

    async def open(self) -> None:
        """Begin an epoch if the running one is not of this server, database and table. Read all of them."""
        await self.begin_if_needed()
        self.codec = await self.read()

    async def begin_if_needed(self) -> None:
        """Begin the next epoch, unless the running one is of this server, database and table."""
        if not await self._database.fetch_value("in_epoch"):
            await self._database.fetch("check_epoch")

    async def read(self) -> OffsetCodec:
        """Read the epochs of the log. :meth:`adopt` makes them this node's."""
        self._read_at = time.monotonic()
        rows = await self._database.fetch("epochs")
        return OffsetCodec(Epoch(row["epoch"], row["key"], row["ended"]) for row in rows)

    def adopt(self, codec: OffsetCodec) -> None:
        self.codec = codec

    def may_be_stale(self) -> bool:
        """Whether they were read so long ago that another node may have begun one.

        A client that makes offsets up must not make this node read them each time.
        """
        return time.monotonic() - self._read_at > FRESH

    def knows(self, offset: int) -> bool:
        """Whether the epoch of an offset is known."""
        return self.codec.knows(offset)

    def encode(self, offset: int, namespace: str) -> str:
        return self.codec.encode(offset, namespace)

    def position(self, offset: int, namespace: str) -> str:
        """Return the position behind the record of an offset."""
        return encode_position(offset, namespace, self.codec)

    def offset_of(self, position: object, namespace: str, *, argument: str) -> int:
        """Return the offset of a position. See :func:`decode_position` for its errors."""
        return decode_position(position, namespace, self.codec, argument=argument)
