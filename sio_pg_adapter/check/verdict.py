"""The judgement: what each session received against what it was due, and each emit against the logs."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

from .history import Finding, FindingKind, History, Outcome, Session
from .log import EventId, Log

AROUND = 3
"""Lines that are shown before and after the place of a finding."""

_REACH = 5_000
"""Lines in which those are looked for."""


class Verdict:
    """The result of a check.

    :ivar findings: what is wrong, in the order of the lines.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        logs = list(history.logs.values())
        findings = list(history.findings)
        for sessions in history.clients.values():
            for i, session in enumerate(sessions):
                last = session is sessions[-1]
                findings += _check_session(session, logs, last=last)
                if not last:
                    findings += _check_end(sessions, i, logs)
        self.findings = sorted(findings + _check_emits(history, logs), key=lambda finding: finding.line)

    @property
    def deliveries(self) -> int:
        """The number of events that clients received."""
        return sum(len(session.received) for session in self.history.sessions)

    @property
    def recoveries(self) -> int:
        """The number of times that a client recovered its session."""
        return sum(len(session.recovered_at) for session in self.history.sessions)

    def report(self, show: int = 20) -> str:
        """Return what was checked, how many findings of each kind there are, and the first of them.

        :param show: how many of them.
        """
        history = self.history
        records = sum(len(log.records) for log in history.logs.values())
        outcomes = Counter(outcome.value for outcome, _ in history.answers.values())
        kinds = Counter(finding.kind for finding in self.findings)
        left_out = len(self.findings) - show
        deliveries = _number(self.deliveries, "delivery", "deliveries")
        return "\n".join(
            [
                f"{deliveries} of {_number(records, 'event')} to {_number(len(history.clients), 'client')}",
                f"{_number(len(list(history.sessions)), 'session')}, recovered {_number(self.recoveries, 'time')}",
                f"emits: {_counts(outcomes)}",
                f"faults: {_counts(history.faults)}",
                ", ".join(f"{kind.value} {kinds[kind]}" for kind in FindingKind),
                *(_describe(history.lines, finding) for finding in self.findings[:show]),
                *([f"\n{left_out} more"] if left_out > 0 else []),
            ]
        )


def _check_session(session: Session, logs: list[Log], *, last: bool) -> list[Finding]:
    findings = []
    seen: set[EventId] = set()
    highest = 0
    for offset, event, line in session.received:
        kind = FindingKind.DOUBLED if event in seen else FindingKind.INVERTED if offset <= highest else None
        if kind:
            findings.append(_of(kind, session, line, f"event {event}, offset {offset}, after offset {highest}"))
        seen.add(event)
        highest = max(highest, offset)
    # The session belongs to one log, and the last session of a client to the log that is in use in the end.
    in_use = last and not session.ended
    verdicts = [_compare(session, log, last=last) for log in (logs[-1:] if in_use else reversed(logs))]
    best = min(verdicts, key=len)
    if best and len(logs) > 1 and session.recovered_at:
        text = f"it recovered after {session.recovered_at} events, and no log has all that it received"
        findings.append(_of(FindingKind.RECOVERED_WRONGLY, session, session.line, text))
    return findings + best


def _compare(session: Session, log: Log, *, last: bool) -> list[Finding]:
    """Compare what a session received with what it was due by this log."""
    if session.sid not in log.starts:
        return [
            _of(FindingKind.RECOVERED_WRONGLY, session, session.line, f"the log {log.name!r} has no such session")
        ]
    findings = []
    due = log.due(session.sid)
    due_set = set(due)
    seen: set[int] = set()
    end = log.kicks.get(session.sid)
    for offset, event, line in session.received:
        record = log.records.get(offset)
        if record is None or record.event != event:
            text = f"the log {log.name!r} has no event {event} at offset {offset}"
            findings.append(_of(FindingKind.NOT_DUE, session, line, text))
        elif end is not None and offset > end:
            text = f"event {event}, offset {offset}, came after the end of the session at offset {end}"
            findings.append(_of(FindingKind.RECOVERED_WRONGLY, session, line, text))
        elif offset not in due_set:
            findings.append(
                _of(FindingKind.NOT_DUE, session, line, f"event {event}, offset {offset}, to {record.rooms}")
            )
        else:
            seen.add(offset)
    highest = max((received.offset for received in session.received), default=0)
    to_the_end = last and not session.ended and end is None
    for offset in due:
        if offset not in seen and (to_the_end or offset < highest):
            later = next((r for r in session.received if r.offset > offset), None)
            where = later.line if later else session.received[-1].line if session.received else session.line
            record = log.records[offset]
            text = f"event {record.event}, offset {offset}, to {record.rooms or 'everybody'}"
            findings.append(_of(FindingKind.LOST, session, where, text))
    return findings


def _check_end(sessions: list[Session], i: int, logs: list[Log]) -> list[Finding]:
    session = sessions[i]
    # A session that received nothing leaves its client with the offset of the session before it.
    lossy = session.lossy or (i > 0 and not session.received and sessions[i - 1].lossy)
    if lossy or session.ended or any(session.sid in log.kicks for log in logs):
        return []
    return [_of(FindingKind.NO_REASON, session, sessions[i + 1].line, f"session {sessions[i + 1].sid} followed it")]


def _check_emits(history: History, logs: list[Log]) -> list[Finding]:
    findings = []
    stored = []
    for log in logs:
        lines: dict[EventId, int] = {}
        for offset, record in log.records.items():
            if record.event in lines:
                text = (
                    f"event {record.event} is twice in the log {log.name!r}, at offset {offset} for the second time"
                )
                findings.append(Finding(FindingKind.DOUBLED, text, record.line))
            lines[record.event] = record.line
        stored.append(lines)
    lossy = len(logs) > 1 or any(session.lossy for session in history.sessions)
    for event, (outcome, line) in history.answers.items():
        anywhere = any(event in lines for lines in stored)
        if outcome is Outcome.NOT_STORED and anywhere:
            findings.append(
                Finding(FindingKind.STORED, f"event {event} was not to be stored, and a log has it", line)
            )
        if outcome is Outcome.STORED and event not in stored[-1] and not (lossy and anywhere):
            findings.append(
                Finding(FindingKind.GONE, f"event {event} was stored, and the log does not have it", line)
            )
    return findings


def _of(kind: FindingKind, session: Session, line: int, text: str) -> Finding:
    return Finding(kind, f"{session.client}, session {session.sid}: {text}", line, session.client)


def _number(n: int, singular: str, plural: str = "") -> str:
    return f"{n:,} {singular if n == 1 else plural or f'{singular}s'}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counter.items())) or "none"


def _describe(lines: list[str], finding: Finding) -> str:
    """Return a finding with the lines around it that concern the same client, or a fault."""

    def shown(i: int) -> bool:
        line = json.loads(lines[i])
        return line["type"] == "fault" or line.get("client") == finding.client is not None

    before = (i for i in range(finding.line - 1, max(0, finding.line - _REACH), -1) if shown(i))
    after = (i for i in range(finding.line + 1, min(len(lines), finding.line + _REACH)) if shown(i))
    around = sorted([*islice(before, AROUND), finding.line, *islice(after, AROUND)])
    return "\n".join(
        [
            f"\n{finding.kind.value}: {finding.text}",
            *(f"{'>' if i == finding.line else ' '} {i + 1:>8}  {lines[i].strip()[:300]}" for i in around),
        ]
    )
