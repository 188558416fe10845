"""``sio-pg check``: a recorded history is clean, and each fault that is planted in it is found where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sio_pg_adapter.check import FindingKind, Verdict
from sio_pg_adapter.check.history import History
from sio_pg_adapter.cli import main
from sio_pg_adapter.errors import ConfigurationError

RECORDED = Path(__file__).parent / "data" / "history.jsonl"
"""A run of ``python -m tests.soak`` with four clients, which loses connections and restarts a node."""

CLIENT = "client-2"

Line = dict[str, Any]


@pytest.fixture
def lines() -> list[Line]:
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


def check(lines: list[Line]) -> Verdict:
    return Verdict(History([json.dumps(line) for line in lines]))


def kinds(lines: list[Line]) -> list[FindingKind]:
    return [finding.kind for finding in check(lines).findings]


def received(lines: list[Line], client: str = CLIENT) -> list[int]:
    """The indexes of the lines with the events that a client received."""
    return [i for i, line in enumerate(lines) if line["type"] == "received" and line["client"] == client]


def first(lines: list[Line], kind: str, wanted: Callable[[Line], bool] = lambda _: True) -> int:
    return next(i for i, line in enumerate(lines) if line["type"] == kind and wanted(line))


def last_of(lines: list[Line]) -> str:
    """The sid of the client's session."""
    return next(line["sid"] for line in reversed(lines) if line["type"] == "connected" and line["client"] == CLIENT)


def new_session(lines: list[Line], sid: str = "new-sid", pid: str = "new-pid") -> int:
    """Give the client a new session after its last event. Return the index of the line."""
    i = received(lines)[-1] + 1
    lines.insert(i, {"type": "connected", "client": CLIENT, "sid": sid, "pid": pid, "recovered": False})
    head = max(line["offset"] for line in lines if line["type"] == "record")
    lines.append({"type": "session", "log": "log", "sid": sid, "namespace": "/", "start": head})
    return i


def test_a_recorded_run_is_clean(lines):
    verdict = check(lines)
    assert verdict.findings == []
    assert verdict.deliveries == 593
    assert verdict.recoveries == 11
    report = verdict.report()
    assert "593 deliveries of 291 events to 4 clients\n4 sessions, recovered 11 times" in report
    assert "faults: terminate 1" in report
    assert "lost 0, doubled 0, inverted 0" in report


# -- planted faults ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", [0, 57, -1])
def test_an_event_that_a_client_did_not_receive_is_lost(lines, place):
    missing = lines.pop(received(lines)[place])
    (finding,) = check(lines).findings
    assert finding.kind is FindingKind.LOST
    assert f"offset {missing['offset']}" in finding.text
    assert finding.client == CLIENT


def test_every_event_of_a_client_that_receives_nothing_is_lost(lines):
    for i in reversed(received(lines)):
        del lines[i]
    found = kinds(lines)
    assert set(found) == {FindingKind.LOST}
    assert len(found) > 50


def test_an_event_that_came_twice_is_doubled(lines):
    i = received(lines)[30]
    lines.insert(received(lines)[33] + 1, dict(lines[i]))
    assert kinds(lines) == [FindingKind.DOUBLED]


def test_an_event_that_is_twice_in_the_log_is_doubled(lines):
    record = dict(lines[first(lines, "record")], rooms=["nobody"], offset=1 << 60)
    lines.append(record)
    assert kinds(lines) == [FindingKind.DOUBLED]


def test_events_in_the_wrong_order_are_inverted(lines):
    i, j = received(lines)[30:32]
    lines[i], lines[j] = lines[j], lines[i]
    (finding,) = check(lines).findings
    assert finding.kind is FindingKind.INVERTED
    assert finding.line == j


def test_an_event_for_another_room_was_not_due(lines):
    mine = {lines[i]["offset"] for i in received(lines)}
    records = [line for line in lines if line["type"] == "record"]
    last = max(mine)
    other = next(r for r in records if r["offset"] not in mine and min(mine) < r["offset"] < last)
    at = next(i for i in received(lines) if lines[i]["offset"] > other["offset"])
    lines.insert(at, {"type": "received", "client": CLIENT, "offset": other["offset"], "event": other["event"]})
    (finding,) = check(lines).findings
    assert finding.kind is FindingKind.NOT_DUE
    assert finding.line == at


