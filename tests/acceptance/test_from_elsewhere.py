"""What a process without clients does to those of two nodes: moves, disconnects and server events."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import psycopg
import pytest

from sio_pg_adapter import (
    AsyncPostgresManager,
    PostgresManager,
    disconnect,
    disconnect_async,
    enter_room,
    enter_room_async,
    leave_room,
    leave_room_async,
    server_side_emit,
    server_side_emit_async,
)
from support.cluster import in_room


class OfServer:
    """A node of the cluster, to compare with."""

    def __init__(self, cluster):
        self.node = cluster.a

    async def join(self, room, rooms, **skip):
        await self.node.control("sockets_join", room=room, rooms=rooms, **skip)

    async def leave(self, room, rooms, **skip):
        await self.node.control("sockets_leave", room=room, rooms=rooms, **skip)

    async def disconnect(self, room, **skip):
        await self.node.control("disconnect_sockets", room=room, **skip)


class OfManager:
    """A manager that only emits."""

    def __init__(self, cluster):
        self.dsn = cluster.dsn

    async def call(self, method, *args, **options):
        async with AsyncPostgresManager(self.dsn, write_only=True) as manager:
            await getattr(manager, method)(*args, **options)

    async def join(self, room, rooms, **skip):
        await self.call("sockets_join", room, rooms, **skip)

    async def leave(self, room, rooms, **skip):
        await self.call("sockets_leave", room, rooms, **skip)

    async def disconnect(self, room, **skip):
        await self.call("disconnect_sockets", room, **skip)

    async def server_event(self, event, *args, **options):
        await self.call("server_side_emit", event, *args, **options)


class OfTransaction(OfManager):
    """A manager that only emits, in a transaction of the application."""

    async def call(self, method, *args, **options):
        connection = await asyncpg.connect(self.dsn)
        try:
            async with AsyncPostgresManager(self.dsn, write_only=True) as manager, connection.transaction():
                await getattr(manager, method)(*args, connection=connection, **options)
        finally:
            await connection.close()


class OfThreads(OfManager):
    """A manager of synchronous code."""

    async def call(self, method, *args, **options):
        await asyncio.to_thread(self._call, method, *args, **options)

    def _call(self, method, *args, **options):
        with PostgresManager(self.dsn, write_only=True) as manager:
            getattr(manager, method)(*args, **options)


class OfSyncConnection:
    """Functions on a database connection of synchronous code."""

    def __init__(self, cluster):
        self.dsn = cluster.dsn

    async def join(self, room, target, **skip):
        with psycopg.connect(self.dsn) as connection:
            enter_room(connection, room=target, members_of=room, **skip)

    async def leave(self, room, target, **skip):
        with psycopg.connect(self.dsn) as connection:
            leave_room(connection, room=target, members_of=room, **skip)

    async def disconnect(self, room, **skip):
        with psycopg.connect(self.dsn) as connection:
            disconnect(connection, room=room, **skip)

    async def server_event(self, event, *args, **options):
        with psycopg.connect(self.dsn) as connection:
            server_side_emit(connection, event, *args, **options)


class OfAsyncConnection:
    """Functions on a database connection of asynchronous code."""

    def __init__(self, cluster):
        self.dsn = cluster.dsn

    async def run(self, function, *args, **options):
        connection = await asyncpg.connect(self.dsn)
        try:
            await function(connection, *args, **options)
        finally:
            await connection.close()

    async def join(self, room, target, **skip):
        await self.run(enter_room_async, room=target, members_of=room, **skip)

    async def leave(self, room, target, **skip):
        await self.run(leave_room_async, room=target, members_of=room, **skip)

    async def disconnect(self, room, **skip):
        await self.run(disconnect_async, room=room, **skip)

    async def server_event(self, event, *args, **options):
        await self.run(server_side_emit_async, event, *args, **options)


MOVERS = [OfServer, OfManager, OfTransaction, OfThreads, OfSyncConnection, OfAsyncConnection]
SENDERS = [OfManager, OfThreads, OfSyncConnection, OfAsyncConnection]


@pytest.mark.parametrize("mover", MOVERS)
async def test_members_move_and_go_whether_live_or_away(cluster, js, room, mover):
    """The members that ``skip_room`` names stay as they are."""
    clients = [await in_room(js, node.url, room) for node in (cluster.a, cluster.b) for _ in range(2)]
    live, away, live_muted, away_muted = clients
    sids = [(await client.state())["sid"] for client in clients]
    x, but = f"{room}-x", {"skip_room": f"{room}-muted"}
    for sid in sids[2:]:
        await cluster.a.control("enter_room", sid=sid, room=f"{room}-muted")
    for client in (away, away_muted):
        await client.away()
    change = mover(cluster)
    await change.join(room, x, **but)
    await cluster.a.emit("n", 1, room=x)
    await change.join(room, x)
    await cluster.b.emit("n", 2, room=x)
    await change.leave(room, x, **but)
    await cluster.a.emit("n", 3, room=x)
    await change.leave(room, x)
    await cluster.b.emit("n", 4, room=x)
    for client in (away, away_muted):
        assert (await client.back(url=cluster.a.url))["recovered"]
    await cluster.mark(room)
    for client, due in ((live, [1, 2]), (away, [1, 2]), (live_muted, [2, 3]), (away_muted, [2, 3])):
        assert await client.events_until("end") == [("n", [n]) for n in due]

    for client in (away, away_muted):
        await client.away()
    await change.disconnect(room, **but)
    assert (await live.wait_for("disconnect"))["reason"] == "io server disconnect"
    await cluster.mark(room)
    assert await live_muted.events_until("end") == []
    back = [await client.back(url=cluster.b.url) for client in (away, away_muted)]
    assert [message["recovered"] for message in back] == [False, True]
    assert back[0]["sid"] != sids[1] and back[1]["sid"] == sids[3]


@pytest.mark.parametrize("sender", [*SENDERS, None], ids=lambda sender: sender.__name__ if sender else "SQL")
async def test_server_events_call_the_handlers_of_their_namespace_on_both_nodes(cluster, js, room, sender):
    clients = [
        await in_room(js, node.url, room, namespace=namespace)
        for node in (cluster.a, cluster.b)
        for namespace in ("/", "/ns")
    ]
    if sender is None:
        with psycopg.connect(cluster.dsn) as connection:
            for number, namespace in enumerate(("/ns", "/")):
                args = json.dumps(["shout", room, number])
                connection.execute("SELECT sio_server_side_emit('shout', %s, namespace => %s)", (args, namespace))
    else:
        await sender(cluster).server_event("shout", "shout", room, 0, namespace="/ns")
        await sender(cluster).server_event("shout", "shout", room, 1)
    for client, number in zip(clients, (1, 0, 1, 0), strict=True):
        assert (await client.event("shouted"))["args"] == [number]
    for namespace in ("/", "/ns"):
        await cluster.mark(room, namespace=namespace)
    for client in clients:
        assert await client.events_until("end") == []
