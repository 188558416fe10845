"""The lines of a history, read into the sessions of the clients and the logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from sio_pg_adapter.errors import ConfigurationError

from .log import EventId, Log, Membership, Record

FORMAT = 1
"""The version of the lines, as the first line says it."""

WRITE_ONE = "`sio-pg demo --check --history FILE` writes a history, and docs/histories.md describes its lines"
"""How to get a file that can be checked."""


class FindingKind(Enum):
    """What can be wrong with a run."""

    LOST = "lost"
    DOUBLED = "doubled"
    INVERTED = "inverted"
    NOT_DUE = "not due"
    RECOVERED_WRONGLY = "recovered wrongly"
    GONE = "acknowledged but gone"
    STORED = "refused but stored"
    NO_REASON = "new session for no reason"
    REFUSED = "refused"


class Outcome(Enum):
    """The answer to an emit."""

    STORED = "stored"
    UNKNOWN = "unknown"
    NOT_STORED = "not stored"


class Finding(NamedTuple):
    """A fault of a run.

    :ivar line: index of the line of the history at which it shows.
    :ivar client: the client whose lines are shown with it, if it concerns one.
    """

    kind: FindingKind
    text: str
    line: int
    client: str | None = None


class Received(NamedTuple):
    """An event that a client received."""

    offset: int
    event: EventId
    line: int


@dataclass
class Session:
    """What one client saw of one of its sessions.

    :ivar recovered_at: for each recovery, how many events it had received by then.
    :ivar ended: why a new session may follow, if one may.
    """

    client: str
    sid: str
    pid: str
    line: int
    received: list[Received] = field(default_factory=list)
    recovered_at: list[int] = field(default_factory=list)
    ended: str = ""
    lossy: bool = False


class History:
    """A run, as the lines of a file describe it.

    :raises ConfigurationError: a line is not one of a history. The message names the line.
    """

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.clients: dict[str, list[Session]] = {}
        self.logs: dict[str, Log] = {}
        self.log: Log | None = None  # the last one, which is in use in the end
        self.answers: dict[EventId, tuple[Outcome, int]] = {}
        self.faults: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self._losing = False
        self._by_sid: dict[str, Session] = {}
        self._pids: set[str] = set()
        for i, text in enumerate(lines):
            try:
                self._read(i, _object(text))
            except KeyError as e:
                raise ConfigurationError(
                    f"line {i + 1}: it has no {e}, or names one that no line before it has"
                ) from e
            except (ValueError, TypeError) as e:
                raise ConfigurationError(f"line {i + 1}: {e}. {WRITE_ONE}") from e
        if self.log is None:
            raise ConfigurationError(f"the history has no log. A run writes its log at its end. {WRITE_ONE}")

    @property
    def sessions(self) -> Iterator[Session]:
        return (session for sessions in self.clients.values() for session in sessions)

    def _read(self, i: int, line: dict[str, Any]) -> None:
        if i == 0 and (line["type"], line.get("format")) != ("history", FORMAT):
            raise ValueError(f"the first line of a history has the type 'history' and the format {FORMAT}")
        if "log" in line:
            self._read_log(i, line)
        elif "client" in line:
            self._read_client(i, line, line["client"])
        else:
            self._read_run(i, line)

    def _read_run(self, i: int, line: dict[str, Any]) -> None:
        match line["type"]:
            case "history" | "emit":
                pass  # shown around a finding
            case "answer":
                self.answers[line["event"]] = Outcome(line["outcome"]), i
            case "ended":
                session = self._by_sid[line["sid"]]
                session.ended = session.ended or line["by"]
            case "fault":
                self._fault(line["what"], line.get("loses"))
            case other:
                raise ValueError(f"its type is {other!r}")

    def _read_client(self, i: int, line: dict[str, Any], client: str) -> None:
        match line["type"]:
            case "connected":
                self._connected(i, client, line["sid"], line["pid"], recovered=line["recovered"])
            case "received":
                self.clients[client][-1].received.append(Received(line["offset"], line["event"], i))
            case "disconnected":
                pass  # shown around a finding
            case "refused":
                self.findings.append(Finding(FindingKind.REFUSED, f"{client}: {line['reason']}", i, client))
            case other:
                raise ValueError(f"its type is {other!r}")

    def _read_log(self, i: int, line: dict[str, Any]) -> None:
        if line["type"] == "log":
            if line["floor"]:
                raise ValueError("retention deleted a piece of the log. Run with a longer `retention`")
            self.logs[line["log"]] = self.log = Log(line["log"])
            return
        log = self.logs[line["log"]]
        match line["type"]:
            case "record":
                rooms, sids, skip_rooms = (line.get(name) or [] for name in ("rooms", "skip_sids", "skip_rooms"))
                log.add(line["offset"], Record(line["event"], line["namespace"], rooms, sids, skip_rooms, i))
            case "session":
                log.starts[line["sid"]] = line["namespace"], line["start"]
            case "membership":
                log.memberships[line["sid"]].append(Membership(line["room"], line["joined"], line["left"]))
            case "kick":
                log.kicks.setdefault(line["sid"], line["offset"])
            case other:
                raise ValueError(f"its type is {other!r}")

    def _connected(self, i: int, client: str, sid: str, pid: str, *, recovered: bool) -> None:
        sessions = self.clients.setdefault(client, [])
        former = sessions[-1] if sessions else None
        if not recovered:
            if sid in self._by_sid or pid in self._pids:
                self._wrong(i, client, f"it got session {sid} as a new one, and that is an old one")
            sessions.append(Session(client, sid, pid, i, lossy=self._losing))
            self._by_sid[sid] = sessions[-1]
            self._pids.add(pid)
        elif former is None or (former.sid, former.pid) != (sid, pid):
            self._wrong(i, client, f"it recovered session {sid}, and its own was {former and former.sid}")
            sessions.append(Session(client, sid, pid, i))
        else:
            former.recovered_at.append(len(former.received))

    def _wrong(self, i: int, client: str, text: str) -> None:
        self.findings.append(Finding(FindingKind.RECOVERED_WRONGLY, f"{client}: {text}", i, client))

    def _fault(self, what: str, loses: bool | None) -> None:
        self.faults[what] += 1
        if loses is not None:
            self._losing = loses
        if self._losing:
            for sessions in self.clients.values():
                sessions[-1].lossy = True


def _object(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as e:
        raise ValueError("it is not JSON. A history has a JSON object in each line") from e
    if not isinstance(line, dict):
        raise TypeError("it is not a JSON object. A history has one in each line")
    return line
