"""The recipe of docs/exactly-once.md: the client's `retries`, and a key of the client's own, through cuts."""

from __future__ import annotations

import asyncio
import itertools
import random

import asyncpg
import pytest

from support.cluster import in_room
from support.js_driver import VERSIONS
from support.roles import node_dsn

RETRIES = {"retries": 1_000, "ackTimeout": 500}
MESSAGES = 120
TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name NOT LIKE '%listen%'
"""


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_a_client_sends_reaches_each_client_once_through_cuts(
    cluster, js, room, user, module_dsn, version
):
    """Both are cut, and the database's connections, too. Some acknowledgements are lost for certain."""
    cluster.errors_expected = True  # a handler whose emit fails, since its client sends again
    options = {"version": version, "auth": {"user": user}}
    speaker = await in_room(js, cluster.a.url, room, options=RETRIES, **options)
    hearer = await in_room(js, cluster.b.url, room, version=version)
    witness = await in_room(js, cluster.b.url, room, version=version)
    before = [len(log) for log in await cluster.control_all("log")]
    choices, urls = random.Random(1), itertools.cycle([cluster.b.url, cluster.a.url])
    database = await asyncpg.connect(node_dsn(module_dsn))
    try:
        sending = [asyncio.create_task(speaker.send("say", n, room, n % 5 * 0.02)) for n in range(MESSAGES)]
        for n in range(MESSAGES):
            assert (await witness.event("said"))["args"][0] == n
            if n % 10 == 9:  # the handler pauses between this event and its acknowledgement
                await speaker.rejoin(choices.choice(["drop", "abort"]), url=next(urls))
            elif n % 10 == 4:
                await hearer.rejoin("drop", url=next(urls))
            elif n % 30 == 17:
                await database.execute(TERMINATE)
        await asyncio.gather(*sending)
    finally:
        await database.close()
    await cluster.mark(room)
    expected = [("said", [n]) for n in range(MESSAGES)]
    assert await speaker.events_until("end") == await hearer.events_until("end") == expected
    assert await witness.events_until("end") == []
    logs = await cluster.control_all("log")
    said = [note for log, first in zip(logs, before, strict=True) for note in log[first:] if note["hook"] == "say"]
    assert sorted(note["number"] for note in said if note["stored"]) == list(range(MESSAGES))
    assert sum(note["stored"] is False for note in said) > 0  # without the keys they would come twice
