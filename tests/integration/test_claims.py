"""A recovery in one round trip: the claim brings the first page along, or the node has it in memory.

What came with the claim counts only in the moment in which it came. Each test fails when one of its conditions is
taken out.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from integration.test_seam import Deaf
from integration.test_segments import KEEP, MANY, QUERIES, turned
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Entry, Held, Kind
from sio_pg_adapter.log.verdict import Claim
from sio_pg_adapter.store import sessions
from support.asgi_client import AsgiClient
from support.waiting import until, until_answer, until_waiting


def trips(node) -> list[str]:
    """What a node asks its store for, from here on."""
    asked: list[str] = []
    append, page = node.manager.node.writer.append, node.manager.node.sessions.page

    def note(entry):
        asked.append(entry.kind.name)
        return append(entry)

    def note_page(*args):
        asked.append("page")
        return page(*args)

    node.manager.node.writer.append, node.manager.node.sessions.page = note, note_page
    return asked


# -- one round trip ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("always_connect", [True, False])
async def test_a_claim_is_all_that_a_recovery_asks_the_store(start_node, in_memory, always_connect):
    """The node that served the client has in memory what it missed; one that has just started gets it on the way."""
    a = await start_node()
    async with a.client() as wire:
        await a.sio.enter_room(wire.sid, "x")
        await a.sio.emit("first", to=wire.sid)
        await wire.event()
        await wire.drop()
        for i in range(5):
            await a.sio.emit("e", i, to=["x", "y"])
            await a.sio.emit("other", to="y")
        node = a if in_memory else await start_node(always_connect=always_connect)

        @node.sio.event
        async def connect(sid, environ, auth):
            await node.sio.enter_room(sid, "x")

        asked = trips(node)
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert [await again.event() for _ in range(5)] == [["e", i] for i in range(5)]
            assert asked == ["CLAIM"]
            await a.sio.emit("live", to="x")
            assert await again.event() == ["live"]


async def test_what_is_too_much_for_a_claim_is_read_behind_it(start_node, monkeypatch):
    """It ends at so many packets, at so many bytes, before binary and before what is stored apart."""
    monkeypatch.setattr(sessions, "CARRIED_EVENTS", 4)
    monkeypatch.setattr(sessions, "CARRIED_BYTES", 1_000)
    a = await start_node()
    for missed in (
        ["1", "2", "3"],
        ["1", "2", "3", "4"],
        ["1", "2", "3", "4", "5", "6"],
        ["1", "x" * 900, "y" * 900, "4"],
        ["x" * 2_000, "2"],
        ["1", b"2", "3"],
        [b"1", "2"],
        ["1", "x" * 100_000, "3"],
        [],
    ):
        async with a.client() as wire:
            await wire.drop()
            for data in missed:
                await a.sio.emit("e", data, to=wire.sid)
            late = await start_node()
            asked = trips(late)
            async with late.client(pid=wire.pid) as again:
                assert again.sid == wire.sid
                await a.sio.emit("end", to=wire.sid)
                assert await events(again) == missed
                carried = missed in (["1", "2", "3"], ["1", "2", "3", "4"], [])
                assert asked[0] == "CLAIM" and ("page" not in asked) is carried, missed


async def events(wire: AsgiClient) -> list[str | bytes]:
    """The data of each event until the one that is named "end"."""
    got: list[str | bytes] = []
    while (name := (packet := await wire.recv())[packet.index("[") :]).startswith('["e",'):
        got.append(await wire.recv() if packet[0] == "5" else json.loads(name)[1])
    return got


# -- what comes with a claim ------------------------------------------------------------------------------------
async def test_the_page_of_a_claim_is_what_the_session_is_due(store):
    held = await store.open(rooms={"x": [(0, None)]})
    start = await store.reader.head()
    due = [await store.emit(), await store.emit("y", "x", body='["a\\u0000"]'), await store.emit("s", skip=("t",))]
    await store.emit("y")
    await store.emit("x", skip=("s",))
    await store.sessions.release(held, seconds=60.0)
    for limit, count in ((1, 1), (2, 2), (3, 3), (4, 3), (1_000, 3)):
        claimed = await store.sessions.claim("/", await claim_of(store, start), 10_000, limit)
        read = await store.sessions.page(Held(claimed.id, claimed.generation), start, limit)
        assert [record.offset for record in claimed.page] == due[:count]
        # The same records as those of a page that is read, but for what only PostgreSQL needs.
        assert list(claimed.page) == read.records
        assert claimed.upto == (claimed.offset if limit > 3 else due[count - 1])
        await store.sessions.release(Held(claimed.id, claimed.generation), seconds=60.0)


async def test_the_page_has_an_event_for_several_rooms_of_the_claims_own_batch(store):
    """Emitted just before it, and written in one commit with it: its second room counts as much as its first."""
    held = await store.open(rooms={"x": [(0, None)]})
    start = await store.reader.head()
    await store.sessions.release(held, seconds=60.0)
    claim = await claim_of(store, start)
    emitting = store.log.append(Entry(Kind.EVENT, "/", ("y", "x"), body='["e"]'))
    claimed = await store.sessions.claim("/", claim, 10_000, 10)
    assert [record.offset for record in claimed.page] == [(await emitting).offset]
    assert claimed.offset == claimed.page[0].offset + 1  # it was one batch


async def test_the_page_of_a_claim_takes_as_many_bytes_as_it_may(store, monkeypatch):
    monkeypatch.setattr(sessions, "CARRIED_BYTES", 10)
    await store.open()
    start = await store.reader.head()
    due = [await store.emit(body=body) for body in ('["a"]', '["b"]', '["c"]')]
    claimed = await store.sessions.claim("/", await claim_of(store, start), 10_000, 10)
    assert [record.offset for record in claimed.page] == due[:2]
    assert claimed.upto == due[1] and claimed.missed == 3 and claimed.stale is False
    await store.sessions.release(Held(claimed.id, claimed.generation), seconds=60.0)
    await store.emit(body='["too large"]')
    claimed = await store.sessions.claim("/", await claim_of(store, due[2]), 10_000, 10)
    assert claimed.page == () and claimed.upto == due[2]


async def test_what_retention_deletes_while_a_claim_waits_for_it_counts_as_lost(pg_dsn, store, db):
    """The claim finds nothing deleted yet, waits to read the segment that is being truncated, and finds it empty."""
    held = await store.open()
    start = await store.reader.head()
    await store.emit()
    await turned(db)
    await store.sessions.release(held, seconds=60.0)
    claim = await claim_of(store, start)
    async with db.transaction():
        assert await db.fetchval(QUERIES["trim"], KEEP, MANY) == MANY + 1
        claiming = asyncio.create_task(store.sessions.claim("/", claim, 10_000, 10))
        while not await db.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            await asyncio.sleep(0)
    claimed = await claiming
    assert claimed.lost and not claimed.page


async def test_a_claim_that_brings_a_page_counts_what_was_missed(store):
    """So many as fit in a page need no counting: then `missed` is exact; and the cap holds in any case."""
    held = await store.open()
    start = await store.reader.head()
    for _ in range(5):
        await store.emit()
        await store.emit("other")
    for limit, cap, missed in ((6, 3, 5), (6, 100, 5), (5, 3, 4), (3, 3, 4), (0, 3, 4)):
        await store.sessions.release(held, seconds=60.0)
        claimed = await store.sessions.claim("/", await claim_of(store, start), cap, limit)
        assert claimed.missed == missed
        held = Held(claimed.id, claimed.generation)


async def test_what_is_appended_while_a_claim_is_counted_does_not_count(store, monkeypatch):
    """The count comes after the claim, outside of the log's lock. The verdict is as of the claim's offset."""
    held = await store.open()
    start = await store.reader.head()
    for _ in range(5):
        await store.emit()
    await store.sessions.release(held, seconds=60.0)
    fetch = store.manager.node.database.fetch

    async def later(query, *args):
        if query == "missed":
            await store.emit()
        return await fetch(query, *args)

    monkeypatch.setattr(store.manager.node.database, "fetch", later)
    claimed = await store.sessions.claim("/", await claim_of(store, start), 4, 0)
    assert claimed.missed == 5 and not claimed.lost


async def test_what_retention_deletes_while_a_claim_is_counted_is_lost(store, db, monkeypatch):
    held = await store.open()
    start = await store.reader.head()
    for _ in range(5):
        await store.emit()
    await store.sessions.release(held, seconds=60.0)
    fetch = store.manager.node.database.fetch

    async def later(query, *args):
        if query == "missed":
            await db.execute("UPDATE sio_packets SET created_at = '2000-01-01'")
            assert await db.fetchval("SELECT sio_trim(60, 3)") == 3
        return await fetch(query, *args)

    monkeypatch.setattr(store.manager.node.database, "fetch", later)
    claimed = await store.sessions.claim("/", await claim_of(store, start), 4, 0)
    assert claimed.lost


@pytest.mark.parametrize("to", ["x", "several", "deleted", "deleted later", "before", "after", "other", "skipped"])
async def test_a_membership_that_is_not_stored_any_more_is_not_forgotten_where_it_had_an_event(store, db, to):
    """Room x is left a hundred times. Only the last fifty times are stored."""
    held = await store.open()
    start = await store.reader.head()
    if to == "before":
        await store.emit("x")
    await store.move(Kind.ENTER, "s", "x")
    event = 0
    if to in ("x", "deleted", "deleted later"):
        event = await store.emit("x")
    elif to == "several":
        event = await store.emit("y", "x")
    else:
        await store.emit("y")
    if to == "skipped":
        await store.emit("x", skip=("s",))
        await store.emit("y", "x", skip=("s",))
    if to == "deleted later":
        await store.emit("y")
    await store.move(Kind.LEAVE, "s", "x")
    if to in ("after", "deleted later"):
        await store.emit("x")
    if to in ("deleted", "deleted later"):
        await db.execute("UPDATE sio_packets SET created_at = '2000-01-01'")
        await db.fetchval("SELECT sio_trim(60, 100)")
    for _ in range(100):
        await store.move(Kind.ENTER, "s", "x")
        await store.emit("elsewhere")
        await store.move(Kind.LEAVE, "s", "x")
    late = await store.emit()
    await store.move(Kind.ENTER, "s", "x")
    assert await db.fetchval("SELECT count(*) FROM sio_rooms") == 51
    for after in (start, event - 1 if event else late, event or late, late - 1):
        await store.sessions.release(held, seconds=60.0)
        claimed = await store.claim("p", after)
        assert claimed.lost is (after < event)
        held = Held(claimed.id, claimed.generation)
        page = await store.sessions.page(held, after, 10)
        assert page.lost is (after < event)
        assert [record.offset for record in page.records] == [late] * (after < late)


async def test_memberships_are_bounded_also_where_all_members_of_a_room_enter_another(store, db):
    await store.open()
    for _ in range(101):
        await store.move(Kind.ENTER, "s", "x")
        await store.emit("elsewhere")
        await store.move(Kind.LEAVE, "s", "x")
    assert await db.fetchval("SELECT count(*) FROM sio_rooms") == 101
    await db.execute("SELECT sio_change_members(1, 6, '/', ARRAY['s'], ARRAY['x'], '{}', '{}')")
    assert await db.fetchval("SELECT count(*) FROM sio_rooms") == 51


async def test_no_page_where_a_former_holder_may_still_write(living):
    await living.open()
    await living.emit()
    claimed = await living.sessions.claim("/", await claim_of(living, None), 10_000, 10)
    assert claimed.former == 1 and claimed.page == () and claimed.upto is None


async def test_what_a_claim_may_answer_counts_in_its_batch(store, monkeypatch):
    """Some hundred claims of one commit are not to bring hundreds of pages along."""
    monkeypatch.setattr("sio_pg_adapter.store.writer.BATCH_BYTES", 3 * sessions.CARRIED_BYTES)
    batches: list[int] = []
    write = store.log._write

    async def noted(batch):
        batches.append(len(batch))
        await write(batch)

    for i in range(8):
        await store.open(f"s{i}", f"p{i}")
    store.log._write = noted
    claims = [await claim_of(store, None, f"p{i}") for i in range(8)]
    await asyncio.gather(*(store.sessions.claim("/", one, 10_000, 10) for one in claims))
    assert sum(batches) == 8 and max(batches) == 3
    batches.clear()
    await asyncio.gather(*(store.sessions.claim("/", one, 10_000) for one in claims))
    assert max(batches) == 8


async def claim_of(store, after, pid="p"):
    await store.manager.node.continuity.check()
    key = None if after is None else store.manager.node.epochs.codec.epochs[after >> EPOCH_BITS].key.hex()
    return Claim(pid, after, key)


async def test_a_page_that_is_read_is_one_round_trip(store, db, superuser):
    """What the pool's connection ran last is the page: asyncpg would reset it at its release, by a statement."""
    held = await store.open()
    await store.sessions.page(held, 0, 10)
    rows = await superuser.fetch("SELECT query FROM pg_stat_activity WHERE application_name = 'sio_pg_adapter'")
    queries = [row["query"] for row in rows]
    assert store.manager.database.queries["page"] in queries
    assert not [query for query in queries if "RESET" in query]