@pytest.mark.parametrize("name", ["skip_sids", "skip_rooms"])
def test_a_skipped_client_was_not_due_the_event(lines, name):
    i = received(lines)[20]
    record = lines[first(lines, "record", lambda line: line["offset"] == lines[i]["offset"])]
    record[name] = [last_of(lines)]
    assert kinds(lines) == [FindingKind.NOT_DUE]


def test_a_member_of_a_skipped_room_was_not_due_the_event(lines):
    i = received(lines)[20]
    offset = lines[i]["offset"]
    record = lines[first(lines, "record", lambda line: line["offset"] == offset)]
    record["skip_rooms"] = ["muted"]
    membership = {"type": "membership", "log": "log", "sid": last_of(lines), "room": "muted"}
    lines.append({**membership, "joined": offset, "left": None})
    assert kinds(lines) == []
    lines[-1] |= {"joined": offset - 1, "left": offset}
    assert kinds(lines) == []
    lines[-1] |= {"joined": offset - 1, "left": offset + 1}
    assert kinds(lines) == [FindingKind.NOT_DUE]


def test_an_event_that_no_log_has_was_not_due(lines):
    i = received(lines)[20]
    lines[i] |= {"event": "e 999999"}
    assert kinds(lines) == [FindingKind.LOST, FindingKind.NOT_DUE] or kinds(lines) == [
        FindingKind.NOT_DUE,
        FindingKind.LOST,
    ]


@pytest.mark.parametrize("name", ["sid", "pid"])
def test_a_client_that_recovers_another_session_recovered_wrongly(lines, name):
    other = first(lines, "connected", lambda line: line["client"] != CLIENT)
    i = first(lines, "connected", lambda line: line["client"] == CLIENT and line["recovered"])
    lines[i][name] = lines[other][name]
    assert FindingKind.RECOVERED_WRONGLY in kinds(lines)
    assert check(lines).findings[0].line in (i, first(lines, "connected", lambda line: line["client"] == CLIENT))


def test_a_new_session_under_the_name_of_an_old_one_is_wrong(lines):
    i = new_session(lines, sid=last_of(lines))
    assert FindingKind.RECOVERED_WRONGLY in kinds(lines)
    assert any(finding.line == i for finding in check(lines).findings)


def test_a_session_that_goes_on_after_its_end_recovered_wrongly(lines):
    offset = lines[received(lines)[-3]]["offset"]
    lines.append({"type": "kick", "log": "log", "offset": offset + 1, "sid": last_of(lines)})
    assert kinds(lines) == [FindingKind.RECOVERED_WRONGLY] * 2


def test_a_session_that_no_log_has_is_wrong(lines):
    del lines[first(lines, "session", lambda line: line["sid"] == last_of(lines))]
    assert kinds(lines) == [FindingKind.RECOVERED_WRONGLY]


def test_a_stored_event_that_is_not_in_the_log_is_gone(lines):
    lines += [{"type": "answer", "event": "e 999999", "outcome": outcome} for outcome in ("unknown", "not stored")]
    assert kinds(lines) == []
    lines.append({"type": "answer", "event": "e 999999", "outcome": "stored"})
    (finding,) = check(lines).findings
    assert finding.kind is FindingKind.GONE
    assert finding.line == len(lines) - 1


def test_an_event_that_was_refused_must_not_be_stored(lines):
    lines[first(lines, "answer", lambda line: line["outcome"] == "stored")]["outcome"] = "not stored"
    assert kinds(lines) == [FindingKind.STORED]


def test_a_new_session_needs_a_reason(lines):
    i = new_session(lines)
    (finding,) = check(lines).findings
    assert finding.kind is FindingKind.NO_REASON
    assert finding.line == i


def test_a_refused_connection_is_a_finding(lines):
    lines.append({"type": "refused", "client": CLIENT, "reason": "full"})
    assert kinds(lines) == [FindingKind.REFUSED]


