"""The other promises of the README. A silent peer is found, a client that takes nothing is disconnected, and idle
nodes write nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Self

import pytest
from psycopg.conninfo import conninfo_to_dict

from sio_pg_adapter.server.replay import Replay
from support.waiting import until


class Wall:
    """A relay before PostgreSQL that can turn into a wall: it takes what comes, and neither answers nor closes."""

    def __init__(self, dsn: str) -> None:
        self._at = conninfo_to_dict(dsn)
        self._passes = asyncio.Event()
        self._passes.set()
        self._pumps: list[asyncio.Task[None]] = []
        self._ends: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = f"postgresql://{self._at['user']}@127.0.0.1:{port}/{self._at['dbname']}?sslmode=disable"
        if "password" in self._at:
            self.dsn += f"&password={self._at['password']}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        for end in self._ends:
            end.close()
        await asyncio.gather(*self._pumps, *(end.wait_closed() for end in self._ends), return_exceptions=True)

    def shut(self) -> None:
        """For the connections that there are; new ones go through."""
        self._passes.clear()
        self._passes = asyncio.Event()
        self._passes.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port, passes = self._at["host"], self._at.get("port", 5432), self._passes
        if host.startswith("/"):
            there, here = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there, here = await asyncio.open_connection(host, port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    await passes.wait()
                    sink.write(data)
                    await sink.drain()
            sink.close()

        self._ends += [here, writer]
        self._pumps += [asyncio.create_task(pump(reader, here)), asyncio.create_task(pump(there, writer))]


async def test_case_85_a_listener_whose_peer_fell_silent_is_found_by_the_probe(start_node, pg_dsn, monkeypatch):
    """No FIN, no RST: 15 s until the probe and 5 s for its answer, here a hundredth of it."""
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_INTERVAL", 0.15)
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_TIMEOUT", 0.05)
    a = await start_node()
    async with Wall(pg_dsn) as wall:
        b = await start_node(manager={"listen_dsn": wall.dsn})
        async with b.client() as wire:
            await a.sio.emit("e", 0)
            assert await wire.event() == ["e", 0]
            wall.shut()
            for i in range(1, 50):
                await a.sio.emit("e", i)
            assert [await wire.event() for _ in range(1, 50)] == [["e", i] for i in range(1, 50)]
            assert b.manager.node.listener.reconnects > 0
        await b.sio.shutdown()


async def test_a_client_over_max_queued_packets_is_cut_and_recovers_what_it_missed(start_node):
    node = await start_node(manager={"max_queued_packets": 20})
    async with node.client() as slow, node.client() as quick:
        slow.stall()
        for i in range(50):
            await node.sio.emit("e", i)
            assert await quick.event() == ["e", i]
        await until(lambda: node.manager.clients.current(slow.sid, "/") is None)
        slow.flow()
        await slow.drop()
        events = [json.loads(frame[1:]) for frame in slow.waiting() if frame]  # but for the close
        seen = [value for _, value, _ in events]
        offset = {"offset": events[-1][-1]} if events else {}
        async with node.client(pid=slow.pid, **offset) as again:
            assert again.sid == slow.sid
            await node.sio.emit("end")
            assert [*seen, *(value for _, value in await again.events_until("end"))] == list(range(50))


async def test_a_client_that_many_records_of_one_tick_find_too_slow_is_cut_once(start_node, caplog):
    node = await start_node(manager={"max_queued_packets": 20})
    async with node.client() as slow:
        slow.stall()
        await asyncio.gather(*(node.sio.emit("e") for _ in range(60)))
        await until(lambda: node.manager.clients.current(slow.sid, "/") is None)
        slow.flow()
        await slow.drop()
    assert sum("a client was disconnected" in record.getMessage() for record in caplog.records) == 1


async def test_a_client_over_max_queued_bytes_is_cut(start_node):
    node = await start_node(manager={"max_queued_bytes": 10_000})
    async with node.client() as slow:
        slow.stall()
        for _ in range(5):
            await node.sio.emit("e", "x" * 5_000)
        await until(lambda: node.manager.clients.current(slow.sid, "/") is None)
        slow.flow()
        await slow.drop()


async def test_idle_nodes_write_nothing(start_node, db, pg_admin, monkeypatch):
    """With a client connected, through many probes and looks of the pruner: not a byte of WAL of theirs, and not a
    connection of the pool, which would be three transactions more than a look is."""
    monkeypatch.setattr("sio_pg_adapter.store.listener.PROBE_INTERVAL", 0.01)
    monkeypatch.setattr("sio_pg_adapter.store.pruner.INTERVAL", 0.01)
    nodes = [await start_node() for _ in range(2)]
    looks, taken = [], []
    for node in nodes:
        due, acquire = node.manager.node.pruner._due, node.manager.database.acquire
        monkeypatch.setattr(node.manager.node.pruner, "_due", lambda due=due: looks.append(1) or due())
        take = lambda what="", acquire=acquire: taken.append(what) or acquire(what)  # noqa: E731
        monkeypatch.setattr(node.manager.database, "acquire", take)
    async with nodes[0].client() as wire:
        await nodes[1].sio.emit("e")
        assert await wire.event() == ["e"]
        for _ in range(10):  # PostgreSQL itself writes now and then: a snapshot, a hint, a vacuum
            await asyncio.to_thread(pg_admin.execute, "CHECKPOINT")
            taken.clear()
            seen, before = len(looks), await db.fetchval("SELECT pg_current_wal_insert_lsn()")
            await until(lambda seen=seen: len(looks) > seen + 20)
            written = await db.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before)
            if not written:
                break
        assert written == 0 and not taken


async def test_an_unstored_event_is_dropped_for_a_client_that_does_not_take_it(start_node):
    node = await start_node(manager={"max_queued_packets": 20})
    async with node.client() as slow, node.client() as quick:
        slow.stall()
        for i in range(60):
            await node.sio.emit("v", i, volatile=True)
            assert await quick.recv() == f'2["v",{i}]'
        client = node.manager.clients.current(slow.sid, "/")
        assert client.connection.socket.queue.qsize() <= 22
        slow.flow()
        assert await slow.recv() == '2["v",0]'
        await node.sio.emit("end")
        while not (await slow.recv()).startswith('2["end"'):
            pass


@pytest.mark.parametrize("replaying", [False, True])
async def test_a_client_that_does_not_take_its_acknowledgements_is_cut(start_node, monkeypatch, replaying):
    node = await start_node(manager={"max_queued_packets": 20}, async_handlers=False)

    @node.sio.event
    async def ask(sid):
        return "answer"

    if replaying:
        monkeypatch.setattr(Replay, "_finish", lambda *_: False)
        monkeypatch.setattr(Replay, "_taken", lambda *_: asyncio.Event().wait())
    async with node.client() as slow:
        client = node.manager.clients.current(slow.sid, "/")
        slow.stall()
        for i in range(60):
            slow.send(f'2{i}["ask"]')
        await until(lambda: node.manager.clients.current(slow.sid, "/") is None)
        assert len(client._waiting) + client.connection.socket.queue.qsize() < 30
        slow.flow()
