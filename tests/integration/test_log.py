"""The log: one order for all writers, all readers and all who listen; complete, through rolled back appends."""

from __future__ import annotations

import asyncio
import itertools
import json
import re

import asyncpg
import pytest

from sio_pg_adapter import AsyncPostgresManager, PayloadTooLarge, StoreUnavailable
from sio_pg_adapter.log.records import Entry, Kind
from sio_pg_adapter.store.queries import Queries
from sio_pg_adapter.store.reader import read_notification

WRITERS, EACH = 32, 25
ONE = ([0], ["/"], [""], [None], [None], [None], [None], ['["e"]'], [None], [None], ["{}"], None)
WRITE = Queries("public")["write"]


class Walk:
    """A reader's cursor, as any node has one: what it saw, in order."""

    def __init__(self, reader):
        self._reader = reader
        self.seen = []
        self.records = []

    async def look(self):
        after = self.seen[-1] if self.seen else 0
        _, records = await self._reader.range(after, 50)
        self.seen += [record.offset for record in records]
        self.records += records
        return len(records)


async def test_32_writers_with_rolled_back_appends_arrive_complete_and_in_order(pg_dsn, start_store, db):  # noqa: C901 - one run, six kinds of tasks
    stores = [await start_store() for _ in range(4)]
    poller, listener = Walk(stores[0].reader), Walk(stores[1].reader)
    rung, rings, done = asyncio.Event(), [], asyncio.Event()

    def on_ring(_connection, _backend, _channel, payload):
        rings.append(read_notification(payload)[:2])
        rung.set()

    await db.add_listener(await db.fetchval("SELECT channel FROM sio_log"), on_ring)
    written: list[tuple[int, str]] = []

    async def write(number: int) -> None:
        store = stores[number % 4]
        for i in range(EACH):
            body = f'["{number}",{i}]'
            written.append((await store.emit(body=body), body))

    async def roll_back() -> None:
        """Takes offsets under the lock, and gives them up: holes."""
        connection = await asyncpg.connect(pg_dsn)
        try:
            for _ in range(40):
                transaction = connection.transaction()
                await transaction.start()
                await connection.fetchrow(WRITE, 0, *ONE)
                await transaction.rollback()
        finally:
            await connection.close()

    async def listen() -> None:
        while not done.is_set():
            await rung.wait()
            rung.clear()
            while await listener.look():
                pass

    async def poll() -> None:
        while not done.is_set():
            await poller.look()

    readers = [asyncio.create_task(listen()), asyncio.create_task(poll())]
    await asyncio.gather(*(write(n) for n in range(WRITERS)), roll_back(), roll_back())
    done.set()
    rung.set()
    await asyncio.gather(*readers)
    while await poller.look() or await listener.look():
        pass

    assert len(written) == WRITERS * EACH
    assert poller.seen == listener.seen == sorted(offset for offset, _ in written)
    assert [r.body for r in poller.records] == [body for _, body in sorted(written)]
    assert poller.seen[-1] - poller.seen[0] >= len(written)  # there were holes
    for number in range(WRITERS):  # what one caller awaits one after the other is in this order
        mine = [offset for offset, body in written if body.startswith(f'["{number}",')]
        assert mine == sorted(mine)
    assert rings == sorted(rings) and all(prev < last for prev, last in rings)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(rings))


# -- what the lock of the log is for -------------------------------------------------------------------------
LOCK = re.compile(r"LOCK TABLE [^;]*;")


WAYS = [
    ("sio_append_batch", WRITE, ONE),
    ("sio_append_event", Queries("public")["write_event"], ("/", "", '["e"]', None, None)),
]
ways = pytest.mark.parametrize("way", WAYS, ids=[name for name, *_ in WAYS])


async def overlap(dsn: str, reader, write: str, one: tuple) -> tuple[list[int], list[int], bool]:
    """Two appends in open transactions, the second of which would commit first.

    :returns: what a cursor saw after the first commit that went through; after both; was the second held up?
    """
    first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    walk = Walk(reader)
    try:
        transaction = first.transaction()
        await transaction.start()
        await first.fetchrow(write, 1, *one)
        pid = second.get_server_pid()
        append = asyncio.create_task(second.fetchrow(write, 2, *one))
        blocked = False
        while not append.done() and not blocked:  # PostgreSQL does not announce that an append waits
            blocked = await first.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid)
        await walk.look()
        early = list(walk.seen)
        await transaction.commit()
        await append
        while await walk.look():
            pass
        return early, walk.seen, blocked
    finally:
        await first.close()
        await second.close()


