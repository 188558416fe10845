"""The cursor: every ring, early, late, double or with a gap, ends in each record applied once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from sio_pg_adapter.errors import StoreUnavailable
from sio_pg_adapter.local.cursor import NOTICE_BYTES, PAGE, Cursor, Notices
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Kind, Record


def record(offset, body='["e"]'):
    return Record(offset, Kind.EVENT, "/", body=body)


class Log:
    """A log in memory, with a gate at its door: stands for the table, not for a class of ours."""

    def __init__(self, head=0):
        self.records = []
        self.floor = 0
        self.reads = 0
        self.fail = 0
        self.error = StoreUnavailable("away")
        self.known = 1 << 62  # offsets below it are of known epochs
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.reading_body = asyncio.Event()
        self.body = asyncio.Event()
        self.body.set()
        self._head = head

    def append(self, *offsets):
        self.records += [record(offset) for offset in offsets]

    async def head(self):
        return self._head

    async def range(self, after, limit):
        self.reads += 1
        page = self.floor, [r for r in self.records if r.offset > after][:limit]
        self.entered.set()
        await self.gate.wait()
        if self.fail:
            self.fail -= 1
            raise self.error
        return page

    async def whole(self, record):
        self.reading_body.set()
        await self.body.wait()
        return record

    @property
    def epochs(self):
        return self

    def knows(self, offset):
        return offset < self.known


class Watcher:
    """Looks after the clients of a node that has none."""

    def __init__(self):
        self.holes = []
        self.unapplied = []
        self.checks = 0

    async def check(self):
        self.checks += 1

    def skipped(self, floor):
        self.holes.append(floor)

    def missed(self, namespace):
        self.unapplied.append(namespace)


@pytest.fixture
async def walk():
    log, applied, watcher = Log(head=100), [], Watcher()
    cursor = Cursor(log)
    cursor.log, cursor.applied, cursor.watcher, cursor.holes = log, applied, watcher, watcher.holes
    await cursor.start(lambda r: applied.append(r.offset), watcher)
    yield cursor
    await cursor.close()
    await cursor.close()  # twice is as once


async def test_a_ring_that_carries_what_follows_is_applied_at_once(walk):
    walk.offer(100, 102, [record(101), record(102)])
    assert walk.applied == [101, 102] and walk.offset == 102 and walk.log.reads == 0


async def test_a_body_that_does_not_arrive_shows_as_a_lag_though_nothing_announced_its_record(walk):
    walk.log.records = [record(101), Record(102, Kind.EVENT, "/", attachment="key"), record(103)]
    walk.log.body.clear()
    walk.ring()
    await walk.log.reading_body.wait()
    assert walk.applied == [101] and walk.lag == 1
    walk.log.body.set()
    assert await walk.passed(103, 20) and walk.lag == 0


async def test_a_double_and_a_late_ring_change_nothing(walk):
    walk.offer(100, 101, [record(101)])
    walk.offer(100, 101, [record(101)])
    walk.offer(100, 101, None)
    walk.offer(50, 60, [record(60)])
    assert walk.applied == [101] and await walk.passed(101, 0) is True
    for _ in range(3):
        await asyncio.sleep(0)  # turns in which its task would read
    assert walk.log.reads == 0


async def test_rings_that_overlap_apply_each_record_once(walk):
    walk.offer(100, 102, [record(101), record(102)])
    walk.offer(101, 103, [record(102), record(103)])
    assert walk.applied == [101, 102, 103]


async def test_a_ring_with_a_gap_reads_the_range(walk):
    walk.log.append(101, 102, 103)
    walk.offer(102, 103, [record(103)])
    assert walk.applied == []  # 101 and 102 come first
    assert await walk.passed(103, 5)
    assert walk.applied == [101, 102, 103]


async def test_rings_out_of_order_and_double_end_in_order(walk):
    offsets = list(range(101, 141))
    walk.log.append(*offsets)
    rings = [(o - 1, o, [record(o)] if o % 3 else None) for o in offsets] * 2
    random.Random(7).shuffle(rings)
    for ring in rings:
        walk.offer(*ring)
    assert await walk.passed(140, 5)
    assert walk.applied == offsets


async def test_a_gap_of_a_rolled_back_append_is_no_hole(walk):
    walk.log.append(101, 105)
    walk.offer(104, 105, [record(105)])
    assert await walk.passed(105, 5)
    assert walk.applied == [101, 105] and walk.holes == []


async def test_nothing_is_applied_while_a_range_read_is_under_way(walk):
    walk.log.append(101)
    walk.log.gate.clear()
    walk.ring()
    await walk.log.entered.wait()
    walk.log.append(102)
    walk.offer(100, 101, [record(101)])
    walk.offer(101, 102, [record(102)])
    assert walk.applied == []
    walk.log.gate.set()
    assert await walk.passed(102, 5)
    assert walk.applied == [101, 102]


async def test_what_is_heard_while_a_range_is_read_is_applied_after_it_and_not_read_again(walk):
    walk.log.append(101)
    walk.log.gate.clear()
    walk.ring()
    await walk.log.entered.wait()
    walk.offer(101, 102, [record(102)])
    walk.offer(102, 104, [record(103), record(104)])
    waiting = asyncio.create_task(walk.passed(104, 5))
    await asyncio.sleep(0)  # it waits, and need not ring: the append is announced
    walk.log.gate.set()
    assert await waiting
    assert walk.applied == [101, 102, 103, 104] and walk.log.reads == 1


async def test_what_is_heard_with_a_gap_while_a_range_is_read_is_read(walk):
    walk.log.append(101)
    walk.log.gate.clear()
    walk.ring()
    await walk.log.entered.wait()
    walk.log.append(102, 103)
    walk.offer(102, 103, [record(103)])
    walk.log.gate.set()
    assert await walk.passed(103, 5)
    assert walk.applied == [101, 102, 103] and walk.log.reads == 2


async def test_what_is_heard_while_a_range_is_read_is_bounded(walk):
    walk.log.append(101)
    walk.log.gate.clear()
    walk.ring()
    await walk.log.entered.wait()
    body = "x" * (NOTICE_BYTES // 3)
    for offset in range(102, 112):
        walk.log.append(offset)
        walk.offer(offset - 1, offset, [record(offset, body)])
    assert sum(len(records or ()) for *_, records in walk._notices._kept) <= 3
    walk.log.gate.set()
    assert await walk.passed(111, 5)
    assert walk.applied == list(range(101, 112))


def test_notices_are_kept_up_to_their_bytes_and_none_above_that():
    """A notice counts a hundred bytes and its records. Once they are taken, there is room for as many again."""
    full = [record(2, "x" * (NOTICE_BYTES - 100 - record(2, "").size))]
    above = [record(2, "x" * (NOTICE_BYTES - 99 - record(2, "").size))]
    notices, others = Notices(), Notices()
    others.keep(1, 2, above)
    assert others.take() == ([], True)
    for _ in range(2):
        notices.keep(1, 2, full)
        assert notices.take() == ([(1, 2, full)], False)
        notices.keep(1, 2, above)
        assert notices.take() == ([], True)
        notices.keep(1, 2, full)
        notices.keep(2, 3, None)
        assert notices.take() == ([], True)


async def test_a_cursor_walks_until_its_task_ends(walk):
    """Health asks for it, so a task that ended by itself counts as well."""
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "sio_pg cursor"]
    assert walk.running
    task.cancel()
    await asyncio.wait([task])
    assert not walk.running


async def test_a_cursor_that_is_closed_walks_no_more():
    cursor = Cursor(Log())
    await cursor.start(lambda _: None, Watcher())
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "sio_pg cursor"]
    await cursor.close()
    assert task.done() and not cursor.running


async def test_of_what_was_too_much_to_be_kept_the_highest_is_read_too(walk):
    """A node's own answer may come before the notification of what another appended below it."""
    walk.log.append(101)
    walk.log.gate.clear()
    walk.ring()
    await walk.log.entered.wait()  # what is read ends at 101
    walk.log.append(102)
    walk.offer(101, 102, [record(102)])
    walk.offer(100, 101, [record(101, "x" * NOTICE_BYTES)])
    walk.log.gate.set()
    assert await walk.passed(102, 5)
    assert walk.applied == [101, 102]


