"""Recovery is denied if an event that the client was due is deleted, and for nothing else that is deleted."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace

import pytest

from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.names import EVERYBODY
from sio_pg_adapter.log.records import Kind, Record
from support.asgi_client import AsgiClient
from support.pruning import prune_once
from support.store import kinds_of
from support.waiting import until

ROOMS = ["a", "b", "c"]


async def expire(db, pg_dsn, *, whole: bool, upto: int = 1 << 62) -> None:
    """The records up to an offset have had their time and are deleted: all of a segment, or row by row."""
    if whole:
        await db.execute("SELECT setval('sio_active_segment', (SELECT 1 - last_value FROM sio_active_segment))")
    await db.execute(
        'UPDATE sio_packets SET created_at = created_at - make_interval(hours => 1) WHERE "offset" <= $1', upto
    )
    await prune_once(pg_dsn)


# -- what the last deleted events of a client's rooms were --------------------------------------------------------
async def talks_to_everybody(node, sid: str) -> None:
    await node.sio.emit("said", skip_sid=sid)


async def talks_in_one_room_of_many(node, sid: str) -> None:
    await node.sio.emit("said", room="b", skip_sid=[sid, "somebody else"])


async def types_in_all_its_rooms(node, sid: str) -> None:
    await node.sio.emit("typing", room=ROOMS, skip_sid=sid)


async def is_left_out_in_its_own_room(node, sid: str) -> None:
    await node.sio.emit("synced", to=[sid, "a"], skip_sid=sid)


async def has_left_a_room_that_goes_on(node, sid: str) -> None:
    await node.sio.emit("goes on", room="left")


async def was_in_a_room_that_was_closed(node, sid: str) -> None:
    await node.sio.emit("goes on", room=["closed", "another"])


SILENT = [
    talks_to_everybody,
    talks_in_one_room_of_many,
    types_in_all_its_rooms,
    is_left_out_in_its_own_room,
    has_left_a_room_that_goes_on,
    was_in_a_room_that_was_closed,
]

of_any_kind = pytest.mark.parametrize("happens", SILENT, ids=lambda happens: happens.__name__)
either_way = pytest.mark.parametrize("whole", [False, True], ids=["row by row", "a segment"])


async def settle_in(node, sid: str) -> None:
    for room in (*ROOMS, "left", "closed"):
        await node.sio.enter_room(sid, room)
    await node.sio.emit("in left", room="left")
    await node.sio.emit("elsewhere", room="another")  # so that there was time for an event before it left
    await node.sio.leave_room(sid, "left")
    await node.sio.close_room("closed")


@of_any_kind
@either_way
@pytest.mark.parametrize("away", [False, True], ids=["live", "away"])
async def test_a_client_that_missed_nothing_recovers(start_node, db, pg_dsn, happens, whole, away):
    """An hour later the log has none of the events that it was sent."""
    a, b = await start_node(), await start_node()
    async with a.client() as wire, b.client() as other:
        await settle_in(a, wire.sid)
        await b.sio.enter_room(other.sid, "left")
        assert await wire.event() == ["in left"]
        if away:
            await wire.drop()
        for _ in range(3):
            await happens(b, wire.sid)
            await expire(db, pg_dsn, whole=whole)
        assert await db.fetchval("SELECT count(*) FROM sio_packets WHERE kind = 0") == 0
        await wire.drop()
        await happens(b, wire.sid)
        await b.sio.emit("missed", 1, room="a")
        async with b.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert sorted(b.sio.rooms(again.sid)) == sorted([again.sid, *ROOMS])
            await b.sio.emit("missed", 2, room=["c", "left"])
            await b.sio.emit("end")
            assert await again.events_until("end") == [["missed", 1], ["missed", 2]]


@of_any_kind
@either_way
async def test_a_client_that_never_got_an_event_recovers(start_node, db, pg_dsn, happens, whole):
    node = await start_node()
    async with node.client() as wire:
        for room in (*ROOMS, "left", "closed"):
            await node.sio.enter_room(wire.sid, room)
        await node.sio.emit("elsewhere", room="another")
        await node.sio.leave_room(wire.sid, "left")
        await node.sio.close_room("closed")
        await happens(node, wire.sid)
        await expire(db, pg_dsn, whole=whole)
        await wire.drop()
        async with node.client(pid=wire.pid) as again:
            assert again.sid == wire.sid


@of_any_kind
@either_way
async def test_an_event_that_was_sent_and_not_received_is_missed(start_node, db, pg_dsn, happens, whole):
    """The node has sent it, but the client's offset shows that it did not get it."""
    node = await start_node()
    async with node.client() as wire:
        await settle_in(node, wire.sid)
        assert await wire.event() == ["in left"]
        await happens(node, wire.sid)
        await node.sio.emit("on its way", room=["another", "a"])
        await happens(node, wire.sid)
        await expire(db, pg_dsn, whole=whole)
        await happens(node, wire.sid)
        await expire(db, pg_dsn, whole=whole)
        await wire.drop()
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid != wire.sid