# -- only in its own moment -------------------------------------------------------------------------------------
async def test_a_room_that_the_handler_leaves_is_not_sent_from_the_claims_page(start_node):
    a = await start_node()
    async with a.client() as wire:
        await a.sio.enter_room(wire.sid, "x")
        await wire.drop()
        await a.sio.emit("secret", to="x")
        await a.sio.emit("e", to=wire.sid)
        late = await start_node()

        @late.sio.event
        async def connect(sid, environ, auth):
            await late.sio.leave_room(sid, "x")

        async with late.client(pid=wire.pid) as again:
            assert again.sid == wire.sid
            await a.sio.emit("end", to=wire.sid)
            assert [name for name, *_ in await again.events_until("end")] == ["e"]


@pytest.mark.parametrize("in_memory", [True, False])
async def test_an_overtaken_try_sends_nothing_that_came_with_its_claim(start_node, monkeypatch, in_memory):
    """While the handler waited the session was claimed elsewhere, and this node has not heard of it."""
    monkeypatch.setattr("sio_pg_adapter.server.claiming.TAKEOVER_WAIT", 0.05)
    a, b = await start_node(), await start_node()
    entered, go = asyncio.Event(), asyncio.Event()
    deaf = []
    async with a.client() as wire:
        await a.sio.emit("first", to=wire.sid)
        await wire.event()
        await wire.drop()
        await b.sio.emit("e", "missed")
        node = a if in_memory else await start_node()

        @node.sio.event
        async def connect(sid, environ, auth):
            deaf.append(Deaf(node))
            entered.set()
            await go.wait()

        async with AsgiClient(node.sio) as first:
            first.send("0" + json.dumps({"pid": wire.pid, "offset": wire.offset}))
            await entered.wait()
            async with b.client(pid=wire.pid, offset=wire.offset) as second:
                assert second.sid == wire.sid
                assert await second.event() == ["e", "missed"]
                go.set()
                assert await first.rest() == []
                deaf[0].hear()


