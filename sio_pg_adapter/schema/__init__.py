"""The tables in an application's own alembic history.

Two of the three ways there (the third is ``sio-pg migrate``, which keeps a history of its own); ``docs/alembic.md``
shows each:

- as a branch: ``sio_pg_adapter:migrations/versions`` in the ``version_locations`` of ``alembic.ini``;
- from a revision of the application's own, by :func:`upgrade` and :func:`downgrade`.

So that ``alembic revision --autogenerate`` and ``alembic check`` leave the tables alone, env.py either gives
:func:`include_object` to ``context.configure()``, which serves in all three, or has :data:`metadata` among its
``target_metadata``.
"""

from __future__ import annotations

from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.schema import CreateSchema

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.migrate import VERSION_TABLE, checked_schema, config_for, writing_to

_NOW = text("clock_timestamp()")
_TIME = DateTime(timezone=True)


def metadata_in(schema: str | None) -> MetaData:
    """Declare the tables as the migrations make them, for a schema that is not the connection's default one.

    For comparison, not for ``create_all()``: functions and triggers are made by the migrations alone.

    :param schema: ``None``: the connection's default.
    """
    made = MetaData(schema=schema)
    Table("sio_lock", made, comment=None)
    Table(
        "sio_log",
        made,
        Column("only_row", Boolean, server_default=text("true")),
        Column("version", Integer, nullable=False),
        Column("compatible", Integer, nullable=False),
        Column("channel", Text, nullable=False),
        Column("floor", BigInteger, nullable=False, server_default=text("0")),
        PrimaryKeyConstraint("only_row", name="sio_log_pkey"),
        CheckConstraint("only_row", name="sio_log_only_row_check"),
        comment="One row. version: of this schema. compatible: the oldest version that a package may be made for and "
        "still work with it. channel: where appends are announced; a secret, since NOTIFY knows no permissions. "
        "floor: no record at or below it is stored.",
    )
    Table(
        "sio_epochs",
        made,
        Column("epoch", Integer, autoincrement=False),
        Column("key", LargeBinary, nullable=False),
        Column("began_after", BigInteger, nullable=False),
        Column("began_at", _TIME, nullable=False, server_default=_NOW),
        PrimaryKeyConstraint("epoch", name="sio_epochs_pkey"),
        comment="The histories of the log. Epoch e owns the offsets from e * 2^40 on; key signs them on the wire; "
        "began_after: the highest offset before it.",
    )
    Table("sio_marker", made, Column("seen", Text, nullable=False), prefixes=["UNLOGGED"])
    _log(made)
    _sessions(made)
    Table(
        "sio_outbox",
        made,
        Column("namespace", Text, nullable=False),
        Column("room", Text, nullable=False),
        Column("rooms", ARRAY(Text)),
        Column("skip_sids", ARRAY(Text)),
        Column("body", Text),
        Column("parts", LargeBinary),
        Column("attachment", Uuid),
        Column("channel", Text, nullable=False),
        Column("carried", Text, nullable=False),
        Column("seen", Boolean, nullable=False),
        Column("put_off", Boolean, nullable=False),
        prefixes=["UNLOGGED"],
        comment="Events of transactions that are under way, as in sio_packets; always empty to others. channel: of "
        "the notification; carried: what that brings along. seen: the running epoch was found; put_off: the "
        "application has its constraints IMMEDIATE.",
    )
    return made


def _log(made: MetaData) -> None:
    Sequence("sio_half", metadata=made, data_type=SmallInteger, minvalue=0, maxvalue=1, start=0)
    _packets(
        made,
        "sio_packets",
        Column("offset", BigInteger, autoincrement=True),
        "The log. kind: 0 event, 1 enter room, 2 leave room, 3 close room, 4 claim, 5 kick. room: the empty string "
        "is everybody. rooms: all of them, where there are several. The rows are in sio_packets_0 and sio_packets_1.",
    )
    _packet_rooms(
        made,
        "sio_packet_rooms",
        "The second and further rooms of events that are for several. The rows are in sio_packet_rooms_0 and "
        "sio_packet_rooms_1.",
    )
    for half in ("0", "1"):
        packets = _packets(
            made,
            f"sio_packets_{half}",
            Column("offset", BigInteger, autoincrement=False),
            "A half of the log: appended to, or left until all of it may go.",
        )
        of_room = (packets.c.namespace, packets.c.room, packets.c.offset)
        Index(f"{packets.name}_room", *of_room, postgresql_where=packets.c.kind == text("0"))
        with_body = packets.c.attachment.isnot(None)
        Index(f"{packets.name}_attachment", packets.c.attachment, postgresql_where=with_body)
        rooms = _packet_rooms(made, f"sio_packet_rooms_{half}", f"Of the events in {packets.name}.")
        Index(f"{rooms.name}_offset", rooms.c.offset)
    Table(
        "sio_attachments",
        made,
        Column("id", Uuid),
        Column("data", LargeBinary, nullable=False),
        Column("ephemeral", Boolean, nullable=False),
        Column("created_at", _TIME, nullable=False, server_default=_NOW),
        PrimaryKeyConstraint("id", name="sio_attachments_pkey"),
        Index("sio_attachments_created", "created_at"),
        comment="Bodies too large for a row of the log or for a notification.",
    )
    Table(
        "sio_room_floors",
        made,
        Column("namespace", Text),
        Column("room", Text),
        Column("offset", BigInteger, nullable=False),
        PrimaryKeyConstraint("namespace", "room", name="sio_room_floors_pkey"),
        comment="The highest offset of each room that retention deleted: a session that it is above may have lost a "
        "packet.",
    )


