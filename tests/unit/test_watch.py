"""Listeners of outgoing events: which they get, and what they miss while they are slower than the events."""

from __future__ import annotations

import asyncio

import pytest

from sio_pg_adapter.local import watch as watch_module
from sio_pg_adapter.local.registry import Registry
from sio_pg_adapter.local.watch import EVENT_BYTES, SID_BYTES, Watch


class Slow:
    """A listener that waits to be let on."""

    def __init__(self) -> None:
        self.heard: list[tuple] = []
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, *args: object) -> None:
        self.heard.append(args)
        self.entered.set()
        await self.go.wait()


async def ended(watch: Watch) -> None:
    assert watch._calling is not None
    await watch._calling


def body(number: int) -> str:
    return f'["e",{number}]'


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def watch(slow: Slow) -> Watch:
    listeners = Registry(())
    listeners.add("*", slow)
    return Watch(listeners)


async def test_each_listener_gets_each_event_for_each_client(watch, slow):
    slow.go.set()
    calls: list[tuple] = []
    watch.listeners.add("/chat", lambda *args: calls.append(args))
    watch.sent("/chat", ["a", "b"], '["e",{"_placeholder":true,"num":0}]', (b"\0",))
    watch.sent("/", ["a"], body(1), ())
    watch.sent("/", [], body(2), ())
    await ended(watch)
    assert calls == [("e", "a", b"\0"), ("e", "b", b"\0")]
    assert slow.heard == [("e", "/chat", "a", b"\0"), ("e", "/chat", "b", b"\0"), ("e", "/", "a", 1)]


async def test_nothing_is_kept_if_nobody_listens(watch):
    watch.sent("/", [], body(1), ())  # it was sent to nobody
    assert watch._calling is None and not watch._sent
    watch = Watch(Registry(()))
    watch.sent("/", ["a"], body(1), ())
    assert watch._calling is None and not watch._sent


async def test_after_an_event_was_missed_all_are_missed_until_those_before_were_heard(monkeypatch, caplog):
    """A listener would otherwise get some of the later events, and never know which."""
    heard, turns = [], asyncio.Semaphore(0)

    async def listener(_, sid, number):
        heard.append(number)
        await turns.acquire()

    watch = Watch(Registry(()))
    watch.listeners.add("/", listener)
    monkeypatch.setattr(watch_module, "MAX_WAITING_BYTES", EVENT_BYTES + SID_BYTES + len(body(0)))
    watch.sent("/", ["a"], body(0), ())
    await asyncio.sleep(0)
    for number in (1, 2, 3):
        watch.sent("/", ["a"], body(number), ())
    turns.release()
    while heard != [0, 1]:
        await asyncio.sleep(0)
    watch.sent("/", ["a"], body(4), ())  # there would be room for it
    for _ in range(3):
        turns.release()
    await ended(watch)
    assert heard == [0, 1, 2] and "they missed 2 events" in caplog.text


async def test_a_listener_that_fails_is_logged_and_the_others_are_called(watch, slow, caplog):
    slow.go.set()

    def broken(*_):
        raise ValueError("broken")

    listeners = watch.listeners = Registry(())
    listeners.add("/", broken)
    listeners.add("*", slow)
    watch.sent("/", ["a"], body(1), ())
    await ended(watch)
    assert slow.heard == [("e", "/", "a", 1)]
    assert "a listener of outgoing events failed: event 'e' for a" in caplog.text


async def test_beyond_the_limit_events_are_missed_until_all_that_waited_was_heard(watch, slow, monkeypatch, caplog):
    size = EVENT_BYTES + 2 * SID_BYTES + len(body(0)) + 1
    monkeypatch.setattr(watch_module, "MAX_WAITING_BYTES", 2 * size - 1)
    watch.sent("/", ["a", "b"], body(0), (b"\0",))
    await slow.entered.wait()  # the first one waits no more
    for number in range(1, 6):
        watch.sent("/", ["a", "b"], body(number), (b"\0",))
    assert caplog.text.count("they miss events until they have caught up") == 1
    slow.go.set()
    await ended(watch)
    assert [args[-1] for args in slow.heard] == [0, 0, 1, 1, 2, 2]
    assert caplog.text.count("have caught up: they missed 3 events") == 1
    for number in (6, 7, 8):
        watch.sent("/", ["a", "b"], body(number), (b"\0",))
    await ended(watch)
    assert [args[-1] for args in slow.heard[6:]] == [6, 6, 7, 7]  # the third is beyond the limit
    assert caplog.text.count("have caught up: they missed 1 events") == 1


async def test_a_single_event_may_be_larger_than_the_limit(watch, slow, monkeypatch, caplog):
    slow.go.set()
    monkeypatch.setattr(watch_module, "MAX_WAITING_BYTES", 0)
    for number in range(3):
        watch.sent("/", ["a"], body(number), ())
        await ended(watch)
    assert [args[-1] for args in slow.heard] == [0, 1, 2] and caplog.text == ""


async def test_an_event_that_cannot_be_decoded_is_logged_and_later_ones_are_heard(watch, slow, caplog):
    slow.go.set()
    watch.sent("/", ["a"], '["deep",' + "[" * 100_000 + "]" * 100_000 + "]", ())
    watch.sent("/", ["a"], body(1), ())
    await ended(watch)
    assert slow.heard == [("e", "/", "a", 1)]
    assert f'miss an event that cannot be decoded: ["deep",{"[" * 72}\n' in caplog.text
