"""Sessions in the store: opened, claimed, settled, released, saved and ended; the newest generation alone writes."""

from __future__ import annotations

import pytest

from sio_pg_adapter import PositionLost, StoreUnavailable
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.offsets import EPOCH_BITS
from sio_pg_adapter.log.records import Entry, Held, Kind, Written
from sio_pg_adapter.log.verdict import Claim, pid_hash
from support.store import Store
from support.waiting import until

ENTER, LEAVE = Kind.ENTER, Kind.LEAVE


async def test_a_session_opens_is_claimed_and_knows_its_rooms(store):
    await store.emit()
    held = await store.open(rooms={"x": [(1, None)]}, start=1, data='{"a":1}')
    await store.emit("x")
    joined = await store.move(ENTER, "s", "y")
    claimed = await store.claim()
    assert (claimed.id, claimed.generation, claimed.sid, claimed.data) == (held.id, 2, "s", '{"a":1}')
    assert claimed.memberships.rooms == {"x": [(1, None)], "y": [(joined, None)]}
    assert not claimed.lost and claimed.memberships.start == 1


@pytest.mark.parametrize("case", ["other pid", "other namespace", "ended", "kicked", "expired"])
async def test_case_48_what_cannot_be_claimed(store, db, case):
    held = await store.open()
    if case == "ended":
        assert await store.sessions.end(held) == "{}"
    elif case == "kicked":
        await store.kick("s")
    elif case == "expired":
        await store.sessions.release(held, seconds=0.0)
    pid = "q" if case == "other pid" else "p"
    assert await store.claim(pid, namespace="/admin" if case == "other namespace" else "/") is None
    assert await db.fetchval("SELECT generation FROM sio_sessions") in (1, None)


@pytest.mark.parametrize("case", ["other identity", "other log", "dead node"])
async def test_what_is_refused_although_the_session_is_there(living, store, db, case):
    await living.open()
    claim = Claim("p", None, None)
    if case == "other log":
        claim = Claim("p", await store.reader.head(), "00" * 32)
    elif case == "dead node":
        await db.execute(
            "UPDATE sio_nodes SET died_at = now() - interval '1 day', recovery_seconds = 60 WHERE id = $1",
            living.node,
        )
    identity = "another" if case == "other identity" else None
    assert await store.sessions.claim("/", claim, 10_000, identity=identity) is None
    assert await db.fetchval("SELECT generation FROM sio_sessions") == 1


async def test_a_node_that_died_a_moment_ago_may_come_back_for_its_sessions(living, store, db):
    await living.open()
    await db.execute(
        "UPDATE sio_nodes SET died_at = clock_timestamp(), recovery_seconds = 60 WHERE id = $1", living.node
    )
    assert await store.claim() is not None


async def test_the_rooms_of_a_claim_are_those_above_the_offset(store):
    held = await store.open()
    await store.open("t", "q")
    entered = await store.move(ENTER, "s", "x")
    await store.emit("x")
    left = await store.move(LEAVE, "s", "x")
    stays = await store.move(ENTER, "s", "y")
    await store.move(ENTER, "t", "z")
    for after, rooms in ((left - 1, {"x": [(entered, left)], "y": [(stays, None)]}), (left, {"y": [(stays, None)]})):
        await store.sessions.release(held, seconds=60.0)
        claimed = await store.claim("p", after)
        assert claimed.memberships.rooms == rooms
        held = Held(claimed.id, claimed.generation)


async def test_what_was_missed_is_counted_from_the_start_of_a_session(store):
    """A client that has received nothing presents no offset. The claim counts, too, up to the cap."""
    await store.emit()
    await store.open()
    await store.emit()
    await store.emit()
    claimed = await store.claim(cap=3)
    assert claimed.missed == 3 and claimed.upto is None and claimed.page == ()


async def test_the_clock_of_the_database_decides_when_time_is_up(store, db):
    """Case 54."""
    held = await store.open()
    await store.sessions.release(held, seconds=100.0, since=40.0)
    left = await db.fetchval("SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM sio_sessions")
    assert 30 < left <= 60
    await db.execute("UPDATE sio_sessions SET expires_at = clock_timestamp() - interval '1 second'")
    assert await store.claim() is None


