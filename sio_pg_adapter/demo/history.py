"""The history of a run, as ``sio-pg check`` reads it. docs/histories.md describes its lines."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sio_pg_adapter.check import FORMAT
from sio_pg_adapter.log.records import Kind
from sio_pg_adapter.store.kept import Connection

KEEP = """
    CREATE TABLE IF NOT EXISTS history_sessions (LIKE sio_sessions);
    CREATE TABLE IF NOT EXISTS history_rooms (LIKE sio_rooms);
    CREATE OR REPLACE FUNCTION history_keep_session() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN INSERT INTO public.history_sessions SELECT OLD.*; RETURN OLD; END $$;
    CREATE OR REPLACE FUNCTION history_keep_room() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN INSERT INTO public.history_rooms SELECT OLD.*; RETURN OLD; END $$;
    CREATE OR REPLACE TRIGGER history_keep BEFORE DELETE ON sio_sessions
        FOR EACH ROW EXECUTE FUNCTION history_keep_session();
    CREATE OR REPLACE TRIGGER history_keep BEFORE DELETE ON sio_rooms
        FOR EACH ROW EXECUTE FUNCTION history_keep_room();
"""
"""Keeps the sessions and memberships that end, in a schema ``public``. A check has to know them as well."""

_EVENTS = """
    SELECT "offset", kind, namespace, coalesce(rooms, ARRAY[room]) AS rooms, skip_sids, skip_rooms, sid,
        left(body, $1) AS body, substring(a.data FOR $1) AS data
    FROM public.sio_packets p LEFT JOIN public.sio_attachments a ON a.id = p.attachment
    WHERE kind IN ($2, $3) ORDER BY "offset"
"""

_SESSIONS = """
    WITH sessions AS (SELECT * FROM public.sio_sessions UNION ALL SELECT * FROM public.history_sessions)
    SELECT sid, namespace, start_offset FROM sessions
"""

_MEMBERSHIPS = """
    WITH sessions AS (SELECT * FROM public.sio_sessions UNION ALL SELECT * FROM public.history_sessions),
        memberships AS (SELECT * FROM public.sio_rooms UNION ALL SELECT * FROM public.history_rooms)
    SELECT s.sid, m.room, m.joined_at, m.left_at FROM memberships m JOIN sessions s ON s.id = m.session
"""

_FIRST_BYTES = 400
"""Bytes of a body that are read. They hold the name of the event and its first argument."""


def event_id(name: str, args: list[Any] | tuple[Any, ...]) -> str:
    """Return the name of an event in a history: its name and its first argument, which must be unique in the run."""
    return f"{name} {json.dumps(args[0], separators=(',', ':'))}" if args else name


def number(offset: str) -> int:
    """Return the number in an offset as clients have it."""
    return int.from_bytes(base64.urlsafe_b64decode(offset + "==")[:8], "big")


class HistoryWriter:
    """A file of JSON lines, each with the monotonic time in seconds at which it was written.

    :param path: the file, which is overwritten.
    :param about: what the first line says about the run, for example its command and its seed.
    """

    def __init__(self, path: Path, **about: Any) -> None:
        self._began = time.monotonic()
        self._file = path.open("w", encoding="utf-8")
        self.write("history", format=FORMAT, **about)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, kind: str, /, **fields: Any) -> None:
        """Write a line. A run that goes on after its history is closed writes nothing more."""
        if not self._file.closed:
            line = {"type": kind, "at": round(time.monotonic() - self._began, 6), **fields}
            self._file.write(json.dumps(line) + "\n")

    async def write_log(self, connection: Connection, name: str = "log") -> None:
        """Write the log of a database on which nothing is going on, and on which :data:`KEEP` has run."""
        # One statement sees one state, but a log that changes meanwhile is not that of the run.
        floor = await connection.fetchval("SELECT floor FROM public.sio_log")
        self.write("log", log=name, floor=floor)
        rows = await connection.fetch(_EVENTS, _FIRST_BYTES, Kind.EVENT, Kind.KICK)
        for r in rows:
            if r["kind"] == Kind.KICK:
                self.write("kick", log=name, offset=r["offset"], sid=r["sid"])
                continue
            self.write(
                "record",
                log=name,
                offset=r["offset"],
                event=_event_of(r["body"], r["data"]),
                namespace=r["namespace"],
                rooms=[] if "" in r["rooms"] else r["rooms"],
                skip_sids=r["skip_sids"] or [],
                skip_rooms=r["skip_rooms"] or [],
            )
        for r in await connection.fetch(_SESSIONS):
            self.write("session", log=name, sid=r["sid"], namespace=r["namespace"], start=r["start_offset"])
        for r in await connection.fetch(_MEMBERSHIPS):
            self.write("membership", log=name, sid=r["sid"], room=r["room"], joined=r["joined_at"], left=r["left_at"])


def _event_of(body: str | None, data: bytes | None) -> str:
    if data is not None:  # its binary follows the text, behind its length
        body = data[4:].decode("utf-8", errors="replace")
    assert body is not None
    decoder = json.JSONDecoder()
    name, end = decoder.raw_decode(body, 1)
    if body[end] == "]":
        return event_id(name, [])
    first, _ = decoder.raw_decode(body, end + 1)
    return event_id(name, [first])
