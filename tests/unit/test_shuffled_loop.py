"""The event loop that puts off what is ready: it finds a race, keeps what asyncio guarantees, and repeats a seed."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sio_pg_adapter.local.tick import Tick
from support.shuffled_loop import Schedule, ShuffledLoop, shrink


def run(main, schedule: Schedule):
    with asyncio.Runner(loop_factory=ShuffledLoop) as runner:

        async def followed():
            with runner.get_loop().following(schedule):
                return await main()

        return runner.run(followed())


async def lost_update() -> int:
    """In asyncio's order both tasks take one step at a time, and the first one writes before the second one reads."""
    value = 0

    async def early() -> None:
        nonlocal value
        before = value
        await asyncio.sleep(0)
        value = before + 1

    async def late() -> None:
        nonlocal value
        for _ in range(3):
            await asyncio.sleep(0)
        before = value
        await asyncio.sleep(0)
        value = before + 1

    await asyncio.gather(early(), late())
    return value


def test_a_race_is_found_and_shrunk_to_the_choice_that_it_needs():
    assert run(lost_update, Schedule(0, only=())) == 2
    failing = next(s for seed in range(100) if run(lost_update, s := Schedule(seed)) != 2)
    small = shrink(failing, lambda candidate: run(lost_update, candidate) != 2)
    again = Schedule(failing.seed, small.choices)
    assert run(lost_update, again) == 1
    assert 0 < len(again.choices) <= len(failing.choices)
    for name in again.choices:
        assert run(lost_update, Schedule(failing.seed, again.choices.keys() - {name})) == 2


async def order_of_tasks() -> list[str]:
    order = []

    async def steps(name: str) -> None:
        for i in range(5):
            order.append(f"{name}{i}")
            await asyncio.sleep(0)

    await asyncio.gather(steps("a"), steps("b"), steps("c"))
    return order


def test_a_seed_repeats_its_order():
    orders = [run(order_of_tasks, Schedule(seed)) for seed in range(20)]
    assert orders == [run(order_of_tasks, Schedule(seed)) for seed in range(20)]
    assert len({tuple(order) for order in orders}) > 10


@pytest.mark.parametrize("seed", range(20))
def test_a_task_goes_on_after_what_it_scheduled(seed: int):
    async def main() -> None:
        async def waits() -> None:
            for _ in range(10):
                order: list[int] = []
                tick = Tick()
                for i in range(3):
                    asyncio.get_running_loop().call_soon(order.append, i)
                await asyncio.sleep(0)
                assert not tick.lasts
                assert order == [0, 1, 2]

        await asyncio.gather(waits(), waits(), waits())

    run(main, Schedule(seed))


@pytest.mark.parametrize("seed", range(10))
def test_the_bytes_of_a_connection_stay_in_order(seed: int):
    async def main() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        theirs_reader, theirs_writer = await asyncio.open_connection(sock=theirs)

        async def echo() -> None:
            while line := await theirs_reader.readline():
                theirs_writer.write(line)
            theirs_writer.close()
            await theirs_writer.wait_closed()

        echoing = asyncio.create_task(echo())
        for i in range(50):
            writer.write(b"%d\n" % i)
            if i % 7 == 0:
                await asyncio.sleep(0)
        assert [int(await reader.readline()) for _ in range(50)] == list(range(50))
        writer.close()
        await writer.wait_closed()
        await echoing

    run(main, Schedule(seed))


def test_timers_and_threads_are_served_while_callbacks_are_put_off():
    async def main() -> str:
        async with asyncio.timeout(20):
            await asyncio.sleep(0.01)
            return await asyncio.to_thread(lambda: "done")

    assert all(run(main, Schedule(seed)) == "done" for seed in range(10))