def _packets(made: MetaData, name: str, offset: Column[int], comment: str) -> Table:
    return Table(
        name,
        made,
        offset,
        Column("kind", SmallInteger, nullable=False),
        Column("namespace", Text, nullable=False),
        Column("room", Text, nullable=False, server_default=text("''::text")),
        Column("rooms", ARRAY(Text)),
        Column("skip_sids", ARRAY(Text)),
        Column("sid", Text),
        Column("generation", BigInteger),
        Column("node", Uuid),
        Column("body", Text),
        Column("parts", LargeBinary),
        Column("attachment", Uuid),
        Column("batch", BigInteger),
        Column("created_at", _TIME, nullable=False, server_default=_NOW),
        PrimaryKeyConstraint("offset", name=f"{name}_pkey"),
        comment=comment,
    )


def _packet_rooms(made: MetaData, name: str, comment: str) -> Table:
    return Table(
        name,
        made,
        Column("namespace", Text),
        Column("room", Text),
        Column("offset", BigInteger),
        PrimaryKeyConstraint("namespace", "room", "offset", name=f"{name}_pkey"),
        comment=comment,
    )


def _sessions(made: MetaData) -> None:
    Table(
        "sio_nodes",
        made,
        Column("id", Uuid),
        Column("number", Integer, Identity(always=True), nullable=False),
        Column("channel", Text, nullable=False),
        Column("role", OID, nullable=False),
        Column("recovery_seconds", Double),
        Column("margin_seconds", Double, nullable=False),
        Column("started_at", _TIME, nullable=False, server_default=_NOW),
        Column("missed_at", _TIME),
        Column("died_at", _TIME),
        Column("stopped_at", _TIME),
        PrimaryKeyConstraint("id", name="sio_nodes_pkey"),
        UniqueConstraint("number", name="sio_nodes_number_key"),
        comment="Server processes. A node that lives holds a shared advisory lock on (oid of this table, number), by "
        "a backend of its role. recovery_seconds: max_disconnection_duration, null for ever. margin_seconds: how "
        "long a drop may go unnoticed, and a replay last. missed_at: first look that found no lock; died_at: the "
        "second.",
    )
    sessions = Table(
        "sio_sessions",
        made,
        Column("id", BigInteger, autoincrement=False),
        Column("pid_hash", LargeBinary, nullable=False),
        Column("namespace", Text, nullable=False),
        Column("sid", Text, nullable=False),
        Column("data", Text, nullable=False, server_default=text("'{}'::text")),
        Column("node", Uuid),
        Column("generation", BigInteger, nullable=False, server_default=text("1")),
        Column("settled", BigInteger, nullable=False, server_default=text("1")),
        Column("start_offset", BigInteger, nullable=False),
        Column("created_at", _TIME, nullable=False, server_default=_NOW),
        Column("expires_at", _TIME),
        Column("told_by", Uuid),
        Column("told_at", _TIME),
        PrimaryKeyConstraint("id", name="sio_sessions_pkey"),
        UniqueConstraint("pid_hash", name="sio_sessions_pid_hash_key"),
        UniqueConstraint("namespace", "sid", name="sio_sessions_namespace_sid_key"),
        comment="One row a session, from its CONNECT to its end. id: the first 60 bits of pid_hash, so that one that "
        "was lost is not issued again. node: who holds it, null while the client is away; generation: raised by each "
        "claim; settled: the generation of the holder whose writes count, lower than generation while a claim waits "
        "for it; expires_at: null while it is held. told_by: the node that calls the expiry handler.",
    )
    Index("sio_sessions_expires", sessions.c.expires_at, postgresql_where=sessions.c.expires_at.isnot(None))
    Index("sio_sessions_node", sessions.c.node, postgresql_where=sessions.c.node.isnot(None))
    rooms = Table(
        "sio_rooms",
        made,
        Column("session", BigInteger),
        Column("room", Text),
        Column("joined_at", BigInteger),
        Column("left_at", BigInteger),
        Column("namespace", Text, nullable=False),
        PrimaryKeyConstraint("session", "room", "joined_at", name="sio_rooms_pkey"),
        ForeignKeyConstraint(["session"], [sessions.c.id], name="sio_rooms_session_fkey", ondelete="CASCADE"),
        comment="Who was in which room: at the offsets above joined_at and below left_at.",
    )
    Index("sio_rooms_members", rooms.c.namespace, rooms.c.room, postgresql_where=rooms.c.left_at.is_(None))
    Table(
        "sio_expiry_handlers",
        made,
        Column("namespace", Text),
        PrimaryKeyConstraint("namespace", name="sio_expiry_handlers_pkey"),
        comment="Namespaces (* is all) whose expired sessions are deleted only by nodes that call a handler first.",
    )


