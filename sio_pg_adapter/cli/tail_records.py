"""A record of the log as ``sio-pg tail`` shows it, and which are wanted."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from sio_pg_adapter.log.payload import unpack
from sio_pg_adapter.log.records import Kind

from . import terminal

Entry = dict[str, Any]
"""``offset``, ``at``, ``kind``, ``namespace``, ``rooms`` (none: everybody), ``event``, ``skip_sids``, ``sid``,
``node``, ``bytes``; and where payloads are wanted ``payload`` (of an event: its arguments) and ``binary``: the parts
that ``{"_placeholder":true,"num":n}`` in it stands for, in Base64."""

_decode = json.JSONDecoder().raw_decode


class Filter:
    """Which records are wanted: of one of the namespaces, for one of the rooms, of one of the names, where given."""

    def __init__(
        self, namespaces: Sequence[str] | None, rooms: Sequence[str] | None, events: Sequence[str] | None
    ) -> None:
        self._namespaces, self._rooms, self._events = (
            None if names is None else frozenset(names) for names in (namespaces, rooms, events)
        )

    def takes(self, entry: Entry) -> bool:
        """Is it one of them?"""
        return (
            (self._namespaces is None or entry["namespace"] in self._namespaces)
            and (self._rooms is None or not self._rooms.isdisjoint(entry["rooms"]))
            and (self._events is None or entry["event"] in self._events)
        )


def entry_of(row: Any, *, payload: bool) -> Entry:
    """A row of the query "tail"."""
    kind = Kind(row["kind"])
    is_event = kind is Kind.EVENT
    body, parts = _body(row, payload=payload)
    rooms = row["rooms"] or [row["room"]]
    entry = {
        "offset": row["offset"],
        "at": terminal.timestamp(row["created_at"]),
        "kind": kind.name.lower(),
        "namespace": row["namespace"],
        "rooms": [] if rooms == [""] else list(rooms),
        "event": _decode(body, 1)[0] if is_event else None,
        "skip_sids": list(row["skip_sids"] or ()),
        "sid": row["sid"],
        "node": row["node"] and row["node"].hex,
        "bytes": row["bytes"],
    }
    if payload:
        entry["payload"] = json.loads(body)[1:] if is_event else None
        entry["binary"] = [base64.b64encode(part).decode() for part in parts]
    return entry


def _body(row: Any, *, payload: bool) -> tuple[str, list[bytes]]:
    if row["attached"] is None:
        return row["body"] or "", list(unpack(row["parts"])) if row["parts"] else []
    if payload:
        body, *parts = unpack(row["attached"])
        return body.decode(), parts
    return row["attached"][4:].decode(errors="replace"), []  # behind its length; cut anywhere, but not in the name
