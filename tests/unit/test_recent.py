"""The last applied records: bounded, and indexed by those they concern."""

from __future__ import annotations

from sio_pg_adapter.local.recent import RECENT_BYTES, RECENT_OTHERS, RECENT_RECORDS, Recent
from sio_pg_adapter.log.records import Kind, Record


def record(offset, body='["e"]'):
    return Record(offset, Kind.EVENT, "/", body=body)


def test_recent_covers_from_its_base():
    recent = Recent(10)
    for offset in (11, 13, 17):
        recent.add(record(offset))
    assert not recent.covers(9)
    assert recent.covers(10) and recent.covers(17) and recent.covers(99)
    assert [r.offset for r in recent.events("/", [""], 10)] == [11, 13, 17]
    assert [r.offset for r in recent.events("/", [""], 12)] == [13, 17]
    assert recent.events("/", [""], 17) == recent.events("/other", [""], 10) == []


def test_events_are_found_by_the_rooms_they_went_to_each_once_and_in_order():
    recent = Recent(0)
    for offset, rooms in enumerate([("x",), ("y", "x", "y"), ("z",), ("",), ("y",)], start=1):
        recent.add(Record(offset, Kind.EVENT, "/", rooms))
    assert [r.offset for r in recent.events("/", ["", "x", "y"], 0)] == [1, 2, 4, 5]
    assert [r.offset for r in recent.events("/", ["z", "nobody"], 0)] == [3]
    for offset in range(6, RECENT_RECORDS + 4):
        recent.add(record(offset))
    assert [r.offset for r in recent.events("/", ["x", "y", "z"], 0)] == [5] and recent.base == 3


def test_recent_tells_what_is_about_a_sid_in_the_order_of_the_log():
    recent = Recent(10)
    moves = [
        Record(11, Kind.ENTER, "/", ("x",), sid="s"),
        Record(13, Kind.CLOSE, "/", ("x",)),
        Record(15, Kind.ENTER, "/", ("x",), sid="s"),
        Record(16, Kind.CLOSE, "/", ("y",)),
        Record(17, Kind.CLAIM, "/", sid="s", generation=2),
    ]
    others = [record(12), Record(14, Kind.KICK, "/", sid="t"), Record(18, Kind.CLAIM, "/other", sid="s")]
    for one in sorted([*moves, *others], key=lambda r: r.offset):
        recent.add(one)
    assert recent.moves("/", "s", 10) == moves
    assert recent.moves("/", "s", 14) == moves[2:]
    assert recent.moves("/", "u", 13) == [moves[3]]
    assert recent.moves("/", "s", 18) == []


def test_recent_is_bounded_in_records():
    recent = Recent(0)
    for offset in range(1, RECENT_RECORDS + 3):
        recent.add(record(offset))
    assert recent.base == 2
    assert not recent.covers(1)
    assert len(recent.events("/", [""], 2)) == RECENT_RECORDS


def test_a_storm_of_claims_does_not_push_events_out():
    recent = Recent(0)
    recent.add(record(1))
    for i in range(2, RECENT_OTHERS + 2):
        recent.add(Record(i, Kind.CLAIM, "/", sid=f"s{i % 7}", generation=i))
    assert recent.covers(0) and recent.events("/", [""], 0) == [record(1)]
    recent.add(Record(RECENT_OTHERS + 2, Kind.CLAIM, "/", sid="s", generation=1))  # yet they are bounded, too
    assert recent.base == 2
    recent.add(Record(RECENT_OTHERS + 3, Kind.CLAIM, "/", sid="s", generation=2))
    assert recent.base == 3 and recent.moves("/", "s2", 3)[0].offset == 9


def test_recent_is_bounded_in_bytes():
    recent = Recent(0)
    body = "x" * (RECENT_BYTES // 4)
    for offset in range(1, 6):
        recent.add(record(offset, body))
    assert recent.base == 2
    recent.add(record(6, "x" * RECENT_BYTES))  # larger than all of it: nothing is kept, nothing is claimed
    assert recent.base == 6 and recent.events("/", [""], 6) == []


def test_recent_holds_as_many_bytes_as_said_and_no_more():
    recent = Recent(0)
    overhead = record(1, "").size
    for offset in (1, 2):
        recent.add(record(offset, "x" * (RECENT_BYTES // 2 - overhead)))
    assert recent.covers(0)
    one_more = Recent(0)
    one_more.add(record(1, "x" * (RECENT_BYTES // 2 - overhead)))
    one_more.add(record(2, "x" * (RECENT_BYTES // 2 - overhead + 1)))
    assert one_more.base == 1


def test_the_index_of_recent_holds_nothing_of_dropped_records():
    recent = Recent(0)
    recent.add(Record(1, Kind.EVENT, "/", ("x",)))
    recent.add(Record(2, Kind.EVENT, "/", ("y",), body="x" * RECENT_BYTES))
    assert recent.base == 2 and recent._index == {}
