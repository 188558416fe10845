"""What the database has of rooms, replays and losses, against a model that knows no table and no interval.

The model keeps all events, and for each the rooms in which each session was at that moment.
"""

from __future__ import annotations

import asyncio

import asyncpg
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sio_pg_adapter import AsyncPostgresManager
from sio_pg_adapter.log.records import Kind, MemberMove
from support.store import Store

ROOMS = ["x", "y"]
SIDS = ["s", "t"]
MEMBERS = {Kind.ENTER: True, Kind.LEAVE: False, Kind.MEMBERS_ENTER: True, Kind.MEMBERS_LEAVE: False}
"""The moves of all members of rooms, with a record for each or one for all, and whether they are in the room then."""

rooms = st.sampled_from(["x", "x", "x", "y"])
sids = st.sampled_from(["s", "s", "s", "t"])
named = st.lists(st.sampled_from(["x", "x", *ROOMS, *SIDS, ""]), min_size=1, max_size=2, unique=True).map(tuple)
skips = st.lists(sids, max_size=1).map(tuple)
skip_rooms = st.lists(st.sampled_from([*ROOMS, *SIDS]), max_size=1).map(tuple)
steps = st.one_of(
    st.tuples(st.just("emit"), named, skips, st.just(())),
    st.tuples(st.just("emit"), named, skips, skip_rooms),
    st.tuples(st.just("emit elsewhere"), named),
    st.tuples(
        st.just("together"), st.lists(st.tuples(named, skips, skip_rooms), min_size=3, max_size=3), sids, rooms
    ),
    st.tuples(st.just("enter"), sids, rooms, st.sampled_from(["", "", "member", "former"])),
    st.tuples(st.just("leave"), sids, rooms, st.sampled_from(["", "", "former"])),
    st.tuples(st.just("leave as of"), sids, rooms, st.integers(0, 6)),
    st.tuples(st.just("close"), rooms),
    st.tuples(st.just("members"), st.sampled_from([*MEMBERS]), named, rooms, skips, skip_rooms),
    st.tuples(st.just("trim"), st.integers(1, 6)),
    st.tuples(st.just("switch")),
)


class Model:
    """All events, and who was where."""

    def __init__(self) -> None:
        self.rooms: dict[str, set[str]] = {sid: set() for sid in SIDS}
        self.events: dict[int, tuple[set[str], set[str], dict[str, set[str]]]] = {}

    def emit(self, offset: int, to: tuple[str, ...], skip: tuple[str, ...], skip_rooms: tuple[str, ...]) -> None:
        was_in = {sid: {sid, "", *self.rooms[sid]} for sid in SIDS if sid not in skip}
        self.events[offset] = set(to), set(skip_rooms), was_in

    def leave_as_of(self, sid: str, room: str, as_of: int) -> None:
        self.rooms[sid].discard(room)
        for offset, (_, _, was_in) in self.events.items():
            if offset >= as_of and sid in was_in:
                was_in[sid].discard(room)

    def due(self, sid: str, after: int) -> list[int]:
        return [
            offset
            for offset, (to, skipped, was_in) in self.events.items()
            if offset > after and to & was_in.get(sid, set()) and not skipped & was_in[sid]
        ]

    def skips_rooms(self, after: int, upto: int) -> bool:
        return any(skipped for offset, (_, skipped, _) in self.events.items() if after < offset <= upto)


