-- The tables.

-- Every append locks this table IN EXCLUSIVE MODE, so offsets become visible in their order. It is a table and not an
-- advisory lock, because any role that may connect could see and take an advisory lock.
CREATE TABLE sio.sio_lock ();

COMMENT ON TABLE sio.sio_lock IS 'No rows. Every append locks this table, so offsets become visible in their order.';

CREATE TABLE sio.sio_log (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version integer NOT NULL,
    compatible integer NOT NULL,
    channel text NOT NULL,
    floor bigint NOT NULL DEFAULT 0
);

COMMENT ON TABLE sio.sio_log IS
    'One row. version: the version of this schema. compatible: the oldest package version that still works with it. '
    'channel: where appends are announced, a secret because NOTIFY has no permissions. floor: no record at or '
    'below it is stored.';

CREATE TABLE sio.sio_epochs (
    epoch integer PRIMARY KEY,
    key bytea NOT NULL,
    began_after bigint NOT NULL,
    began_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE sio.sio_epochs IS
    'The epochs of the log. Epoch e owns the offsets from e * 2^40 on. key: signs these offsets on the wire. '
    'began_after: the highest offset before the epoch.';

-- Unlogged: the row is gone after a crash and after a promotion. In a copy or a restored dump the fingerprint differs.
CREATE UNLOGGED TABLE sio.sio_marker (
    fingerprint text NOT NULL,
    began_at bigint NOT NULL
);

COMMENT ON TABLE sio.sio_marker IS
    'The running epoch. fingerprint: the server and the table on which it began. began_at: the first of its offsets.';

-- The log. This table has no rows of its own. Its segments inherit from it, so a statement that names it reads,
-- updates or deletes the rows of both.
CREATE TABLE sio.sio_packets (
    "offset" bigserial PRIMARY KEY,
    kind smallint NOT NULL,
    namespace text NOT NULL,
    room text NOT NULL DEFAULT '',
    rooms text[],
    skip_sids text[],
    skip_rooms text[],
    sid text,
    generation bigint,
    as_of bigint,
    node uuid,
    body text,
    parts bytea,
    data text,
    attachment uuid,
    batch bigint,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE sio.sio_packets IS
    'The log. Its rows are in the segments sio_packets_0 and sio_packets_1. kind: 0 event, 1 enter room, 2 leave '
    'room, 3 close room, 4 claim, 5 kick. 6, 7, 8: the members of some rooms enter or leave others, or are kicked. room: '
    'the empty string means everybody. rooms: all rooms, if there are several. as_of: the offset from which a leave '
    'counts, if not its own. body, parts: an event and its binary. data: the session data of a kick, or a JSON array '
    'of the rooms whose members move. attachment: the large body of an event. batch: the append that wrote the '
    'record. skip_sids, skip_rooms: clients, and rooms whose members, it does not concern.';

-- Appends go to one segment until its oldest record has expired, then to the other. When the last record of the first
-- segment has expired, retention truncates it. Deleting a million rows one by one would take seconds and leave as many
-- dead rows behind.
CREATE TABLE sio.sio_packets_0 (PRIMARY KEY ("offset")) INHERITS (sio.sio_packets);

CREATE TABLE sio.sio_packets_1 (PRIMARY KEY ("offset")) INHERITS (sio.sio_packets);

-- Every append names its offset. Alembic would report an inherited default that reads another table's sequence.
ALTER TABLE sio.sio_packets_0 ALTER COLUMN "offset" DROP DEFAULT;

ALTER TABLE sio.sio_packets_1 ALTER COLUMN "offset" DROP DEFAULT;

COMMENT ON TABLE sio.sio_packets_0 IS 'A segment of the log: appended to, or left until all of it has expired.';

COMMENT ON TABLE sio.sio_packets_1 IS 'A segment of the log: appended to, or left until all of it has expired.';

-- A recovery reads the events of each room of its session in offset order.
CREATE INDEX sio_packets_0_room ON sio.sio_packets_0 (namespace, room, "offset") WHERE kind = 0;

CREATE INDEX sio_packets_1_room ON sio.sio_packets_1 (namespace, room, "offset") WHERE kind = 0;

-- Few events skip rooms. These are looked for when memberships are forgotten.
CREATE INDEX sio_packets_0_skip_rooms ON sio.sio_packets_0 ("offset") WHERE skip_rooms IS NOT NULL;

CREATE INDEX sio_packets_1_skip_rooms ON sio.sio_packets_1 ("offset") WHERE skip_rooms IS NOT NULL;

CREATE INDEX sio_packets_0_attachment ON sio.sio_packets_0 (attachment) WHERE attachment IS NOT NULL;

CREATE INDEX sio_packets_1_attachment ON sio.sio_packets_1 (attachment) WHERE attachment IS NOT NULL;

-- The number of the segment that is appended to. It is a sequence, which shows its present value whatever the snapshot.
-- A repeatable read transaction that began before a switch therefore appends to the right segment.
CREATE SEQUENCE sio.sio_active_segment AS smallint MINVALUE 0 MAXVALUE 1 START 0;

CREATE TABLE sio.sio_packet_rooms (
    namespace text NOT NULL,
    room text NOT NULL,
    "offset" bigint NOT NULL,
    PRIMARY KEY (namespace, room, "offset")
);

COMMENT ON TABLE sio.sio_packet_rooms IS
    'The second and further rooms of events for several rooms. Its rows are in sio_packet_rooms_0 and '
    'sio_packet_rooms_1.';

CREATE TABLE sio.sio_packet_rooms_0 (PRIMARY KEY (namespace, room, "offset")) INHERITS (sio.sio_packet_rooms);

CREATE TABLE sio.sio_packet_rooms_1 (PRIMARY KEY (namespace, room, "offset")) INHERITS (sio.sio_packet_rooms);

COMMENT ON TABLE sio.sio_packet_rooms_0 IS 'The rooms of events in sio_packets_0.';

COMMENT ON TABLE sio.sio_packet_rooms_1 IS 'The rooms of events in sio_packets_1.';

CREATE INDEX sio_packet_rooms_0_offset ON sio.sio_packet_rooms_0 ("offset");

CREATE INDEX sio_packet_rooms_1_offset ON sio.sio_packet_rooms_1 ("offset");

CREATE TABLE sio.sio_keys (
    namespace text NOT NULL,
    key text NOT NULL,
    "offset" bigint NOT NULL,
    PRIMARY KEY (namespace, key)
);

COMMENT ON TABLE sio.sio_keys IS
    'The idempotency keys of events in the log. offset: the event that has the key. Rows are inserted under the log''s '
    'lock, and deleted with their events.';

-- Retention deletes the keys of a range of offsets.
CREATE INDEX sio_keys_offset ON sio.sio_keys ("offset");

CREATE TABLE sio.sio_attachments (
    id uuid PRIMARY KEY,
    data bytea NOT NULL,
    ephemeral boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE sio.sio_attachments IS 'Bodies that are too large for a row of the log or for a notification.';

-- Bodies are JSON text and binary that rarely compresses well. EXTERNAL spends no time on trying.
ALTER TABLE sio.sio_attachments ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE INDEX sio_attachments_created ON sio.sio_attachments (created_at);

CREATE TABLE sio.sio_nodes (
    id uuid PRIMARY KEY,
    number integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    channel text NOT NULL,
    role oid NOT NULL,
    recovery_seconds double precision,
    margin_seconds double precision NOT NULL,
    retention_seconds double precision,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    missed_at timestamptz,
    died_at timestamptz,
    stopped_at timestamptz
);

COMMENT ON TABLE sio.sio_nodes IS
    'Server processes. A backend of the role of a living node holds a shared advisory lock on (oid of this table, '
    'number). recovery_seconds: max_disconnection_duration, null for ever. margin_seconds: how long a drop may stay '
    'unnoticed and a replay may last. retention_seconds: how long events are kept whatever sessions need, 0 for no '
    'longer than that, null for ever. missed_at: the first check that found no lock. died_at: the second check.';

CREATE TABLE sio.sio_sessions (
    id bigint PRIMARY KEY,
    pid_hash bytea NOT NULL UNIQUE,
    namespace text NOT NULL,
    sid text NOT NULL,
    identity text,
    data text NOT NULL DEFAULT '{}',
    node uuid,
    generation bigint NOT NULL DEFAULT 1,
    settled bigint NOT NULL DEFAULT 1,
    start_offset bigint NOT NULL,
    joined_at bigint NOT NULL,
    stale_offset bigint,
    lost_below bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    expiry_node uuid,
    expiry_taken_at timestamptz,
    UNIQUE (namespace, sid)
) WITH (fillfactor = 70);

COMMENT ON TABLE sio.sio_sessions IS
    'One row for each session, from its CONNECT to its end. id: the first 60 bits of pid_hash, so the id of a lost '
    'session is not issued again. identity: whose session it is, as the application says. Only a client with the same '
    'one claims it. node: the node that holds the session, null while it is away. generation: raised by each claim. '
    'settled: the generation of the holder whose writes count, lower than generation while a claim waits for that '
    'holder. start_offset: the lowest offset that the client can be at. joined_at: the offset above which it belongs to '
    'everybody and to its own room. Only rooms that were entered from an earlier position begin below it. stale_offset: '
    'the offset of a former session that the client keeps until it gets an event. lost_below: a client at a lower offset '
    'may be due an event of a membership that is not stored any more, or one that was deleted before the session was '
    'opened. expires_at: null while the session is held. expiry_node: the node that calls the expiry handler.';

-- Partial, so that the updates of held sessions stay heap-only.
CREATE INDEX sio_sessions_expires ON sio.sio_sessions (expires_at) WHERE expires_at IS NOT NULL;

CREATE INDEX sio_sessions_node ON sio.sio_sessions (node) WHERE node IS NOT NULL;

CREATE TABLE sio.sio_rooms (
    session bigint NOT NULL REFERENCES sio.sio_sessions ON DELETE CASCADE,
    room text NOT NULL,
    joined_at bigint NOT NULL,
    left_at bigint,
    namespace text NOT NULL,
    PRIMARY KEY (session, room, joined_at)
);

COMMENT ON TABLE sio.sio_rooms IS
    'Memberships. A session is in a room at the offsets above joined_at and below left_at.';

CREATE INDEX sio_rooms_members ON sio.sio_rooms (namespace, room);

CREATE INDEX sio_rooms_ended ON sio.sio_rooms (session, left_at) WHERE left_at IS NOT NULL;

CREATE TABLE sio.sio_expiry_handlers (namespace text PRIMARY KEY);

COMMENT ON TABLE sio.sio_expiry_handlers IS
    'Namespaces (* for all) whose expired sessions are deleted only by nodes that call a handler first.';

CREATE TABLE sio.sio_room_floors (
    namespace text NOT NULL,
    room text NOT NULL,
    "offset" bigint NOT NULL,
    PRIMARY KEY (namespace, room)
);

COMMENT ON TABLE sio.sio_room_floors IS
    'The highest offset that retention deleted of each room that a session is or was in. A session at a lower offset '
    'has lost an event, unless it has a floor of its own in sio_session_floors.';

-- It has no foreign key. That would lock rows of sio_sessions, and claims would wait for retention under the log's lock.
CREATE TABLE sio.sio_session_floors (
    session bigint NOT NULL,
    room text NOT NULL,
    joined_at bigint NOT NULL,
    "offset" bigint NOT NULL,
    upto bigint NOT NULL,
    PRIMARY KEY (session, room, joined_at)
);

COMMENT ON TABLE sio.sio_session_floors IS
    'Memberships that lost less than their room: the session had left it, or the last deleted event skipped its sid. '
    'offset: the highest deleted offset, up to the offset upto, that the session was due by the membership. 0 if there '
    'was none.';

-- Unlogged: its rows live and die in one transaction. VACUUM never truncates it, because that takes a lock that emits
-- would wait for.
CREATE UNLOGGED TABLE sio.sio_outbox (
    namespace text NOT NULL,
    room text NOT NULL,
    rooms text[],
    skip_sids text[],
    skip_rooms text[],
    body text,
    parts bytea,
    attachment uuid,
    channel text NOT NULL,
    carried text NOT NULL,
    above bigint,
    immediate boolean NOT NULL,
    key text
) WITH (vacuum_truncate = off);

COMMENT ON TABLE sio.sio_outbox IS
    'Events of open transactions, with the columns of sio_packets. Other transactions always see it empty. channel: '
    'the channel of the notification. carried: the record that the notification carries. above: the last offset at '
    'the time of the emit, null if an epoch is to begin. immediate: the application has set its constraints IMMEDIATE. '
    'key: the idempotency key.';

CREATE UNLOGGED TABLE sio.sio_outbox_changes (
    kind smallint NOT NULL,
    namespace text NOT NULL,
    rooms text[] NOT NULL,
    sid text,
    members text[],
    skip_sids text[] NOT NULL,
    skip_rooms text[] NOT NULL,
    immediate boolean NOT NULL
) WITH (vacuum_truncate = off);

COMMENT ON TABLE sio.sio_outbox_changes IS
    'Room changes and kicks of open transactions, with the kinds of sio_packets. Other transactions always see it empty. '
    'rooms: the rooms to enter, leave or close. sid: the client that moves or is kicked. members: the rooms whose members '
    'do, where the empty string means everybody. skip_sids, skip_rooms: members that stay. immediate: the application '
    'has set its constraints IMMEDIATE.';

-- Logged, unlike the tables above, because its rows outlive their transactions. See relay.sql. VACUUM never truncates it,
-- because that takes a lock that emits would wait for.
CREATE TABLE sio.sio_relay (
    id bigserial PRIMARY KEY,
    transaction bigint NOT NULL,
    kind smallint NOT NULL,
    namespace text NOT NULL,
    room text NOT NULL,
    rooms text,
    skip_sids text,
    skip_rooms text,
    members text,
    sid text,
    body text,
    parts bytea,
    attachment uuid,
    key text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    fault text
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

COMMENT ON TABLE sio.sio_relay IS
    'Events, room changes and kicks of transactions, until a node moves them to the log, with the kinds of sio_packets. '
    'transaction: the transaction that inserted the row. rooms, skip_sids, skip_rooms, members: JSON arrays. '
    'fault: why the row cannot be moved. Nodes leave such rows alone.';

CREATE INDEX sio_relay_key ON sio.sio_relay (namespace, key) WHERE key IS NOT NULL;

-- What the relay does: 0 it is off. 1 asleep: a commit rings the nodes. 2 it is being switched off. From 3 on it is the
-- number of a node times two, plus 3 while that node moves rows, and plus 4 while it is about to fall asleep.
-- It is a sequence, which shows its present value whatever the snapshot.
CREATE SEQUENCE sio.sio_relay_state MINVALUE 0 START 0;

-- No row of sio_relay at or below this id is waiting. Scans begin here, because moved rows stay in the index for a while.
CREATE SEQUENCE sio.sio_relay_floor MINVALUE 0 START 0;
