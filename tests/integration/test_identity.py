"""Whose session it is: a pid alone is not enough where the application names identities."""

from __future__ import annotations

import logging

import pytest

from sio_pg_adapter import ConnectionStateRecovery
from support.asgi_client import AsgiClient, Closed


def by_token(environ, auth):
    return (auth or {}).get("token")


RECOVERY = ConnectionStateRecovery(identity=by_token)


@pytest.fixture
async def two_nodes(start_node):
    return await start_node(recovery=RECOVERY), await start_node(recovery=RECOVERY)


def calls_of(node) -> list[tuple[str, str]]:
    """Note the sids that the handlers of a node are called with, from here on."""
    calls: list[tuple[str, str]] = []

    @node.sio.event
    async def connect(sid, environ, auth):
        calls.append(("connect", sid))

    @node.sio.event
    async def disconnect(sid, reason):
        calls.append(("disconnect", sid))

    return calls


@pytest.mark.parametrize("always_connect", [False, True])
async def test_the_same_identity_recovers(start_node, db, always_connect):
    node = await start_node(recovery=RECOVERY, always_connect=always_connect)
    async with node.client(token="alice") as alice:
        await alice.drop()
        assert await db.fetchval("SELECT identity FROM sio_sessions") == "alice"
        await node.sio.emit("missed")
        async with node.client(token="alice", pid=alice.pid) as back:
            assert back.sid == alice.sid
            assert await back.event() == ["missed"]


@pytest.mark.parametrize(("owner", "other"), [("alice", "bob"), ("alice", None), (None, "bob"), ("", None)])
async def test_another_identity_gets_a_new_session(two_nodes, db, owner, other):
    a, b = two_nodes
    async with a.client(token=owner) as old:
        await old.drop()
        await a.sio.emit("missed", to=old.sid)
        before = await db.fetchrow("SELECT * FROM sio_sessions WHERE sid = $1", old.sid)
        calls = calls_of(b)
        async with b.client(token=other, pid=old.pid) as thief:
            assert thief.sid != old.sid and thief.pid != old.pid
            assert not b.sio.recovered(thief.sid)
            assert await db.fetchrow("SELECT * FROM sio_sessions WHERE sid = $1", old.sid) == before
            await b.sio.emit("end")
            assert await thief.events_until("end") == []
        assert {sid for _, sid in calls} == {thief.sid}
        async with b.client(token=owner, pid=old.pid) as back:
            assert back.sid == old.sid
            assert await back.events_until("end") == [["missed"]]


async def test_a_connection_that_holds_the_session_stays(two_nodes, db):
    a, b = two_nodes
    calls = calls_of(a)
    async with a.client(token="alice") as alice:
        before = await db.fetchrow("SELECT * FROM sio_sessions")
        async with b.client(token="bob", pid=alice.pid) as bob:
            assert bob.sid != alice.sid
        await a.sio.emit("still here", to=alice.sid)
        assert await alice.event() == ["still here"]
        assert await db.fetchrow("SELECT * FROM sio_sessions WHERE sid = $1", alice.sid) == before
        assert calls == [("connect", alice.sid)]


async def test_it_is_asked_without_pid_and_offset_and_before_the_handlers(start_node):
    seen = []

    def identity(environ, auth):
        seen.append((environ["PATH_INFO"], auth))

    node = await start_node(recovery={"identity": identity})
    async with node.client(pid="p" * 32, offset="o" * 22):
        pass
    assert seen == [("/socket.io/", None)]


@pytest.mark.parametrize(
    ("returned", "message"),
    [(7, "identity returned a int"), (b"alice", "identity returned a bytes"), ("a\0", "identity has a NUL")],
)
async def test_what_is_no_identity_closes_the_connection(start_node, db, caplog, returned, message):
    node = await start_node(recovery={"identity": lambda *_: returned})
    calls = calls_of(node)
    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        with pytest.raises(Closed):
            await wire.recv()
    assert message in caplog.text and calls == []
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_a_lambda_that_returns_a_coroutine_is_named(start_node, caplog):
    async def asynchronous():
        return "alice"

    node = await start_node(recovery={"identity": lambda *_: asynchronous()})
    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert await wire.rest() == []
    assert "identity returned a coroutine" in caplog.text


async def test_an_exception_closes_the_connection(start_node, caplog, expected_errors):
    expected_errors.append("a connection is closed")

    def identity(environ, auth):
        raise LookupError("the key of the tokens")

    node = await start_node(recovery={"identity": identity})
    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        assert await wire.rest() == []
    (error,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert error.exc_info is not None and "the key of the tokens" in caplog.text
