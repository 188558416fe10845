"""Rooms as of the log: whatever happened in whatever order, replay is what live delivery would have sent.

The model is a list of what happened and a walk over it; it knows no table, no interval and no offset but positions.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sio_pg_adapter import AsyncPostgresManager
from sio_pg_adapter.log.records import Held, Kind
from support.store import Store

ROOMS = ["x", "y", "z"]
SIDS = ["s", "t"]
rooms = st.sampled_from(ROOMS)
sids = st.sampled_from(SIDS)
emits = st.tuples(
    st.just("emit"),
    st.one_of(
        st.just(()),  # everybody
        sids.map(lambda sid: (sid,)),
        st.lists(st.one_of(rooms, sids), min_size=1, max_size=4, unique=True).map(tuple),
    ),
    st.lists(sids, max_size=2, unique=True).map(tuple),
    st.lists(st.one_of(rooms, sids), max_size=2, unique=True).map(tuple),
)
of = st.one_of(sids, st.lists(st.one_of(rooms, sids), min_size=1, max_size=2).map(tuple))
steps = st.one_of(
    emits,
    emits,
    st.tuples(st.just("enter"), sids, rooms),
    st.tuples(st.just("leave"), sids, rooms),
    st.tuples(st.just("close"), rooms),
    st.tuples(st.just("release"), sids),
    st.tuples(st.just("claim"), sids),
    st.tuples(st.just("kick"), sids),
    st.tuples(st.just("in a transaction"), st.sampled_from(["enter_room", "leave_room"]), of, rooms),
    st.tuples(st.just("in a transaction"), st.just("close_room"), st.none(), rooms),
    st.tuples(st.just("in a transaction"), st.just("disconnect"), of, st.none()),
)


class Model:
    """What live delivery would do: who is in which room, and what each was sent."""

    def __init__(self) -> None:
        self.rooms: dict[str, set[str]] = {}
        self.sent: dict[str, list[int]] = {}

    def open(self, sid: str, initial: list[str]) -> None:
        self.rooms[sid], self.sent[sid] = set(initial), []

    def do(self, step: tuple, offset: int) -> None:
        match step:
            case ("emit", *of):
                self._emit(offset, *map(set, of))
            case ("enter", sid, room) if sid in self.rooms:
                self.rooms[sid].add(room)
            case ("leave", sid, room) if sid in self.rooms:
                self.rooms[sid].discard(room)
            case ("close", room):
                for of in self.rooms.values():
                    of.discard(room)
            case ("kick", sid):
                self.rooms.pop(sid, None)
            case ("in a transaction", change, of, room):
                self._in_a_transaction(change, of, room)

    def _emit(self, offset: int, to: set[str], skip: set[str], skip_rooms: set[str]) -> None:
        for sid, its in self.rooms.items():
            is_in = {sid, *its}
            if sid not in skip and not is_in & skip_rooms and (not to or is_in & to):
                self.sent[sid].append(offset)

    def _in_a_transaction(self, change: str, of: Any, room: str | None) -> None:
        match of:
            case None:
                self.do(("close", room), 0)
            case str(sid):
                self.do(("kick", sid) if change == "disconnect" else (change.removesuffix("_room"), sid, room), 0)
            case _:
                for sid in [sid for sid, its in self.rooms.items() if {sid, *its} & set(of)]:
                    self._in_a_transaction(change, sid, room)


class Run:
    def __init__(self, store: Store) -> None:
        self.store, self.model = store, Model()
        self.held: dict[str, Held] = {}
        self.after: dict[str, int] = {}

    async def open(self, sid: str, initial: list[str]) -> None:
        head = await self.store.reader.head()
        spans = {room: [(head, None)] for room in initial}
        self.held[sid] = await self.store.open(sid, f"pid of {sid}", cursor=head, start=head, rooms=spans)
        self.after[sid] = head
        self.model.open(sid, initial)

    async def do(self, step: tuple) -> None:
        store, offset = self.store, 0
        match step:
            case ("emit", to, skip, skip_rooms):
                offset = await store.emit(*to, skip=skip, skip_rooms=skip_rooms)
            case ("enter", sid, room):
                offset = await store.move(Kind.ENTER, sid, room)
            case ("leave", sid, room):
                offset = await store.move(Kind.LEAVE, sid, room)
            case ("close", room):
                offset = await store.close_room(room)
            case ("release", sid) if sid in self.held:
                await store.sessions.release(self.held[sid], seconds=60.0)
            case ("claim", sid) if sid in self.held:
                await self.claim(sid, None)
            case ("kick", sid):
                await store.kick(sid)
                self.held.pop(sid, None)
            case ("in a transaction", change, of, room):
                sid, members = (of, None) if isinstance(of, str) else (None, of and json.dumps(of))
                await self.store.manager.node.database.fetch_value(
                    "change", change, "/", room and json.dumps([room]), sid, members, None, None
                )
        self.model.do(step, offset)

    async def claim(self, sid: str, after: int | None) -> Any:
        claimed = await self.store.claim(f"pid of {sid}", after)
        if claimed is not None:
            self.held[sid] = Held(claimed.id, claimed.generation)
        return claimed

    async def check(self, data: Any) -> None:
        log = (await self.store.reader.range(0, 10_000))[1]
        for sid in SIDS:
            claimed = await self.claim(sid, None)
            if sid not in self.model.rooms:
                assert claimed is None
                continue
            assert set(claimed.memberships.current()) == self.model.rooms[sid]
            assert not claimed.lost
            sent = self.model.sent[sid]
            after = data.draw(st.sampled_from([self.after[sid], *sent]), label=f"offset that {sid} presents")
            due = [offset for offset in sent if offset > after]
            assert await self.store.due(self.held[sid], after) == due
            assert await self._in_pages(sid, after, data.draw(st.integers(1, 5), label="page")) == due
            assert [r.offset for r in log if r.offset > after and claimed.memberships.due(r)] == due

    async def _in_pages(self, sid: str, after: int, size: int) -> list[int]:
        found: list[int] = []
        while True:
            page = await self.store.sessions.page(self.held[sid], after, size)
            found += [record.offset for record in page.records]
            if len(page.records) < size:
                return found
            after = found[-1]


def test_cases_30_40_rooms_count_at_their_place_in_the_log(pg_dsn):
    with asyncio.Runner() as runner:
        manager = AsyncPostgresManager(pg_dsn, write_only=True)
        runner.run(manager.start())
        store = Store(manager)

        async def one(before: list, initial: dict[str, list[str]], after: list, data: Any) -> None:
            admin = await asyncpg.connect(pg_dsn)
            await admin.execute("DELETE FROM sio_sessions; DELETE FROM sio_packets; DELETE FROM sio_packet_rooms")
            await admin.close()
            run = Run(store)
            for step in before:  # what happened before there was a session concerns nobody
                await run.do(step)
            run.model = Model()
            for sid in SIDS:
                await run.open(sid, initial[sid])
            for step in after:
                await run.do(step)
            await run.check(data)

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            before=st.lists(steps.filter(lambda s: s[0] != "claim"), max_size=4),
            initial=st.fixed_dictionaries({sid: st.lists(rooms, max_size=2, unique=True) for sid in SIDS}),
            after=st.lists(steps, max_size=25),
            data=st.data(),
        )
        def check(before, initial, after, data):
            runner.run(one(before, initial, after, data))

        try:
            check()
        finally:
            runner.run(manager.aclose())
