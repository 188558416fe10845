"""Records that a node cannot read or apply, such as those of a newer version. No client misses one unnoticed."""

from __future__ import annotations

import pytest

from support.asgi_client import AsgiClient, Closed

UNKNOWN = """
    INSERT INTO sio_packets_0 ("offset", kind, namespace, room, body, parts)
    VALUES (nextval('sio_packets_offset_seq'), $1, '/', $2, '["broken",{"_placeholder":true,"num":0}]', $3)
"""


@pytest.fixture
def expected_errors() -> list[str]:
    return ["could not be applied"]


async def comes_back(node, client) -> AsgiClient:
    again = AsgiClient(node.sio)
    await again.__aenter__()
    again.sid, again.pid = await again.connect(pid=client.pid, **({"offset": client.offset} if client.offset else {}))
    return again


async def is_closed(client) -> None:
    with pytest.raises(Closed):
        while True:
            await client.event()


async def gets_a_new_session(node, client) -> AsgiClient:
    """Have the client come back until it has a new session. It never gets past the record before that."""
    for _ in range(2):
        try:
            again = await comes_back(node, client)
        except Closed:
            continue
        if again.sid != client.sid:
            return again
        await is_closed(again)
    raise AssertionError("it still has its session")


async def test_live_clients_come_back_and_those_that_were_due_the_event_get_new_sessions(start_node, db):
    node, other = await start_node(namespaces="*"), await start_node()
    async with node.client() as member, node.client() as stranger, node.client("/other") as elsewhere:
        await node.sio.enter_room(member.sid, "x")
        await other.sio.emit("e", 1)
        assert await member.event() == await stranger.event() == ["e", 1]
        await db.execute(UNKNOWN, 0, "x", b"\x00\x00\x00\x09")  # binary that ends too early
        await other.sio.emit("e", 2)
        await is_closed(member)
        await is_closed(stranger)
        again = await comes_back(node, stranger)
        assert again.sid == stranger.sid and await again.event() == ["e", 2]
        await again.drop()
        again = await gets_a_new_session(node, member)
        await node.sio.emit("e", 3)
        assert await again.event() == ["e", 3]
        await again.drop()
        await other.sio.emit("e", 4, namespace="/other")
        assert await elsewhere.event("/other") == ["e", 4]


async def test_a_client_that_is_away_and_due_the_event_gets_a_new_session(start_node, db):
    node = await start_node()
    async with node.client() as client, node.client() as stranger:
        await node.sio.enter_room(client.sid, "x")
        await client.drop()
        await stranger.drop()
        await db.execute(UNKNOWN, 0, "x", b"\x00\x00\x00\x09")
        again = await gets_a_new_session(node, client)
        await again.drop()
        again = await comes_back(node, stranger)
        assert again.sid == stranger.sid
        await again.drop()


async def test_a_record_of_an_unknown_kind_is_nobodys_event_and_sessions_go_on(start_node, db):
    node, other = await start_node(namespaces="*"), await start_node()
    async with node.client() as client:
        await db.execute(UNKNOWN, 99, "", None)
        await other.sio.emit("e", 1)
        await is_closed(client)
        again = await comes_back(node, client)
        assert again.sid == client.sid and await again.event() == ["e", 1]
        await again.drop()


async def test_an_event_whose_large_body_was_deleted_by_hand_stops_nobody(start_node, db):
    """Retention deletes an event and its body together."""
    node, other = await start_node(namespaces="*"), await start_node()
    async with node.client() as client, node.client("/other") as elsewhere:
        await client.drop()
        async with db.transaction():
            await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            await db.execute(
                'INSERT INTO sio_packets_0 ("offset", kind, namespace, room, attachment)'
                " SELECT nextval('sio_packets_offset_seq'), 0, '/', '', gen_random_uuid()"
            )
        await other.sio.emit("e", 1, namespace="/other")
        assert await elsewhere.event("/other") == ["e", 1]
        again = await gets_a_new_session(node, client)
        await again.drop()
