"""Idempotency keys: while an event with a key is stored, no other event with that key is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import asyncpg
import pytest

from integration.test_losses import OTHERS, terminate
from integration.test_segments import MANY, turned
from integration.test_transactions import waiting
from sio_pg_adapter import (
    AsyncNamespace,
    ConfigurationError,
    NotSerializable,
    PayloadTooLarge,
    StoreUnavailable,
    emit_async,
)
from sio_pg_adapter.log.records import Entry, Kind
from sio_pg_adapter.store.pruner import Pruned
from support.proxy import Proxy
from support.pruning import prune_once


async def bodies(db) -> list[str]:
    rows = await db.fetch('SELECT body FROM sio_packets WHERE kind = 0 ORDER BY "offset"')
    return [row["body"] for row in rows]


async def keys(db) -> dict[str, int]:
    return dict(await db.fetch('SELECT key, "offset" FROM sio_keys'))


@pytest.fixture
async def app(pg_owner_dsn):
    """A connection of the application."""
    connection = await asyncpg.connect(pg_owner_dsn)
    yield connection
    await connection.close()


# -- what is returned ----------------------------------------------------------------------------------------
async def test_a_second_event_with_a_key_is_not_stored_and_the_answer_says_so(start_node, store, db):
    a, b = await start_node(), await start_node()
    chat = AsyncNamespace("/chat")
    for node in (b, a):  # it emits by the last one
        node.sio.register_namespace(chat)
    async with b.client() as wire, b.client("/chat") as other:
        assert await a.sio.emit("e", 1, key="k") is True
        assert await a.sio.emit("e", 2, key="k", room=wire.sid) is False
        assert await b.sio.emit("f", 3, key="k") is False
        assert await b.manager.emit("e", 4, key="k") is False
        assert await store.manager.emit("e", 5, key="k") is False
        assert await emit_async(db, "e", 6, key="k") is False
        assert await db.fetchval("SELECT sio_emit('e', '7', key => 'k')") is False
        assert await a.sio.emit("e", 8, key="K") is True
        assert await a.sio.emit("e", 9) is None
        assert await b.sio.emit("e", 10) is None
        assert await chat.emit("e", 11, key="k") is True  # each namespace has keys of its own
        assert await chat.emit("e", 12, key="k") is False
        for node in (a, b):
            assert await node.sio.emit("end", key="end") is (node is a)
        await a.sio.emit("end", namespace="/chat")
        assert [args for _, *args in await wire.events_until("end")] == [[1], [8], [9], [10]]
        assert [await other.event("/chat"), (await other.event("/chat"))[0]] == [["e", 11], "end"]
    assert a.manager.counters.appended == 6 and b.manager.counters.appended == 1


async def test_a_duplicate_returns_when_this_node_has_sent_the_first(start_node):
    """Any emit does that, so that the caller's next event comes after it. Here no notification announces it."""
    a, b = await start_node(), await start_node()
    async with b.client() as wire:
        await b.manager.node.listener._disconnect()
        await a.sio.emit("e", key="k")
        assert await b.sio.emit("e", key="k") is False
        assert b.manager.node.cursor.offset == a.manager.node.cursor.offset
        await b.manager.emit("now", to=wire.sid, data=None, ignore_queue=True)
        assert await wire.event() == ["e"]
        b.manager.node.listener._lost.set()


# -- in a batch ------------------------------------------------------------------------------------------------
def keyed(body: str, key: str | None, *rooms: str, namespace: str = "/", **more) -> Entry:
    return Entry(Kind.EVENT, namespace, rooms or ("",), body=f'["{body}"]', args={"key": key} if key else {}, **more)


async def append(store, *entries: Entry) -> list[tuple[int, bool]]:
    written = await asyncio.gather(*(store.log.append(entry) for entry in entries))
    return [(w.offset, w.duplicate) for w in written]


