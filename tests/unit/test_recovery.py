"""What a client presents, what it is due, and the verdict: tables, without a loop or a socket."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.offsets import EPOCH_BITS, Epoch, OffsetCodec
from sio_pg_adapter.log.records import Kind, Record
from sio_pg_adapter.log.verdict import (
    Claim,
    Claimed,
    Fresh,
    Presented,
    Recovered,
    new_pid,
    pid_hash,
    read_auth,
    verdict,
)

CODEC = OffsetCodec([Epoch(0, b"k" * 32)])
GOOD = CODEC.encode(1234, "/")


# -- what was presented --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("auth", "seen"),
    [
        (None, None),
        ({}, None),
        ("x", "x"),
        ("", None),
        ([1], [1]),
        (7, 7),
        ({"token": "t"}, {"token": "t"}),
        ({"offset": 7}, None),
        ({"offset": GOOD, "token": "t"}, {"token": "t"}),
        ({"pid": None}, None),
        ({"pid": None, "offset": None, "token": "t"}, {"token": "t"}),
    ],
)
def test_case_16_no_claim_and_nothing_to_complain_of(auth, seen):
    assert read_auth(auth, "/", CODEC) == Presented(seen)


@pytest.mark.parametrize("pid", [1, {}, [], "", True, 1.5, "p" * 129, "ü", "p" * 1_000_000])
def test_case_16_a_malformed_pid_is_no_claim(pid):
    presented = read_auth({"pid": pid, "offset": GOOD, "token": "t"}, "/", CODEC)
    assert presented == Presented({"token": "t"}, rejected="malformed pid")


@pytest.mark.parametrize(
    "offset",
    [
        7, {}, [GOOD], True, "", "-1", "1e9", "1234", "9" * 400, "x" * 1_000_000, "٣" * 22, "'; --" + GOOD[5:],
        GOOD + " ", GOOD + "\0", GOOD + "=", GOOD + "==", " " + GOOD, GOOD[:-1], GOOD.swapcase(), GOOD[:-1] + "\0",
        GOOD[:11] + "\n" + GOOD[11:], GOOD[:11] + "!" + GOOD[12:],
    ],
)  # fmt: skip
def test_cases_16_55_97_an_offset_that_was_not_issued_is_no_claim(offset):
    presented = read_auth({"pid": "p", "offset": offset}, "/", CODEC)
    assert presented == Presented(None, rejected="malformed or foreign offset")


@pytest.mark.parametrize(
    ("auth", "after", "seen"),
    [
        ({"pid": "p"}, None, None),
        ({"pid": "p", "offset": None}, None, None),
        ({"pid": "p", "offset": GOOD}, 1234, None),
        ({"pid": "p", "offset": GOOD, "token": "t"}, 1234, {"token": "t"}),
    ],
)
def test_case_14_a_claim_is_taken_out_of_what_handlers_see(auth, after, seen):
    presented = read_auth(auth, "/", CODEC)
    assert presented.claim is not None and presented.rejected is None
    assert (presented.claim.pid, presented.claim.after, presented.auth) == ("p", after, seen)


def test_case_52_an_offset_of_another_namespace_is_no_claim():
    assert read_auth({"pid": "p", "offset": GOOD}, "/admin", CODEC).rejected == "malformed or foreign offset"


def test_case_94_a_pid_has_192_random_bits_and_is_not_shown():
    pids = {new_pid() for _ in range(100)}
    assert len(pids) == 100
    assert all(len(pid) == 32 and pid.isascii() for pid in pids)
    pid = pids.pop()
    assert pid not in repr(Claim(pid, 5))
    assert pid not in repr(read_auth({"pid": pid, "offset": GOOD}, "/", CODEC))
    assert pid not in pid_hash(pid)
    assert len(bytes.fromhex(pid_hash(pid))) == 32


# -- offsets on the wire -------------------------------------------------------------------------------
namespaces = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: "/" + text)
offsets = st.integers(0, (1 << EPOCH_BITS) - 1)


@given(offsets, namespaces)
def test_an_offset_is_22_characters_and_comes_back(offset, namespace):
    text = CODEC.encode(offset, namespace)
    assert len(text) == 22 and text.replace("-", "").replace("_", "").isalnum()
    assert CODEC.decode(text, namespace) == offset


@given(offsets, namespaces, namespaces)
def test_case_52_an_offset_belongs_to_its_namespace(offset, namespace, other):
    assert (CODEC.decode(CODEC.encode(offset, namespace), other) is None) == (namespace != other)


@given(offsets, st.integers(0, 21), st.characters())
def test_case_55_one_character_changed_is_not_the_offset(offset, at, character):
    text = CODEC.encode(offset, "/")
    changed = text[:at] + character + text[at + 1 :]
    assert CODEC.decode(changed, "/") == (offset if changed == text else None)


@given(st.text())
def test_case_97_no_text_is_more_than_no_offset(text):
    assert CODEC.decode(text, "/") is None


@given(offsets)
def test_an_offset_of_another_history_is_none_here(offset):
    assert CODEC.decode(OffsetCodec([Epoch(0, b"l" * 32)]).encode(offset, "/"), "/") is None


def test_an_epoch_counts_up_to_its_end():
    first, second = Epoch(0, b"k" * 32, end=100), Epoch(1, b"l" * 32)
    codec = OffsetCodec([first, second])
    at = (1 << EPOCH_BITS) + 5
    assert codec.decode(CODEC.encode(100, "/"), "/") == 100
    assert codec.decode(CODEC.encode(101, "/"), "/") is None  # issued, and lost in a crash
    assert codec.decode(codec.encode(at, "/"), "/") == at
    assert CODEC.decode(codec.encode(at, "/"), "/") is None


# -- the verdict ---------------------------------------------------------------------------------------
SESSION = Claimed(
    id=1, sid="s", generation=2, data="{}", former=None, offset=100, missed=10, lost=False,
    memberships=Memberships("s", 40),
)  # fmt: skip


@pytest.mark.parametrize(
    ("after", "changes", "decision"),
    [
        (60, {}, Recovered(60)),
        (None, {}, Recovered(40)),
        (39, {}, Recovered(40)),  # of a session that the client had before: from this one's start
        (0, {}, Recovered(40)),
        (40, {}, Recovered(40)),
        (99, {}, Recovered(99)),
        (100, {}, Fresh("offset in the future")),
        (10**12, {}, Fresh("offset in the future")),
        (60, {"lost": True}, Fresh("missed events no longer stored")),
        (None, {"lost": True}, Fresh("missed events no longer stored")),
        (60, {"missed": 20}, Recovered(60)),
        (60, {"missed": 21}, Fresh("too many missed events")),
        (60, {"former": 1}, Recovered(60)),
    ],
)
def test_cases_44_50_51_the_verdict(after, changes, decision):
    assert verdict(Claim("p", after), dataclasses.replace(SESSION, **changes), 20) == decision


@pytest.mark.parametrize("after", [None, 0, 60])
def test_case_48_an_unknown_session_does_not_recover(after):
    assert verdict(Claim("p", after), None, 20) == Fresh("unknown or expired session")


def test_a_claimed_session_from_json():
    value = {
        "id": 1, "sid": "s", "generation": 2, "data": "{}", "former": None, "offset": 100, "missed": 10,
        "lost": False, "start": 40, "rooms": [["x", 60, None], ["x", 41, 50], ["y", 44, 45]],
    }  # fmt: skip
    rooms = {"x": [(41, 50), (60, None)], "y": [(44, 45)]}
    assert Claimed.from_json(value) == dataclasses.replace(SESSION, memberships=Memberships("s", 40, rooms))


# -- what it is due ------------------------------------------------------------------------------------
def event(offset, *rooms, skip=()):
    return Record(offset, Kind.EVENT, "/", rooms or ("",), tuple(skip), body='["e"]')


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
    ],
)
def test_cases_35_36_40_due_by_the_rooms_of_the_time(record, due):
    memberships = Memberships("s", 10, {"x": [(20, 30)], "y": [(12, None)]})
    assert memberships.due(record) is due


def test_case_103_entering_a_room_one_is_in_changes_nothing():
    memberships = Memberships("s", 0, {"x": [(2, None)]})
    memberships.enter("x", 9)
    assert memberships.rooms == {"x": [(2, None)]}


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


def test_rooms_of_others_and_of_other_sids_are_left_alone():
    memberships = Memberships("s", 0, {"x": [(2, None)]})
    for record in (
        Record(5, Kind.ENTER, "/", ("y",), sid="t"),
        Record(6, Kind.LEAVE, "/", ("x",), sid="t"),
        Record(7, Kind.CLOSE, "/", ("y",)),
        Record(8, Kind.CLAIM, "/", sid="s", generation=2),
    ):
        memberships.apply(record)
    assert memberships.rooms == {"x": [(2, None)]}


# -- replay sends what live delivery would have sent -----------------------------------------------------
moves = st.lists(
    st.tuples(
        st.sampled_from([Kind.ENTER, Kind.LEAVE, Kind.CLOSE, Kind.EVENT, Kind.EVENT]),
        st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=2, unique=True),
        st.sampled_from(["s", "t"]),
        st.sampled_from(["", "rooms"]),
        st.booleans(),
    ),
    max_size=40,
)


@given(moves, st.integers(0, 10), st.data())
def test_due_is_what_live_delivery_sends(script, start, data):
    """The naive model: a set of rooms, asked at the moment of each event; against the history, asked at the end."""
    rooms: set[str] = set()
    sent: list[int] = []
    memberships = Memberships("s", start)
    log: list[Record] = []
    for offset, (kind, names, sid, to, skip) in enumerate(script, start + 1):
        if kind is Kind.EVENT:
            record = event(offset, *(names if to else ("",)), skip=[sid] if skip else ())
            if not (skip and sid == "s") and (not to or rooms & set(names)):
                sent.append(offset)
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
