"""Places are given out in order, and none is lost."""

import asyncio

import pytest

from sio_pg_adapter.store.writer import Backlog


async def holder(backlog: Backlog, name: int, took: list[int]) -> None:
    await backlog.take()
    took.append(name)


async def test_who_comes_later_waits_behind_who_was_called():
    backlog, took = Backlog(2), []
    tasks = [asyncio.create_task(holder(backlog, i, took)) for i in range(4)]
    await asyncio.sleep(0)
    assert took == [0, 1]
    backlog.leave(1)  # 2 is called, and goes on in the next turn of the loop only
    backlog.leave(1)  # 3, too
    backlog.leave(1)  # a place is free by now
    late = asyncio.create_task(holder(backlog, 4, took))
    direct = asyncio.ensure_future(holder(backlog, 5, took))
    await asyncio.gather(*tasks, late)
    assert took == [0, 1, 2, 3, 4]
    backlog.leave(1)
    await direct
    assert took[-1] == 5


async def test_a_newcomer_in_the_same_tick_does_not_overtake_who_was_called():
    backlog, took = Backlog(1), []
    await backlog.take()
    waiting = asyncio.create_task(holder(backlog, 1, took))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    newcomer: asyncio.Future[asyncio.Task[None]] = loop.create_future()
    loop.call_soon(lambda: newcomer.set_result(asyncio.create_task(holder(backlog, 2, took))))
    await asyncio.sleep(0)  # its first step comes before that of the one that is called now
    backlog.leave(2)
    async with asyncio.timeout(5):
        await waiting
        await (await newcomer)  # nobody leaves any more: it is called by the one before it
    assert took == [1, 2]


@pytest.mark.parametrize("called", [False, True])
async def test_a_place_of_one_that_was_cancelled_is_not_lost(called):
    backlog, took = Backlog(1), []
    await backlog.take()
    gone = asyncio.create_task(holder(backlog, 1, took))
    next_one = asyncio.create_task(holder(backlog, 2, took))
    await asyncio.sleep(0)
    if called:
        backlog.leave(1)
        gone.cancel()
    else:
        gone.cancel()
        await asyncio.sleep(0)
        backlog.leave(1)
    async with asyncio.timeout(5):
        await next_one
    assert took == [2]