@pytest.mark.parametrize("segment", [0, 1])
@pytest.mark.parametrize("mixed", [False, True], ids=["events", "with-a-move"])
async def test_in_one_batch_the_first_with_a_key_is_stored(store, db, mixed, segment):
    await db.execute("SELECT setval('sio_active_segment', $1)", segment)
    [(before, _)] = await append(store, keyed("0", "old", "x"))
    await store.open()
    move = [Entry(Kind.ENTER, "/", ("x",), sid="s")] if mixed else []
    *written, last = await append(
        store,
        *move,
        keyed("1", "old"),
        keyed("2", "k", "x", "y"),
        keyed("3", None, "x"),
        keyed("4", "k", "x", "z"),
        keyed("5", "k", namespace="/ns"),
        keyed("6", "new"),
        keyed("7", "old"),
        keyed("8", None),
    )
    first = before + 1 + mixed
    assert written[mixed:] == [
        (before, True),
        (first, False),
        (first + 1, False),
        (first, True),
        (first + 2, False),
        (first + 3, False),
        (before, True),
    ]
    assert last == (first + 4, False)
    assert await bodies(db) == [f'["{i}"]' for i in (0, 2, 3, 5, 6, 8)]
    assert await db.fetch("SELECT room FROM sio_packet_rooms") == [("y",)]
    rows = await db.fetch('SELECT namespace, key, "offset" FROM sio_keys ORDER BY 3')
    assert [tuple(row) for row in rows] == [
        ("/", "old", before),
        ("/", "k", first),
        ("/ns", "k", first + 2),
        ("/", "new", first + 3),
    ]


async def test_a_batch_of_nothing_but_duplicates_appends_nothing(store, db):
    await append(store, keyed("1", "a"), keyed("2", "b"))
    last = await db.fetchval("SELECT last_value FROM sio_packets_offset_seq")
    again = await append(store, keyed("3", "b"), keyed("4", "a"), keyed("5", "b"))
    assert again == [(last, True), (last - 1, True), (last, True)]
    assert await db.fetchval("SELECT last_value FROM sio_packets_offset_seq") == last
    assert await bodies(db) == ['["1"]', '["2"]']


async def test_duplicates_in_a_batch_that_a_notification_would_carry(start_node, db):
    """The records that it carries would get the offsets of others."""
    a, b = await start_node(), await start_node()
    heard = []
    await db.add_listener(await db.fetchval("SELECT channel FROM sio_log"), lambda *args: heard.append(args[3]))
    async with a.client() as near, b.client() as far:
        emits = [a.sio.emit("e", i, key=f"k{i % 3}") for i in range(6)]
        stored = await asyncio.gather(a.sio.emit("alone"), *emits, a.sio.emit("e", 6))
        assert stored == [None] + [True] * 3 + [False] * 3 + [None]
        await a.sio.emit("end")
        for wire in (near, far):
            assert [args for _, *args in await wire.events_until("end")] == [[], [0], [1], [2], [6]]
    await db.execute("SELECT 1")
    assert [len(payload.split(" ", 2)) for payload in heard] == [3, 2, 3]  # the batch is only announced


async def test_the_large_body_of_a_duplicate_goes_when_the_pruner_looks(pg_dsn, store, db):
    large = "x" * 70_000
    assert await store.manager.emit("e", large, key="k") is True
    assert await store.manager.emit("e", large, key="k") is False
    async with db.transaction():
        await emit_async(db, "e", large, key="t")
        await emit_async(db, "e", large, key="t")
        assert await emit_async(db, "e", large, key="k") is False  # nothing is written for it
    assert await db.fetchval("SELECT count(*) FROM sio_attachments") == 4
    await db.execute("UPDATE sio_attachments SET created_at = created_at - interval '2 hours'")
    await prune_once(pg_dsn)
    assert await db.fetchval("SELECT count(*) FROM sio_attachments") == 2
    records = [await store.reader.whole(record) for record in (await store.reader.range(0, 10))[1]]
    assert [json.loads(record.body) for record in records] == [["e", large]] * 2


# -- as long as the first is in the log ---------------------------------------------------------------------------
async def test_a_key_is_free_again_when_retention_has_deleted_its_event(pg_dsn, store, db):
    await append(store, keyed("old", "a"), keyed("old", "b"), keyed("old", "b"))
    await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
    [(young, _)] = await append(store, keyed("young", "c"))
    await prune_once(pg_dsn)
    assert await keys(db) == {"c": young}
    assert [d for _, d in await append(store, keyed("new", "a"), keyed("new", "c"))] == [False, True]
    assert await bodies(db) == ['["young"]', '["new"]']


