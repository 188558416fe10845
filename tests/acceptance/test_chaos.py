"""Twenty real clients, two nodes and a model, while everything that can break does.

`pytest tests/acceptance/test_chaos.py -s --chaos-seconds 600` for a long run; `--chaos-seed` for the same choices.
"""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest

from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import upgrade
from support.chaos import Chaos


@pytest.mark.timeout(0)  # each of its waits has an end of its own
async def test_chaos(js, request, capsys, tmp_path):
    seconds = request.config.getoption("--chaos-seconds")
    seed = request.config.getoption("--chaos-seed")
    seed = random.randrange(1 << 32) if seed is None else seed
    with EmbeddedPostgres(settings={"synchronous_commit": "on", "max_connections": "60"}) as server:
        admin = await asyncpg.connect(server.admin_dsn())
        await admin.execute("CREATE DATABASE chaos OWNER app")
        await admin.close()
        await asyncio.to_thread(upgrade, server.dsn("chaos"))
        chaos = Chaos(server, server.dsn("chaos"), js, seed)
        try:
            await chaos.start(clients=20)
            await chaos.run(seconds)
            verdict = await chaos.judge()
        finally:
            await chaos.end()
            (tmp_path / "nodes.log").write_text("\n".join(chaos.logs))
    report = f"seed {seed}, {seconds:.0f} s\n{chaos.report(verdict)}"
    with capsys.disabled():
        print(f"\n{report}\nlogs of the nodes: {tmp_path / 'nodes.log'}")
    assert not verdict.wrong, report
    assert verdict.deliveries > 0 and verdict.recovered > 0
