"""Properties of the pure parts, against models that only keep lists and look at all of them each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sio_pg_adapter.local import recent as recent_module
from sio_pg_adapter.local.recent import Recent
from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.names import EVERYBODY
from sio_pg_adapter.log.records import Kind, Record
from sio_pg_adapter.log.verdict import Claim, Claimed, Fresh, Recovered, verdict

ROOMS = ["x", "y"]
SIDS = ["s", "t"]
rooms = st.sampled_from(["x", "x", "x", "y"])
sids = st.sampled_from(["s", "s", "s", "t"])
names = st.sampled_from(["x", "x", *ROOMS, *SIDS, EVERYBODY])


class Seam(RuleBasedStateMachine):
    """A node's recent records and the memberships of a client, for a client that stopped receiving at any offset.

    The model keeps the whole log, and for each event the rooms that the client was in at that moment.
    """

    @initialize(start=st.integers(0, 3))
    def begin(self, start):
        self.start = self.head = start
        self.recent = Recent(start)
        self.memberships = Memberships("s", start)
        self.log: list[Record] = []
        self.rooms: dict[str, int] = {}  # and the offset at which it entered each
        self.events: dict[int, tuple[set[str], set[str]]] = {}

    def add(self, kind, of, **more):
        self.head += 1 + (self.head % 7 == 0)  # some offsets belong to transactions that were rolled back
        record = Record(self.head, kind, "/", of, **more)
        self.log.append(record)
        self.recent.add(record)
        self.memberships.apply(record)
        return record

    @rule(
        to=st.lists(names, min_size=1, max_size=3, unique=True).map(tuple), skip=st.lists(sids, max_size=1).map(tuple)
    )
    def emit(self, to, skip):
        record = self.add(Kind.EVENT, to, skip_sids=skip, body="[]")
        if "s" not in skip:
            self.events[record.offset] = set(to), {"s", EVERYBODY, *self.rooms}

    @rule(room=rooms, count=st.integers(1, 3))
    def emit_to_a_member(self, room, count):
        """Most scripts of chance send it little, and a wrong membership shows at an event."""
        self.enter("s", room)
        for _ in range(count):
            self.emit((room,), ())

    @rule(sid=sids, room=rooms)
    def enter(self, sid, room):
        record = self.add(Kind.ENTER, (room,), sid=sid)
        if sid == "s":
            self.rooms.setdefault(room, record.offset)

    @rule(sid=sids, room=rooms)
    def leave(self, sid, room):
        self.add(Kind.LEAVE, (room,), sid=sid)
        if sid == "s":
            self.rooms.pop(room, None)

    @rule(room=rooms, back=st.integers(0, 5))
    def leave_as_of(self, room, back):
        """The handler of a recovery leaves a room as of the offset that the client presented."""
        as_of = max(self.start, self.head - back)
        self.add(Kind.LEAVE, (room,), sid="s", as_of=as_of)
        self.rooms.pop(room, None)
        for offset, (_, was_in) in self.events.items():
            if offset >= as_of:
                was_in.discard(room)

    @rule(room=rooms)
    def close(self, room):
        self.add(Kind.CLOSE, (room,))
        self.rooms.pop(room, None)

    @rule(kind=st.sampled_from([Kind.MEMBERS_ENTER, Kind.MEMBERS_LEAVE]), of=names, room=rooms,
          skip=st.lists(sids, max_size=1).map(tuple))  # fmt: skip
    def move_members(self, kind, of, room, skip):
        record = self.add(kind, (room,), members=(of,), skip_sids=skip)
        if "s" in skip or of not in {"s", EVERYBODY, *self.rooms}:
            return
        if kind is Kind.MEMBERS_ENTER:
            self.rooms.setdefault(room, record.offset)
        else:
            self.rooms.pop(room, None)

    @property
    def due(self):
        return [offset for offset, (to, was_in) in self.events.items() if to & was_in]

    @invariant()
    def the_rest_from_memory_is_what_is_due(self):
        asked = (EVERYBODY, "s", *self.memberships.rooms)
        for position in range(self.start, self.head + 1):
            if self.recent.covers(position):
                rest = [r.offset for r in self.recent.events("/", asked, position) if self.memberships.due(r)]
                assert rest == [offset for offset in self.due if offset > position]

    @invariant()
    def moves_are_those_of_the_log(self):
        for position in range(self.start, self.head + 1):
            if self.recent.covers(position):
                moves = [
                    r for r in self.log if r.offset > position and r.kind is not Kind.EVENT and r.sid in (None, "s")
                ]
                assert self.recent.moves("/", "s", position) == moves

    @invariant()
    def no_more_is_forgotten_than_has_to_be(self):
        events = [r.offset for r in self.log if r.kind is Kind.EVENT]
        others = [r.offset for r in self.log if r.kind is not Kind.EVENT]
        kept = max(events[:-4][-1:] + others[:-6][-1:] + [self.start])
        assert self.recent.base == kept
        assert self.recent.covers(kept)

    @invariant()
    def rooms_are_those_of_now(self):
        assert {room: self.memberships.entered(room) for room in self.memberships.current()} == self.rooms


@pytest.fixture(autouse=True)
def _small_memory(monkeypatch):
    monkeypatch.setattr(recent_module, "RECENT_RECORDS", 4)
    monkeypatch.setattr(recent_module, "RECENT_OTHERS", 6)


class TestSeam(Seam.TestCase):
    """Runs the machine, in the memory of the fixture."""


@given(
    after=st.none() | st.integers(0, 9),
    start=st.integers(0, 6),
    claimed=st.integers(7, 8),
    due=st.sets(st.integers(1, 8)),
    deleted=st.sets(st.integers(1, 8), max_size=2),
    limit=st.integers(0, 8),
    stale=st.sampled_from([False, False, False, True]),
)
def test_the_verdict_is_what_replaying_all_of_it_would_show(after, start, claimed, due, deleted, limit, stale):
    """The model replays: each event that is due above the offset has to be there, and there may not be too many."""
    above = max(after or 0, start)
    missed = {offset for offset in due if above < offset < claimed}
    session = Claimed(
        id=1, sid="s", generation=2, data="{}", former=None, offset=claimed, missed=len(missed),
        lost=bool(missed & deleted), memberships=Memberships("s", start), stale=stale,
    )  # fmt: skip
    decision = verdict(Claim("p", after), session, limit)
    exact = not stale and (after is None or after < claimed) and not missed & deleted and len(missed) <= limit
    assert decision == Recovered(above) if exact else isinstance(decision, Fresh)


def test_nothing_is_recovered_without_a_session():
    assert isinstance(verdict(Claim("p", None), None, 100), Fresh)