class Run:
    def __init__(self, store: Store, db: asyncpg.Connection) -> None:
        self.store, self.db, self.model = store, db, Model()
        self.rewritten = False

    async def do(self, step: tuple) -> None:
        model, store = self.model, self.store
        match step:
            case ("close", room):
                await store.close_room(room)
                for of in model.rooms.values():
                    of.discard(room)
            case ("members", kind, of, room, skip, skip_rooms):
                if kind in (Kind.ENTER, Kind.LEAVE):
                    await store.log.append(MemberMove(kind, "/", of, (room,), skip_sids=skip, skip_rooms=skip_rooms))
                else:
                    change = "SELECT sio_change_members(NULL, $1, '/', $2, $3, $4, $5)"
                    await self.db.execute(change, kind.value, of, [room], skip, skip_rooms)
                members = [sid for sid in SIDS if sid not in skip and {sid, "", *model.rooms[sid]} & set(of)]
                for sid in [sid for sid in members if not {sid, *model.rooms[sid]} & set(skip_rooms)]:
                    (model.rooms[sid].add if MEMBERS[kind] else model.rooms[sid].discard)(room)
            case ("trim", count):
                await self.db.execute("SELECT sio_trim(0, $1)", count)
            case ("switch",):  # what follows goes to the other segment
                await self.db.execute("SELECT setval('sio_active_segment', 1 - last_value) FROM sio_active_segment")
            case ("enter" | "leave" | "leave as of", *_):
                await self.move(step)
            case _:
                await self.emit(step)

    async def emit(self, step: tuple) -> None:
        model, store = self.model, self.store
        match step:
            case ("emit", to, skip, skip_rooms):
                model.emit(await store.emit(*to, skip=skip, skip_rooms=skip_rooms), to, skip, skip_rooms)
            case ("emit elsewhere", to):
                await store.emit(*to, namespace="/n")
            case ("together", [*first, last], sid, room):  # one batch, apart from the first of them
                entries = [store.emit(*to, skip=skip, skip_rooms=skip_rooms) for to, skip, skip_rooms in first]
                moved = store.move(Kind.ENTER, sid, room)
                *offsets, _, offset = await asyncio.gather(
                    *entries, moved, store.emit(*last[0], skip=last[1], skip_rooms=last[2])
                )
                for at, event in zip(offsets, first, strict=True):
                    model.emit(at, *event)
                model.rooms[sid].add(room)
                model.emit(offset, *last)

    async def move(self, step: tuple) -> None:
        model, store = self.model, self.store
        match step:
            case ("enter", sid, room, how):
                args = {"member": {"member": True}, "former": {"generation": 0}}.get(how, {})
                offset = await store.move(Kind.ENTER, sid, room, **args)
                if not how:
                    assert offset > 0
                    model.rooms[sid].add(room)
                else:  # it is in the room already, or nothing changes
                    assert (offset > 0) == (how == "member" and room in model.rooms[sid])
            case ("leave", sid, room, how):
                offset = await store.move(Kind.LEAVE, sid, room, **({"generation": 0} if how else {}))
                if not how:
                    model.rooms[sid].discard(room)
                else:
                    assert offset == 0
            case ("leave as of", sid, room, back):
                as_of = max(self.start, await store.reader.head() - back)
                await store.move(Kind.LEAVE, sid, room, as_of=as_of)
                model.leave_as_of(sid, room, as_of)
                self.rewritten = True

    async def open(self) -> None:
        self.start = await self.store.emit()
        self.held = {sid: await self.store.open(sid, f"pid of {sid}", cursor=self.start) for sid in SIDS}

    async def check(self) -> None:
        floor, head = await self.db.fetchval("SELECT floor FROM sio_log"), await self.store.reader.head()
        for sid in SIDS:
            session = self.held[sid].id
            current = "SELECT room FROM sio_rooms WHERE session = $1 AND left_at IS NULL"
            assert {row["room"] for row in await self.db.fetch(current, session)} == self.model.rooms[sid]
            for after in range(self.start, head + 1):
                due = self.model.due(sid, after)
                stored = [offset for offset in due if offset > floor]
                for limit in (2, 1_000):
                    rows = await self.db.fetch("SELECT d FROM sio_due($1, $2, $3) d", session, after, limit)
                    assert [row["d"] for row in rows] == stored[:limit]
                lost = await self.db.fetchval("SELECT sio_lost($1, $2)", session, after)
                # A floor may be that of an event that is not due any more, or that skips a room of the session.
                if (self.rewritten or self.model.skips_rooms(after, floor)) and after < floor:
                    assert lost or due == stored
                else:
                    assert lost == (due != stored)


STEPS = [
    ("emit", ("x",), (), ()),
    ("emit", ("y", "x"), (), ()),
    ("enter", "s", "x", ""),
    *[
        ("emit", to, skip, ())
        for to in (("x",), ("y", "x"), ("",), ("s",), ("y", "s"))
        for skip in ((), ("t",), ("s",))
    ],
    *[("emit", to, (), (skip,)) for to in (("x",), ("y", "x")) for skip in ("x", "y", "s", "t")],
    *[("emit elsewhere", to) for to in (("x",), ("y", "x"), ("",), ("s",))],
    ("emit", ("t", "y"), (), ()),
    ("emit", ("x", "s"), (), ()),
    ("together", [(("x",), (), ()), (("y", "x"), ("t",), ("y",)), (("y", "x"), (), ())], "t", "y"),
    ("leave", "s", "x", ""),
    ("emit", ("x",), (), ()),
    ("emit", ("y", "x"), (), ()),
    ("enter", "s", "y", ""),
    ("leave", "t", "y", ""),
]
IN_BOTH_SEGMENTS = [*STEPS, ("leave", "s", "y", ""), ("switch",), *STEPS]
"""Events that a session is due, and is not, for each reason. A mutant of a scan in one segment shows at once."""