async def test_what_was_heard_of_an_epoch_that_is_lost_is_forgotten(walk):
    walk.log.gate.clear()
    walk.ring()
    await walk.log.entered.wait()
    walk.offer(149, 150, [record(150)])
    walk.jump(50)
    walk.log.gate.set()
    walk.log.append(51)
    walk.ring()
    assert await walk.passed(51, 5)
    assert walk.head == 51 and walk.applied == [51] and walk.lag == 0


async def test_records_that_are_applied_in_one_go_are_applied_together():
    log, seen, inside = Log(head=100), [], []

    class Together(contextlib.AbstractContextManager):
        def __enter__(self):
            inside.append(True)

        def __exit__(self, *_):
            inside.pop()

    cursor = Cursor(log, Together())
    await cursor.start(lambda r: seen.append((r.offset, bool(inside))), Watcher())
    cursor.offer(100, 102, [record(101), record(102)])
    cursor.offer(102, 103, [record(103)])
    log.append(104, 105)
    cursor.ring()
    assert await cursor.passed(105, 5)
    await cursor.close()
    assert seen == [(101, True), (102, True), (103, False), (104, True), (105, True)]


async def test_pages_follow_each_other_to_the_end(walk):
    walk.log.append(*range(101, 101 + 2 * PAGE))
    walk.ring()
    assert await walk.passed(100 + 2 * PAGE, 5)
    assert walk.applied == list(range(101, 101 + 2 * PAGE))