@either_way
async def test_a_client_that_missed_the_last_event_before_it_left_gets_a_new_session(start_node, db, pg_dsn, whole):
    node = await start_node()
    async with node.client() as wire:
        await node.sio.enter_room(wire.sid, "left")
        for _ in range(2):
            await node.sio.emit("in left", room="left")
        await node.sio.leave_room(wire.sid, "left")
        await node.sio.emit("goes on", room="left")
        assert await wire.event() == ["in left"]
        seen = wire.offset
        assert await wire.event() == ["in left"]
        await expire(db, pg_dsn, whole=whole)
        await wire.drop()
        async with node.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
        async with node.client(pid=wire.pid, offset=seen) as again:
            assert again.sid != wire.sid


async def test_retention_that_is_at_work_is_waited_for(start_node, db):
    """Retention does not see the session of a slow connect handler, and deletes events that it is due."""
    node = await start_node()
    connecting, late = asyncio.Event(), asyncio.Event()

    @node.sio.event
    async def connect(sid, environ, auth):
        connecting.set()
        await late.wait()

    async with AsgiClient(node.sio) as wire:
        wire.send("0")
        await connecting.wait()
        await node.sio.emit("missed")
        await db.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
        tries = kinds_of(node.manager.node.writer)
        async with db.transaction():
            assert await db.fetchval("SELECT sio_trim(600, 100)") == 1
            late.set()
            await until(lambda: tries.count(Kind.OPEN) > 1)
        session = json.loads(str(await wire.recv())[1:])
        await wire.drop()
    async with node.client(pid=session["pid"]) as again:
        assert again.sid != session["sid"]


@pytest.mark.parametrize("segment", [0, 1])
async def test_only_a_session_that_may_be_due_old_records_waits_for_retention(store, db, segment):
    """Retention deletes no record of the last two minutes, in either segment."""
    switch = "SELECT setval('sio_active_segment', $1)"
    age = "UPDATE sio_packets SET created_at = created_at - interval '2 minutes' WHERE \"offset\""
    await db.execute(switch, segment)
    start = await store.emit()
    for _ in range(2):
        await store.emit()
    await db.execute(f"{age} = $1", start)
    tries = kinds_of(store.log)
    async with db.transaction():
        await db.execute("SELECT FROM sio_log FOR UPDATE")
        assert await store.open("young", "q", start=start) and len(tries) == 1
    await db.execute(f"{age} > $1", start)
    await db.execute(switch, 1 - segment)
    await store.emit()
    async with db.transaction():
        await db.execute("SELECT FROM sio_log FOR UPDATE")
        opening = asyncio.create_task(store.open(start=start))
        await until(lambda: len(tries) > 3)
    assert await opening