async def test_a_session_may_last_for_ever(store, db):
    held = await store.open()
    await store.sessions.release(held, seconds=None)
    assert await db.fetchval("SELECT expires_at = 'infinity' FROM sio_sessions")
    assert (await store.claim()).former is None


# -- generations -------------------------------------------------------------------------------------------
async def test_what_an_old_generation_writes_does_nothing(store, db):
    old = await store.open(rooms={"x": [(0, None)]}, cursor=0, data='{"v":1}')
    new = await store.claim()
    assert await store.sessions.settle(Held(new.id, 2)) == '{"v":1}'
    before = await db.fetchrow("SELECT * FROM sio_sessions")

    assert await store.sessions.save("/", "s", '{"v":2}', old) is False
    assert await store.sessions.end(old) is None
    assert await store.sessions.settle(old) is None
    await store.sessions.release(old, seconds=0.0)
    assert await store.move(ENTER, "s", "y", generation=1) == 0
    assert await store.move(LEAVE, "s", "x", generation=1) == 0
    assert await store.sessions.page(old, 0, 10) is None
    assert await store.sessions.memberships(old, Memberships("s", 0)) is None

    assert await db.fetchrow("SELECT * FROM sio_sessions") == before
    assert await store.sessions.rooms("/", "s") == ["x"]


async def test_the_newest_claim_wins(store):
    await store.open()
    first, second = await store.claim(), await store.claim()
    assert (first.generation, second.generation) == (2, 3)
    assert await store.sessions.settle(Held(first.id, 2)) is None
    assert await store.sessions.settle(Held(second.id, 3)) == "{}"


async def test_the_former_holder_may_save_until_the_claim_is_settled(living, store):
    old = await living.open(data='{"v":1}')
    new = await store.claim()
    assert new.former == 1
    assert await living.sessions.save("/", "s", '{"v":2}', old) is True
    assert await store.sessions.settle(Held(new.id, 2)) == '{"v":2}'
    assert await living.sessions.save("/", "s", '{"v":3}', old) is False


async def test_a_session_that_is_settled_or_ended_leaves_the_others_as_they_are(living, store, db):
    for name in "st":
        await living.open(name, name)
    first, second = await store.claim("s"), await store.claim("t")
    assert first.generation == second.generation
    await store.sessions.settle(Held(first.id, first.generation))
    assert dict(await db.fetch("SELECT sid, settled FROM sio_sessions")) == {"s": 2, "t": 1}
    await store.sessions.end(Held(first.id, first.generation))
    assert [row["sid"] for row in await db.fetch("SELECT sid FROM sio_sessions")] == ["t"]


async def test_a_former_holder_that_lets_go_notifies_the_node_that_waits_for_it(living, start_node, db):
    """Once the claim is settled nobody waits, and nobody is notified."""
    claiming = Store((await start_node()).manager)
    old = await living.open()
    new = await claiming.claim()
    channel = await db.fetchval("SELECT channel FROM sio_nodes WHERE id = $1", claiming.node)
    payloads: list[str] = []
    await db.add_listener(channel, lambda *args: payloads.append(args[-1]))
    await living.sessions.release(old, seconds=0.0)
    await until(lambda: payloads == [f"released {old.id} 1"])
    await claiming.sessions.settle(Held(new.id, 2))
    await living.sessions.release(old, seconds=0.0)
    assert await db.fetchval("SELECT generation FROM sio_sessions WHERE node = $1", claiming.node) == 2
    assert len(payloads) == 1


async def test_a_claim_that_was_notified_is_the_one_that_a_later_claim_waits_for(living):
    old = await living.open()
    first = await living.claim()
    await living.sessions.release(old, seconds=60.0)
    second = await living.claim()
    assert (first.former, second.former) == (1, first.generation)


async def test_a_node_that_is_not_there_is_not_waited_for(store):
    await store.open()  # by a process that only emits: it holds no lock that shows that it lives
    assert (await store.claim()).former is None


