"""The queue of what waits to be sent: an ``asyncio.Queue`` that keeps nothing while it is empty."""

from __future__ import annotations

import asyncio
import sys

import pytest

from sio_pg_adapter.wire.outbox import Outbox


async def test_packets_come_out_in_order_and_all_are_counted():
    outbox = Outbox()
    assert outbox.empty() and not outbox.full() and outbox.waiting() == []
    outbox.put_nowait(1)
    await outbox.put(2)
    assert (outbox.qsize(), outbox.waiting()) == (2, [1, 2])
    assert (await outbox.get(), outbox.get_nowait()) == (1, 2)
    assert outbox.empty() and outbox.qsize() == 0
    with pytest.raises(asyncio.QueueEmpty):
        outbox.get_nowait()


async def test_those_who_wait_get_packets_in_their_order():
    outbox = Outbox()
    getting = [asyncio.create_task(outbox.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for packet in "abc":
        outbox.put_nowait(packet)
    assert await asyncio.gather(*getting) == ["a", "b", "c"]


async def test_a_packet_is_not_lost_with_the_one_who_waited_for_it():
    outbox = Outbox()
    first, second = (asyncio.create_task(outbox.get()) for _ in range(2))
    await asyncio.sleep(0)
    outbox.put_nowait("a")
    first.cancel()  # in the tick in which it was woken
    assert await asyncio.wait_for(second, 5) == "a"
    third = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.wait((third,))
    outbox.put_nowait("b")
    assert outbox.waiting() == ["b"]


async def test_join_waits_until_all_is_done():
    outbox = Outbox()
    await outbox.join()
    outbox.put_nowait(1)
    outbox.put_nowait(2)
    joining = [asyncio.create_task(outbox.join()) for _ in range(2)]
    outbox.get_nowait()
    outbox.task_done()
    await asyncio.sleep(0)
    assert not any(task.done() for task in joining)
    outbox.task_done()
    await asyncio.wait_for(asyncio.gather(*joining), 5)
    with pytest.raises(ValueError, match="too many times"):
        outbox.task_done()


async def test_each_packet_is_announced():
    outbox, sizes = Outbox(), []
    outbox.on_put = lambda: sizes.append(outbox.qsize())
    outbox.put_nowait(1)
    outbox.put_nowait(None)
    assert sizes == [1, 2]


async def test_an_empty_one_keeps_nothing():
    outbox = Outbox()
    getting = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.put_nowait(1)
    await getting
    outbox.task_done()
    await outbox.join()
    assert [getattr(outbox, name) for name in Outbox.__slots__] == [None, None, None, 0, None]
    assert sys.getsizeof(outbox) < 100
