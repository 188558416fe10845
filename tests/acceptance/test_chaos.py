"""Twenty real clients and two nodes, while everything that can break does.

`pytest tests/acceptance/test_chaos.py -s --chaos-seconds 600` for a long run; `--chaos-seed` for the same choices;
`--kinds mixed` for one node of each kind.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from sio_pg_adapter.check import check_file
from sio_pg_adapter.demo.history import HistoryWriter
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import upgrade
from support.chaos import Chaos
from support.roles import admit_nodes


@pytest.mark.timeout(0)  # each of its waits has an end of its own
async def test_chaos(js, request, capsys, tmp_path, kind):
    seconds = request.config.getoption("--chaos-seconds")
    seed = request.config.getoption("--chaos-seed")
    seed = random.randrange(1 << 32) if seed is None else seed
    path = tmp_path / "history.jsonl"
    with EmbeddedPostgres(settings={"synchronous_commit": "on", "max_connections": "60"}) as server:
        await asyncio.to_thread(upgrade, server.dsn())
        await asyncio.to_thread(admit_nodes, server)
        with HistoryWriter(path, command=f"test_chaos --chaos-seconds {seconds}", seed=seed) as history:
            chaos = Chaos(server, server.dsn(), js, seed, history, kind=kind)
            try:
                await chaos.start(clients=20)
                await chaos.run(asyncio.sleep(seconds))
                await chaos.write_log()
            finally:
                await chaos.end()
                (tmp_path / "nodes.log").write_text("\n".join(chaos.logs))
    verdict = check_file(path)
    report = "\n".join([f"seed {seed}, {seconds:.0f} s, {kind} nodes", chaos.report(), verdict.report()])
    with capsys.disabled():
        print(f"\n{report}\nhistory and logs of the nodes: {tmp_path}")
    assert not verdict.findings, report
    assert verdict.deliveries > 0 and verdict.recoveries > 0