@ways
async def test_appends_wait_for_each_other_so_no_reader_sees_a_gap(pg_dsn, store, db, way):
    early, seen, blocked = await overlap(pg_dsn, store.reader, *way[1:])
    assert blocked and early == []
    assert seen == await stored(db) and len(seen) == 2


@ways
async def test_without_the_lock_of_the_log_a_reader_skips_an_append(pg_dsn, store, db, way):
    """What the test above is worth: the lock taken out, it would fail."""
    body = await db.fetchval("SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = $1", way[0])
    without, found = LOCK.subn("", body)
    assert found == 1
    await db.execute(without)
    early, seen, blocked = await overlap(pg_dsn, store.reader, *way[1:])
    assert not blocked and early == seen
    assert len(await stored(db)) == 2 and len(seen) == 1  # the first one was never seen


async def stored(db) -> list[int]:
    return [row[0] for row in await db.fetch('SELECT "offset" FROM sio_packets ORDER BY "offset"')]


# -- what an append holds -------------------------------------------------------------------------------------
@pytest.mark.parametrize("segment", [0, 1])
async def test_entries_of_every_kind_come_back_as_they_were(store, db, segment):
    await db.execute("SELECT setval('sio_active_segment', $1)", segment)
    text = '["e","\\u0000 \\ud83d","' + "ü🙂" * 50 + '"]'
    big = '["e","' + "x" * 100_000 + '"]'
    entries = [
        Entry(Kind.EVENT, "/ns", ("a",), body=text),
        Entry(Kind.EVENT, "/", ("a", "b", "c"), ("s", "t"), body='["e"]'),
        Entry(Kind.EVENT, "/", body='["e",{"_placeholder":true,"num":0}]', parts=(b"\0\xff", b"")),
        Entry(Kind.ENTER, "/", ("a",), sid="s"),
        Entry(Kind.EVENT, "/", body=big, parts=(b"y" * 70_000,)),
        Entry(Kind.CLOSE, "/", ("a",)),
        Entry(Kind.EVENT, "/", ("a", "b"), ("s",), ("x", "y"), body='["e"]'),
    ]
    written = await asyncio.gather(*(store.log.append(entry) for entry in entries))
    assert [w.offset for w in written] == sorted(w.offset for w in written)
    _, records = await store.reader.range(written[0].offset - 1, 100)
    records = [await store.reader.whole(record) for record in records]
    for entry, one, record in zip(entries, written, records, strict=True):
        assert record.offset == one.offset
        for name in ("kind", "namespace", "rooms", "skip_sids", "skip_rooms", "sid", "body", "parts"):
            assert getattr(record, name) == getattr(entry, name), name
    events = [entry for entry in entries if entry.kind is Kind.EVENT]
    written = await asyncio.gather(*(store.log.append(entry) for entry in [events[0], *events]))
    _, records = await store.reader.range(written[0].offset, 100)
    for entry, record in zip(events, [await store.reader.whole(record) for record in records], strict=True):
        for name in ("kind", "namespace", "rooms", "skip_sids", "skip_rooms", "body", "parts"):
            assert getattr(record, name) == getattr(entry, name), name
    assert {row[0] for row in await db.fetch("SELECT tableoid::regclass::text FROM sio_packets")} == {
        f"sio_packets_{segment}"
    }
    assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE batch IS NULL") == 0


async def test_case_87_one_batch_keeps_the_order_of_the_calls(store):
    offsets = await asyncio.gather(*(store.emit(body=f'["e",{i}]') for i in range(1_200)))
    assert offsets == sorted(set(offsets))
    _, records = await store.reader.range(offsets[0] - 1, 2_000)
    assert [record.body for record in records] == [f'["e",{i}]' for i in range(1_200)]


async def test_an_entry_that_comes_alone_is_sent_in_the_stack_of_its_caller(store):
    await store.emit()  # the first one asks for the name of the backend
    for _ in range(3):
        appended = store.log.append(Entry(Kind.EVENT, "/", ("",), body='["e"]'))
        assert store.log.backend is not None  # it stores a batch
        await appended
        assert store.log.backend is None


