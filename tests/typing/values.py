"""Never run: the type checker keeps the values of the log frozen, and Python does not."""

from sio_pg_adapter.log.records import Entry, Kind, Outgoing, Record, Written

record, written = Record(1, Kind.EVENT, "/"), Written(1)
record.offset = 2  # type: ignore[misc]
written.offset = 2  # type: ignore[misc]
Entry(Kind.EVENT).body = ""  # type: ignore[misc]
Outgoing("/", ("",), (), "[]").body = ""  # type: ignore[misc]
