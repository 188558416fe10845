"""``skip_room``: members of the room do not get the event, whatever emits it, neither live nor in a replay."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import psycopg
import pytest

from sio_pg_adapter import AsyncPostgresManager, PostgresManager, cli, emit, emit_async
from support.cluster import in_room

EVENT = "message"  # the event that `send` sends


async def by_server(cluster, value, options):
    await cluster.a.emit(EVENT, value, **options)


async def by_send(cluster, value, options):
    await cluster.a.control("send", data=value, **options)


async def by_the_servers_manager(cluster, value, options):
    await cluster.a.emit(EVENT, value, by="manager", **options)


async def by_class_based_namespace(cluster, value, options):
    await cluster.a.emit(EVENT, value, by="namespace", **options)


async def by_write_only_manager(cluster, value, options):
    async with AsyncPostgresManager(cluster.dsn, write_only=True) as manager:
        await manager.emit(EVENT, value, **options)


async def by_write_only_manager_in_a_transaction(cluster, value, options):
    connection = await asyncpg.connect(cluster.dsn)
    try:
        async with AsyncPostgresManager(cluster.dsn, write_only=True) as manager, connection.transaction():
            await manager.emit(EVENT, value, connection=connection, **options)
    finally:
        await connection.close()


def _in_a_thread(dsn, value, options):
    with PostgresManager(dsn, write_only=True) as manager:
        manager.emit(EVENT, value, **options)


async def by_write_only_manager_of_threads(cluster, value, options):
    await asyncio.to_thread(_in_a_thread, cluster.dsn, value, options)


async def by_emit(cluster, value, options):
    with psycopg.connect(cluster.dsn) as connection:
        emit(connection, EVENT, value, **options)


async def by_emit_async(cluster, value, options):
    connection = await asyncpg.connect(cluster.dsn)
    try:
        await emit_async(connection, EVENT, value, **options)
    finally:
        await connection.close()


async def by_sql(cluster, value, options):
    with psycopg.connect(cluster.dsn) as connection:
        connection.execute(
            "SELECT sio_emit(%s, %s, room => %s, skip_rooms => %s)",
            (EVENT, json.dumps(value), options["room"], [options["skip_room"]]),
        )


async def by_command(cluster, value, options):
    names = ["--room", options["room"], "--skip-room", options["skip_room"]]
    assert await asyncio.to_thread(cli.main, ["emit", "--dsn", cluster.dsn, *names, EVENT, str(value)]) == 0


WAYS = [
    by_server,
    by_send,
    by_the_servers_manager,
    by_class_based_namespace,
    by_write_only_manager,
    by_write_only_manager_in_a_transaction,
    by_write_only_manager_of_threads,
    by_emit,
    by_emit_async,
    by_sql,
    by_command,
]


@pytest.mark.parametrize("way", WAYS)
async def test_members_of_the_room_get_the_event_neither_live_nor_on_another_node(cluster, js, room, way):
    client, witness = await in_room(js, cluster.a.url, room), await in_room(js, cluster.b.url, room)
    sid, muted = (await client.state())["sid"], f"{room}-muted"
    options = {"room": room, "skip_room": muted}
    await cluster.b.control("enter_room", sid=sid, room=muted)
    await way(cluster, 1, options)
    await cluster.mark(room, "seen")
    assert await client.events_until("seen") == []
    await client.away()
    await way(cluster, 2, options)
    await cluster.b.control("leave_room", sid=sid, room=muted)
    await way(cluster, 3, options)
    back = await client.back(url=cluster.b.url)
    assert back["recovered"] and back["sid"] == sid
    await cluster.a.control("enter_room", sid=sid, room=muted)
    await way(cluster, 4, options)
    await cluster.mark(room)
    assert await client.events_until("end") == [(EVENT, [3])]
    assert await witness.events_until("end") == [
        (EVENT, [1]),
        ("seen", []),
        *((EVENT, [n]) for n in (2, 3, 4)),
    ]


async def test_members_of_the_room_are_not_asked_before_and_after_a_recovery(cluster, js, room):
    client, witness = await in_room(js, cluster.a.url, room), await in_room(js, cluster.b.url, room)
    sids = [(await one.state())["sid"] for one in (client, witness)]
    await cluster.b.control("enter_room", sid=sids[0], room=f"{room}-muted")
    call = {"event": "q", "data": 1, "room": room, "skip_room": f"{room}-muted"}
    assert (await cluster.b.control("broadcast_call", **call))["answers"] == {sids[1]: 1}
    assert (await client.rejoin(url=cluster.b.url))["recovered"]
    for node in (cluster.a, cluster.b):
        assert (await node.control("broadcast_call", **call))["answers"] == {sids[1]: 1}
    await cluster.a.control("leave_room", sid=sids[0], room=f"{room}-muted")
    assert (await cluster.a.control("broadcast_call", **call))["answers"] == dict.fromkeys(sids, 1)
    assert (await client.event("q"))["args"] == [1]
    assert not [message for message in client.inbox if message["type"] == "event"]
