"""``ShuffledLoop``: an event loop that runs ready callbacks in another order, which a seed chooses.

Each time a task could go on, or a socket can be read, a schedule says how many other callbacks run first::

    with asyncio.Runner(loop_factory=ShuffledLoop) as runner:
        loop = runner.get_loop()
        schedule = Schedule(seed)
        with loop.following(schedule):
            ...
        schedule.choices  # what was put off, and for how long

What asyncio guarantees is kept where code relies on it. The callbacks of one owner run in their order. An owner is a
task, with all that it calls ``call_soon`` for, or a socket. So a task never finds that it goes on before a callback
that it scheduled itself, and the bytes of a connection stay in order.

A choice depends on the seed, the owner, and how often that owner was asked for, and not on what else goes on. So a
seed repeats the run although PostgreSQL takes another time for each answer. The loop waits for the answer to each
statement before it goes on, and then puts it off. So a fast machine and a slow one do the same, usually. Only
notifications may be later than the loop waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import random
import selectors
import time
import weakref
from asyncio import selector_events
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

ANSWER_WAIT = 0.05
"""Seconds that the loop waits for an answer. A statement may wait for a lock that only another one lets go."""

NOTIFICATION_WAIT = 0.0003
"""Seconds that the loop waits for notifications behind an answer. PostgreSQL sends them at the same time."""


class Schedule:
    """The choices of a seed.

    :param only: the choices that are kept. The others are to put nothing off. ``None``: all are kept.
    :ivar choices: the choices that put something off, in the order in which they were made.
    """

    def __init__(self, seed: int, only: Collection[str] | None = None) -> None:
        self.seed = seed
        self.choices: dict[str, int] = {}
        self._only = only
        self._asked: Counter[str] = Counter()
        dice = random.Random(seed)
        self._likelihood = dice.choice([0.05, 0.2, 0.5])
        self._reach = dice.choice([3, 10, 30])

    def delay(self, owner: str) -> int:
        """Return how many callbacks may run before the owner's next one."""
        self._asked[owner] += 1
        name = f"{owner} #{self._asked[owner]}"
        if self._only is not None and name not in self._only:
            return 0
        is_slow = self._number(owner) % 3 == 0
        number = self._number(name)
        likelihood, reach = (0.8, self._reach * 4) if is_slow else (self._likelihood, self._reach)
        if number % 1000 >= likelihood * 1000:
            return 0
        self.choices[name] = 1 + number // 1000 % reach
        return self.choices[name]

    def _number(self, name: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest())


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], tries: int = 40) -> Schedule:
    """Return a schedule with fewer choices that fails as well.

    It looks for the shortest beginning that fails. Then it takes choices out of that, in ever smaller groups.

    :param fails: runs a schedule.
    """
    best = schedule
    runs = itertools.count()

    def attempt(names: list[str]) -> bool:
        nonlocal best
        if next(runs) >= tries:
            return False
        candidate = Schedule(schedule.seed, frozenset(names))
        if not fails(candidate):
            return False
        best = candidate
        return True

    names = list(schedule.choices)
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        if attempt(names[:middle]):
            high = middle
        else:
            low = middle + 1
    names = names[:high]
    size = len(names) // 2
    while size:
        for start in range(0, len(names), size):
            fewer = names[:start] + names[start + size :]
            if attempt(fewer):
                names = fewer
                break
        else:
            size //= 2
    return best


class ShuffledLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._sockets: dict[int, str] = {}
        self._readable = ""
        self._ready_in_turn = _Ready(self)
        super().__init__(_Selector(self))
        self._ready = self._ready_in_turn

    @contextlib.contextmanager
    def following(self, schedule: Schedule) -> Iterator[None]:
        """Follow a schedule. Without one, callbacks run in the order of asyncio."""
        self._ready_in_turn.begin(schedule)
        try:
            yield
        finally:
            self._ready_in_turn.begin(None)

    # -- sockets ----------------------------------------------------------------------------------------------
    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> Any:
        return _Transport(self, sock, protocol, waiter, extra, server)

    def note_request(self, fd: int) -> None:
        """Something was written to a socket, and will be answered."""
        self._asked.add(fd)
        self._sockets.setdefault(fd, f"socket {len(self._sockets) + 1}")

    def new_events(self, events: list[Any]) -> list[Any]:
        """Leave out the sockets whose callback is ready already."""
        return [(key, mask) for key, mask in events if key.data[0] not in self._ready_in_turn.put_off]

    @property
    def waits_for_answers(self) -> bool:
        if not self._ready_in_turn.is_shuffled:
            return False
        self._asked &= self._selector.get_map().keys()  # those that were closed get no answer
        return bool(self._asked)

    def note_answers(self, events: list[Any]) -> None:
        self._asked.difference_update(key.fd for key, _ in events)

    def give_up_answers(self) -> None:
        self._asked.clear()

    def _process_events(self, event_list: list[Any]) -> None:
        for key, mask in event_list:
            self._readable = self._sockets.get(key.fd, "")
            try:
                super()._process_events([(key, mask)])
            finally:
                self._readable = ""

    @property
    def readable(self) -> str:
        """The name of the socket whose callback is being added."""
        return self._readable


class _Transport(selector_events._SelectorSocketTransport):
    def write(self, data: Any) -> None:
        self._loop.note_request(self._sock_fd)
        super().write(data)


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: ShuffledLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout != 0 and not self._loop.waits_for_answers:  # nothing is ready, so nothing is put off
            return super().select(timeout)
        loop = self._loop
        if not loop.waits_for_answers:
            return loop.new_events(super().select(0))
        end = time.monotonic() + ANSWER_WAIT
        while loop.waits_for_answers and time.monotonic() < end:
            events = super().select(0)  # a socket whose callback is put off is readable all the time
            loop.note_answers(events)
            time.sleep(0.00005)  # PostgreSQL needs the processor
        loop.give_up_answers()
        time.sleep(NOTIFICATION_WAIT)
        return loop.new_events(super().select(0))


class _Ready:
    """The ready callbacks, in place of the loop's deque. One runs in each turn."""

    def __init__(self, loop: ShuffledLoop) -> None:
        self._loop = loop
        self._schedule: Schedule | None = None
        self._turn = 0
        self._order = itertools.count()
        self._heap: list[tuple[int, int, asyncio.Handle, str]] = []
        self._last: dict[str, int] = {}
        self._running = "loop"
        self._names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._named: Counter[str] = Counter()
        self.put_off: set[asyncio.Handle] = set()

    def begin(self, schedule: Schedule | None) -> None:
        self._schedule = schedule
        self._named.clear()

    def __len__(self) -> int:
        return min(1, len(self._heap))

    @property
    def is_shuffled(self) -> bool:
        return self._schedule is not None

    def append(self, handle: asyncio.Handle) -> None:
        task = getattr(handle._callback, "__self__", None)
        if self._loop.readable:
            owner, delays = self._loop.readable, True
            self.put_off.add(handle)
        elif isinstance(task, asyncio.Task):
            owner, delays = self._name(task), True
        else:
            owner, delays = self._running, False
        delay = self._schedule.delay(owner) if delays and self._schedule is not None else 0
        due = max(self._turn + delay, self._last.get(owner, 0))
        self._last[owner] = due
        heapq.heappush(self._heap, (due, next(self._order), handle, owner))

    def popleft(self) -> asyncio.Handle:
        due, _, handle, self._running = heapq.heappop(self._heap)
        self._turn = max(self._turn + 1, due)
        self.put_off.discard(handle)
        if self._last.get(self._running, 0) < self._turn:
            self._last.pop(self._running, None)
        return handle

    def clear(self) -> None:
        self._heap.clear()

    def _name(self, task: asyncio.Task[Any]) -> str:
        """Name a task by what it does, and by how many of the same were made before it."""
        name = self._names.get(task)
        if name is None:
            base = task.get_name()
            if base.startswith("Task-"):
                base = getattr(task.get_coro(), "__qualname__", "task")
            if self._schedule is not None:
                base = f"new {base}"
            self._named[base] += 1
            name = self._names[task] = f"{base} {self._named[base]}"
        return name
