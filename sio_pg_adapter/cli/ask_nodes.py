"""The request for the status of all nodes, as nodes send it to each other.

The request goes to all nodes by NOTIFY. The answers arrive on a channel of this process. The nodes to wait for are
those that the presence table shows as live.
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


async def ask_nodes(database: Database, nodes: set[str], *, timeout: float) -> dict[str, Any]:
    """Return the answers of the nodes by node id, with ``None`` for a node of an earlier version, which has none.

    :param nodes: the ids of the live nodes.
    :param timeout: seconds to wait for their answers.
    :raises StoreUnavailable: the database is away.
    :raises PoolerBetween: LISTEN does not work, because the connection goes through a pooler.
    """
    answers: dict[str, Any] = {}
    if not nodes:
        return answers
    complete, channel = asyncio.Event(), "sio_" + secrets.token_hex(20)

    def on_answer(_connection: object, _backend: int, _channel: str, payload: str) -> None:
        reply = decode(json.loads(payload))
        assert isinstance(reply, Reply)
        answers[reply.node] = None if reply.body is None else answer_in(reply)
        if nodes <= answers.keys():
            complete.set()

    # The cursor 0 lets a node that is behind answer as well.
    request = encode(Request(Service.STATUS, id=1, reply_to=channel), node=uuid.uuid4().hex, number=1, cursor=0)
    connection, _ = await database.listen_connection()
    try:
        with translated("LISTEN", may_be_stored=None):
            await connection.add_listener(channel, on_answer)
        await database.fetch("notify", [database.channel], [request])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(complete.wait(), timeout)
    finally:
        await connection.close(timeout=2)
    return answers
