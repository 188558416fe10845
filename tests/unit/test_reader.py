"""Notifications: the offsets of an append, and the records that came along."""

from __future__ import annotations

import pytest

from sio_pg_adapter.log.records import Kind, Record
from sio_pg_adapter.store.reader import read_notification


def test_a_notification_without_and_with_records():
    assert read_notification("4 7") == (4, 7, None)
    prev, last, records = read_notification('4 6 [["/",[""],[],[],"[\\"a b\\"]"],["/n",["x","y"],["s"],["m"],"[1]"]]')
    assert (prev, last) == (4, 6)
    assert records == [
        Record(5, Kind.EVENT, "/", body='["a b"]'),
        Record(6, Kind.EVENT, "/n", ("x", "y"), ("s",), ("m",), body="[1]"),
    ]


def test_a_notification_whose_offsets_contradict_its_records_only_rings():
    assert read_notification('4 9 [["/",[""],[],[],"[1]"]]') == (4, 9, None)
    assert read_notification('4 5 [["/",[""],[],[],"[1]"]]', 4)[2] is not None
    assert read_notification("4 6 =1 0 /[1]") == (4, 6, None)
    assert read_notification("4 5 =1 0 /[1]") == (4, 5, [Record(5, Kind.EVENT, "/", body="[1]")])
    assert read_notification("4 5 [never read", 5) == (4, 5, None)


@pytest.mark.parametrize("payload", ["", "x", "1", "1 x", "1 2 [", "1 2 [1]", "1 2 =", "1 2 =1 x"])
def test_what_is_no_notification_of_ours_is_refused(payload):
    with pytest.raises((ValueError, TypeError)):
        read_notification(payload)
