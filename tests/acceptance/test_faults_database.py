"""Case 84: PostgreSQL is restarted under real clients of two nodes; emits meanwhile raise, or are in the log."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import upgrade
from support.cluster import Cluster, in_room
from support.node_process import ControlError
from support.roles import admit_nodes


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_case_84_postgresql_is_restarted_with_clients_connected(js, kind, mode):
    with EmbeddedPostgres(settings={"synchronous_commit": "on"}) as server:
        admin = await asyncpg.connect(server.admin_dsn())
        await admin.execute("CREATE DATABASE restarted OWNER app")
        await admin.close()
        dsn = server.dsn("restarted")
        await asyncio.to_thread(upgrade, dsn)
        cluster = Cluster(admit_nodes(server, "restarted"))
        try:
            await asyncio.to_thread(cluster.start, kind=kind)
            clients = [await in_room(js, node.url, "r") for node in cluster.nodes * 3]
            stop = asyncio.Event()

            async def emit(name: str, node) -> dict[int, str]:
                outcomes, n = {}, 0
                while not stop.is_set():
                    n += 1
                    try:
                        await node.emit("n", (name, n), room="r")
                        outcomes[n] = "sent"
                    except ControlError as e:
                        if "StoreUnavailable" not in e.kinds:
                            raise
                        outcomes[n] = "may be" if "may be stored" in e.message else "not"
                return outcomes

            emitting = [asyncio.create_task(emit(n, node)) for n, node in zip("AB", cluster.nodes, strict=True)]
            for _ in range(2):
                await asyncio.sleep(0.5)  # so that there is something under way
                await asyncio.to_thread(server.restart, mode)
            await asyncio.sleep(0.5)
            stop.set()
            outcomes = dict(zip("AB", await asyncio.gather(*emitting), strict=True))
            await cluster.mark("r")
            async with asyncio.timeout(30):
                connection = await asyncpg.connect(dsn)
                rows = await connection.fetch("SELECT body::json AS b FROM sio_packets WHERE kind = 0 AND room = 'r'")
                await connection.close()
            assert len(rows) > 1
            got = [await client.events_until("end") for client in clients]
            assert all(one == got[0] for one in got)
            seen = [tuple(args) for _, args in got[0]]
            assert len(seen) == len(set(seen)) == len(rows) - 1
            for name, of in outcomes.items():
                numbers = {n for emitter, n in seen if emitter == name}
                assert not [n for n, what in of.items() if what == "sent" and n not in numbers]
                assert not [n for n, what in of.items() if what == "not" and n in numbers]
            for client in clients:
                assert not [m for m in client.inbox if m["type"] == "disconnect"]  # they stayed
                assert (await client.rejoin())["recovered"]
        finally:
            cluster.kill()