metadata = metadata_in(None)
"""The tables, where they are in the connection's default schema: mostly "public"."""


def include_object(_item: Any, name: str | None, kind: str, *_: Any) -> bool:
    """Leave this package's tables out of what autogenerate compares, in whichever way they came to be.

    For ``context.configure(include_object=...)``; an application that has one of its own joins them by ``and``.
    """
    return kind != "table" or (name not in metadata.tables and name != VERSION_TABLE)


def upgrade(op: Any, to: str = "head", schema: str = "public", from_: str | None = None) -> None:
    """Bring the tables to revision ``to``, in a revision of the application's own.

    Runs what is missing of this package's own revisions, in their order; none is an error. Which are there is
    read from the database, so a later revision of the application's may just call it again.

    :param op: ``alembic.op``.
    :param to: "sio0002", or "head": the newest that the installed package has.
    :param schema: where the tables are to be; made where it is missing.
    :param from_: the revision that the tables are at, "base" for none. Only ``alembic upgrade --sql`` has to be
                  told, since it has no database to look at.
    :raises ConfigurationError: if a revision is not known, or the schema's name is none.
    """
    history = _history()
    last = _index(history, to)
    first = _index(history, _where(op, schema) if from_ is None else from_) + 1
    if first == 0 and (op.get_context().as_sql or not inspect(op.get_bind()).has_schema(schema)):
        op.execute(CreateSchema(schema, if_not_exists=True))
    with writing_to(schema):
        for script in history[first : last + 1]:
            _module(script, op).upgrade()


def downgrade(op: Any, to: str = "base", schema: str = "public", from_: str | None = None) -> None:
    """Take the tables back to revision ``to``; "base" leaves nothing but the schema.

    Parameters and errors as for :func:`upgrade`.
    """
    history = _history()
    first = _index(history, to) + 1
    last = _index(history, _where(op, schema) if from_ is None else from_)
    with writing_to(schema):
        for script in reversed(history[first : last + 1]):
            _module(script, op).downgrade()


def _history() -> list[Any]:
    """This package's revisions, the oldest first."""
    return list(ScriptDirectory.from_config(config_for("public")).walk_revisions())[::-1]


def _index(history: list[Any], revision: str) -> int:
    """Of a revision in the history; -1 for "base"."""
    known = ["base", *(script.revision for script in history)]
    if revision == "head":
        return len(history) - 1
    if revision not in known:
        raise ConfigurationError(
            f"no revision {revision!r} in this version of sio-pg-adapter; it has {', '.join(known)}"
        )
    return known.index(revision) - 1


def _where(op: Any, schema: str) -> str:
    """The revision that the tables are at: each sets ``sio_log.version`` to its number."""
    checked_schema(schema)
    if op.get_context().as_sql:
        raise ConfigurationError('with --sql there is no database to look at: say from_="base", or the revision')
    connection = op.get_bind()
    if not inspect(connection).has_table("sio_log", schema=schema):
        return "base"
    log = metadata_in(schema).tables[f"{schema}.sio_log"]
    return f"sio{connection.scalar(select(log.c.version)):04d}"


def _module(script: Any, op: Any) -> Any:
    script.module.op = op  # loaded for this call alone
    return script.module
