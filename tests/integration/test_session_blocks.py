"""``async with sio.session(sid)``: no change undoes another one in silence."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter import SessionConflict

KINDS = {"recoverable": True, "in memory": False}


@pytest.mark.parametrize("recovery", KINDS.values(), ids=KINDS)
async def test_blocks_of_one_sid_run_one_after_another(start_node, recovery):
    node = await start_node(recovery=recovery)
    async with node.client() as wire, node.client() as other:

        async def add(sid):
            async with node.sio.session(sid) as session:
                count = session.get("count", 0)
                await asyncio.sleep(0)
                session["count"] = count + 1

        await asyncio.gather(*(add(client.sid) for client in (wire, other) for _ in range(10)))
        for client in (wire, other):
            assert (await node.sio.get_session(client.sid))["count"] == 10


async def test_a_change_of_another_node_is_not_undone(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        with pytest.raises(SessionConflict, match=f"session of {wire.sid}.* was changed elsewhere"):
            async with b.sio.session(wire.sid) as session:
                session["of"] = "b"
                async with a.sio.session(wire.sid) as theirs:
                    theirs["of"] = "a"
        assert await b.sio.get_session(wire.sid) == {"of": "a"}
        async with b.sio.session(wire.sid) as session:
            session["also"] = "b"
        assert await a.sio.get_session(wire.sid) == {"of": "a", "also": "b"}


async def test_a_block_in_a_block_does_not_wait_for_itself(start_node):
    node = await start_node()
    async with node.client() as wire:
        async with node.sio.session(wire.sid) as outer, node.sio.session(wire.sid) as inner:
            inner["n"] = 1
        assert outer == {} and await node.sio.get_session(wire.sid) == {"n": 1}
        with pytest.raises(SessionConflict):
            async with node.sio.session(wire.sid) as outer:
                outer["n"] = 2
                await node.sio.save_session(wire.sid, {"n": 3})
        assert await node.sio.get_session(wire.sid) == {"n": 3}


async def test_a_block_that_changes_nothing_saves_nothing(start_node):
    node = await start_node()
    async with node.client() as wire:
        async with node.sio.session(wire.sid) as session:
            await node.sio.save_session(wire.sid, {"n": 1})
        assert session == {} and await node.sio.get_session(wire.sid) == {"n": 1}


async def test_what_was_changed_before_an_exception_is_saved_as_in_python_socketio(start_node):
    node = await start_node()
    async with node.client() as wire:
        with pytest.raises(LookupError):
            async with node.sio.session(wire.sid) as session:
                session["n"] = 1
                raise LookupError
        assert await node.sio.get_session(wire.sid) == {"n": 1}
        with pytest.raises(KeyError):
            async with node.sio.session("nobody"):
                pass


async def test_a_session_that_is_away(start_node):
    node = await start_node()
    async with node.client() as wire:
        await wire.drop()
        async with node.sio.session(wire.sid) as session:
            session["n"] = 1
        async with node.client(pid=wire.pid) as back:
            assert back.sid == wire.sid and await node.sio.get_session(back.sid) == {"n": 1}