# -- what is allowed ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reason", ["ended", "kick", "loses"])
def test_a_new_session_after_an_end_is_right(lines, reason):
    i = new_session(lines)
    sid = next(line["sid"] for line in lines if line["type"] == "connected" and line["client"] == CLIENT)
    head = max(line["offset"] for line in lines if line["type"] == "record")
    match reason:
        case "ended":
            lines.insert(i, {"type": "ended", "sid": sid, "by": "its client"})
        case "kick":
            lines.append({"type": "kick", "log": "log", "sid": sid, "offset": head + 1})
        case "loses":
            lines.insert(i, {"type": "fault", "what": "commits may be lost", "loses": True})
    assert kinds(lines) == []


def test_a_session_may_be_of_a_log_that_was_lost(lines):
    """A failover lost an event that a client had received. Its session is whole in the log that was lost."""
    others = {line["offset"] for line in lines if line["type"] == "received" and line["client"] != CLIENT}
    offset = next(lines[i]["offset"] for i in received(lines) if lines[i]["offset"] not in others)
    new_session(lines)
    lines.insert(1, {"type": "fault", "what": "commits may be lost", "loses": True})
    kept = [dict(line, log="new") for line in lines if "log" in line and line.get("offset") != offset]
    assert kinds(lines + kept) == []
    # had it recovered, no log would have all that it received
    at = first(lines, "connected", lambda line: line["sid"] == "new-sid")
    lines[at] |= {"sid": last_of(lines[:at]), "pid": lines[first(lines, "connected", of_client)]["pid"]}
    lines[at] |= {"recovered": True}
    assert FindingKind.RECOVERED_WRONGLY in kinds(lines + kept)


def of_client(line: Line) -> bool:
    return bool(line["client"] == CLIENT)


# -- the file and the command -------------------------------------------------------------------------------------
def test_the_report_shows_the_lines_around_a_finding(lines):
    del lines[received(lines)[30]]
    at = received(lines)[30]  # the next one
    text = check(lines).report()
    assert "lost 1," in text
    assert f"> {at + 1:>8}" in text
    shown = [line for line in text.splitlines() if '"type"' in line]
    assert len(shown) == 7
    assert all(CLIENT in line or "fault" in line for line in shown)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 5: it is not JSON. A history has a JSON object in each line"),
        ("[]", "line 5: it is not a JSON object"),
        ('{"type": "connected", "client": "c"}', "line 5: it has no 'sid'"),
        ('{"type": "received", "client": "stranger", "offset": 1, "event": 1}', "line 5: it has no 'stranger'"),
        ('{"type": "sung"}', "line 5: its type is 'sung'"),
        ('{"type": "answer", "event": 1, "outcome": "perhaps"}', "line 5: 'perhaps' is not a valid Outcome"),
        ('{"type": "log", "log": "log", "floor": 7}', "line 5: retention deleted a piece of the log"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(lines, line, message):
    texts = [json.dumps(line) for line in lines]
    texts.insert(4, line)
    with pytest.raises(ConfigurationError, match=message):
        History(texts)


def test_another_file_is_no_history(lines):
    with pytest.raises(ConfigurationError, match="line 1: the first line of a history"):
        check(lines[1:])
    with pytest.raises(ConfigurationError, match="the history has no log"):
        check([line for line in lines if "log" not in line])


def test_the_command(lines, tmp_path, capsys):
    path = tmp_path / "history.jsonl"
    assert main(["check", str(RECORDED)]) == 0
    assert "lost 0" in capsys.readouterr().out
    for _ in range(3):
        del lines[received(lines)[30]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["check", str(path), "--show", "1"]) == 1
    out = capsys.readouterr().out
    assert out.count("\nlost: ") == 1
    assert "2 more" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "none.jsonl cannot be read: no such file or directory. `sio-pg demo --check --history FILE` writes"),
        (b"", "the history has no log. A run writes its log at its end. `sio-pg demo --check --history FILE` writes"),
        (b"\x89PNG\r\n\xff", "line 1: it is not JSON. A history has a JSON object in each line. `sio-pg demo"),
    ],
)
def test_a_file_that_is_no_history_says_how_to_get_one(tmp_path, capsys, content, message):
    path = tmp_path / "none.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main(["check", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error and "Errno" not in error


def test_one_of_each_is_one(lines):
    of_one = [line for line in lines if line.get("client", CLIENT) == CLIENT]
    del of_one[received(of_one)[1] : received(of_one)[-1] + 1]
    assert "1 delivery of 291 events to 1 client\n1 session, recovered " in check(of_one).report()
