"""A shorter way onto a websocket: one frame, made once, written to the transports of all who receive it.

The longer one, which upstream takes for every packet of every client, is a queue, a task that waits on it under a
timeout, a message to the ASGI server, and an encoder there: five sixths of the CPU of a large fan-out. It is still
taken whenever the shorter one could overtake or overrun something: while packets wait in the queue or one of them is
being sent, while the client takes less than it is sent, while an upgrade is under way, and under a server whose
transport is not known. So the order and the limit for slow consumers are the queue's, as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from .frames import Frames

UNSENT_BYTES = 64 * 1024
"""What may wait in a transport's own buffer before the queue is used: asyncio's high-water mark."""

COMPRESS_FROM = 1024
"""Bytes from which on a frame is left to the server to compress, where it may: engine.io's own threshold."""

logger = logging.getLogger("sio_pg_adapter")


class Cork:
    """While it is in, what is written to a wire is held; what a wire holds goes out at once when it is drawn.

    For records that are applied in one go, with nothing awaited in between: a system call for each connection, and
    not one for each of its frames.
    """

    def __init__(self) -> None:
        self.is_in = False
        self.holding: list[Wire] = []

    def __enter__(self) -> None:
        self.is_in = True

    def __exit__(self, *_: object) -> None:
        self.is_in = False
        holding, self.holding = self.holding, []
        for wire in holding:
            wire.flush()


class Wire:
    """The transport below the websocket of an Engine.IO socket.

    :param queue: the socket's queue.
    :param is_open: tells whether data may be sent: no close frame has been sent or received.
    :param cork: may hold what is written.
    :param compresses: the server may have agreed with the client to compress what is large.
    :param on_write: called with the packets and bytes of each write.
    """

    def __init__(
        self,
        queue: asyncio.Queue[Any],
        transport: asyncio.Transport,
        is_open: Callable[[], bool],
        cork: Cork,
        *,
        compresses: bool,
        on_write: Callable[[int, int], None] | None = None,
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._is_open = is_open
        self._largest = COMPRESS_FROM if compresses else None
        self._on_write = on_write
        self._cork = cork
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._idle = False

    def write(self, frames: Frames) -> bool:
        """Write an event, or leave it to the queue (``False``)."""
        transport = self._transport
        if not self._idle or not self._queue.empty() or transport.is_closing() or not self._is_open():
            return False
        # Not before: asyncio's of TLS has no buffer any more once it was closed twice, as uvicorn does.
        if transport.get_write_buffer_size() + self._held_bytes > UNSENT_BYTES:
            self.flush()  # it may be taken at once
            if transport.get_write_buffer_size() > UNSENT_BYTES:
                return False
        if len(frames) == 1:
            data = frames[0].wire
        elif frames:
            data = b"".join(frame.wire for frame in frames)
        else:
            return True
        if self._largest is not None and len(data) > self._largest:
            return False
        if self._cork.is_in:
            self._hold(data)
        else:
            transport.write(data)
        if self._on_write is not None:
            self._on_write(len(frames), len(data))
        return True

    def _hold(self, data: bytes) -> None:
        if not self._held:
            self._cork.holding.append(self)
        self._held.append(data)
        self._held_bytes += len(data)

    def flush(self) -> None:
        """Write what is held. Before the queue's writer runs: nothing that was queued behind it overtakes it."""
        if not self._held:
            return
        data, self._held, self._held_bytes = b"".join(self._held), [], 0
        try:
            self._transport.write(data)
        except Exception:  # one connection that breaks must not keep it from all that follow
            logger.exception("events could not be written to a connection: it is cut, to recover from the log")
            self._transport.abort()

    async def poll(self) -> list[Any]:
        """Wait for packets in the queue: upstream's, without its timeout, which the reader of the socket has, too.

        Only while it waits here is nothing under way to the transport.
        """
        queue = self._queue
        self._idle = True
        try:
            packets = [await queue.get()]
        finally:
            self._idle = False
        queue.task_done()
        while packets[-1] is not None and not queue.empty():
            packets.append(queue.get_nowait())
            queue.task_done()
        if packets[-1] is None and len(packets) > 1:
            packets.pop()
            queue.put_nowait(None)  # found again by the next poll, which ends the writer
        return [] if packets == [None] else packets