# -- all of it at once --------------------------------------------------------------------------------------------
class Model:
    """The records of the log and the rooms of its sessions, as the pure functions have them."""

    def __init__(self, store, db, pg_dsn: str, chance: random.Random) -> None:
        self._store, self._db, self._pg_dsn, self._chance = store, db, pg_dsn, chance
        self._ids: dict[str, int] = {}
        self._rooms: dict[str, Memberships] = {}
        self._records: list[Record] = []

    async def open(self, sid: str) -> None:
        head = await self._store.reader.head()
        memberships = self._rooms[sid] = Memberships(sid, head)
        if self._records:  # it entered a room from a position that it had read
            memberships.enter_since("a", max(head - 3, await self._db.fetchval("SELECT floor FROM sio_log")))
        held = await self._store.sessions.open("/", memberships, pid=sid, cursor=head, data="{}")
        self._ids[sid] = held.id

    def _add(self, offset: int, kind: Kind, rooms: tuple[str, ...], **more) -> None:
        record = Record(offset, kind, "/", rooms, **more)
        self._records.append(record)
        for memberships in self._rooms.values():
            memberships.apply(record)

    async def step(self) -> None:
        sid = self._chance.choice(list(self._ids))
        room = self._chance.choice(ROOMS)
        act = self._chance.choices(["emit", "enter", "leave", "close"], [12, 4, 3, 1])[0]
        if act == "emit":
            rooms = tuple(self._chance.sample([*ROOMS, *self._ids, EVERYBODY], self._chance.choice([1, 1, 2])))
            skip = tuple(self._chance.sample("stu", self._chance.choice([0, 1, 1, 2])))
            muted = tuple(self._chance.sample([*ROOMS, *self._ids], self._chance.choice([0, 0, 1, 2])))
            offset = await self._store.emit(*rooms, skip=skip, skip_rooms=muted)
            self._add(offset, Kind.EVENT, rooms, skip_sids=skip, skip_rooms=muted)
        elif act == "close":
            self._add(await self._store.close_room(room), Kind.CLOSE, (room,))
        else:
            kind = Kind.ENTER if act == "enter" else Kind.LEAVE
            if (room in self._rooms[sid].current()) is (kind is Kind.LEAVE):
                self._add(await self._store.move(kind, sid, room), kind, (room,), sid=sid)

    async def expire(self) -> None:
        whole, head = self._chance.random() < 0.3, await self._store.reader.head()
        await expire(self._db, self._pg_dsn, whole=whole, upto=head if whole else head - self._chance.randrange(9))

    async def check(self) -> None:
        """Every offset that a client could present gets the verdict that it has to get.

        A deleted event that skipped a room of the client counts as lost: its handler could still leave that room.
        """
        floor, head = await self._db.fetchval("SELECT floor FROM sio_log"), await self._store.reader.head()
        for sid, memberships in self._rooms.items():
            due = [record.offset for record in self._records if memberships.due(replace(record, skip_rooms=()))]
            lost = "SELECT p FROM generate_series($2::bigint, $3::bigint) p WHERE sio_lost($1::bigint, p) ORDER BY p"
            told = [row["p"] for row in await self._db.fetch(lost, self._ids[sid], memberships.start, head)]
            last = max((offset for offset in due if offset <= floor), default=0)
            assert told == list(range(memberships.start, last)), (sid, floor, due)


@pytest.mark.parametrize("seed", range(8))
async def test_the_verdict_is_exact_whatever_was_deleted(store, db, pg_dsn, seed):
    model = Model(store, db, pg_dsn, random.Random(seed))
    await store.emit()  # offsets begin with the epoch
    for i in range(12):
        if i < 3:
            await model.open("stu"[i])
        for _ in range(6):
            await model.step()
        await model.expire()
        await model.check()


async def test_an_event_that_was_deleted_before_the_session_was_opened_is_missed(store, db, pg_dsn):
    """Its node is far behind, and no floor was written because no session needed one."""
    start = await store.emit()
    await store.emit("s")
    await expire(db, pg_dsn, whole=False)
    floor = await store.emit()
    assert await db.fetchval("SELECT count(*) FROM sio_room_floors") == 0
    await store.open(start=start)
    assert (await store.claim(after=start)).lost is True
    assert (await store.claim(after=floor - 1)).lost is False


async def test_floors_of_sessions_go_with_them(store, db, pg_dsn):
    held = await store.open()
    await store.open("t", "q")
    for sid in "st":
        await store.move(Kind.ENTER, sid, "x")
    for room in ("", "x", "s"):
        await store.emit(room, skip=("s", "t"))
    await expire(db, pg_dsn, whole=False)
    rows = await db.fetch("SELECT session = $1 AS s, room FROM sio_session_floors ORDER BY 1, 2", held.id)
    assert [tuple(row) for row in rows] == [(False, ""), (False, "x"), (True, ""), (True, "s"), (True, "x")]
    await store.sessions.end(held)
    await store.emit("x")
    await expire(db, pg_dsn, whole=False)
    rows = await db.fetch("SELECT session = $1 AS s, room FROM sio_session_floors ORDER BY 1, 2", held.id)
    assert [tuple(row) for row in rows] == [(False, ""), (False, "x")]