# -- entering a room that one is in -------------------------------------------------------------------------------
async def test_a_room_left_before_it_is_entered_is_entered(start_node, db):
    """By this node itself, after the claim was written and before its answer came: what is called first, comes
    first."""
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        if environ["sio_pg.recovered"]:
            await node.sio.enter_room(sid, "x")

    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "x")
        await wire.drop()
        async with AsgiClient(node.sio) as again:
            async with db.transaction():
                await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
                again.send("0" + json.dumps({"pid": wire.pid}))
                while not await db.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
                    await asyncio.sleep(0)
                leaving = asyncio.create_task(node.sio.leave_room(wire.sid, "x"))
                await until(lambda: node.manager.node.writer._waiting)
            assert (await again.recv()).startswith("0")
            await leaving
            await node.sio.emit("e", to="x")
            assert await again.event() == ["e"]
            assert not node.manager.node.appender._leaving
    kinds = await db.fetch('SELECT kind FROM sio_packets WHERE kind <> 0 ORDER BY "offset"')
    assert [Kind(row["kind"]).name for row in kinds] == ["ENTER", "CLAIM", "LEAVE", "ENTER"]


@pytest.mark.parametrize("close", [False, True])
async def test_a_room_left_elsewhere_while_the_handler_waited_is_entered(start_node, close):
    """This node has not heard of it: only in the claim's own moment does it know the rooms."""
    a, b = await start_node(), await start_node()

    @a.sio.event
    async def connect(sid, environ, auth):
        if environ["sio_pg.recovered"]:
            deaf = Deaf(a)
            await (b.sio.close_room("x") if close else b.sio.leave_room(sid, "x"))
            entering = asyncio.create_task(a.sio.enter_room(sid, "x"))
            await asyncio.sleep(0)
            deaf.hear()
            await entering

    async with a.client() as wire:
        await a.sio.enter_room(wire.sid, "x")
        await wire.drop()
        async with a.client(pid=wire.pid) as again:
            await b.sio.emit("e", to="x")
            assert await again.event() == ["e"]