async def test_a_key_counts_in_both_segments_and_goes_with_its_segment(pg_dsn, store, db):
    await append(store, keyed("old", "a"))
    await turned(db)
    again = await append(store, keyed("young", "b"), keyed("no", "a"), keyed("no", "b"))
    assert [duplicate for _, duplicate in again] == [False, True, True]
    [alone] = await append(store, keyed("no", "a"))
    assert alone[1] is True
    async with db.transaction():
        assert await emit_async(db, "no", key="a") is False
    await prune_once(pg_dsn)
    assert await keys(db) == {"b": again[0][0]}
    assert await bodies(db) == ['["young"]']
    [(_, duplicate)] = await append(store, keyed("new", "a"))
    assert duplicate is False


@pytest.mark.parametrize("statement", ["TRUNCATE sio_packets", "DELETE FROM sio_packets"])
async def test_a_key_is_free_again_when_somebody_deleted_its_event(store, db, statement):
    await append(store, keyed("old", "a"), keyed("old", "b"), keyed("old", "c"))
    await db.execute(statement)
    assert len(await keys(db)) == (0 if statement.startswith("TRUNCATE") else 3)
    assert await append(store, keyed("new", "a")) == [((await store.reader.head()), False)]
    stored = await append(store, keyed("no", "a"), keyed("new", "c"), keyed("new", "b"))
    assert [duplicate for _, duplicate in stored] == [True, False, False]
    assert await bodies(db) == ['["new"]'] * 3


async def test_an_open_transaction_with_a_key_does_not_keep_retention_from_truncating(pg_dsn, store, app, db):
    """Among many transactions, one is always open. If it had read a segment, it would hold it."""
    await append(store, keyed("old", "a"))
    await turned(db)
    [young] = await append(store, keyed("young", "b"))
    async with app.transaction():
        assert await emit_async(app, "e", key="new") is True
        assert await emit_async(app, "e", key="b") is False
        assert await prune_once(pg_dsn) == Pruned(records=MANY + 1)
    assert set(await keys(db)) == {"b", "new"} and young[1] is False


async def test_a_key_outlives_an_epoch(store, db):
    await append(store, keyed("first", "k"))
    await db.execute("DELETE FROM sio_marker")
    [(_, lone)] = await append(store, keyed("no", "k"))
    assert lone is True
    await store.emit()
    assert await db.fetchval("SELECT max(epoch) FROM sio_epochs") == 2
    assert [d for _, d in await append(store, keyed("no", "k"), keyed("no", "k"))] == [True, True]


# -- in a transaction ----------------------------------------------------------------------------------------------
async def test_a_rollback_leaves_the_key_free(store, app, db):
    with contextlib.suppress(ZeroDivisionError):
        async with app.transaction():
            assert await emit_async(app, "gone", key="k") is True
            raise ZeroDivisionError
    async with app.transaction():
        with contextlib.suppress(ZeroDivisionError):
            async with app.transaction():
                assert await emit_async(app, "gone", key="k") is True
                raise ZeroDivisionError
        assert await emit_async(app, "kept", key="k") is True
    assert await bodies(db) == ['["kept"]']
    assert await store.manager.emit("no", None, key="k") is False


async def test_of_two_events_in_one_transaction_the_first_is_stored(app, db):
    """The result is what was known at the emit. The second emit cannot know yet."""
    async with app.transaction():
        assert await emit_async(app, "a", key="k") is True
        assert await emit_async(app, "b", key="k") is True
        await app.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
        assert await emit_async(app, "c", key="k", room=["x", "y"]) is True
    assert await bodies(db) == ['["a"]']
    assert len(await keys(db)) == 1
    assert await db.fetchval("SELECT count(*) FROM sio_packet_rooms") == 0


async def test_an_open_transaction_holds_nobody_up_and_the_first_commit_wins(start_node, app):
    node = await start_node()
    async with node.client() as wire:
        transaction = app.transaction()
        await transaction.start()
        assert await node.sio.emit("app", key="k", connection=app) is True
        async with asyncio.timeout(10):
            assert await node.sio.emit("node", key="k") is True
        await node.sio.emit("other", connection=app)
        await transaction.commit()
        await node.sio.emit("end")
        assert await wire.events_until("end") == [["node"], ["other"]]


