"""A tick of the loop is over for every task that has waited, whatever it waited for."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.local.tick import Tick


async def nothing() -> None:
    """Awaited, and yet nobody else has run."""


async def a_done_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    await future


async def a_task() -> None:
    await asyncio.create_task(nothing())


async def a_future_that_was_due_before() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    await future


@pytest.mark.parametrize(
    ("wait", "lasts"),
    [
        (nothing, True),
        (a_done_future, True),
        (lambda: asyncio.sleep(0), False),
        (a_task, False),
        (a_future_that_was_due_before, False),
    ],
)
async def test_a_moment_lasts_until_its_task_is_suspended(wait, lasts):
    moment = Tick()
    await wait()
    assert moment.lasts is lasts


async def test_what_was_already_due_when_a_moment_began_ends_it():
    """The step of a waiter is queued when its future is set: behind the moment's end in any case."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    moment = Tick()
    await future
    assert not moment.lasts
