"""What a node answers to `sio-pg status`."""

from __future__ import annotations

import json
import os

from sio_pg_adapter.cluster.status import status
from sio_pg_adapter.local.client import State
from sio_pg_adapter.local.cursor import Cursor
from sio_pg_adapter.log.records import Held
from sio_pg_adapter.store.reader import LogReader
from support.local import Local, unopened_database


async def test_a_node_counts_connected_clients_and_held_sessions():
    local = Local()
    cursor = Cursor(LogReader(unopened_database(), local.epochs))
    cursor.jump(7)
    local.client("live")
    local.client("replaying", state=State.REPLAYING)
    holding = local.client("connecting", state=State.CONNECTING, namespace="/chat")
    holding.begin_opening()
    holding.opened(Held(1, 1))
    answer = status(local.clients, cursor, 3, "the reason", "memory")
    assert answer.pop("host")
    assert answer.pop("reason") == "the reason"
    assert answer.pop("durability") == "memory"
    assert answer == {"process": os.getpid(), "clients": 2, "sessions": 1, "cursor": 7, "reconnects": 3}
    assert json.dumps(answer)
