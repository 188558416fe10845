"""What a process without clients does to all nodes: with a manager that only emits, in sync code, and in SQL."""

from __future__ import annotations

import asyncio

import asyncpg
import psycopg
import pytest

from sio_pg_adapter import (
    AsyncNamespace,
    ConfigurationError,
    NotSerializable,
    enter_room,
    leave_room,
    server_side_emit,
    server_side_emit_async,
)
from sio_pg_adapter import disconnect as disconnect_in
from support.waiting import until


async def members(db, room: str) -> set[str]:
    rows = await db.fetch(
        "SELECT sid FROM sio_rooms r JOIN sio_sessions s ON s.id = r.session WHERE room = $1 AND left_at IS NULL",
        room,
    )
    return {row["sid"] for row in rows}


async def test_a_manager_that_only_emits_moves_and_disconnects_members(start_node, start_store, db):
    a, b = await start_node(), await start_node(recovery=None)
    writer = (await start_store()).manager
    async with a.client() as one, a.client() as away, b.client() as plain, a.client() as muted:
        for wire in (one, away, muted):
            await a.sio.enter_room(wire.sid, "r")
        await b.sio.enter_room(plain.sid, "r")
        await a.sio.enter_room(muted.sid, "muted")
        await away.drop()
        await writer.sockets_join("r", ["x", "y"], skip_room="muted")
        await writer.sockets_leave("r", "y", skip_sid=one.sid)
        assert await members(db, "x") == {one.sid, away.sid}
        assert await members(db, "y") == {one.sid}
        await a.sio.emit("end", room="r")
        assert await plain.recv() == '2["end"]'
        assert set(b.sio.rooms(plain.sid)) == {plain.sid, "r", "x"}
        with pytest.raises(ValueError, match="cannot enter a sid room"):
            await writer.sockets_join("r", one.sid)
        with pytest.raises(ConfigurationError, match="rooms takes one name"):
            await writer.sockets_join("r", [])
        await writer.disconnect_sockets("x")
        assert [row["sid"] for row in await db.fetch("SELECT sid FROM sio_sessions")] == [muted.sid]
        assert await one.events_until("end") == [] and await one.recv() == "1" and await plain.recv() == "1"


async def test_members_move_in_sync_code_without_those_who_are_skipped(start_node, pg_dsn, db):
    node = await start_node()
    async with node.client() as one, node.client() as muted, node.client() as skipped:
        for wire in (one, muted, skipped):
            await node.sio.enter_room(wire.sid, "r")
        await node.sio.enter_room(muted.sid, "muted")
        but = {"skip_room": ["muted"], "skip_sid": skipped.sid}
        with psycopg.connect(pg_dsn) as connection:
            enter_room(connection, room="x", members_of="r", **but)
        assert await members(db, "x") == {one.sid}
        with psycopg.connect(pg_dsn) as connection:
            enter_room(connection, room="x", members_of="r")
            leave_room(connection, room="x", members_of="r", **but)
        assert await members(db, "x") == {muted.sid, skipped.sid}
        with psycopg.connect(pg_dsn) as connection:
            disconnect_in(connection, room="r", **but)
            with pytest.raises(ConfigurationError, match="skip_sid and skip_room together with members_of="):
                enter_room(connection, one.sid, "x", **but)
        assert await members(db, "r") == {muted.sid, skipped.sid}


def heard_by(node, event: str, namespace: str | None = None) -> list[tuple]:
    calls: list[tuple] = []
    node.sio.on_server_event(event, lambda *args: calls.append(args), namespace=namespace)
    return calls


async def test_server_events_of_processes_without_clients(start_node, start_store, pg_dsn):
    """A large one, binary, and equal ones of one transaction. A rollback takes them back."""
    nodes = [await start_node(), await start_node()]
    heard = [heard_by(node, "e") for node in nodes]
    elsewhere = heard_by(nodes[0], "e", "/chat")
    writer = (await start_store()).manager
    await writer.server_side_emit("e", 1, b"\0", {"a": "x" * 9_000})
    await until(lambda: all(map(len, heard)))
    with psycopg.connect(pg_dsn) as connection:
        server_side_emit(connection, "e", "lost")
        connection.rollback()
        server_side_emit(connection, "e", "ü", None)
        connection.execute("""SELECT sio_server_side_emit('e', '["ü", null]')""")
        connection.execute("SELECT sio_server_side_emit('e', namespace => '/chat')")
        server_side_emit(connection, "e", "x" * 9_000, b"\1\2", [b""])
    connection = await asyncpg.connect(pg_dsn)
    await server_side_emit_async(connection, "e", "end")
    await connection.close()
    await until(lambda: all(len(calls) == 5 for calls in heard))
    for calls in heard:
        assert calls[0] == (1, b"\0", {"a": "x" * 9_000})
        rest = [("ü", None), ("ü", None), ("x" * 9_000, b"\1\2", [b""]), ("end",)]
        assert sorted(map(repr, calls[1:])) == sorted(map(repr, rest))  # a large one is read apart
    assert elsewhere == [()]


async def test_server_events_have_handlers_for_each_namespace(start_node):
    a, b = await start_node(), await start_node()
    root, chat = heard_by(b, "e"), heard_by(b, "e", "/chat")

    class Chat(AsyncNamespace):
        async def tell(self, *args):
            await self.server_side_emit("e", *args)
            return await self.server_side_call("who", 1, 2, timeout=20)

    namespace = Chat("/chat")
    a.sio.register_namespace(namespace)
    b.sio.on_server_event("who", lambda *args: ["root", *args])
    b.sio.on_server_event("who", namespace="/chat")(lambda *args: ["chat", *args])
    assert await namespace.tell(1, 2, 3) == {b.manager.node.id: ["chat", 1, 2]}
    assert await a.sio.server_side_call("who", timeout=20) == {b.manager.node.id: ["root"]}
    await a.sio.server_side_emit("e", 4, namespace="/")
    await a.sio.server_side_emit("e", 5, namespace="/nobody")
    await until(lambda: root)
    assert (root, chat) == ([(4,)], [(1, 2, 3)])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("sio_server_side_emit(NULL)", "not null"),
        ("sio_server_side_emit('e', '{}')", "args is a JSON array"),
        ("sio_server_side_emit_encoded('/', '{}', NULL)", "a server event has"),
        ("sio_server_side_emit_encoded('/', NULL, NULL)", "a server event has"),
    ],
)
async def test_what_is_no_server_event_is_refused(start_store, pg_dsn, call, says):
    with psycopg.connect(pg_dsn) as connection:
        with pytest.raises(psycopg.Error, match=says):
            connection.execute(f"SELECT {call}")
        connection.rollback()
        with pytest.raises(NotSerializable, match="object"):
            server_side_emit(connection, "e", object())


async def test_a_server_event_for_sync_code_is_refused_on_a_connection_of_the_other_kind(pg_dsn):
    connection = await asyncpg.connect(pg_dsn)
    with pytest.raises(ConfigurationError, match=r"server_side_emit_async\(\)"):
        await asyncio.to_thread(server_side_emit, connection, "e")
    await connection.close()