async def test_a_room_that_it_is_not_in_is_entered_by_the_log(start_node):
    node = await start_node()

    @node.sio.event
    async def connect(sid, environ, auth):
        await node.sio.enter_room(sid, "new")

    async with node.client() as wire:
        await wire.drop()
        asked = trips(node)
        async with node.client(pid=wire.pid) as again:
            await node.sio.emit("e", to="new")
            assert await again.event() == ["e"]
            assert asked[:1] == ["CLAIM"] and "ENTER" not in asked  # entered at its first connect

        @node.sio.on("connect")
        async def other(sid, environ, auth):
            await node.sio.enter_room(sid, "newer")

        async with node.client(pid=wire.pid) as again:
            await node.sio.emit("e", to="newer")
            assert await again.event() == ["e"]
            assert "ENTER" in asked


@pytest.mark.parametrize("known", [True, False], ids=["granted", "of an unknown session"])
async def test_a_client_that_is_sent_away_while_it_claims_comes_back(start_node, db, expected_errors, known):
    """As when the node meets another log. The session, which the claim gave to this node, is let go at once."""
    expected_errors.append("retention deleted records that this node had not read")
    node = await start_node()
    async with node.client() as wire:
        await node.sio.emit("first")
        await wire.event()
    if not known:
        await db.execute("DELETE FROM sio_sessions")
    await node.sio.emit("missed")
    async with AsgiClient(node.sio) as again:
        async with db.transaction():
            await db.execute("LOCK TABLE sio_lock IN EXCLUSIVE MODE")
            again.send("0" + json.dumps({"pid": wire.pid, "offset": wire.offset}))
            await until_waiting(db)
            node.manager.node.continuity.skipped(0)
        assert await again.rest() == []
    await until_answer(lambda: db.fetchval("SELECT count(*) = 0 FROM sio_sessions WHERE node IS NOT NULL"))
    async with node.client(pid=wire.pid, offset=wire.offset) as again:
        assert (again.sid == wire.sid) is known
        await node.sio.emit("last")
        assert [name for name, *_ in [await again.event() for _ in range(1 + known)]] == ["missed", "last"][
            1 - known :
        ]