async def test_an_append_waits_for_a_commit_that_is_under_way_and_meets_its_key(pg_dsn, start_node, app, db):
    node = await start_node()
    third = await asyncpg.connect(pg_dsn)
    try:
        async with third.transaction():
            await third.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            committing = asyncio.create_task(emit_async(app, "app", key="k"))
            await waiting(db)
            emitting = asyncio.create_task(node.sio.emit("node", key="k"))
            await waiting(db, 2)
        assert await committing is True and await emitting is False
    finally:
        await third.close()
    assert await bodies(db) == ['["app"]']


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_stricter_transaction_repeats_where_its_snapshot_does_not_show_the_key(store, app, db, isolation):
    with pytest.raises(asyncpg.SerializationError):
        async with app.transaction(isolation=isolation):
            await app.fetchval("SELECT 1")
            assert await store.manager.emit("first", None, key="k") is True
            assert await emit_async(app, "no", key="k") is True
    async with app.transaction(isolation=isolation):
        assert await emit_async(app, "no", key="k") is False
        assert await emit_async(app, "second", key="l") is True
        assert await emit_async(app, "no", key="l") is True
    assert await bodies(db) == ['["first"]', '["second"]']


# -- connections that break ----------------------------------------------------------------------------------------
async def test_an_emit_that_may_be_stored_is_sent_again_with_its_key(start_node, pg_dsn, db, monkeypatch):
    """The statement goes through. Its answer does not, and nor does the query that asks whether it is stored."""
    monkeypatch.setattr("sio_pg_adapter.store.commits.QUERY_TIMEOUT", 0.5)
    monkeypatch.setattr("sio_pg_adapter.store.commits.GIVE_UP_AFTER", 0.5)
    async with Proxy(pg_dsn).running() as proxy:
        node, other = await start_node(dsn=proxy.dsn), await start_node()
        async with other.client() as wire:
            await node.sio.emit("e", 0)
            proxy.mute()
            proxy.refuses = True
            with pytest.raises(StoreUnavailable) as raised:
                await node.sio.emit("e", 1, key="order-1")
            assert raised.value.may_be_stored
            proxy.refuses = False
            assert await node.sio.emit("e", 1, key="order-1") is False
            assert await node.sio.emit("e", 2, key="order-2") is True
            await other.sio.emit("end")
            assert [args for _, *args in await wire.events_until("end")] == [[0], [1], [2]]


async def test_a_batch_with_keys_whose_answer_was_lost(start_store, db, superuser):
    """It has fewer rows in the log than entries. Each entry still gets its own outcome."""
    store = await start_store()
    [(old, _)] = await append(store, keyed("0", "old"))
    await store.open()
    lost = store.lose_next_answer(superuser)
    written = await append(
        store,
        keyed("1", "old"),
        keyed("2", "k"),
        keyed("3", None),
        Entry(Kind.ENTER, "/", ("x",), sid="s"),
        keyed("4", "k"),
        keyed("5", "new"),
        keyed("6", None),
    )
    assert lost and await bodies(db) == [f'["{i}"]' for i in (0, 2, 3, 5, 6)]
    first = old + 1
    assert written == [
        (old, True),
        (first, False),
        (first + 1, False),
        (first + 2, False),
        (first, True),
        (first + 3, False),
        (first + 4, False),
    ]


async def doubled(nodes, db, superuser, count: int, seed: int) -> None:
    """Emit each event from two nodes at once, again and again until neither is in doubt, while connections break."""
    a, b = nodes
    choices = random.Random(seed)
    news: set[int] = set()
    ended = 0

    async def emit(node, i: int) -> bool | None:
        options = choices.choice([{}, {}, {"room": ["x", "y"]}, {"room": "all"}])
        data = (i, "x" * choices.choice([0, 0, 5_000, 70_000 if i % 50 == 0 else 0]))
        while True:
            try:
                return await node.sio.emit("e", data, key=f"key-{i}", **options)
            except StoreUnavailable:
                await asyncio.sleep(0.05)

    async def both(i: int) -> None:
        await asyncio.sleep(choices.random() * 0.05)
        outcomes = await asyncio.gather(emit(a, i), emit(b, i))
        assert outcomes.count(True) <= 1 and None not in outcomes, i
        news.add(i)

    async with a.client() as near, b.client() as far:
        for node, wire in ((a, near), (b, far)):
            await node.sio.enter_room(wire.sid, "all")
            await node.sio.enter_room(wire.sid, "x")
        for start in range(0, count, 200):
            running = asyncio.gather(*(both(i) for i in range(start, min(start + 200, count))))
            await asyncio.sleep(choices.random() * 0.05)
            ended += await terminate(superuser, OTHERS)
            await running
        assert news == set(range(count)) and ended > 0
        await a.sio.emit("end")
        for wire in (near, far):
            got = [i for _, i, *_ in await wire.events_until("end")]
            assert len(got) == len(set(got)) and set(got) == set(range(count)), f"seed {seed}"
    rows = await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0")
    assert rows == count + 1 and len(await keys(db)) == count


