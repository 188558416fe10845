"""Records, entries and outgoing events: what they take in a buffer, and what a batch is given."""

from __future__ import annotations

import json

import pytest

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.log.records import Entry, Held, Kind, Outgoing, Record, Written


@pytest.mark.parametrize(
    ("body", "parts", "size"), [(None, (), 0), ("[]", (), 2), (None, (b"abc",), 3), ("[1]", (b"ab", b"c"), 6)]
)
def test_the_size_of_a_record_and_of_an_entry_is_that_of_their_body_and_parts(body, parts, size):
    assert Record(1, Kind.EVENT, "/", body=body, parts=parts).size == 200 + size
    assert Entry(Kind.EVENT, body=body, parts=parts).size == size


def test_records_are_compared_and_shown_without_their_frames():
    record, other = Record(1, Kind.EVENT, "/"), Record(1, Kind.EVENT, "/")
    record.frames[True] = "a frame"
    assert record == other
    assert repr(record) == repr(other)


def test_no_field_is_added_to_a_record():
    with pytest.raises(AttributeError):
        Record(1, Kind.EVENT, "/").frame = None


@pytest.mark.parametrize(
    ("to", "room", "rooms"),
    [(None, None, ("",)), (None, "x", ("x",)), ("y", "x", ("y",)), (["y", "z"], None, ("y", "z"))],
)
def test_an_event_is_for_its_rooms_or_for_everybody(to, room, rooms):
    outgoing = Outgoing.encoded("e", 1, namespace="/chat", room=room, to=to, json=json)
    assert outgoing == Outgoing("/chat", rooms, (), '["e",1]')


def test_an_event_has_what_emit_was_given():
    outgoing = Outgoing.encoded(
        "e", b"a", namespace=None, room="x", skip_sid=["s", "t"], skip_room="muted", key="k", json=json
    )
    body = '["e",{"_placeholder":true,"num":0}]'
    assert outgoing == Outgoing("/", ("x",), ("s", "t"), body, (b"a",), "k", ("muted",))
    with pytest.raises(ConfigurationError, match=r"Socket\.IO keeps this name"):
        Outgoing.encoded("connect", None, namespace="/", room=None, json=json)


def test_an_entry_of_an_event_has_all_of_it():
    entry = Entry.event(Outgoing("/chat", ("x",), ("s",), "[]", (b"a",), "k", ("muted",)))
    assert entry == Entry(
        Kind.EVENT, "/chat", ("x",), ("s",), ("muted",), body="[]", parts=(b"a",), args={"key": "k"}
    )
    assert entry.key == "k" and entry.answer == 0
    without = Entry.event(Outgoing("/", ("",), (), "[]"))
    assert without.args == {} and without.key is None


def test_only_an_event_has_a_key():
    assert Entry(Kind.SAVE, args={"key": "k"}).key is None


def test_a_session_is_named_by_its_id_and_generation():
    assert Held(7, 2).args() == {"id": 7, "generation": 2}


def test_what_is_written_is_neither_refused_nor_a_duplicate_unless_that_is_said():
    assert Written(1) == Written(1, None, False, False)
