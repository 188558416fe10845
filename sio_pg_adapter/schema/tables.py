"""The tables as SQLAlchemy metadata, for autogenerate to compare with.

The module is long because it is a list, one table after another.
"""

from __future__ import annotations

from typing import Any

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
    text,
)
from sqlalchemy.dialects.postgresql import OID

from sio_pg_adapter.migrate import VERSION_TABLE

_NOW = text("clock_timestamp()")
_TIME = DateTime(timezone=True)


def metadata_in(schema: str | None) -> MetaData:
    """Return the tables as the migrations make them, for a schema other than the connection's default one.

    They serve for comparison and not for ``create_all()``, because only the migrations make functions and triggers.

    :param schema: the schema's name. ``None`` means the connection's default schema.
    """
    made = MetaData(schema=schema)
    Table(
        "sio_lock",
        made,
        comment="No rows. Every append locks this table, so offsets become visible in their order.",
    )
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
        comment="One row. version: the version of this schema. compatible: the oldest package version that still "
        "works with it. channel: where appends are announced, a secret because NOTIFY has no permissions. "
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
        comment="The epochs of the log. Epoch e owns the offsets from e * 2^40 on. key: signs these offsets on the "
        "wire. began_after: the highest offset before the epoch.",
    )
    Table(
        "sio_marker",
        made,
        Column("fingerprint", Text, nullable=False),
        Column("began_at", BigInteger, nullable=False),
        prefixes=["UNLOGGED"],
        comment="The running epoch. fingerprint: the server and the table on which it began. began_at: the first of "
        "its offsets.",
    )
    _log(made)
    _sessions(made)
    Table(
        "sio_outbox",
        made,
        Column("namespace", Text, nullable=False),
        Column("room", Text, nullable=False),
        Column("rooms", ARRAY(Text)),
        Column("skip_sids", ARRAY(Text)),
        Column("skip_rooms", ARRAY(Text)),
        Column("body", Text),
        Column("parts", LargeBinary),
        Column("attachment", Uuid),
        Column("channel", Text, nullable=False),
        Column("carried", Text, nullable=False),
        Column("above", BigInteger),
        Column("immediate", Boolean, nullable=False),
        Column("key", Text),
        prefixes=["UNLOGGED"],
        comment="Events of open transactions, with the columns of sio_packets. Other transactions always see it "
        "empty. channel: the channel of the notification. carried: the record that the notification "
        "carries. above: the last offset at the time of the emit, null if an epoch is to begin. immediate: the "
        "application has set its constraints IMMEDIATE. key: the idempotency key.",
    )
    Table(
        "sio_outbox_changes",
        made,
        Column("kind", SmallInteger, nullable=False),
        Column("namespace", Text, nullable=False),
        Column("rooms", ARRAY(Text), nullable=False),
        Column("sid", Text),
        Column("members", ARRAY(Text)),
        Column("skip_sids", ARRAY(Text), nullable=False),
        Column("skip_rooms", ARRAY(Text), nullable=False),
        Column("immediate", Boolean, nullable=False),
        prefixes=["UNLOGGED"],
        comment="Room changes and kicks of open transactions, with the kinds of sio_packets. Other transactions "
        "always see it empty. rooms: the rooms to enter, leave or close. sid: the client that moves or is kicked. "
        "members: the rooms whose members do, where the empty string means everybody. skip_sids, skip_rooms: "
        "members that stay. immediate: the application has set its constraints IMMEDIATE.",
    )
    _relay(made)
    return made


def _relay(made: MetaData) -> None:
    Sequence("sio_relay_state", metadata=made, minvalue=0, start=0)
    Sequence("sio_relay_floor", metadata=made, minvalue=0, start=0)
    relay = Table(
        "sio_relay",
        made,
        Column("id", BigInteger),
        Column("transaction", BigInteger, nullable=False),
        Column("kind", SmallInteger, nullable=False),
        Column("namespace", Text, nullable=False),
        Column("room", Text, nullable=False),
        Column("rooms", Text),
        Column("skip_sids", Text),
        Column("skip_rooms", Text),
        Column("members", Text),
        Column("sid", Text),
        Column("body", Text),
        Column("parts", LargeBinary),
        Column("attachment", Uuid),
        Column("key", Text),
        Column("created_at", _TIME, nullable=False, server_default=_NOW),
        Column("fault", Text),
        PrimaryKeyConstraint("id", name="sio_relay_pkey"),
        comment="Events, room changes and kicks of transactions, until a node moves them to the log, with the kinds "
        "of sio_packets. transaction: the transaction that inserted the row. rooms, skip_sids, skip_rooms, members: "
        "JSON arrays. fault: why the row cannot be moved. Nodes leave such rows alone.",
    )
    Index("sio_relay_key", relay.c.namespace, relay.c.key, postgresql_where=relay.c.key.isnot(None))


