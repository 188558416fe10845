"""The threads of handlers, and what happens if one of them is ended from outside."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading

import pytest

from sio_pg_adapter.sync import handlers
from sio_pg_adapter.sync.handlers import HandlerEnded, HandlerThreads


@pytest.fixture
async def threads():
    threads = HandlerThreads(asyncio.get_running_loop())
    yield threads
    threads.close()


class Busy:
    """A handler that waits, and returns its thread once it may go on."""

    def __init__(self):
        self._begun, self.go_on = threading.Event(), threading.Event()

    async def run(self, threads):
        """Run it, and return the task that awaits it as soon as it waits."""
        task = asyncio.create_task(threads.run(self._wait))
        await asyncio.to_thread(self._begun.wait)
        return task

    def _wait(self):
        self._begun.set()
        self.go_on.wait()
        return threading.current_thread()


@contextlib.contextmanager
def no_more_threads():
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        yield


def end(thread):
    """Raise SystemExit in a thread, as a debugger or a time limit does."""
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1


async def test_a_thread_serves_one_handler_after_the_other(threads):
    assert await threads.run(threading.current_thread) is await threads.run(threading.current_thread)


async def test_handlers_do_not_wait_for_each_other(threads):
    together = threading.Barrier(40)
    assert sorted(await asyncio.gather(*(threads.run(together.wait) for _ in range(40)))) == list(range(40))


async def test_idle_threads_are_kept_up_to_a_limit(threads, monkeypatch):
    monkeypatch.setattr(handlers, "IDLE_THREADS", 2)
    together = threading.Barrier(5)

    def meet():
        together.wait()
        return threading.current_thread()

    met = await asyncio.gather(*(threads.run(meet) for _ in range(5)))
    for thread in set(met) - set(threads._idle):
        await asyncio.to_thread(thread.join)
    assert len(threads._idle) == sum(thread.is_alive() for thread in met) == 2


@pytest.mark.parametrize("times", [1, 3])
async def test_work_of_an_idle_thread_that_is_ended_gets_another(threads, times):
    for _ in range(times):
        thread = await threads.run(threading.current_thread)
        end(thread)  # it sees that when it gets its next work
        assert await asyncio.wait_for(threads.run(lambda: "done"), 10) == "done"
        await asyncio.to_thread(thread.join)
    assert len(threads._threads) == 1


async def test_a_handler_whose_thread_is_ended_fails_and_others_go_on(threads):
    [thread] = threads._threads
    busy = Busy()
    waiting = await busy.run(threads)
    end(thread)
    busy.go_on.set()
    with pytest.raises(HandlerEnded):
        await waiting
    assert await threads.run(lambda: 1) == 1


async def test_without_more_threads_handlers_take_turns(threads):
    busy = Busy()
    first = await busy.run(threads)
    with no_more_threads():
        others = [asyncio.create_task(threads.run(threading.current_thread)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in others)
        busy.go_on.set()
        assert {await first} == {await task for task in others}


async def test_waiting_work_survives_the_end_of_the_only_thread(threads):
    [thread] = threads._threads
    busy = Busy()
    first = await busy.run(threads)
    with no_more_threads():
        other = asyncio.create_task(threads.run(lambda: "done"))
        await asyncio.sleep(0)
    end(thread)
    busy.go_on.set()
    with pytest.raises(HandlerEnded):
        await first
    assert await asyncio.wait_for(other, 10) == "done"


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(), SystemExit(1), KeyboardInterrupt()])
async def test_what_a_handler_raises_is_raised_where_it_is_awaited(threads, error):
    def fail():
        raise error

    with pytest.raises((ValueError, RuntimeError)) as raised:
        await threads.run(fail)
    assert error in (raised.value, raised.value.__cause__)
    assert await threads.run(lambda: 1) == 1


async def test_a_handler_may_end_after_the_close(threads):
    busy = Busy()
    waiting = await busy.run(threads)
    threads.close()
    busy.go_on.set()
    thread = await waiting
    await asyncio.to_thread(thread.join)
    assert not threads._threads