async def test_a_floor_of_a_room_that_was_left_is_written_once(store, db, pg_dsn):
    await store.open()
    await store.move(Kind.ENTER, "s", "x")
    await store.emit("x")
    await store.move(Kind.LEAVE, "s", "x")
    floors = []
    for _ in range(3):
        await store.emit("x")
        await expire(db, pg_dsn, whole=False)
        floors += await db.fetch('SELECT "offset", upto, xmin FROM sio_session_floors')
    assert floors[0]["offset"] > 0 and floors == floors[:1] * 3


async def test_10000_sessions_get_a_floor_at_a_time_and_the_others_have_that_of_the_room(store, db, pg_dsn):
    start = await store.emit()
    await db.execute(
        "INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)"
        " SELECT i, sha256(i::text::bytea), '/', 's' || i, $1, $1 FROM generate_series(1, 10001) i",
        start,
    )
    for _ in range(3):
        await store.emit("elsewhere")
    await db.execute(
        "INSERT INTO sio_rooms SELECT i, 'left', $1::bigint, $1::bigint + 3, '/' FROM generate_series(1, 10001) i",
        start,
    )
    await store.emit("left")
    await expire(db, pg_dsn, whole=False)
    assert await db.fetchval("SELECT count(*) FROM sio_session_floors") == 10_000
    lost = "SELECT array_agg(id) FROM sio_sessions s WHERE sio_lost(id, $1)"
    without = "SELECT array_agg(id) FROM sio_sessions WHERE id NOT IN (SELECT session FROM sio_session_floors)"
    assert await db.fetchval(lost, start) == await db.fetchval(without)


# -- sio_deleted ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("upto", "left_at", "expected"),
    [
        (20, None, 7),  # the floor of the membership counts up to the floor of its room
        (19, None, 20),
        (14, 15, 7),  # and in a room that was left, up to its last offset before that
        (13, 15, 20),
        (20, 30, 7),
        (19, 30, 20),
        (None, None, 20),
    ],
)
async def test_what_retention_deleted_of_a_membership(db, upto, left_at, expected):
    """Floors of other sessions, rooms and memberships make no difference, and neither do other namespaces."""
    await db.execute("INSERT INTO sio_room_floors VALUES ('/', 'a', 20), ('/other', 'a', 90), ('/', 'b', 91)")
    for session, room, joined_at in ((2, "a", 3), (1, "b", 3), (1, "a", 4)):
        await db.execute("INSERT INTO sio_session_floors VALUES ($1, $2, $3, 80, 99)", session, room, joined_at)
    if upto is not None:
        await db.execute("INSERT INTO sio_session_floors VALUES (1, 'a', 3, 7, $1)", upto)
    rows = await db.fetch("SELECT sio_deleted(1, '/', 'a', 3, $1)", left_at)
    assert [tuple(row) for row in rows] == [(expected,)]
    assert await db.fetch("SELECT sio_deleted(1, '/', 'c', 3, $1)", left_at) == []


# -- sio_needs_floor -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("namespace", "room", "floor", "expected"),
    [
        ("/", "a", 6, True),
        ("/", "a", 5, False),  # the session became a member at this offset
        ("/", "a", 4, False),
        ("/n", "a", 6, False),
        ("/", "b", 6, False),
        ("/n", "b", 6, True),
        ("/", "s", 1, True),
        ("/n", "s", 1, False),
        ("/", "t", 1, False),
        ("/n", "t", 1, True),
        ("/", "", 1, True),
        ("/n", "", 1, True),
        ("/other", "", 1, False),
        ("/", "nobody's", 9, False),
        ("/other", "a", 9, False),
    ],
)
async def test_a_session_may_ask_for_the_floor_of_a_room(db, namespace, room, floor, expected):
    await db.execute("""
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at)
        VALUES (1, '1', '/', 's', 5, 5), (2, '2', '/n', 't', 5, 5);
        INSERT INTO sio_rooms (session, room, joined_at, left_at, namespace)
        VALUES (1, 'a', 5, NULL, '/'), (1, 'a', 7, NULL, '/'), (2, 'b', 5, 6, '/n')""")
    assert await db.fetchval("SELECT sio_needs_floor($1, $2, $3)", namespace, room, floor) is expected


