"""Claims and verdicts: what a client presents, and whether its session continues."""

from __future__ import annotations

import dataclasses
import re

import pytest

from sio_pg_adapter.log.memberships import Memberships
from sio_pg_adapter.log.offsets import Epoch, OffsetCodec
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
    session_id,
    verdict,
)

CODEC = OffsetCodec([Epoch(0, b"k" * 32)])
GOOD = CODEC.encode(1234, "/")
PID = "p" * 32
FORM = re.compile("[A-Za-z0-9_-]{22}")


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
        ({"offset": 7}, {"offset": 7}),
        ({"pid": None, "offset": "20"}, {"offset": "20"}),
        ({"offset": GOOD, "token": "t"}, {"token": "t"}),
        ({"pid": None}, None),
        ({"pid": None, "offset": None, "token": "t"}, {"token": "t"}),
    ],
)
def test_case_16_no_claim_and_nothing_to_complain_of(auth, seen):
    assert read_auth(auth, "/", CODEC) == Presented(seen)


@pytest.mark.parametrize("pid", [1, {}, [], "", True, 1.5, "p" * 129, "ü", "p" * 1_000_000, "product-7", PID + "="])
def test_case_16_a_malformed_pid_is_no_claim(pid):
    presented = read_auth({"pid": pid, "offset": GOOD, "token": "t"}, "/", CODEC)
    assert presented == Presented({"pid": pid, "token": "t"}, rejected="malformed pid")


@pytest.mark.parametrize(
    "offset",
    [
        7, {}, [GOOD], True, "", "-1", "1e9", "1234", "9" * 400, "x" * 1_000_000, "٣" * 22, "'; --" + GOOD[5:],
        GOOD + " ", GOOD + "\0", GOOD + "=", GOOD + "==", " " + GOOD, GOOD[:-1], GOOD.swapcase(), GOOD[:-1] + "\0",
        GOOD[:11] + "\n" + GOOD[11:], GOOD[:11] + "!" + GOOD[12:],
    ],
)  # fmt: skip
def test_cases_16_55_97_an_offset_that_was_not_issued_is_no_claim(offset):
    presented = read_auth({"pid": PID, "offset": offset}, "/", CODEC)
    seen = None if isinstance(offset, str) and FORM.fullmatch(offset) else {"offset": offset}
    assert presented == Presented(seen, rejected="malformed or foreign offset")


@pytest.mark.parametrize(
    ("auth", "after", "seen"),
    [
        ({"pid": PID}, None, None),
        ({"pid": PID, "offset": None}, None, None),
        ({"pid": PID, "offset": GOOD}, 1234, None),
        ({"pid": PID, "offset": GOOD, "token": "t"}, 1234, {"token": "t"}),
    ],
)
def test_case_14_a_claim_is_taken_out_of_what_handlers_see(auth, after, seen):
    presented = read_auth(auth, "/", CODEC)
    assert presented.claim is not None and presented.rejected is None
    assert (presented.claim.pid, presented.claim.after, presented.auth) == (PID, after, seen)


def test_case_52_an_offset_of_another_namespace_is_no_claim():
    assert read_auth({"pid": PID, "offset": GOOD}, "/admin", CODEC).rejected == "malformed or foreign offset"


def test_case_94_a_pid_has_192_random_bits_and_neither_it_nor_the_key_of_an_offset_is_shown():
    pids = {new_pid() for _ in range(100)}
    assert len(pids) == 100
    assert all(len(pid) == 32 and pid.isascii() for pid in pids)
    pid = pids.pop()
    assert pid not in repr(Claim(pid, 5))
    presented = read_auth({"pid": pid, "offset": GOOD}, "/", CODEC)
    assert presented.claim is not None and presented.claim.key == (b"k" * 32).hex()
    assert pid not in repr(presented) and presented.claim.key not in repr(presented)  # it signs offsets
    assert pid not in pid_hash(pid)
    assert len(bytes.fromhex(pid_hash(pid))) == 32


# -- the verdict ---------------------------------------------------------------------------------------
def claimed() -> Claimed:
    return Claimed(
        id=1, sid="s", generation=2, data="{}", former=None, offset=100, missed=10, lost=False,
        memberships=Memberships("s", 40),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("after", "changes", "decision"),
    [
        (60, {}, Recovered(60)),
        (None, {}, Recovered(40)),
        (None, {"memberships": Memberships("s", 0)}, Recovered(0)),
        (39, {}, Recovered(40)),  # of a session that the client had before: from this one's start
        (0, {}, Recovered(40)),
        (40, {}, Recovered(40)),
        (99, {}, Recovered(99)),
        (100, {}, Fresh("offset in the future")),
        (10**12, {}, Fresh("offset in the future")),
        (60, {"lost": True}, Fresh("missed events no longer stored")),
        (60, {"stale": True}, Fresh("offset of an earlier session")),
        (None, {"lost": True}, Fresh("missed events no longer stored")),
        (60, {"missed": 20}, Recovered(60)),
        (60, {"missed": 21}, Fresh("too many missed events")),
        (60, {"former": 1}, Recovered(60)),
    ],
)
def test_cases_44_50_51_the_verdict(after, changes, decision):
    assert verdict(Claim("p", after), dataclasses.replace(claimed(), **changes), 20) == decision


@pytest.mark.parametrize("after", [None, 0, 60])
def test_case_48_an_unknown_session_does_not_recover(after):
    assert verdict(Claim("p", after), None, 20) == Fresh("unknown or expired session")


def test_a_claimed_session_from_json():
    value = {
        "id": 1, "sid": "s", "generation": 2, "data": "{}", "former": None, "offset": 100, "missed": 10,
        "lost": False, "start": 40, "rooms": [["x", 60, None], ["x", 41, 50], ["y", 44, 45]],
    }  # fmt: skip
    rooms = {"x": [(41, 50), (60, None)], "y": [(44, 45)]}
    assert Claimed.from_json(value) == dataclasses.replace(claimed(), memberships=Memberships("s", 40, rooms))


def test_a_claimed_session_comes_with_the_first_events_it_is_due():
    value = {
        "id": 1, "sid": "s", "generation": 2, "data": "{}", "former": 1, "offset": 100, "missed": 2,
        "lost": False, "start": 40, "rooms": [], "upto": 99,
        "page": [[61, ["x", "y"], ["t"], '["a"]'], [62, [""], None, '["b"]']],
    }  # fmt: skip
    session = Claimed.from_json(value, "/chat")
    assert session.page == (
        Record(61, Kind.EVENT, "/chat", ("x", "y"), ("t",), body='["a"]'),
        Record(62, Kind.EVENT, "/chat", ("",), (), body='["b"]'),
    )
    assert (session.upto, session.former) == (99, 1)


def test_the_id_of_a_session_has_the_first_60_bits_of_the_hash_of_its_pid():
    assert session_id("p") == int(pid_hash("p"), 16) >> (256 - 60)
