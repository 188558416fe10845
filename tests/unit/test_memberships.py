"""Memberships: the events that a client is due, by the rooms it was in at each offset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sio_pg_adapter.log.memberships import Memberships, spans_of
from sio_pg_adapter.log.records import Kind, Record


def event(offset, *rooms, skip=(), skip_rooms=()):
    return Record(offset, Kind.EVENT, "/", rooms or ("",), tuple(skip), tuple(skip_rooms), body='["e"]')


def test_the_example_of_the_module():
    memberships = Memberships("s", 0)
    memberships.enter("x", 2)
    memberships.leave("x", 4)
    log = [event(3, "x"), event(5, "x"), event(6, "")]
    assert [record.offset for record in log if memberships.due(record)] == [3, 6]


@pytest.mark.parametrize(
    ("record", "due"),
    [
        (event(11), True),
        (event(10), False),  # at the session's start, not above it
        (event(11, "s"), True),
        (event(11, "t"), False),
        (event(11, skip=["s"]), False),
        (event(11, "s", skip=["t", "s"]), False),
        (event(20, "x"), False),  # case 40: sent, then joined
        (event(21, "x"), True),
        (event(30, "x"), False),
        (event(29, "x"), True),
        (event(31, "x"), False),
        (event(31, "x", "y"), True),
        (event(25, "y", "x", "s"), True),
        (Record(25, Kind.ENTER, "/", ("x",), sid="s"), False),
        (event(20, skip_rooms=["x"]), True),  # emitted, then muted
        (event(21, skip_rooms=["x"]), False),
        (event(29, "y", skip_rooms=["z", "x"]), False),
        (event(30, skip_rooms=["x"]), True),
        (event(25, "x", skip_rooms=["x"]), False),
        (event(31, skip_rooms=["s"]), False),
        (event(31, skip_rooms=["t"]), True),
    ],
)
def test_cases_35_36_40_due_by_the_rooms_of_the_time(record, due):
    memberships = Memberships("s", 10, {"x": [(20, 30)], "y": [(12, None)]})
    assert memberships.due(record) is due


def test_case_103_entering_a_room_one_is_in_changes_nothing():
    memberships = Memberships("s", 0, {"x": [(2, None)], "y": [(2, 4), (6, None)]})
    memberships.enter("x", 9)
    memberships.enter("y", 9)
    assert memberships.rooms == {"x": [(2, None)], "y": [(2, 4), (6, None)]}


def test_a_room_is_entered_where_its_last_span_began_if_that_goes_on():
    memberships = Memberships("s", 0, {"x": [(2, 4), (6, None)], "y": [(3, 5)]})
    assert [memberships.entered(room) for room in ("x", "y", "z")] == [6, None, None]


@pytest.mark.parametrize(
    ("as_of", "spans"),
    [(10, [(2, 4), (6, 10)]), (8, [(2, 4), (6, 8)]), (7, [(2, 4)]), (6, [(2, 4)]), (3, None), (2, None), (0, None)],
)
def test_case_104_a_room_left_as_of_an_offset_stays_left_from_there(as_of, spans):
    memberships = Memberships("s", 0, {"x": [(2, 4), (6, None)]})
    memberships.apply(Record(20, Kind.LEAVE, "/", ("x",), sid="s", as_of=as_of))
    assert memberships.rooms.get("x") == spans
    assert memberships.current() == []


def test_entered_left_and_entered_again_at_one_cursor_is_one_membership():
    # In a connect handler nothing may be appended in between, so all three are at the node's cursor: two spans
    # that begin at one offset would be one row of the table, the first.
    memberships = Memberships("s", 5)
    memberships.enter("x", 5)
    memberships.leave("x", 6)
    memberships.enter("x", 5)
    assert memberships.current() == ["x"]
    rows = memberships.rows()
    assert ["x", 5, None] in rows
    assert len({(room, at) for room, at, _ in rows}) == len(rows)


def test_a_room_entered_from_an_earlier_offset_does_not_widen_the_others():
    memberships = Memberships("s", 50, {"now": [(50, None)]})
    memberships.enter_since("x", 20)
    memberships.enter_since("y", 30)
    before = [event(20, "x"), event(21, "x"), event(22, "y"), event(23, ""), event(24, "s"), event(25, "now", "x")]
    log = [*before, event(31, "y"), event(40, "now"), event(50, ""), event(51, ""), event(52, "s")]
    assert [record.offset for record in log if memberships.due(record)] == [21, 25, 31, 51, 52]
    assert (memberships.start, memberships.joined) == (20, 50)
    assert [memberships.entered(room) for room in ("x", "y", "now", "s", "z")] == [20, 30, 50, 50, None]


@pytest.mark.parametrize(("at", "spans"), [
    (20, [(20, None)]), (30, [(30, None)]), (40, [(30, 41), (40, None)]),
    (60, [(30, 60), (60, None)]), (70, [(30, 60), (70, None)])
])  # fmt: skip
def test_a_room_that_was_left_is_entered_again_from_an_earlier_offset(at, spans):
    memberships = Memberships("s", 10, {"x": [(30, 60)]})
    memberships.enter_since("x", at)
    assert memberships.rooms == {"x": spans}


def test_a_room_that_goes_on_is_entered_again_from_a_later_offset():
    memberships = Memberships("s", 10, {"x": [(30, None)]})
    memberships.enter_since("x", 40)
    assert memberships.rooms == {"x": [(30, 41), (40, None)]}


def test_records_of_others_and_of_other_kinds_leave_rooms_alone():
    memberships = Memberships("s", 0, {"x": [(2, None)]})
    for record in (
        Record(5, Kind.ENTER, "/", ("y",), sid="t"),
        Record(6, Kind.LEAVE, "/", ("x",), sid="t"),
        Record(7, Kind.CLOSE, "/", ("y",)),
        Record(8, Kind.CLAIM, "/", ("x",), sid="s", generation=2),
        Record(9, Kind.MEMBERS_KICK, "/", ("x",), members=("x",)),
    ):
        memberships.apply(record)
    assert memberships.rooms == {"x": [(2, None)]}


def test_a_closed_room_ends_the_membership_of_those_who_are_in_it():
    memberships = Memberships("s", 0, {"x": [(2, None)], "y": [(3, 5)]})
    memberships.apply(Record(8, Kind.CLOSE, "/", ("x",)))
    memberships.apply(Record(9, Kind.CLOSE, "/", ("y",)))
    assert memberships.rooms == {"x": [(2, 8)], "y": [(3, 5)]}


@pytest.mark.parametrize(
    ("members", "skips", "skip_rooms", "moves"),
    [(["x"], [], [], True), (["z", "x"], [], [], True), (["s"], [], [], True), ([""], [], [], True),
     (["y"], [], [], False), (["t"], [], [], False), (["x"], ["s"], [], False), ([""], [], ["x"], False),
     (["x"], [], ["z", "s"], False), (["x"], [], ["y", "t"], True)],
)  # fmt: skip
def test_a_record_about_the_members_of_rooms_is_about_those_who_are_in_one(members, skips, skip_rooms, moves):
    for kind, spans in ((Kind.MEMBERS_ENTER, {"z": [(9, None)]}), (Kind.MEMBERS_LEAVE, {})):
        memberships = Memberships("s", 0, {"x": [(2, None)], "y": [(3, 5)]})
        record = Record(9, kind, "/", ("z", "x"), tuple(skips), tuple(skip_rooms), members=tuple(members))
        before = dict(memberships.rooms)
        assert memberships.concerns(record) is moves
        memberships.apply(record)
        if not moves:
            assert memberships.rooms == before
        elif kind is Kind.MEMBERS_ENTER:
            assert memberships.rooms == before | spans
        else:
            assert memberships.rooms == {"x": [(2, 9)], "y": [(3, 5)]}


def test_spans_of_rows_are_in_the_order_of_the_log():
    assert spans_of([("x", 9, None), ("y", 2, 3), ("x", 1, 4)]) == {"x": [(1, 4), (9, None)], "y": [(2, 3)]}


def test_a_room_that_is_forgotten_leaves_no_span():
    memberships = Memberships("s", 0, {"x": [(1, 4), (9, None)]})
    memberships.forget("x")
    memberships.forget("x")
    assert memberships.rooms == {}


def test_only_the_present_membership_stays_once_the_past_is_forgotten():
    """A room that was left and entered again has a span for each time, and the last one counts."""
    memberships = Memberships("s", 0, {"x": [(1, 4)], "y": [(2, 5)]})
    memberships.enter("x", 9)
    memberships.enter("x", 12)
    assert memberships.rooms["x"] == [(1, 4), (9, None)]
    assert memberships.forget_past() == ["x"]
    assert memberships.rooms == {"x": [(9, None)]}


# -- replay sends what live delivery would have sent -----------------------------------------------------
moves = st.lists(
    st.tuples(
        st.sampled_from(
            [
                Kind.ENTER,
                Kind.LEAVE,
                Kind.CLOSE,
                Kind.EVENT,
                Kind.EVENT,
                Kind.MEMBERS_ENTER,
                Kind.MEMBERS_LEAVE,
            ]
        ),
        st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=2, unique=True),
        st.sampled_from(["s", "t"]),
        st.sampled_from(["", "rooms"]),
        st.booleans(),
        st.sets(st.sampled_from(["x", "y", "z"]), max_size=1),
    ),
    max_size=40,
)


@given(moves, st.integers(0, 10), st.data())
def test_due_is_what_live_delivery_sends(script, start, data):
    """A naive model keeps a set of rooms and is read at each event. The memberships are read once, at the end."""
    rooms: set[str] = set()
    sent: list[int] = []
    memberships = Memberships("s", start)
    log: list[Record] = []
    for offset, (kind, names, sid, to, skip, skip_rooms) in enumerate(script, start + 1):
        if kind is Kind.EVENT:
            record = event(offset, *(names if to else ("",)), skip=[sid] if skip else (), skip_rooms=skip_rooms)
            if not (skip and sid == "s") and not rooms & skip_rooms and (not to or rooms & set(names)):
                sent.append(offset)
        elif kind in (Kind.MEMBERS_ENTER, Kind.MEMBERS_LEAVE):  # the members of the last of the rooms, or of a sid's
            of = names[-1] if to else sid
            skip_sids = (sid,) if skip else ()
            record = Record(offset, kind, "/", (names[0],), skip_sids, tuple(skip_rooms), members=(of,))
            if of in {"s", *rooms} and not (skip and sid == "s") and not rooms & skip_rooms:
                rooms = rooms | {names[0]} if kind is Kind.MEMBERS_ENTER else rooms - {names[0]}
        else:
            record = Record(offset, kind, "/", (names[0],), sid=None if kind is Kind.CLOSE else sid)
            if kind is Kind.ENTER and sid == "s":
                rooms.add(names[0])
            elif kind is Kind.CLOSE or sid == "s":
                rooms.discard(names[0])
        log.append(record)
        memberships.apply(record)
    after = data.draw(st.integers(start, start + len(script)))
    assert [r.offset for r in log if r.offset > after and memberships.due(r)] == [o for o in sent if o > after]
    assert set(memberships.current()) == rooms