# -- sio_raise_floors ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("segment", [0, 1])
async def test_the_floors_of_rooms_and_of_memberships_that_lost_less(db, segment):
    """Records 11 to 20 are about to be deleted."""
    for offset, namespace, room, skip_sids in [
        (11, "/", "a", None),
        (12, "/n", "a", None),
        (13, "/", "", None),
        (14, "/", "a", ["s"]),
        (15, "/", "b", ["s", "nobody"]),
        (16, "/", "c", None),
        (17, "/", "d", ["s"]),
        (18, "/", "a", ["s", "u"]),
        (19, "/", "", None),
        (20, "/", "", ["t"]),
        (21, "/", "a", None),
        (22, "/", "", None),
    ]:
        await db.execute(
            f'INSERT INTO sio_packets_{segment} (kind, "offset", namespace, room, skip_sids)'
            " VALUES (0, $1, $2, $3, $4)",
            *(offset, namespace, room, skip_sids),
        )
    await db.execute("""
        INSERT INTO sio_sessions (id, pid_hash, namespace, sid, start_offset, joined_at) VALUES
            (1, '1', '/', 's', 5, 5), (2, '2', '/', 't', 5, 5), (3, '3', '/n', 's', 5, 5), (4, '4', '/', 'u', 5, 5);
        INSERT INTO sio_rooms (session, room, joined_at, left_at, namespace) VALUES
            (1, 'a', 5, NULL, '/'), (1, 'b', 15, NULL, '/'), (1, 'd', 5, NULL, '/'),
            (2, 'a', 5, 14, '/'), (2, 'a', 14, NULL, '/'), (2, 'b', 5, 15, '/'),
            (3, 'a', 5, NULL, '/n'), (3, 'a', 6, 7, '/n'), (3, 'c', 5, 7, '/n'),
            (4, 'a', 6, 12, '/'), (4, 'a', 17, NULL, '/'), (4, 'b', 6, 9, '/');
        INSERT INTO sio_session_floors (session, room, joined_at, "offset", upto) VALUES
            (1, 'd', 5, 3, 9), (2, 'a', 5, 2, 12), (3, 'a', 5, 1, 99), (4, 'a', 6, 7, 11), (4, 'b', 1, 1, 99);
        INSERT INTO sio_room_floors VALUES ('/', 'a', 9), ('/', 'c', 30), ('/', 'd', 9)""")
    rooms = [("/", "", 20), ("/", "a", 18), ("/", "b", 15), ("/", "c", 16), ("/", "d", 17), ("/n", "a", 12)]
    await db.execute("SELECT sio_raise_floors(10, 20, $1, $2, $3)", *zip(*rooms, strict=True))
    floors = 'SELECT session, room, joined_at, "offset", upto FROM sio_session_floors ORDER BY 1, 2, 3'
    assert [tuple(row) for row in await db.fetch(floors)] == [
        (1, "a", 5, 11, 20),  # 14 and 18 skipped it
        (1, "d", 5, 3, 20),  # 17 skipped it, and nothing else is deleted now
        (2, "", 5, 19, 20),  # 20 skipped it
        (2, "a", 5, 11, 20),  # it had left at 14, and its floor did not count up to there
        (2, "b", 5, 0, 20),  # it had left as of the offset of 15
        (3, "a", 5, 1, 99),
        (3, "a", 6, 0, 20),
        (4, "a", 6, 7, 11),  # it had left at 12, and the floor counts up to 11
        (4, "a", 17, 14, 20),  # 18 skipped it, and 14 lies below its membership
        (4, "b", 1, 1, 99),
        (4, "b", 6, 0, 20),
    ]
    rooms[3] = ("/", "c", 30)  # no floor falls
    assert [tuple(row) for row in await db.fetch("SELECT * FROM sio_room_floors ORDER BY 1, 2")] == rooms