async def test_a_session_that_was_away_is_settled_by_its_claim(store, db):
    old = await store.open()
    await store.sessions.release(old, seconds=60.0)
    assert (await store.claim()).former is None
    assert await db.fetchval("SELECT settled FROM sio_sessions") == 2
    record = await db.fetchrow("SELECT generation, node FROM sio_packets WHERE kind = 4")
    assert (record["generation"], record["node"].hex) == (2, store.node)
    assert await store.sessions.save("/", "s", "{}", old) is False


async def test_save_and_rooms_of_a_sid_wherever_it_is(store):
    """Case 30."""
    held = await store.open()
    await store.sessions.release(held, seconds=60.0)
    assert await store.sessions.save("/", "s", '{"v":2}', None) is True
    assert await store.sessions.text("/", "s") == '{"v":2}'
    await store.move(ENTER, "s", "x")
    await store.move(ENTER, "s", "y")
    await store.move(LEAVE, "s", "x")
    assert await store.sessions.rooms("/", "s") == ["y"]
    for sid, namespace in (("t", "/"), ("s", "/admin")):
        assert await store.sessions.save(namespace, sid, "{}", None) is False
        assert await store.sessions.rooms(namespace, sid) is None
        assert await store.sessions.text(namespace, sid) is None


async def test_a_save_that_expects_the_former_data_counts_once_however_often_it_is_sent(store):
    """It finds its own data if it is sent again, and does nothing if other data came in between."""
    held = await store.open(data='{"v":1}')
    for _ in range(2):
        assert await store.sessions.save("/", "s", '{"v":2}', held, expected='{"v":1}') is True
    assert await store.sessions.save("/", "s", '{"v":3}', held, expected='{"v":1}') is False
    assert await store.sessions.text("/", "s") == '{"v":2}'


async def test_a_sid_whose_time_is_up_has_no_data_to_save(store):
    held = await store.open()
    assert await store.sessions.save("/", "s", '{"v":1}', None) is True  # its client is connected
    await store.sessions.release(held, seconds=0.0)
    assert await store.sessions.save("/", "s", '{"v":2}', None) is False


# -- what it is due ----------------------------------------------------------------------------------------
async def test_cases_35_36_40_what_a_session_is_due(store):
    start = await store.emit()
    held = await store.open(rooms={"x": [(start, None)]}, start=start)
    due = [await store.emit(), await store.emit("x"), await store.emit("s"), await store.emit("x", "y")]
    for rooms, more in [(("y",), {}), (("t",), {}), (("",), {"namespace": "/n"}), (("x",), {"skip": ("t", "s")})]:
        await store.emit(*rooms, **more)
    before_joining = await store.emit("y")
    await store.move(ENTER, "s", "y")
    due += [await store.emit("y"), await store.emit("y", "x", "s")]
    await store.move(LEAVE, "s", "y")
    await store.emit("y")
    due.append(await store.emit("x"))
    await store.close_room("x")
    await store.emit("x")
    assert before_joining not in due
    assert await store.due(held, start) == due
    assert await store.due(held, due[2]) == due[3:]
    assert (await store.sessions.page(held, start, 3)).records[-1].offset == due[2]


async def test_a_membership_without_an_offset_is_not_kept(store, db):
    """Closing a room keeps them, which says that leaving looks at one room of one session."""
    for name in "st":
        await store.open(name, name)
    for sid, room in (("t", "x"), ("s", "y")):
        await store.move(ENTER, sid, room)
        await store.close_room(room)
    for room in "zx":
        assert await store.move(ENTER, "s", room) > 0
    assert await store.move(LEAVE, "s", "x") > 0
    rows = await db.fetch("SELECT sid, room FROM sio_rooms r JOIN sio_sessions s ON s.id = r.session ORDER BY 1, 2")
    assert [tuple(row) for row in rows] == [("s", "y"), ("s", "z"), ("t", "x")]
    assert await store.sessions.rooms("/", "s") == ["z"]
    kinds = await db.fetch('SELECT kind FROM sio_packets ORDER BY "offset"')
    assert [Kind(row["kind"]) for row in kinds] == [ENTER, Kind.CLOSE] * 2 + [ENTER, ENTER, LEAVE]


async def test_who_is_no_member_does_not_enter_as_a_member(store):
    await store.open()
    head = await store.reader.head()
    assert await store.log.append(Entry(ENTER, "/", ("x",), sid="s", args={"member": True})) == Written(0)
    assert await store.reader.head() == head