async def test_a_read_that_fails_is_tried_again(walk, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.local.cursor.RETRY", 0.0)
    walk.log.append(101)
    walk.log.fail = 3
    walk.ring()
    assert await walk.passed(101, 5)
    assert walk.log.reads == 4 and walk.applied == [101]


async def test_retention_above_the_cursor_is_told_as_a_hole(walk):
    walk.log.floor = 150
    walk.log.append(151)
    walk.ring()
    assert await walk.passed(151, 5)
    assert walk.holes == [150] and walk.applied == [151]
    assert walk.recent.base == 150


async def test_a_cursor_goes_on_from_the_floor_if_there_is_no_record_above_it(walk):
    walk.log.floor = 105
    walk.ring()
    assert await walk.passed(105, 5)
    assert walk.offset == 105 and walk.holes == [105] and walk.lag == 0


async def test_retention_up_to_the_cursor_is_none(walk):
    walk.log.floor = 100
    walk.log.append(101)
    walk.ring()
    assert await walk.passed(101, 5)
    assert walk.holes == []


async def test_who_waits_for_an_offset_is_called_in_order_and_once(walk):
    called = []
    for offset in (103, 101, 102, 101):
        walk.when(offset, lambda o=offset: called.append((o, walk.offset)))
    walk.when(100, lambda: called.append((100, walk.offset)))
    walk.offer(100, 102, [record(101), record(102)])
    walk.offer(102, 103, [record(103)])
    assert called == [(100, 100), (101, 102), (101, 102), (102, 102), (103, 103)]


async def test_an_offset_that_does_not_come_is_waited_for_no_longer_than_said(walk):
    assert await walk.passed(500, 0.0) is False


async def test_a_record_that_cannot_be_applied_stops_nothing(caplog):
    log, applied = Log(), []

    def apply(one):
        if one.offset == 1:
            raise ValueError("broken")
        applied.append(one.offset)

    cursor, watcher = Cursor(log), Watcher()
    await cursor.start(apply, watcher)
    cursor.offer(0, 2, [record(1), record(2)])
    await cursor.close()
    assert applied == [2] and "record 1 of the log could not be applied" in caplog.text
    assert watcher.unapplied == ["/"] and not cursor.recent.covers(0) and cursor.recent.covers(1)


# -- epochs --------------------------------------------------------------------------------------------
async def test_a_record_of_an_unknown_epoch_is_read_after_a_look_at_the_epochs(walk):
    walk.log.known = 1 << EPOCH_BITS
    walk.log.append(101)
    walk.offer(100, 101, [record(101)])
    assert walk.applied == [101] and walk.log.reads == 0
    begun = (1 << EPOCH_BITS) + 1
    walk.log.append(begun)
    walk.offer(101, begun, [record(begun)])
    assert walk.applied == [101]  # its offset could not be signed
    assert await walk.passed(begun, 5)
    assert walk.applied == [101, begun] and walk.watcher.checks == 1 and walk.log.reads == 1


async def test_a_page_that_ends_in_an_unknown_epoch_has_the_epochs_looked_at(walk):
    walk.log.known = 1 << EPOCH_BITS
    walk.log.append(101, (1 << EPOCH_BITS) + 1)
    walk.ring()
    assert await walk.passed((1 << EPOCH_BITS) + 1, 20)
    assert walk.watcher.checks == 1


async def test_records_of_known_epochs_do_not_look_for_another(walk):
    walk.log.append(101)
    walk.ring()
    assert await walk.passed(101, 5)
    assert walk.watcher.checks == 0


async def test_the_lag_does_not_count_the_offsets_between_epochs(walk):
    assert walk.lag == 0
    walk.offer(102, 103, None)
    assert walk.lag == 3
    walk.offer(0, (2 << EPOCH_BITS) + 7, None)
    assert walk.lag == 7
    walk.jump((2 << EPOCH_BITS) + 7)
    assert walk.lag == 0


# -- starts, jumps and ends ----------------------------------------------------------------------------
async def test_a_start_and_a_jump_reach_those_who_wait_and_forget_what_was_applied():
    log, called = Log(head=100), []
    cursor = Cursor(log)
    cursor.when(100, lambda: called.append(cursor.offset))
    cursor.when(200, lambda: called.append(cursor.offset))
    assert not cursor.running and called == [] and (cursor.offset, cursor.head, cursor.recent.base) == (0, 0, 0)
    await cursor.start(lambda _: None, Watcher())
    assert cursor.running and called == [100] and (cursor.head, cursor.lag, cursor.recent.base) == (100, 0, 100)
    cursor.offer(100, 101, [record(101)])
    assert cursor.recent.events("/", [""], 100) == [record(101)]
    cursor.jump(200)
    assert called == [100, 200] and (cursor.offset, cursor.head, cursor.recent.base) == (200, 200, 200)
    assert cursor.recent.events("/", [""], 100) == []
    await cursor.close()
    assert not cursor.running


async def test_a_record_that_nothing_announced_raises_the_head(walk):
    walk.log.append(101)
    walk.ring()
    assert await walk.passed(101, 5)
    assert walk.head == 101


async def test_a_waiter_that_fails_does_not_keep_the_others_waiting(walk, caplog):
    called = []

    def fail():
        raise ValueError("broken")

    walk.when(101, fail)
    walk.when(101, lambda: called.append(walk.offset))
    walk.offer(100, 101, [record(101)])
    assert called == [101] and "a message that waited for offset 101 could not be handled" in caplog.text


async def test_one_who_no_longer_waits_is_not_called(walk, caplog):
    assert await walk.passed(101, 0.0) is False
    walk.offer(100, 101, [record(101)])
    assert walk.applied == [101] and caplog.text == ""


async def test_one_who_waits_for_what_nothing_announced_has_it_read(walk):
    walk.log.append(101)
    assert await walk.passed(101, 5)
    assert walk.log.reads == 1


# -- reads that fail -----------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("a fault of this code")])
async def test_a_read_that_failed_is_logged_and_not_tried_again_at_once(walk, monkeypatch, caplog, error):
    monkeypatch.setattr("sio_pg_adapter.local.cursor.RETRY", 3600.0)
    walk.log.fail, walk.log.error = 1, error
    walk.ring()
    await walk.log.entered.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert walk.log.reads == 1 and walk.running
    assert "the log cannot be read above offset 100, trying again" in caplog.text


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("a fault of this code")])
async def test_a_read_that_failed_is_tried_again_though_nothing_rings(walk, monkeypatch, error):
    monkeypatch.setattr("sio_pg_adapter.local.cursor.RETRY", 0.0)
    walk.log.append(101)
    walk.log.fail, walk.log.error = 1, error
    walk.ring()
    reached = asyncio.Event()
    walk.when(101, reached.set)
    await reached.wait()
    assert walk.log.reads == 2 and walk.applied == [101]


async def test_of_a_large_body_only_its_own_record_waits(walk):
    large = [Record(offset, Kind.EVENT, "/", attachment="key") for offset in (101, 103)]
    walk.log.records = [large[0], record(102), large[1], record(104), record(105)]
    walk.ring()
    assert await walk.passed(105, 5)
    assert walk.applied == [101, 102, 103, 104, 105]


async def test_a_cursor_that_does_not_walk_applies_nothing_of_what_is_announced():
    """It is that of a process that only emits, or of a node that has not started yet."""
    cursor = Cursor(Log(head=100))
    cursor.jump(100)
    cursor.offer(100, 101, [record(101)])
    assert (cursor.offset, cursor.head) == (100, 101)
