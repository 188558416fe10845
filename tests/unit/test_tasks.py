"""Background tasks: each has a name, its failure is logged, and it ends with its owner."""

from __future__ import annotations

import asyncio

from sio_pg_adapter.tasks import Tasks, cancelled


async def forever():
    await asyncio.Event().wait()


async def test_a_task_has_a_name_and_a_result():
    async def work():
        return 7

    task = Tasks().spawn(work(), "work")
    assert task.get_name() == "sio_pg work" and await task == 7


async def test_the_failure_of_a_task_is_logged_by_its_name(caplog):
    async def work():
        raise ValueError("broken")

    tasks = Tasks()
    task = tasks.spawn(work(), "work")
    await asyncio.wait((task,))
    await asyncio.sleep(0)
    (line,) = caplog.records
    assert line.getMessage() == "sio_pg work failed" and isinstance(line.exc_info[1], ValueError)
    await tasks.close()


async def test_all_tasks_end_with_their_owner_and_none_is_logged(caplog):
    ended = []

    async def work():
        try:
            await forever()
        finally:
            await asyncio.sleep(0)  # its end takes a while
            ended.append(asyncio.current_task())

    tasks = Tasks()
    running = [tasks.spawn(work(), "work") for _ in range(2)]
    await asyncio.sleep(0)
    await tasks.close()
    assert len(ended) == 2 and all(task.cancelled() for task in running) and caplog.records == []
    await tasks.close()


async def test_a_task_that_closes_its_owner_goes_on():
    tasks = Tasks()
    other = tasks.spawn(forever(), "other")

    async def closing():
        await tasks.close()
        return "closed"

    assert await tasks.spawn(closing(), "closing") == "closed"
    assert other.cancelled()


async def test_a_task_that_fails_while_it_is_cancelled_does_not_fail_the_close():
    async def work():
        try:
            await forever()
        finally:
            raise ValueError("broken")

    tasks = Tasks()
    tasks.spawn(work(), "work")
    await asyncio.sleep(0)
    await tasks.close()


async def test_a_cancelled_task_is_waited_for():
    task = asyncio.create_task(forever())
    await cancelled(task)
    assert task.cancelled()
    await cancelled(task)
    await cancelled(None)


async def test_a_task_after_the_end_never_begins():
    tasks, begun = Tasks(), []

    async def work():
        begun.append(True)

    await tasks.close()
    task = tasks.spawn(work(), "late")
    await asyncio.wait((task,))
    assert task.cancelled() and not begun