async def test_up_to_a_hundred_memberships_that_ended_are_kept_for_each_session(store, db):
    for name in "st":
        await store.open(name, name)
    for _ in range(60):
        for sid in "st":
            await store.move(ENTER, sid, "x")
            await store.emit("elsewhere")
            await store.move(LEAVE, sid, "x")
    assert await db.fetchval("SELECT count(*) FROM sio_rooms") == 120


async def test_a_sid_without_a_session_leaves_a_room(store):
    """Its node alone knows its rooms."""
    assert await store.move(LEAVE, "unstored", "x") > 0


MOVE = "SELECT sio_move(NULL, $1, '/', 'x', 's', NULL)"


async def test_leaving_again_changes_nothing(store, db):
    for name in "st":
        await store.open(name, name)
    assert await store.log.append(Entry(LEAVE, "/", ("x",), sid="s")) == Written(0)
    for sid, room in (("s", "x"), ("s", "x"), ("s", "y"), ("t", "x")):
        await store.move(ENTER, sid, room)
        await store.emit(room)
        left = await store.move(LEAVE, sid, room)
        if (sid, room) == ("s", "x"):
            expected = left
    head = await store.reader.head()
    assert await db.fetchval(MOVE, 2) == -expected
    assert await store.reader.head() == head


@pytest.mark.parametrize("first", ["/", "/n"])
async def test_a_sid_of_another_namespace_stays_where_it_is(store, db, first):
    namespaces = [first, "/n" if first == "/" else "/"]
    for name in "st":
        for namespace in namespaces[: 2 if name == "s" else 1]:
            await store.open(name, name + namespace, namespace=namespace)
    await store.move(ENTER, "s", "x")
    assert await store.sessions.rooms("/", "s") == ["x"] and await store.sessions.rooms("/n", "s") == []
    own = await store.log.append(Entry(ENTER, "/", ("t",), sid="s"))
    assert own.refused is (first == "/")
    assert await store.move(LEAVE, "s", "x") > 0
    assert "x" not in await store.sessions.rooms("/", "s")


async def test_case_103_entering_again_changes_nothing(store, db):
    held = await store.open()
    joined = await store.move(ENTER, "s", "x")
    sent = await store.emit("x")
    assert await store.move(ENTER, "s", "x") == joined
    assert await db.fetchval(MOVE, 1) == -joined
    assert await store.due(held, 0) == [sent]


async def test_case_104_a_room_left_as_of_the_offset_presented(store):
    held = await store.open()
    await store.move(ENTER, "s", "x")
    seen = await store.emit("x")
    await store.emit("x")
    await store.move(LEAVE, "s", "x")
    again = await store.move(ENTER, "s", "x")
    await store.emit("x")
    assert again
    await store.move(LEAVE, "s", "x", generation=1, as_of=seen)
    assert await store.due(held, seen) == []
    assert await store.sessions.rooms("/", "s") == []
    await store.move(ENTER, "s", "x")
    later = await store.emit("x")
    assert await store.due(held, seen) == [later]


async def test_case_44_what_is_missed_is_counted_to_the_cap(store):
    held = await store.open()
    for _ in range(5):
        await store.emit()
        await store.emit("elsewhere")
    assert (await store.claim(cap=5)).missed == 5
    assert (await store.claim(cap=4)).missed == 5  # more than the cap is all that the verdict asks
    await store.emit()
    assert (await store.claim(cap=4)).missed == 5
    assert held.generation == 1


# -- opened while the log moves on ---------------------------------------------------------------------------
async def test_a_room_that_was_closed_above_the_cursor_is_closed(store):
    head = await store.emit()
    await store.emit("x")
    closed = await store.close_room("x")
    await store.close_room("x")
    await store.emit("x")
    held = await store.open(rooms={"x": [(head, None)], "y": [(head, None)]}, cursor=head)
    _, memberships = await store.sessions.memberships(held, Memberships("s", head))
    assert memberships.rooms == {"x": [(head, closed)], "y": [(head, None)]}


