"""Asks the nodes that are there how they are, as they ask each other.

The request goes to all by NOTIFY; the answers come to a channel of this process alone. Who is there, presence has
told: a node that owes its answer when the time is up is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import uuid
from typing import Any

from sio_pg_adapter.cluster.messages import Reply, Request, decode, encode
from sio_pg_adapter.cluster.requests import Service, answer_in
from sio_pg_adapter.store.database import Database
from sio_pg_adapter.store.failures import translated


async def roll_call(database: Database, nodes: set[str], *, timeout: float) -> dict[str, Any]:
    """What nodes answer about themselves, by node id; ``None`` for one that cannot (of an earlier version).

    :param nodes: the ids of those that are there.
    :param timeout: seconds to wait at the most.
    :raises StoreUnavailable: if they cannot be asked.
    :raises PoolerBetween: if LISTEN does not work, through a pooler.
    """
    answers: dict[str, Any] = {}
    if not nodes:
        return answers
    complete, channel = asyncio.Event(), "sio_" + secrets.token_hex(20)

    def answered(_connection: object, _backend: int, _channel: str, payload: str) -> None:
        reply = decode(json.loads(payload))
        assert isinstance(reply, Reply)
        answers[reply.node] = None if reply.body is None else answer_in(reply)
        if nodes <= answers.keys():
            complete.set()

    # It bears no cursor, so a node that is behind answers as well.
    request = encode(Request(Service.STATUS, id=1, reply_to=channel), node=uuid.uuid4().hex, number=1, cursor=0)
    connection, _ = await database.listen_connection()
    try:
        with translated("LISTEN"):
            await connection.add_listener(channel, answered)
        await database.fetch("notify", [database.channel], [request])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(complete.wait(), timeout)
    finally:
        await connection.close(timeout=2)
    return answers