LEFT_TWICE = [
    ("enter", "s", "x", ""),
    ("emit", ("x",), (), ()),
    ("leave", "s", "x", ""),
    ("leave as of", "s", "x", 6),
]
"""The handler of a recovery leaves a room that the client has left since, which few scripts of chance do."""

LEAVES = [
    step
    for to in (("x",), ("y", "x"))
    for step in (
        ("enter", "s", "x", ""),
        ("emit", ("x",), (), ()),
        ("emit", to, (), ()),
        ("leave as of", "s", "x", 0),
    )
]
LEFT_AS_OF_AN_EVENT = [*LEAVES, ("switch",), *LEAVES]
"""A room is left as of an event, which is not due any more."""

ENTERED_LATER = [("emit", ("y", "x"), (), ()), ("enter", "s", "x", "")]
"""An event for several rooms, one of which the client enters later."""

ENTERED_AFTER_A_LOSS = [("enter", "t", "x", ""), ("emit", ("x",), (), ()), ("enter", "s", "x", ""), ("trim", 3)]
"""Retention deletes an event of a room that the client has entered since."""

LEFT_BEFORE_A_LOSS = [
    ("enter", "s", "x", ""),
    ("emit", ("y",), (), ()),
    ("leave", "s", "x", ""),
    ("emit", ("x",), (), ()),
    ("trim", 5),
]
"""Retention deletes an event of a room that the client had left before it."""

LOST_THEN_LEFT = [
    ("enter", "s", "x", ""),
    ("emit", ("x",), (), ()),
    ("trim", 3),
    ("leave", "s", "x", ""),
    ("emit", ("x",), (), ()),
    ("trim", 2),
]
"""Retention deletes an event that the client is due, and another one after the client has left the room."""

LOST_TWICE = [("enter", "s", "x", ""), ("emit", ("x",), (), ()), ("trim", 3), ("emit", ("x",), (), ()), ("trim", 1)]
"""Retention deletes two events that the client is due, one after the other."""

DUE_THEN_SKIPPED = [("enter", "s", "x", ""), ("emit", ("x",), (), ()), ("emit", ("x",), ("s",), ()), ("trim", 4)]
"""Retention deletes an event that the client is due, together with a later one that skips it."""

SKIPPED_THEN_DUE = [
    ("enter", "s", "x", ""),
    ("emit", ("x",), ("s",), ()),
    ("trim", 3),
    ("emit", ("x",), (), ()),
    ("trim", 1),
]
"""Retention deletes an event that skips the client, and later one that it is due: its own floor counts no longer."""

EMPTY = """
DELETE FROM sio_sessions; DELETE FROM sio_rooms; DELETE FROM sio_packets; DELETE FROM sio_packet_rooms;
DELETE FROM sio_room_floors; DELETE FROM sio_session_floors"""


def test_rooms_replays_and_losses_are_those_of_the_model(pg_dsn):
    async def one(store: Store, db: asyncpg.Connection, script: list[tuple]) -> None:
        await db.execute(EMPTY)
        run = Run(store, db)
        await run.open()
        for step in script:
            await run.do(step)
        await run.check()

    with asyncio.Runner() as runner:
        manager = AsyncPostgresManager(pg_dsn, write_only=True)
        runner.run(manager.start())
        db = runner.run(asyncpg.connect(pg_dsn))

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @example(script=IN_BOTH_SEGMENTS)
        @example(script=LEFT_TWICE)
        @example(script=LEFT_AS_OF_AN_EVENT)
        @example(script=ENTERED_LATER)
        @example(script=ENTERED_AFTER_A_LOSS)
        @example(script=LEFT_BEFORE_A_LOSS)
        @example(script=LOST_THEN_LEFT)
        @example(script=LOST_TWICE)
        @example(script=DUE_THEN_SKIPPED)
        @example(script=SKIPPED_THEN_DUE)
        @given(script=st.lists(steps, min_size=1, max_size=25))
        def check(script):
            runner.run(one(Store(manager), db, script))

        try:
            check()
        finally:
            runner.run(db.close())
            runner.run(manager.aclose())
