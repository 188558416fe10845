"""Messages between nodes that are not kept: volatile events, questions to clients and their answers.

They go by NOTIFY and bear the sender's cursor: a message is acted on when the receiver's cursor has reached it,
so it does not overtake what the sender had already seen of the log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from sio_pg_adapter.errors import SioPgError
from sio_pg_adapter.log.records import pack
from sio_pg_adapter.store.database import Database, translated
from sio_pg_adapter.store.writer import read_attachment

NOTIFICATION_BYTES = 7_900
"""PostgreSQL takes 7,999 bytes; what is larger goes through the attachment table."""

BATCH = 200

logger = logging.getLogger("sio_pg_adapter")

Message = dict[str, Any]


class Ephemeral:
    """Sends and receives messages that are not kept.

    :param node: this node's id.
    :param cursor: tells this node's cursor.
    :param when: calls back when the cursor has reached an offset.
    :param on_message: called with each message of another node, and its binary parts.
    """

    def __init__(
        self,
        database: Database,
        node: str,
        cursor: Callable[[], int],
        when: Callable[[int, Callable[[], None]], None],
        on_message: Callable[[Message, tuple[bytes, ...]], None],
    ) -> None:
        self._database = database
        self._node = node
        self._cursor = cursor
        self._when = when
        self._on_message = on_message
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[str, str, bytes | None, asyncio.Future[None]]] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._fetching: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Messages that are not on their way yet."""
        return len(self._waiting)

    async def close(self) -> None:
        """Send what is waiting, then end. Safe to call twice."""
        tasks = [t for t in (self._sending, *self._fetching) if t is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def send(self, channel: str, message: Message, parts: tuple[bytes, ...] = ()) -> asyncio.Future[None]:
        """Send a message to all who listen on the channel; those of one tick go together.

        :returns: done when it is on its way; fails with StoreUnavailable.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The number: equal payloads in one transaction are delivered once only (PostgreSQL manual, NOTIFY).
        message = {"node": self._node, "number": next(self._numbers), "cursor": self._cursor(), **message}
        text = json.dumps(message, separators=(",", ":"))
        if not parts and len(text) <= NOTIFICATION_BYTES:
            self._waiting.append((channel, text, None, future))
        else:
            key = str(uuid.uuid4())
            pointer = json.dumps({"node": self._node, "cursor": message["cursor"], "attachment": key})
            self._waiting.append((channel, pointer, pack([text.encode(), *parts]), future))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="sio_pg ephemeral sender")
        return future

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    with translated("sending a message to other nodes"):
                        await self._send_batch(batch)
                except SioPgError as e:
                    for *_, future in batch:
                        if not future.done():
                            future.set_exception(e)
                            future.exception()  # the sender may not be interested
                else:
                    for *_, future in batch:
                        if not future.done():
                            future.set_result(None)
        finally:
            self._sending = None

    async def _send_batch(self, batch: list[tuple[str, str, bytes | None, asyncio.Future[None]]]) -> None:
        queries = self._database.queries
        large = [(json.loads(text)["attachment"], data) for _, text, data, _ in batch if data is not None]
        async with self._database.reader as connection:
            if large:
                keys = [uuid.UUID(key) for key, _ in large]
                data = [data for _, data in large]
                await connection.execute(queries["attach"], keys, data, [True] * len(large), timeout=60)
            channels, payloads = [b[0] for b in batch], [b[1] for b in batch]
            await connection.execute(queries["notify"], channels, payloads, timeout=10)

    def receive(self, payload: str) -> None:
        """Take a notification's payload, in order of arrival.

        :raises ValueError: if it is none of ours.
        """
        message = json.loads(payload)
        if message.get("node") == self._node:
            return  # what concerns this node has been done when it was sent
        if key := message.get("attachment"):
            task = asyncio.create_task(self._fetch(key, message["cursor"]), name="sio_pg attachment")
            self._fetching.add(task)
            task.add_done_callback(self._fetching.discard)
        else:
            self._when(message["cursor"], lambda: self._on_message(message, ()))

    async def _fetch(self, key: str, cursor: int) -> None:
        try:
            text, parts = await read_attachment(self._database, key)
        except SioPgError as e:
            logger.warning("a message of another node is lost: %s", e)
            return
        self._when(cursor, lambda: self._on_message(json.loads(text), parts))
