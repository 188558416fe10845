"""Batches: the arguments of their statement, and what a notification carries of them."""

from __future__ import annotations

import json
import uuid

import pytest

from sio_pg_adapter.log.payload import pack
from sio_pg_adapter.log.records import Entry, Kind, Written
from sio_pg_adapter.store.batches import (
    CARRY_BYTES,
    _column,
    carried,
    columns,
    lone_event,
    outcomes,
    outcomes_by_key,
)
from sio_pg_adapter.store.reader import read_notification


def event(*rooms, body='["e"]', skip=(), skip_rooms=(), parts=(), namespace="/", key=None):
    args = {} if key is None else {"key": key}
    return Entry(
        Kind.EVENT,
        namespace,
        rooms or ("",),
        tuple(skip),
        tuple(skip_rooms),
        body=body,
        parts=tuple(parts),
        args=args,
    )


# -- a single event --------------------------------------------------------------------------------------
def test_a_single_event_for_one_room_has_a_statement_of_its_own():
    assert lone_event([event("x", body='["a"]', namespace="/chat")]) == ("/chat", "x", '["a"]', None)
    assert lone_event([event("x", key="k")]) == ("/", "x", '["e"]', "k")


@pytest.mark.parametrize(
    "entries",
    [
        [event("x"), event("x")],
        [event("x", "y")],
        [event("x", skip=["a"])],
        [event("x", skip_rooms=["m"])],
        [event("x", parts=[b"a"])],
        [Entry(Kind.ENTER, "/", ("x",), sid="a")],
    ],
)
def test_anything_else_is_a_batch(entries):
    assert lone_event(entries) == ()


# -- columns ---------------------------------------------------------------------------------------------
def test_the_columns_of_a_batch():
    key = str(uuid.uuid4())
    entries = [
        event("x", "y", body='["a"]', skip=["s"], parts=[b"1", b"2"]),
        event(body='["large"]', parts=[b"3"], skip_rooms=["m", "n"]),
        Entry(Kind.LEAVE, "/chat", ("z",), sid="t", args={"as_of": 7}),
    ]
    assert columns(entries, [None, key, None]) == (
        [Kind.EVENT, Kind.EVENT, Kind.LEAVE],
        ["/", "/", "/chat"],
        ["x", "", "z"],
        ['["x", "y"]', None, None],
        ['["s"]', None, None],
        [None, '["m", "n"]', None],
        [None, None, "t"],
        ['["a"]', None, None],  # body and parts of the second are in the attachment table
        [pack([b"1", b"2"]), None, None],
        [None, key, None],
        [None, None, '{"as_of":7}'],
    )


def test_a_column_of_nothing_is_not_sent():
    _, _, _, rooms, skips, skip_rooms, sids, bodies, parts, keys, args = columns(
        [event("x"), event("y")], [None, None]
    )
    assert bodies == ['["e"]', '["e"]']
    assert (rooms, skips, skip_rooms, sids, parts, keys, args) == (None,) * 7
    assert _column([None, 0]) == [None, 0]


def test_the_column_of_arguments_has_the_keys_of_events():
    assert columns([event(key='"ü"'), event()], [None, None])[-1] == ['{"key":"\\"\\u00fc\\""}', None]


# -- the outcomes of its entries ---------------------------------------------------------------------------
def test_outcomes_of_a_batch():
    entries = [
        event(),
        event(key="k"),
        *(Entry(Kind.ENTER, "/", ("x",), sid="a") for _ in range(4)),
        Entry(Kind.SAVE),
    ]
    assert outcomes(entries, [7, -3, 8, -5, 0, None, 0], [None] * 6 + ['{"a":1}']) == [
        Written(7),
        Written(3, duplicate=True),
        Written(8),
        Written(5),
        Written(0),
        Written(0, refused=True),
        Written(0, {"a": 1}),
    ]
    assert outcomes(entries[:1], [7], None) == [Written(7)]


def test_outcomes_by_key_after_a_lost_answer():
    """Two of the events 11, 12 and 13 had keys. Other entries met keys, and the event of one such key is gone."""
    events = [11, 12, 13]
    assert outcomes_by_key([13, 4, 11, 13, None], events) == [
        Written(13),
        Written(4, duplicate=True),
        Written(11),
        Written(13, duplicate=True),
        Written(0, duplicate=True),
    ]
    assert events == [12]


# -- what a notification carries -------------------------------------------------------------------------
def test_the_events_of_a_small_batch_are_carried_and_read_as_they_were():
    entries = [event("x", "y", body='["ü"]', skip=["s"], skip_rooms=["m"], namespace="/chat"), event()]
    text = carried(entries)
    assert text is not None and text.isascii()
    _, _, records = read_notification(f"4 6 {text}")
    assert records is not None
    assert [(r.namespace, r.rooms, r.skip_sids, r.skip_rooms, r.body) for r in records] == [
        (e.namespace, e.rooms, e.skip_sids, e.skip_rooms, e.body) for e in entries
    ]


@pytest.mark.parametrize("room", ["", "r", "a b 7 =", "ü"])
def test_a_single_event_is_carried_and_read_as_it_was(room):
    body = '["e","a  b \\u00fc"]'
    text = carried([event(room, body=body, namespace="/chat room")])
    assert text is not None and text.isascii() and text.startswith("=" if room.isascii() else "[")
    _, _, records = read_notification(f"4 5 {text}")
    assert records is not None
    assert [(r.offset, r.namespace, r.rooms, r.skip_sids, r.body) for r in records] == [
        (5, "/chat room", (room,), (), body)
    ]


@pytest.mark.parametrize(
    "entries",
    [
        [event(), Entry(Kind.ENTER, "/", ("x",), sid="a")],
        [event(parts=[b"a"])],
        [event(body=json.dumps(["e", "x" * CARRY_BYTES]))],
        [event(body=json.dumps(["e", "ü" * (CARRY_BYTES // 4)], ensure_ascii=False))],  # six bytes each, as text
        [event(*(f"room {i}" for i in range(CARRY_BYTES // 8)))],
    ],
)
def test_other_batches_are_read_from_the_log(entries):
    assert carried(entries) is None