def _log(made: MetaData) -> None:
    Sequence("sio_active_segment", metadata=made, data_type=SmallInteger, minvalue=0, maxvalue=1, start=0)
    _packets(
        made,
        "sio_packets",
        Column("offset", BigInteger, autoincrement=True),
        "The log. Its rows are in the segments sio_packets_0 and sio_packets_1. kind: 0 event, 1 enter "
        "room, 2 leave room, 3 close room, 4 claim, 5 kick. 6, 7, 8: the members of some rooms enter or leave "
        "others, or are kicked. room: the empty string means everybody. rooms: all rooms, if there are several. "
        "as_of: the offset from which a leave counts, if not its own. body, parts: an event and its binary. data: "
        "the session data of a kick, or a JSON array of the rooms whose members move. attachment: the large body of "
        "an event. batch: the append that wrote the record. skip_sids, skip_rooms: clients, and rooms whose members, "
        "it does not concern.",
    )
    _packet_rooms(
        made,
        "sio_packet_rooms",
        "The second and further rooms of events for several rooms. Its rows are in sio_packet_rooms_0 and "
        "sio_packet_rooms_1.",
    )
    for segment in ("0", "1"):
        packets = _packets(
            made,
            f"sio_packets_{segment}",
            Column("offset", BigInteger, autoincrement=False),
            "A segment of the log: appended to, or left until all of it has expired.",
        )
        of_room = (packets.c.namespace, packets.c.room, packets.c.offset)
        Index(f"{packets.name}_room", *of_room, postgresql_where=packets.c.kind == text("0"))
        with_attachment = packets.c.attachment.isnot(None)
        Index(f"{packets.name}_attachment", packets.c.attachment, postgresql_where=with_attachment)
        with_skip_rooms = packets.c.skip_rooms.isnot(None)
        Index(f"{packets.name}_skip_rooms", packets.c.offset, postgresql_where=with_skip_rooms)
        rooms = _packet_rooms(made, f"sio_packet_rooms_{segment}", f"The rooms of events in {packets.name}.")
        Index(f"{rooms.name}_offset", rooms.c.offset)
    keys = Table(
        "sio_keys",
        made,
        Column("namespace", Text),
        Column("key", Text),
        Column("offset", BigInteger, nullable=False),
        PrimaryKeyConstraint("namespace", "key", name="sio_keys_pkey"),
        comment="The idempotency keys of events in the log. offset: the event that has the key. Rows are inserted "
        "under the log's lock, and deleted with their events.",
    )
    Index("sio_keys_offset", keys.c.offset)
    Table(
        "sio_attachments",
        made,
        Column("id", Uuid),
        Column("data", LargeBinary, nullable=False),
        Column("ephemeral", Boolean, nullable=False),
        Column("created_at", _TIME, nullable=False, server_default=_NOW),
        PrimaryKeyConstraint("id", name="sio_attachments_pkey"),
        Index("sio_attachments_created", "created_at"),
        comment="Bodies that are too large for a row of the log or for a notification.",
    )
    Table(
        "sio_room_floors",
        made,
        Column("namespace", Text),
        Column("room", Text),
        Column("offset", BigInteger, nullable=False),
        PrimaryKeyConstraint("namespace", "room", name="sio_room_floors_pkey"),
        comment="The highest offset that retention deleted of each room that a session is or was in. A session at a "
        "lower offset has lost an event, unless it has a floor of its own in sio_session_floors.",
    )
    Table(
        "sio_session_floors",
        made,
        Column("session", BigInteger),
        Column("room", Text),
        Column("joined_at", BigInteger),
        Column("offset", BigInteger, nullable=False),
        Column("upto", BigInteger, nullable=False),
        PrimaryKeyConstraint("session", "room", "joined_at", name="sio_session_floors_pkey"),
        comment="Memberships that lost less than their room: the session had left it, or the last deleted event "
        "skipped its sid. offset: the highest deleted offset, up to the offset upto, that the session was due by the "
        "membership. 0 if there was none.",
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
        Column("skip_rooms", ARRAY(Text)),
        Column("sid", Text),
        Column("generation", BigInteger),
        Column("as_of", BigInteger),
        Column("node", Uuid),
        Column("body", Text),
        Column("parts", LargeBinary),
        Column("data", Text),
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
        Column("retention_seconds", Double),
        Column("started_at", _TIME, nullable=False, server_default=_NOW),
        Column("missed_at", _TIME),
        Column("died_at", _TIME),
        Column("stopped_at", _TIME),
        PrimaryKeyConstraint("id", name="sio_nodes_pkey"),
        UniqueConstraint("number", name="sio_nodes_number_key"),
        comment="Server processes. A backend of the role of a living node holds a shared advisory lock on (oid of "
        "this table, number). recovery_seconds: max_disconnection_duration, null for ever. margin_seconds: "
        "how long a drop may stay unnoticed and a replay may last. retention_seconds: how long events are kept "
        "whatever sessions need, 0 for no longer than that, null for ever. missed_at: the first check that found "
        "no lock. died_at: the second check.",
    )
    sessions = Table(
        "sio_sessions",
        made,
        Column("id", BigInteger, autoincrement=False),
        Column("pid_hash", LargeBinary, nullable=False),
        Column("namespace", Text, nullable=False),
        Column("sid", Text, nullable=False),
        Column("identity", Text),
        Column("data", Text, nullable=False, server_default=text("'{}'::text")),
        Column("node", Uuid),
        Column("generation", BigInteger, nullable=False, server_default=text("1")),
        Column("settled", BigInteger, nullable=False, server_default=text("1")),
        Column("start_offset", BigInteger, nullable=False),
        Column("joined_at", BigInteger, nullable=False),
        Column("stale_offset", BigInteger),
        Column("lost_below", BigInteger, nullable=False, server_default=text("0")),
        Column("created_at", _TIME, nullable=False, server_default=_NOW),
        Column("expires_at", _TIME),
        Column("expiry_node", Uuid),
        Column("expiry_taken_at", _TIME),
        PrimaryKeyConstraint("id", name="sio_sessions_pkey"),
        UniqueConstraint("pid_hash", name="sio_sessions_pid_hash_key"),
        UniqueConstraint("namespace", "sid", name="sio_sessions_namespace_sid_key"),
        comment="One row for each session, from its CONNECT to its end. id: the first 60 bits of pid_hash, so the "
        "id of a lost session is not issued again. identity: whose session it is, as the application says. "
        "Only a client with the same one claims it. node: the node that holds the session, null while it is "
        "away. generation: raised by each claim. settled: the generation of the holder whose writes count, "
        "lower than generation while a claim waits for that holder. start_offset: the lowest offset that the "
        "client can be at. joined_at: the offset above which it belongs to everybody and to its own room. Only rooms "
        "that were entered from an earlier position begin below it. stale_offset: the offset of a former session "
        "that the client keeps until it gets an event. lost_below: a client at a lower offset may be due an event of "
        "a membership that is not stored any more, or one that was deleted before the session was opened. "
        "expires_at: null while the session is held. expiry_node: the node that calls the expiry handler.",
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
        comment="Memberships. A session is in a room at the offsets above joined_at and below left_at.",
    )
    Index("sio_rooms_members", rooms.c.namespace, rooms.c.room)
    Index("sio_rooms_ended", rooms.c.session, rooms.c.left_at, postgresql_where=rooms.c.left_at.isnot(None))
    Table(
        "sio_expiry_handlers",
        made,
        Column("namespace", Text),
        PrimaryKeyConstraint("namespace", name="sio_expiry_handlers_pkey"),
        comment="Namespaces (* for all) whose expired sessions are deleted only by nodes that call a handler first.",
    )


metadata = metadata_in(None)
"""The tables in the connection's default schema, which is mostly "public"."""


def include_object(_item: Any, name: str | None, kind: str, *_: Any) -> bool:
    """Return whether autogenerate may compare an object, which leaves this package's tables alone.

    For ``context.configure(include_object=...)``. An application that has such a function already joins the two by
    ``and``.
    """
    return kind != "table" or (name not in metadata.tables and name != VERSION_TABLE)