async def test_events_sent_twice_at_once_from_two_nodes_while_connections_break(start_node, db, superuser):
    await doubled([await start_node(), await start_node()], db, superuser, 400, 1)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_ten_thousand_events_sent_twice_at_once_from_two_nodes(start_node, db, superuser, request):
    seed = request.config.getoption("--chaos-seed")
    await doubled([await start_node(), await start_node()], db, superuser, 10_000, 1 if seed is None else seed)


# -- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"key": ""}, ConfigurationError, "key takes text that is not empty"),
        ({"key": 7}, NotSerializable, "key takes text, not 7"),
        ({"key": b"k"}, NotSerializable, "key takes text"),
        ({"key": "a\0b"}, NotSerializable, "key has a NUL character"),
        ({"key": "\ud800"}, NotSerializable, "key has an unpaired surrogate"),
        ({"key": "ü" * 257}, PayloadTooLarge, "key has 514 bytes"),
        ({"key": "k", "room": []}, ConfigurationError, "room takes one name or several"),
        ({"key": "k", "volatile": True}, ConfigurationError, "key= stores the event"),
        ({"key": "k", "ignore_queue": True}, ConfigurationError, "key= stores the event"),
        ({"key": "k", "callback": print, "room": "x"}, ConfigurationError, "key= stores the event"),
        ({"key": "k", "namespace": "/admin"}, ConfigurationError, "'/admin' are not"),
    ],
)
async def test_a_wrong_key_or_option_is_refused_before_anything_is_stored(start_node, app, db, options, error, says):
    node = await start_node()
    node.manager.unstored.add("/admin")
    for door in (node.sio, node.manager):
        with pytest.raises(error, match=says):
            await door.emit("e", None, **options)
    if options["key"] != "k" or ("room" in options and "callback" not in options):
        with pytest.raises(error, match=says):
            await emit_async(app, "e", None, **options)
    assert await bodies(db) == [] and await keys(db) == {}


async def test_the_longest_key_in_the_longest_namespace(store, db, app):
    key, namespace = "\U0001f642" * 128, "/" + "n" * 511
    for expected in (True, False):
        assert await store.manager.emit("e", None, namespace=namespace, key=key) is expected
        assert await emit_async(app, "e", namespace=namespace, key=key + "") is False
    assert await db.fetchval("SELECT octet_length(key) FROM sio_keys") == 512


async def test_the_same_key_in_another_namespace_is_another_key(db):
    await db.execute("INSERT INTO sio_keys VALUES ('/', 'k', 5)")
    await db.execute(
        "INSERT INTO sio_packets_0 (\"offset\", kind, namespace, room, body) VALUES (5, 0, '/', 'r', '[]')"
    )
    offsets = "SELECT sio_keyed_offsets(9, $1, $2)"
    assert await db.fetchval(offsets, ["/n", "/"], ['{"key":"k"}'] * 2) == [10, -5]
    assert [await db.fetchval("SELECT sio_has_key($1, 'k')", namespace) for namespace in ("/", "/n")] == [True, False]


@pytest.mark.parametrize(
    ("isolation", "fault", "expected"),
    [
        ("read_committed", None, True),
        ("read_committed", "unreadable", False),
        ("repeatable_read", None, True),
        ("serializable", None, False),
    ],
)
async def test_a_key_that_waits_in_the_relay_is_taken(db, isolation, fault, expected):
    """A serializable transaction does not look, and no event with a fault has its key."""
    insert = "INSERT INTO sio_relay (transaction, kind, namespace, room, key, fault) VALUES (1, 0, '/', 'r', 'k', $1)"
    await db.execute(insert, fault)
    async with db.transaction(isolation=isolation):
        assert await db.fetchval("SELECT sio_has_key('/', 'k')") is expected
        assert await db.fetchval("SELECT sio_has_key('/', 'another')") is False
        assert await db.fetchval("SELECT sio_has_key('/n', 'k')") is False
