"""Background tasks: each has a name, its failure is logged, and it ends with its owner."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from sio_pg_adapter.tasks import Begun, Tasks, cancelled


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


# -- a coroutine that begins before its task ---------------------------------------------------------------------
WHO = contextvars.ContextVar("who", default="nobody")


def begin(work):
    """Begin a coroutine, and make the task that awaits it. That has not run yet."""
    context = contextvars.copy_context()
    context.run(WHO.set, "task")
    begun = Begun(work, context)

    async def go_on():
        await begun

    return asyncio.create_task(go_on(), context=context)


async def test_a_coroutine_runs_to_its_first_wait_at_once_and_then_in_its_task():
    answers, seen = [asyncio.get_running_loop().create_future() for _ in range(2)], []

    async def work():
        for answer in answers:
            seen.append((WHO.get(), asyncio.current_task()))
            seen.append(await answer)
        seen.append((WHO.get(), asyncio.current_task()))

    task = begin(work())
    assert seen == [("task", asyncio.current_task())]
    answers[0].set_result("first")
    answers[1].set_result("second")
    await task
    assert seen[1:] == ["first", ("task", task), "second", ("task", task)]


async def test_a_coroutine_that_waits_for_nothing_is_done_before_its_task():
    seen = []

    async def work():
        seen.append(WHO.get())

    task = begin(work())
    assert seen == ["task"]
    await task


@pytest.mark.parametrize("waits", [False, True])
async def test_the_error_of_a_coroutine_that_has_begun_is_raised_in_its_task(waits):
    async def work():
        if waits:
            await asyncio.sleep(0)
        raise ValueError("broken")

    task = begin(work())
    with pytest.raises(ValueError, match="broken"):
        await task


async def test_the_cancellation_of_its_task_ends_what_a_coroutine_waits_for_and_that_of_the_caller_does_not():
    answer, ended = asyncio.get_running_loop().create_future(), []

    async def work():
        try:
            await answer
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # what it does at its end may wait, too
            ended.append(True)
            raise

    going = []

    async def call():
        going.append(begin(work()))
        await asyncio.Event().wait()

    caller = asyncio.create_task(call())
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait((caller,))
    assert not answer.cancelled() and not ended
    going[0].cancel()
    await asyncio.wait(going)
    assert going[0].cancelled() and answer.cancelled() and ended


async def test_a_coroutine_that_is_closed_ends_where_it_waits():
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    Begun(work(), contextvars.copy_context()).close()
    assert ended
