"""The synchronous server under load: ``gunicorn -k gthread``, clients of both transports, and many reconnects.

`pytest tests/acceptance/test_threads.py -m soak` is the long run: 400 clients, 4 workers and 2,000 reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sio_pg_adapter import AsyncPostgresManager
from sio_pg_adapter.sync.handlers import IDLE_THREADS
from support.python_client import drop, quick_client
from support.served_app import Served, free_port

PATIENCE = 60.0  # seconds until a test that waits in vain fails
PING_INTERVAL = "300"  # seconds: an open poll would hold a server for longer than the test waits for its end
ROUNDS = 5  # in each, all clients lose their connections
EVENTS = 40  # of each round
AT_ONCE = 20
"""How many clients connect at once, at first."""


class Load:
    """Clients, and the numbers that each of them got."""

    def __init__(self) -> None:
        self.clients = []
        self.numbers = {}
        self.connects = {}

    async def connect(self, url, transport):
        client = quick_client(reconnection_delay_max=1)
        self.clients.append(client)
        got, connects = self.numbers[client], self.connects[client] = [], asyncio.Queue()
        client.on("n", got.append)
        client.on("connect", lambda: connects.put_nowait(client.recovered()))
        await client.connect(url, transports=[transport], wait_timeout=PATIENCE)
        assert await connects.get() is False

    async def got(self, count):
        """Wait until all clients have got so many numbers."""
        async with asyncio.timeout(PATIENCE):
            while any(len(got) < count for got in self.numbers.values()):
                await asyncio.sleep(0.05)


async def threads_of_workers(clients, workers):
    """The threads of each worker, by the kind of their names."""
    seen = {}
    async with asyncio.timeout(PATIENCE):
        for client in clients:
            pid, kinds = await client.call("threads", timeout=PATIENCE)
            seen[pid] = kinds
    assert len(seen) == workers
    return seen.values()


@contextlib.asynccontextmanager
async def gunicorns(dsn, workers, threads):
    """Workers for clients on WebSocket, and one for clients that poll: all requests of one have to reach it."""
    async with contextlib.AsyncExitStack() as stack:
        served = []
        for number in (workers - 1, 1):
            port = free_port()
            command = ("gunicorn", "support.apps.threads_app:app", "-k", "gthread", "--bind", f"127.0.0.1:{port}")
            app = Served(
                dsn, *command, "-w", str(number), "--threads", str(threads), port=port, PING_INTERVAL=PING_INTERVAL
            )
            served.append(await stack.enter_async_context(app))
        yield served


async def reconnect_while_events_flow(dsn, load):
    count = len(load.clients)
    sids = {client: client.get_sid() for client in load.clients}
    async with AsyncPostgresManager(dsn, write_only=True) as manager:
        for number in range(ROUNDS):
            emits = range(number * EVENTS, (number + 1) * EVENTS)
            for i in emits:
                await manager.emit("n", i, room="all")
                if i == emits[EVENTS // 2]:
                    await asyncio.gather(*map(drop, load.clients))
            async with asyncio.timeout(PATIENCE):
                assert [await connects.get() for connects in load.connects.values()] == [True] * count
            await load.got(emits.stop)
    assert [got for got in load.numbers.values() if got != list(range(ROUNDS * EVENTS))] == []
    assert {client: client.get_sid() for client in load.clients} == sids


async def run(dsn, workers, threads, count):
    async with gunicorns(dsn, workers, threads) as served:
        load = Load()
        polling = min(count // 4, threads // 2)  # each has a request open, which takes a thread
        kinds = ["polling"] * polling + ["websocket"] * (count - polling)
        for start in range(0, count, AT_ONCE):
            together = kinds[start : start + AT_ONCE]
            await asyncio.gather(*(load.connect(served[kind == "polling"].url, kind) for kind in together))
        await reconnect_while_events_flow(dsn, load)
        for of_worker in await threads_of_workers(load.clients, workers):
            assert of_worker.pop("sio_pg loop") == of_worker.pop("MainThread") == 1
            assert of_worker.pop("sio_pg handler") <= IDLE_THREADS + 1  # one of them answers
            assert of_worker.pop("ThreadPoolExecutor") <= threads
            assert not of_worker
        sids = [client.get_sid() for client in load.clients]
        for client in load.clients:
            client.reconnection = False
        for app in served:
            assert await app.stop() == 0
            assert "SIGKILL" not in app.output() and "Traceback" not in app.output(), app.output()
        log = "".join(app.output() for app in served)
        assert [sid for sid in sids if f"the disconnect handler ran for {sid}" not in log] == []
        for client in load.clients:
            await client.shutdown()


async def test_reconnects_lose_and_double_no_event_and_leave_no_thread(pg_dsn):
    await run(pg_dsn, workers=2, threads=40, count=40)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_many_clients_and_reconnects(pg_dsn):
    await run(pg_dsn, workers=4, threads=100, count=400)