async def test_moves_by_another_node_above_the_cursor_are_folded_in(store):
    head = await store.emit()
    entered = await store.move(ENTER, "s", "a")
    left = await store.move(LEAVE, "s", "b")
    await store.move(ENTER, "t", "c")
    held = await store.open(rooms={"b": [(head, None)]}, cursor=head)
    _, memberships = await store.sessions.memberships(held, Memberships("s", head))
    assert memberships.rooms == {"a": [(entered, None)], "b": [(head, left)]}


async def test_a_room_entered_and_then_closed_above_the_cursor_is_closed(store):
    head = await store.emit()
    await store.move(ENTER, "s", "x")
    await store.close_room("x")
    held = await store.open(cursor=head)
    await store.emit("x")
    _, memberships = await store.sessions.memberships(held, Memberships("s", head))
    assert memberships.rooms == {}  # a span between neighbours holds no offset
    assert await store.due(held, head) == []


async def test_a_room_left_and_then_closed_above_the_cursor_was_left_first(store):
    head = await store.emit()
    due = await store.emit("x")
    left = await store.move(LEAVE, "s", "x")
    await store.emit("x")
    await store.close_room("x")
    held = await store.open(rooms={"x": [(head, None)]}, cursor=head)
    _, memberships = await store.sessions.memberships(held, Memberships("s", head))
    assert memberships.rooms == {"x": [(head, left)]}
    assert await store.due(held, head) == [due]


async def test_a_room_closed_and_then_entered_above_the_cursor_is_entered(store):
    head = await store.emit()
    await store.emit("x")
    closed = await store.close_room("x")
    entered = await store.move(ENTER, "s", "x")
    held = await store.open(rooms={"x": [(head, None)]}, cursor=head)
    _, memberships = await store.sessions.memberships(held, Memberships("s", head))
    assert memberships.rooms == {"x": [(head, closed), (entered, None)]}


async def test_the_store_and_the_node_fold_the_same(store):
    """What a node applies to a client's memberships, and what opening a session adds, are one rule."""
    head = await store.emit()
    moves = [(ENTER, "x"), (None, "x"), (ENTER, "y"), (LEAVE, "y"), (ENTER, "x"), (None, "z"), (LEAVE, "z")]
    for kind, room in moves:
        await (store.close_room(room) if kind is None else store.move(kind, "s", room))
    held = await store.open(rooms={"z": [(head, None)]}, cursor=head)
    _, stored = await store.sessions.memberships(held, Memberships("s", head))
    live = Memberships("s", head, {"z": [(head, None)]})
    for record in (await store.reader.range(head, 100))[1]:
        live.apply(record)
    assert stored.rooms == live.rooms


async def test_only_records_of_the_namespace_above_the_cursor_are_followed(store):
    """The client enters the room again behind the record at which it was closed."""
    closed = [await store.close_room("x") for _ in range(2)][-1]
    elsewhere = [
        Entry(ENTER, "/n", ("y",), sid="s"),
        Entry(Kind.CLOSE, "/n", ("x",)),
        Entry(Kind.KICK, "/n", sid="s"),
    ]
    for entry in elsewhere:
        await store.log.append(entry)
    held = await store.open(rooms={"x": [(closed, None)]}, cursor=closed)
    _, memberships = await store.sessions.memberships(held, Memberships("s", closed))
    assert memberships.rooms == {"x": [(closed, None)]}


async def test_changes_of_members_above_the_cursor_are_followed_for_the_members(store, db):
    """Not for members of a room of another session, of a room that the session had left, or with a skipped sid."""
    head = [await store.emit() for _ in range(3)][-1]
    await store.open("t", "q", rooms={"y": [(head, None)]})
    change = "SELECT sio_change_members(1, $1, '/', $2, $3, $4, '{}')"
    entered = await db.fetchval(change, 6, ["x"], ["a", "b"], [])
    for of, skip in (["y"], []), (["old"], []), (["x"], ["s", "nobody"]):
        await db.fetchval(change, 6, of, ["c"], skip)
    spans = {"x": [(head, None)], "old": [(head - 2, head)]}
    held = await store.open(rooms=spans, cursor=head)
    rows = await db.fetch("SELECT room, joined_at FROM sio_rooms WHERE session = $1 AND left_at IS NULL", held.id)
    assert {tuple(row) for row in rows} == {("x", head), ("a", entered), ("b", entered)}
    await db.fetchval(change, 8, ["x"], [""], [])
    assert await store.open("u", "r", rooms=spans, cursor=head) is None


