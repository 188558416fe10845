"""The records that ``sio-pg tail`` shows, and the filter that selects them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from sio_pg_adapter.log.payload import unpack
from sio_pg_adapter.log.records import Kind

from . import terminal

TailRecord = dict[str, Any]
"""A record as ``tail --json`` prints it.

The keys are ``offset``, ``at``, ``kind``, ``namespace``, ``rooms`` (empty for everybody), ``event``, ``skip_sids``,
``skip_rooms``, ``members`` (rooms whose members move, empty for everybody, null in other records), ``sid``, ``node``
and ``bytes``. The kind of a record that cannot be read is ``unreadable``.
With ``--payload`` there are also ``payload``, the arguments of an event, and ``binary``, the binary parts that
``{"_placeholder":true,"num":n}`` stands for, in Base64.
"""

_decode = json.JSONDecoder().raw_decode


class Filter:
    """The namespaces, rooms and event names of the records to show. ``None`` selects all.

    A record must match each filter that is given.
    """

    def __init__(
        self, namespaces: Sequence[str] | None, rooms: Sequence[str] | None, events: Sequence[str] | None
    ) -> None:
        self._namespaces, self._rooms, self._events = (
            None if names is None else frozenset(names) for names in (namespaces, rooms, events)
        )

    def matches(self, record: TailRecord) -> bool:
        """Return whether the filters select a record."""
        return (
            (self._namespaces is None or record["namespace"] in self._namespaces)
            and (self._rooms is None or not self._rooms.isdisjoint(record["rooms"]))
            and (self._events is None or record["event"] in self._events)
        )


def from_row(row: Any, *, payload: bool) -> TailRecord:
    """Make a record from a row of the query "tail". It is ``unreadable`` if nodes cannot read the row."""
    try:
        return _record(row, Kind(row["kind"]), payload=payload)
    except (ValueError, TypeError, LookupError):  # it must not hide the other records
        return _record(row, Kind.UNREADABLE, payload=payload)


def _record(row: Any, kind: Kind, *, payload: bool) -> TailRecord:
    is_event = kind is Kind.EVENT
    of_members = kind in (Kind.MEMBERS_ENTER, Kind.MEMBERS_LEAVE, Kind.MEMBERS_KICK)
    body, parts = ("", []) if kind is Kind.UNREADABLE else _body(row, payload=payload)
    rooms = row["rooms"] or [row["room"]]
    event = _decode(body, 1)[0] if is_event else None
    if kind >= Kind.OPEN or not isinstance(event, str | None):
        raise ValueError("it is no record that this package writes")
    record = {
        "offset": row["offset"],
        "at": terminal.timestamp(row["created_at"]),
        "kind": kind.name.lower(),
        "namespace": row["namespace"],
        "rooms": [] if rooms == [""] else list(rooms),
        "event": event,
        "skip_sids": list(row["skip_sids"] or ()),
        "skip_rooms": list(row["skip_rooms"] or ()),
        "members": [room for room in json.loads(row["data"]) if room] if of_members else None,
        "sid": row["sid"],
        "node": row["node"] and row["node"].hex,
        "bytes": row["bytes"],
    }
    if payload:
        record["payload"] = json.loads(body)[1:] if is_event else None
        record["binary"] = [base64.b64encode(part).decode() for part in parts]
    return record


def _body(row: Any, *, payload: bool) -> tuple[str, list[bytes]]:
    if row["attached"] is None:
        return row["body"] or "", list(unpack(row["parts"])) if row["parts"] else []
    if payload:
        body, *parts = unpack(row["attached"])
        return body.decode(), parts
    # The body follows four bytes with its length. It is cut at any byte, but never within the name of the event.
    return row["attached"][4:].decode(errors="replace"), []
