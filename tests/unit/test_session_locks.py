"""Locks of sessions: one block at a time for each sid, and none that a task or a thread waits for itself."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from sio_pg_adapter.local.session_locks import SessionLocks, calling_thread


async def block(locks: SessionLocks, steps: list[str], name: str, sid: str = "a", namespace: str = "/") -> None:
    async with locks.holding(namespace, sid):
        steps.append(f"{name} enters")
        await asyncio.sleep(0)
        steps.append(f"{name} leaves")


async def test_blocks_of_one_sid_take_turns():
    locks, steps = SessionLocks(), []
    await asyncio.gather(block(locks, steps, "1"), block(locks, steps, "2"))
    assert steps == ["1 enters", "1 leaves", "2 enters", "2 leaves"]


async def test_a_task_that_enters_again_waits_for_one_that_came_before():
    locks, steps = SessionLocks(), []

    async def twice() -> None:
        await block(locks, steps, "1")
        await block(locks, steps, "3")

    await asyncio.gather(twice(), block(locks, steps, "2"))
    assert steps == [f"{name} {step}" for name in "123" for step in ("enters", "leaves")]


@pytest.mark.parametrize("other", [{"sid": "b"}, {"namespace": "/chat"}])
async def test_blocks_of_other_sids_do_not_wait(other):
    locks, steps = SessionLocks(), []
    await asyncio.gather(block(locks, steps, "1"), block(locks, steps, "2", **other))
    assert steps == ["1 enters", "2 enters", "1 leaves", "2 leaves"]


async def test_a_task_does_not_wait_for_itself_and_holds_the_lock_until_its_outer_block_ends():
    locks, steps = SessionLocks(), []
    async with locks.holding("/", "a"):
        await block(locks, steps, "inner")
        other = asyncio.create_task(block(locks, steps, "other"))
        await asyncio.sleep(0)
        assert steps == ["inner enters", "inner leaves"]
    await other
    assert steps[2:] == ["other enters", "other leaves"]


async def test_a_thread_whose_calls_are_several_tasks_does_not_wait_for_itself():
    locks, steps = SessionLocks(), []
    of_the_thread = contextvars.copy_context()
    of_the_thread.run(calling_thread.set, "a thread")

    async def outer() -> None:
        async with locks.holding("/", "a"):
            await asyncio.create_task(block(locks, steps, "inner"))

    await asyncio.create_task(outer(), context=of_the_thread)
    assert steps == ["inner enters", "inner leaves"]


async def test_a_block_that_raises_lets_the_next_one_in():
    locks, steps = SessionLocks(), []
    with pytest.raises(ValueError, match="broken"):
        async with locks.holding("/", "a"):
            raise ValueError("broken")
    async with locks.holding("/", "a"):
        other = asyncio.create_task(block(locks, steps, "other"))
        await asyncio.sleep(0)
        assert steps == []
    await other
    assert not locks._locks
