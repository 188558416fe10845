"""Pings that are due at once, which a loop runs without a timer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import uvloop

from sio_pg_adapter.wire.pings import Pings
from sio_pg_adapter.wire.transport import Connections


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_ping_that_is_overdue_does_not_keep_others_from_being_scheduled(loop_factory):
    server = SimpleNamespace(ping_interval=-1)

    async def schedule() -> None:
        pings = Pings(Connections())
        for _ in range(2):
            pings.schedule(SimpleNamespace(last_ping=1.0, server=server, closing=True, closed=True))
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(schedule())
