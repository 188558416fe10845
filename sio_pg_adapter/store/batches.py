"""The forms of a batch of entries: arguments of a statement, and a notification. The outcomes in its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sio_pg_adapter.log.payload import compact, pack
from sio_pg_adapter.log.records import Entry, Kind, Written

CARRY_BYTES = 7_600
"""How much of a batch a notification carries, in bytes. PostgreSQL takes 7,999 bytes in all."""

INLINE_BYTES = 64 * 1024
"""The largest body in the log itself, in bytes. A larger one is written to the attachment table before the log's lock
is taken: writing 50 MB under it would hold up all appends."""


def lone_event(entries: list[Entry]) -> tuple[Any, ...]:
    """Return the arguments for a single event for one room. Empty if it is more than that."""
    entry = entries[0]
    if len(entries) > 1 or entry.kind is not Kind.EVENT or len(entry.rooms) > 1:
        return ()
    if entry.skip_sids or entry.skip_rooms or entry.parts:
        return ()
    return entry.namespace, entry.rooms[0], entry.body, entry.key


def columns(entries: list[Entry], attachments: Sequence[str | None]) -> tuple[list[Any] | None, ...]:
    """Return entries as the arrays that the statement "write" takes."""
    apart = [key is not None for key in attachments]
    return (
        [int(e.kind) for e in entries],
        [e.namespace for e in entries],
        [e.rooms[0] for e in entries],
        _column([json.dumps(e.rooms) if len(e.rooms) > 1 else None for e in entries]),
        _column([json.dumps(e.skip_sids) if e.skip_sids else None for e in entries]),
        _column([json.dumps(e.skip_rooms) if e.skip_rooms else None for e in entries]),
        _column([e.sid for e in entries]),
        [None if a else e.body for a, e in zip(apart, entries, strict=True)],
        _column([pack(e.parts) if e.parts and not a else None for a, e in zip(apart, entries, strict=True)]),
        _column(list(attachments)),
        _column([compact(e.args) if e.args else None for e in entries]),
    )


def _column(values: list[Any]) -> list[Any] | None:
    """Return ``None`` for a column of nothing but ``None``: each element costs time, and unnest() fills up."""
    return values if any(value is not None for value in values) else None


def carried(entries: list[Entry]) -> str | None:
    """Return the batch's events as text, if they fit in a notification. Nodes that are up to date need not read.

    It is JSON. A single event for one room is written out, because each node would parse the JSON.
    """
    if sum(e.size for e in entries) > CARRY_BYTES or any(e.kind is not Kind.EVENT or e.parts for e in entries):
        return None
    if alone := lone_event(entries):
        namespace, room, body = alone[:3]
        text = f"={len(namespace)} {len(room)} {namespace}{room}{body}"
        if text.isascii():
            return text if len(text) <= CARRY_BYTES else None
    text = compact([[e.namespace, e.rooms, e.skip_sids, e.skip_rooms, e.body] for e in entries])
    return text if len(text) <= CARRY_BYTES else None  # ASCII: characters are bytes


def outcomes(entries: list[Entry], offsets: list[int | None], results: list[str | None] | None) -> list[Written]:
    """Return the outcomes of a batch, from the answer of the statement "write"."""
    return [
        Written(
            abs(offset or 0),
            None if result is None else json.loads(result),
            refused=offset is None,
            duplicate=entry.kind is Kind.EVENT and (offset or 0) < 0,
        )
        for entry, offset, result in zip(entries, offsets, results or [None] * len(entries), strict=True)
    ]


def outcomes_by_key(offsets: list[int | None], events: list[int]) -> list[Written]:
    """Return the outcomes of the keyed events of a batch that is in the log and whose answer was lost.

    :param offsets: the offsets of the events that have the keys. ``None``: the event has been deleted meanwhile.
    :param events: the offsets of the batch's own events. Those of the keyed ones are taken out.
    """
    written: list[Written] = []
    for offset in offsets:
        own = offset in events
        written.append(Written(offset or 0, duplicate=not own))
        if offset is not None and own:  # of several events of the batch with one key, the first was stored
            events.remove(offset)
    return written
