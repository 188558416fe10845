"""Cases 26, 81, 82 and 113: nodes that stop in order, are killed, or stand still."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from support.cluster import in_room
from support.node_process import NodeProcess
from support.raw_client import RawClient

MANY = 200


async def emit_until(stop: asyncio.Event, node, room: str) -> int:
    """Emit numbered events from a node that stays, until the test stops it. Return how many."""
    sent = 0
    while not stop.is_set():
        sent += 1
        await node.emit("n", ("A", sent), room=room)
    return sent


async def join_many(js, urls: list[str], room: str, count: int):
    clients = [await js.create(urls[i % len(urls)], count=True, auth={"rooms": [room]}) for i in range(count)]
    for client in clients:
        await client.do("connect")
    first = [await client.connected() for client in clients]
    return clients, first


async def check_all(cluster, js_clients, first, room: str, sent: int, node) -> None:
    await node.emit("end", room=room)
    for client, was in zip(js_clients, first, strict=True):
        await client.event("end")
        stats = await client.stats(A=sent)
        assert not any(stats[k] for k in ("missing", "duplicated", "inverted", "repeated_offsets")), stats
        state = await client.state()
        assert state["recovered"] and state["sid"] == was["sid"]


@pytest.mark.parametrize("how", ["terminate", "kill"])
async def test_cases_26_81_82_a_node_of_200_clients_goes(make_cluster, js, how):
    """SIGTERM, as an ASGI server is shut down, or SIGKILL; the clients go on at the other node."""
    cluster = make_cluster(2)
    clients, first = await join_many(js, [cluster.a.url], "r", MANY)
    stop = asyncio.Event()
    emitting = asyncio.create_task(emit_until(stop, cluster.b, "r"))
    for client in clients:
        await client.move_to(cluster.b.url)  # where a load balancer sends them
    await asyncio.to_thread(getattr(cluster.a, how))
    for client in clients:
        reason = (await client.wait_for("disconnect"))["reason"]
        assert reason in ("transport close", "transport error")  # not DISCONNECT: they come back by themselves
        assert (await client.connected(60))["recovered"]
    stop.set()
    await check_all(cluster, clients, first, "r", await emitting, cluster.b)
    with psycopg.connect(cluster.dsn) as connection:
        held = connection.execute("SELECT count(*), count(node) FROM sio_sessions").fetchone()
    assert held == (MANY, MANY)


async def test_case_81_three_nodes_are_rolled(make_cluster, js):
    cluster = make_cluster(3)
    clients, first = await join_many(js, [n.url for n in cluster.nodes], "r", 30)
    emitter = NodeProcess(cluster.dsn).start()
    cluster.nodes.append(emitter)
    stop = asyncio.Event()
    emitting = asyncio.create_task(emit_until(stop, emitter, "r"))
    for i in range(3):
        former = cluster.nodes[i]
        config = {k: v for k, v in former.config.items() if k not in ("dsn", "port")}
        stderr = await asyncio.to_thread(former.terminate)
        assert "Traceback" not in stderr, stderr
        cluster.nodes[i] = await asyncio.to_thread(NodeProcess(cluster.dsn, port=former.port, **config).start)
        for client in clients[i::3]:
            assert (await client.connected(60))["recovered"]
    stop.set()
    await check_all(cluster, clients, first, "r", await emitting, emitter)


async def test_case_82_killed_with_the_last_moves_and_data_just_returned(make_cluster, js):
    cluster = make_cluster(2)
    clients = [await in_room(js, cluster.a.url, "r") for _ in range(20)]
    await cluster.b.emit("seen", room="r")
    sids = []
    for client in clients:
        await client.event("seen")
        sids.append((await client.state())["sid"])
        await client.move_to(cluster.b.url)
    for i, sid in enumerate(sids):
        assert await clients[i].call("join", f"own-{i}") == "joined"
        assert await clients[i].call("leave", "r") == "left"
        await cluster.a.control("save_session", sid=sid, session={"i": i})
    await asyncio.to_thread(cluster.a.kill)
    for client in clients:
        await client.wait_for("disconnect")
    for i, (client, sid) in enumerate(zip(clients, sids, strict=True)):
        back = await client.connected(60)
        assert back["recovered"] and back["sid"] == sid
        note = (await cluster.b.logged(hook="connect", sid=sid))[0]
        # "r" is entered again by the connect handler, after this was noted
        assert note["rooms"] == sorted([sid, f"own-{i}"]) and note["session"] == {"i": i}


async def test_case_113_a_node_that_was_called_dead_while_it_stood_still(make_cluster):
    cluster = make_cluster(2)
    async with (
        RawClient(cluster.a.url) as moved,
        RawClient(cluster.a.url) as ended,
        RawClient(cluster.a.url) as stays,
    ):
        sid, pid = await moved.open_namespace()
        await ended.open_namespace()
        kept, _ = await stays.open_namespace()
        with psycopg.connect(cluster.dsn, autocommit=True) as db:
            cluster.a.pause()
            try:
                # what the machine's end does: its backends go, and with the one that listens the lock
                db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks l, sio_nodes n"
                    " WHERE locktype = 'advisory' AND l.objid = n.number::bigint::oid"
                    " AND n.id = (SELECT node FROM sio_sessions WHERE sid = %s)",
                    [sid],
                )
                db.execute(
                    "UPDATE sio_nodes n SET missed_at = clock_timestamp(), died_at = clock_timestamp()"
                    " WHERE n.id = (SELECT node FROM sio_sessions WHERE sid = %s)",
                    [sid],
                )
                db.execute("DELETE FROM sio_sessions WHERE sid NOT IN (%s, %s)", [sid, kept])
                async with RawClient(cluster.b.url) as again:
                    assert await again.open_namespace(pid=pid) == (sid, pid)
                    cluster.a.resume()
                    assert await moved.recv_closed() == await ended.recv_closed() == []
                    assert await cluster.a.control("participants") == [kept]
                    await cluster.b.emit("e")
                    assert (await again.event())[0] == (await stays.event())[0] == ["e"]
            finally:
                cluster.a.resume()