async def test_entries_that_come_together_share_a_commit_from_the_second_time_on(store):
    batches = store.manager.counters.batches
    await store.emit()
    await asyncio.gather(*(store.emit() for _ in range(3)))
    assert batches.counts[:3] == [2, 1, 0]  # one alone, and two
    for _ in range(2):
        await asyncio.gather(*(store.emit() for _ in range(3)))
    assert batches.counts[:3] == [2, 1, 2]
    await store.emit()
    appended = store.log.append(Entry(Kind.EVENT, "/", ("",), body='["e"]'))
    assert store.log.backend is not None  # the last one came alone
    await appended


async def test_an_emit_that_is_cancelled_once_it_is_sent_is_stored_and_costs_no_connection(store):
    await store.emit()
    appended = store.log.append(Entry(Kind.EVENT, "/", ("",), body='["e","before"]'))
    backend = store.log.backend
    await appended
    emit = asyncio.create_task(store.emit(body='["e","cancelled"]'))
    while store.log.backend is None:
        await asyncio.sleep(0)
    emit.cancel()
    appended = store.log.append(Entry(Kind.EVENT, "/", ("",), body='["e","after"]'))
    assert store.log.backend == backend
    await appended
    assert emit.cancelled()
    _, records = await store.reader.range(0, 100)
    assert [record.body for record in records][-3:] == ['["e","before"]', '["e","cancelled"]', '["e","after"]']


@pytest.mark.parametrize("turns", [0, 1], ids=["in the turn in which it is sent", "later"])
async def test_an_entry_that_is_being_written_when_the_writer_s_task_is_cancelled_may_be_stored(store, turns):
    await store.emit()
    appended = store.log.append(Entry(Kind.EVENT, "/", ("",), body='["e"]'))
    assert store.log.backend is not None  # it is sent
    for _ in range(turns):
        await asyncio.sleep(0)
    store.log._task.cancel()
    with pytest.raises(StoreUnavailable, match="the writer's task has ended") as caught:
        await appended
    assert caught.value.may_be_stored is True
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.emit()


async def test_no_more_than_the_backlog_waits_and_the_order_is_that_of_the_calls(pg_dsn, start_store, monkeypatch):
    monkeypatch.setattr("sio_pg_adapter.store.writer.BACKLOG", 50)
    store = await start_store()
    waited = []
    for i in range(1_000):
        emit = store.manager.emit("e", i)
        waited.append(asyncio.create_task(emit))
        if i % 100 == 0:
            await asyncio.sleep(0)
            assert len(store.log._waiting) <= 50
    await asyncio.gather(*waited)
    _, records = await store.reader.range(0, 2_000)
    assert [json.loads(record.body)[1] for record in records] == list(range(1_000))


async def test_one_entry_that_postgresql_refuses_fails_alone(store):
    """A NUL in a body comes through no public door; this is the last line."""
    good = [asyncio.ensure_future(store.emit(body=f'["e",{i}]')) for i in range(3)]
    bad = asyncio.ensure_future(store.emit(body="\0"))
    good += [asyncio.ensure_future(store.emit(body=f'["e",{i}]')) for i in range(3, 6)]
    with pytest.raises(PayloadTooLarge):
        await bad
    offsets = await asyncio.gather(*good)
    _, records = await store.reader.range(0, 100)
    assert [record.offset for record in records] == offsets == sorted(offsets)


async def test_what_waits_is_written_when_a_writer_closes(pg_dsn, store):
    manager = AsyncPostgresManager(pg_dsn, write_only=True)
    await manager.start()
    emits = [asyncio.create_task(manager.emit("e", i)) for i in range(20)]
    await asyncio.sleep(0)
    await manager.aclose()
    await asyncio.gather(*emits)
    assert len((await store.reader.range(0, 100))[1]) == 20


async def test_case_69_an_open_transaction_elsewhere_stalls_nothing(store, db):
    async with db.transaction(isolation="repeatable_read"):
        await db.fetchval("SELECT count(*) FROM sio_packets")
        offset = await store.emit()
        assert [r.offset for r in (await store.reader.range(0, 10))[1]] == [offset]