async def test_a_session_has_the_first_60_bits_of_the_hash_as_its_id_and_keeps_rooms_that_it_left(store, db):
    head = [await store.emit() for _ in range(3)][-1]
    held = await store.open(rooms={"x": [(head - 2, head)]}, cursor=head)
    assert held.id == int(pid_hash("p")[:15], 16)
    rows = await db.fetch("SELECT session, room, joined_at, left_at, namespace FROM sio_rooms")
    assert [tuple(row) for row in rows] == [(held.id, "x", head - 2, head, "/")]


async def test_a_kick_while_the_session_was_being_opened_ends_it(store, db):
    head = await store.emit()
    await store.kick("s")
    assert await store.open(cursor=head) is None
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0


async def test_a_session_opened_twice_by_a_call_sent_again_is_one(store, db):
    head = await store.emit()
    first = await store.open(rooms={"x": [(head, None)]}, cursor=head)
    await store.move(ENTER, "s", "y")
    await store.move(LEAVE, "s", "y")
    assert await store.open(rooms={"x": [(head, None)]}, cursor=head) == first
    assert await store.sessions.rooms("/", "s") == ["x"]


async def test_close_room_ends_the_memberships_of_all(store):
    for sid in "st":
        await store.open(sid, sid)
        await store.move(ENTER, sid, "x")
        await store.move(ENTER, sid, "y")
    await store.close_room("x")
    assert await store.sessions.rooms("/", "s") == await store.sessions.rooms("/", "t") == ["y"]


async def test_a_kick_ends_the_session_and_its_record_holds_the_data(store):
    """Case 29."""
    held = await store.open(data='{"v":1}')
    await store.sessions.release(held, seconds=60.0)
    kicked = await store.kick("s")
    (record,) = (await store.reader.range(kicked - 1, 1))[1]
    assert (record.kind, record.sid, record.data) == (Kind.KICK, "s", '{"v":1}')
    assert await store.claim() is None


async def test_a_kick_ends_no_session_but_that_of_the_sid_in_the_namespace(store, db):
    for namespace, sid in (("/", "s"), ("/", "t"), ("/n", "s")):
        await store.open(sid, sid + namespace, namespace=namespace, rooms={"x": [(0, None)]})
    await store.kick("s")
    left = "SELECT s.namespace, sid, room FROM sio_sessions s JOIN sio_rooms ON session = id ORDER BY 1"
    assert [tuple(row) for row in await db.fetch(left)] == [("/", "t", "x"), ("/n", "s", "x")]


async def test_a_session_that_would_start_above_the_log_is_refused(store, db):
    """Its node has read another copy of the log. The session would not be due the events that come next."""
    head = await store.emit()
    with pytest.raises(StoreUnavailable, match="ends below") as raised:
        await store.open(start=head + 1)
    assert raised.value.may_be_stored is False
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 0
    assert await store.open(start=head)


async def test_no_session_is_opened_from_a_position_that_is_lost(store, db):
    """The log has lost its epoch, or a record above the start."""
    first, head = [await store.emit() for _ in range(2)]
    key = store.manager.node.epochs.codec.epochs[head >> EPOCH_BITS].key.hex()
    rooms = {"x": [(first, None)]}
    assert await store.open("s", "p", rooms=rooms, start=first, since={(first, key), (head, key)})
    with pytest.raises(PositionLost):
        await store.open("t", "q", rooms=rooms, start=first, since={(first, key), (head, "00" * 32)})
    await db.execute("UPDATE sio_log SET floor = $1", head)
    with pytest.raises(PositionLost):
        await store.open("t", "q", rooms=rooms, start=first, since={(first, key)})
    assert await store.open("t", "q", rooms=rooms, start=head, since={(first, key)})
    assert await db.fetchval("SELECT count(*) FROM sio_sessions") == 2
    assert await db.fetchval("SELECT count(*) FROM sio_rooms") == 2
