"""Bob's token with Alice's pid: he gets a session of his own, and she notices nothing."""

from __future__ import annotations

import pytest

from support.js_driver import VERSIONS
from support.raw_client import RawClient

CLUSTER = {"identity": True}
each_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.mark.parametrize("alice_is", ["connected", "away"])
@pytest.mark.parametrize("token", ["bob", None])
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_bobs_token_with_alices_pid(cluster, room, transport, token, alice_is):
    a, b = cluster.a, cluster.b
    async with RawClient(a.url, transport) as alice:
        sid, pid = await alice.open_namespace(token="alice", rooms=[room])
        await a.emit("seen", room=room)
        _, offset = await alice.event()
        if alice_is == "away":
            await alice.close()
            await a.logged(hook="disconnect", sid=sid)
        auth = {"pid": pid, "offset": offset, **({"token": token} if token else {})}
        async with RawClient(b.url, transport) as bob:
            bobs = await bob.open_namespace(**auth)
            assert sid != bobs[0] and pid != bobs[1]
            await b.emit("secret", room=room)
            await cluster.mark(bobs[0])
            assert await bob.recv_until_event("end") == []
        (connected,) = await b.logged(hook="connect", sid=bobs[0])
        assert connected["rooms"] == [bobs[0]] and not connected["recovered"]
        if alice_is == "connected":
            assert (await alice.event())[0] == ["secret"]
            return
    async with RawClient(b.url, transport) as back:
        assert await back.open_namespace(pid=pid, offset=offset, token="alice") == (sid, pid)
        assert (await back.event())[0] == ["secret"]


@each_version
async def test_the_same_user_recovers_at_another_node(cluster, js, room, version):
    client = await js.connect(cluster.a.url, version=version, auth={"token": "alice", "rooms": [room]})
    first = await client.state()
    await client.away()
    back = await client.back(cluster.b.url)
    assert back["recovered"] and back["sid"] == first["sid"]
