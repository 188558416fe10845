-- The whole schema as the migrations make it, for reading. Nothing runs this file. It is generated, and a test
-- compares it with the migrations.

CREATE SCHEMA sio;

-- Every append locks this table IN EXCLUSIVE MODE, so offsets become visible in their order. It is a table and not an
-- advisory lock, because any role that may connect could see and take an advisory lock.
CREATE TABLE sio.sio_lock ();

COMMENT ON TABLE sio.sio_lock IS
    'No rows. Every append locks this table, so offsets become visible in their order.';

CREATE TABLE sio.sio_log (
    only_row boolean NOT NULL DEFAULT true,
    version integer NOT NULL,
    compatible integer NOT NULL,
    channel text NOT NULL,
    floor bigint NOT NULL DEFAULT 0,
    CONSTRAINT sio_log_pkey PRIMARY KEY (only_row),
    CONSTRAINT sio_log_only_row_check CHECK (only_row)
);

COMMENT ON TABLE sio.sio_log IS
    'One row. version: the version of this schema. compatible: the oldest package version that still works with it. '
    'channel: where appends are announced, a secret because NOTIFY has no permissions. floor: no record at or below '
    'it is stored.';

CREATE TABLE sio.sio_epochs (
    epoch integer NOT NULL,
    key bytea NOT NULL,
    began_after bigint NOT NULL,
    began_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT sio_epochs_pkey PRIMARY KEY (epoch)
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
    'The running epoch. fingerprint: the server and the table on which it began. began_at: the first of its '
    'offsets.';

-- The log. This table has no rows of its own. Its segments inherit from it, so a statement that names it reads,
-- updates or deletes the rows of both.
CREATE TABLE sio.sio_packets (
    "offset" bigserial,
    kind smallint NOT NULL,
    namespace text NOT NULL,
    room text NOT NULL DEFAULT ''::text,
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
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT sio_packets_pkey PRIMARY KEY ("offset")
);

COMMENT ON TABLE sio.sio_packets IS
    'The log. Its rows are in the segments sio_packets_0 and sio_packets_1. kind: 0 event, 1 enter room, 2 leave '
    'room, 3 close room, 4 claim, 5 kick. 6, 7, 8: the members of some rooms enter or leave others, or are kicked. '
    'room: the empty string means everybody. rooms: all rooms, if there are several. as_of: the offset from which a '
    'leave counts, if not its own. body, parts: an event and its binary. data: the session data of a kick, or a '
    'JSON array of the rooms whose members move. attachment: the large body of an event. batch: the append that '
    'wrote the record. skip_sids, skip_rooms: clients, and rooms whose members, it does not concern.';

-- Appends go to one segment until its oldest record has expired, then to the other. When the last record of the first
-- segment has expired, retention truncates it. Deleting a million rows one by one would take seconds and leave as many
-- dead rows behind.
CREATE TABLE sio.sio_packets_0 (
    CONSTRAINT sio_packets_0_pkey PRIMARY KEY ("offset")
) INHERITS (sio.sio_packets);

ALTER TABLE sio.sio_packets_0 ALTER COLUMN "offset" DROP DEFAULT;

COMMENT ON TABLE sio.sio_packets_0 IS
    'A segment of the log: appended to, or left until all of it has expired.';

-- A recovery reads the events of each room of its session in offset order.
CREATE INDEX sio_packets_0_room ON sio.sio_packets_0 USING btree (namespace, room, "offset") WHERE (kind = 0);

-- Few events skip rooms. These are looked for when memberships are forgotten.
CREATE INDEX sio_packets_0_skip_rooms ON sio.sio_packets_0 USING btree ("offset") WHERE (skip_rooms IS NOT NULL);

CREATE INDEX sio_packets_0_attachment ON sio.sio_packets_0 USING btree (attachment) WHERE (attachment IS NOT NULL);

CREATE TABLE sio.sio_packets_1 (
    CONSTRAINT sio_packets_1_pkey PRIMARY KEY ("offset")
) INHERITS (sio.sio_packets);

ALTER TABLE sio.sio_packets_1 ALTER COLUMN "offset" DROP DEFAULT;

COMMENT ON TABLE sio.sio_packets_1 IS
    'A segment of the log: appended to, or left until all of it has expired.';

CREATE INDEX sio_packets_1_room ON sio.sio_packets_1 USING btree (namespace, room, "offset") WHERE (kind = 0);

CREATE INDEX sio_packets_1_skip_rooms ON sio.sio_packets_1 USING btree ("offset") WHERE (skip_rooms IS NOT NULL);

CREATE INDEX sio_packets_1_attachment ON sio.sio_packets_1 USING btree (attachment) WHERE (attachment IS NOT NULL);

CREATE TABLE sio.sio_packet_rooms (
    namespace text NOT NULL,
    room text NOT NULL,
    "offset" bigint NOT NULL,
    CONSTRAINT sio_packet_rooms_pkey PRIMARY KEY (namespace, room, "offset")
);

COMMENT ON TABLE sio.sio_packet_rooms IS
    'The second and further rooms of events for several rooms. Its rows are in sio_packet_rooms_0 and '
    'sio_packet_rooms_1.';

CREATE TABLE sio.sio_packet_rooms_0 (
    CONSTRAINT sio_packet_rooms_0_pkey PRIMARY KEY (namespace, room, "offset")
) INHERITS (sio.sio_packet_rooms);

COMMENT ON TABLE sio.sio_packet_rooms_0 IS
    'The rooms of events in sio_packets_0.';

CREATE INDEX sio_packet_rooms_0_offset ON sio.sio_packet_rooms_0 USING btree ("offset");

CREATE TABLE sio.sio_packet_rooms_1 (
    CONSTRAINT sio_packet_rooms_1_pkey PRIMARY KEY (namespace, room, "offset")
) INHERITS (sio.sio_packet_rooms);

COMMENT ON TABLE sio.sio_packet_rooms_1 IS
    'The rooms of events in sio_packets_1.';

CREATE INDEX sio_packet_rooms_1_offset ON sio.sio_packet_rooms_1 USING btree ("offset");

CREATE TABLE sio.sio_keys (
    namespace text NOT NULL,
    key text NOT NULL,
    "offset" bigint NOT NULL,
    CONSTRAINT sio_keys_pkey PRIMARY KEY (namespace, key)
);

COMMENT ON TABLE sio.sio_keys IS
    'The idempotency keys of events in the log. offset: the event that has the key. Rows are inserted under the '
    'log''s lock, and deleted with their events.';

-- Retention deletes the keys of a range of offsets.
CREATE INDEX sio_keys_offset ON sio.sio_keys USING btree ("offset");

CREATE TABLE sio.sio_attachments (
    id uuid NOT NULL,
    data bytea NOT NULL,
    ephemeral boolean NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT sio_attachments_pkey PRIMARY KEY (id)
);

ALTER TABLE sio.sio_attachments ALTER COLUMN data SET STORAGE EXTERNAL;

COMMENT ON TABLE sio.sio_attachments IS
    'Bodies that are too large for a row of the log or for a notification.';

CREATE INDEX sio_attachments_created ON sio.sio_attachments USING btree (created_at);

CREATE TABLE sio.sio_nodes (
    id uuid NOT NULL,
    number integer GENERATED ALWAYS AS IDENTITY,
    channel text NOT NULL,
    role oid NOT NULL,
    recovery_seconds double precision,
    margin_seconds double precision NOT NULL,
    retention_seconds double precision,
    started_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    missed_at timestamp with time zone,
    died_at timestamp with time zone,
    stopped_at timestamp with time zone,
    CONSTRAINT sio_nodes_pkey PRIMARY KEY (id),
    CONSTRAINT sio_nodes_number_key UNIQUE (number)
);

COMMENT ON TABLE sio.sio_nodes IS
    'Server processes. A backend of the role of a living node holds a shared advisory lock on (oid of this table, '
    'number). recovery_seconds: max_disconnection_duration, null for ever. margin_seconds: how long a drop may stay '
    'unnoticed and a replay may last. retention_seconds: how long events are kept whatever sessions need, 0 for no '
    'longer than that, null for ever. missed_at: the first check that found no lock. died_at: the second check.';

CREATE TABLE sio.sio_sessions (
    id bigint NOT NULL,
    pid_hash bytea NOT NULL,
    namespace text NOT NULL,
    sid text NOT NULL,
    identity text,
    data text NOT NULL DEFAULT '{}'::text,
    node uuid,
    generation bigint NOT NULL DEFAULT 1,
    settled bigint NOT NULL DEFAULT 1,
    start_offset bigint NOT NULL,
    joined_at bigint NOT NULL,
    stale_offset bigint,
    lost_below bigint NOT NULL DEFAULT 0,
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamp with time zone,
    expiry_node uuid,
    expiry_taken_at timestamp with time zone,
    CONSTRAINT sio_sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sio_sessions_pid_hash_key UNIQUE (pid_hash),
    CONSTRAINT sio_sessions_namespace_sid_key UNIQUE (namespace, sid)
) WITH (fillfactor=70);

COMMENT ON TABLE sio.sio_sessions IS
    'One row for each session, from its CONNECT to its end. id: the first 60 bits of pid_hash, so the id of a lost '
    'session is not issued again. identity: whose session it is, as the application says. Only a client with the '
    'same one claims it. node: the node that holds the session, null while it is away. generation: raised by each '
    'claim. settled: the generation of the holder whose writes count, lower than generation while a claim waits for '
    'that holder. start_offset: the lowest offset that the client can be at. joined_at: the offset above which it '
    'belongs to everybody and to its own room. Only rooms that were entered from an earlier position begin below '
    'it. stale_offset: the offset of a former session that the client keeps until it gets an event. lost_below: a '
    'client at a lower offset may be due an event of a membership that is not stored any more, or one that was '
    'deleted before the session was opened. expires_at: null while the session is held. expiry_node: the node that '
    'calls the expiry handler.';

-- Partial, so that the updates of held sessions stay heap-only.
CREATE INDEX sio_sessions_expires ON sio.sio_sessions USING btree (expires_at) WHERE (expires_at IS NOT NULL);

CREATE INDEX sio_sessions_node ON sio.sio_sessions USING btree (node) WHERE (node IS NOT NULL);

CREATE TABLE sio.sio_rooms (
    session bigint NOT NULL,
    room text NOT NULL,
    joined_at bigint NOT NULL,
    left_at bigint,
    namespace text NOT NULL,
    CONSTRAINT sio_rooms_pkey PRIMARY KEY (session, room, joined_at),
    CONSTRAINT sio_rooms_session_fkey FOREIGN KEY (session) REFERENCES sio.sio_sessions(id) ON DELETE CASCADE
);

COMMENT ON TABLE sio.sio_rooms IS
    'Memberships. A session is in a room at the offsets above joined_at and below left_at.';

CREATE INDEX sio_rooms_members ON sio.sio_rooms USING btree (namespace, room);

CREATE INDEX sio_rooms_ended ON sio.sio_rooms USING btree (session, left_at) WHERE (left_at IS NOT NULL);

CREATE TABLE sio.sio_expiry_handlers (
    namespace text NOT NULL,
    CONSTRAINT sio_expiry_handlers_pkey PRIMARY KEY (namespace)
);

COMMENT ON TABLE sio.sio_expiry_handlers IS
    'Namespaces (* for all) whose expired sessions are deleted only by nodes that call a handler first.';

CREATE TABLE sio.sio_room_floors (
    namespace text NOT NULL,
    room text NOT NULL,
    "offset" bigint NOT NULL,
    CONSTRAINT sio_room_floors_pkey PRIMARY KEY (namespace, room)
);

COMMENT ON TABLE sio.sio_room_floors IS
    'The highest offset that retention deleted of each room that a session is or was in. A session at a lower '
    'offset has lost an event, unless it has a floor of its own in sio_session_floors.';

-- It has no foreign key. That would lock rows of sio_sessions, and claims would wait for retention under the log's lock.
CREATE TABLE sio.sio_session_floors (
    session bigint NOT NULL,
    room text NOT NULL,
    joined_at bigint NOT NULL,
    "offset" bigint NOT NULL,
    upto bigint NOT NULL,
    CONSTRAINT sio_session_floors_pkey PRIMARY KEY (session, room, joined_at)
);

COMMENT ON TABLE sio.sio_session_floors IS
    'Memberships that lost less than their room: the session had left it, or the last deleted event skipped its '
    'sid. offset: the highest deleted offset, up to the offset upto, that the session was due by the membership. 0 '
    'if there was none.';

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
) WITH (vacuum_truncate=off);

COMMENT ON TABLE sio.sio_outbox IS
    'Events of open transactions, with the columns of sio_packets. Other transactions always see it empty. channel: '
    'the channel of the notification. carried: the record that the notification carries. above: the last offset at '
    'the time of the emit, null if an epoch is to begin. immediate: the application has set its constraints '
    'IMMEDIATE. key: the idempotency key.';

CREATE UNLOGGED TABLE sio.sio_outbox_changes (
    kind smallint NOT NULL,
    namespace text NOT NULL,
    rooms text[] NOT NULL,
    sid text,
    members text[],
    skip_sids text[] NOT NULL,
    skip_rooms text[] NOT NULL,
    immediate boolean NOT NULL
) WITH (vacuum_truncate=off);

COMMENT ON TABLE sio.sio_outbox_changes IS
    'Room changes and kicks of open transactions, with the kinds of sio_packets. Other transactions always see it '
    'empty. rooms: the rooms to enter, leave or close. sid: the client that moves or is kicked. members: the rooms '
    'whose members do, where the empty string means everybody. skip_sids, skip_rooms: members that stay. immediate: '
    'the application has set its constraints IMMEDIATE.';

-- Logged, unlike the tables above, because its rows outlive their transactions. See relay.sql. VACUUM never truncates it,
-- because that takes a lock that emits would wait for.
CREATE TABLE sio.sio_relay (
    id bigserial,
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
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    fault text,
    CONSTRAINT sio_relay_pkey PRIMARY KEY (id)
) WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=5000);

COMMENT ON TABLE sio.sio_relay IS
    'Events, room changes and kicks of transactions, until a node moves them to the log, with the kinds of '
    'sio_packets. transaction: the transaction that inserted the row. rooms, skip_sids, skip_rooms, members: JSON '
    'arrays. fault: why the row cannot be moved. Nodes leave such rows alone.';

CREATE INDEX sio_relay_key ON sio.sio_relay USING btree (namespace, key) WHERE (key IS NOT NULL);

-- The number of the segment that is appended to. It is a sequence, which shows its present value whatever the snapshot.
-- A repeatable read transaction that began before a switch therefore appends to the right segment.
CREATE SEQUENCE sio.sio_active_segment AS smallint MINVALUE 0 MAXVALUE 1 START 0;

-- What the relay does: 0 it is off. 1 asleep: a commit rings the nodes. 2 it is being switched off. From 3 on it is the
-- number of a node times two, plus 3 while that node moves rows, and plus 4 while it is about to fall asleep.
-- It is a sequence, which shows its present value whatever the snapshot.
CREATE SEQUENCE sio.sio_relay_state AS bigint MINVALUE 0 MAXVALUE 9223372036854775807 START 0;

-- No row of sio_relay at or below this id is waiting. Scans begin here, because moved rows stay in the index for a while.
CREATE SEQUENCE sio.sio_relay_floor AS bigint MINVALUE 0 MAXVALUE 9223372036854775807 START 0;

-- Epochs: an offset that a lost commit had is never given to another record.

-- Identifies the server and the database on which the running epoch began. A backup restored from files, or another
-- timeline, comes with another start of the server. The file is that of sio_lock, because retention replaces the files
-- of the segments. A path reads base/database/file.
CREATE FUNCTION sio.sio_fingerprint()
 RETURNS text
 LANGUAGE sql
 STABLE
AS $$
    SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time()) || ' '
        || pg_catalog.pg_relation_filepath('sio.sio_lock'::regclass)
$$;

-- Refuses transactions that are stricter than read committed. Their statements read as of a moment before the log's lock
-- was granted, and miss the records that were committed while they waited for it.
CREATE FUNCTION sio.sio_check_isolation()
 RETURNS void
 LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE invalid_transaction_state USING MESSAGE = 'the log needs transactions that are read committed: set '
            'default_transaction_isolation to it for this role, database or pool';
    END IF;
END $$;

-- Returns the last offset if the running epoch goes on, else null. It goes on if the marker has this fingerprint, and if
-- the sequence is in the epoch's range and not below the floor.
--
-- Scripts that set every sequence to max(id) + 1 set it to 1 in a log that retention has emptied. Cursors are above that,
-- so no node would ever see the appends that follow.
--
-- An emit calls this without the log's lock, while others take offsets. A SELECT from the sequence may then see a value
-- that is up to 32 too high, which nextval() writes for the write-ahead log and takes back at once.
-- pg_sequence_last_value() waits until it is taken back. It is null before the first nextval().
CREATE FUNCTION sio.sio_last_in_epoch()
 RETURNS bigint
 LANGUAGE plpgsql
 STABLE
AS $$
BEGIN
    RETURN (
        SELECT o.last
        FROM sio.sio_marker m, sio.sio_log l,
            (SELECT coalesce(pg_sequence_last_value('sio.sio_packets_offset_seq'::regclass), last_value - 1) AS last
             FROM sio.sio_packets_offset_seq) o
        WHERE m.fingerprint = sio.sio_fingerprint() AND o.last - m.began_at BETWEEN 0 AND 1099511627774
          AND o.last >= l.floor);
END $$;

-- Returns whether a record has an offset above p_last. ORDER BY and LIMIT take one step in an index. Callers hold the
-- log's lock, because a lock on a segment would keep retention from truncating it until their transaction ends.
CREATE FUNCTION sio.sio_is_behind(p_last bigint)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE
AS $$
BEGIN
    RETURN (SELECT "offset" FROM sio.sio_packets_0 WHERE "offset" > p_last ORDER BY "offset" LIMIT 1) IS NOT NULL
        OR (SELECT "offset" FROM sio.sio_packets_1 WHERE "offset" > p_last ORDER BY "offset" LIMIT 1) IS NOT NULL;
END $$;

-- Begins an epoch above all numbers that there are, unless the running one goes on, its last offset is p_above or higher,
-- and no record is above that. The caller holds the log's lock.
CREATE FUNCTION sio.sio_check_epoch(p_above bigint DEFAULT 0)
 RETURNS boolean
 LANGUAGE plpgsql
AS $$
DECLARE v_last bigint; v_epoch integer;
BEGIN
    v_last := sio.sio_last_in_epoch();
    IF v_last >= p_above AND NOT sio.sio_is_behind(v_last) THEN
        RETURN false;
    END IF;
    v_last := greatest((SELECT max("offset") FROM sio.sio_packets), (SELECT floor FROM sio.sio_log));
    INSERT INTO sio.sio_epochs (epoch, key, began_after)
    SELECT greatest(max(epoch), v_last >> 40, (SELECT last_value FROM sio.sio_packets_offset_seq) >> 40) + 1,
           sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')), v_last
    FROM sio.sio_epochs
    ON CONFLICT (epoch) DO NOTHING  -- an epoch that this snapshot does not show: raises serialization_failure
    RETURNING epoch INTO v_epoch;
    PERFORM setval('sio.sio_packets_offset_seq', v_epoch * 1099511627776);
    DELETE FROM sio.sio_marker;
    INSERT INTO sio.sio_marker (fingerprint, began_at) VALUES (sio.sio_fingerprint(), v_epoch * 1099511627776);
    RETURN true;
END $$;

CREATE FUNCTION sio.sio_lock_and_check_epoch()
 RETURNS boolean
 LANGUAGE plpgsql
AS $$
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    RETURN sio.sio_check_epoch();
END $$;

-- Ends all sessions and the epoch when somebody truncates a table of the log. The events that clients missed are gone,
-- and nothing says for which rooms they were.
CREATE FUNCTION sio.sio_truncated()
 RETURNS trigger
 LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('sio_pg_adapter.retention', true) = 'on' THEN
        RETURN NULL;  -- sio_empty_segment: all of it has expired, and the floors say so
    END IF;
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    DELETE FROM sio.sio_packets;
    DELETE FROM sio.sio_packet_rooms;
    DELETE FROM sio.sio_keys;
    DELETE FROM sio.sio_rooms;  -- the foreign key does not cascade in the replica role
    DELETE FROM sio.sio_sessions;
    UPDATE sio.sio_log SET floor = (SELECT last_value FROM sio.sio_packets_offset_seq);
    DELETE FROM sio.sio_marker;
    RETURN NULL;
END $$;

-- Rows that somebody inserts or copies into sio_packets or sio_packet_rooms itself. Nodes read the segments alone, so the
-- rows go to a segment.

CREATE FUNCTION sio.sio_into_segment()
 RETURNS trigger
 LANGUAGE plpgsql
AS $$
BEGIN
    EXECUTE format('INSERT INTO %I.%I SELECT ($1).*', TG_TABLE_SCHEMA, TG_TABLE_NAME || '_0') USING NEW;
    RETURN NULL;
END $$;

-- Idempotency keys. A key belongs to the first event that has it, for as long as that event is in the log.

-- Returns whether a key is taken. It does not read the log. Retention could not truncate a segment that an application's
-- transaction has read until that transaction ends.
CREATE FUNCTION sio.sio_has_key(p_namespace text, p_key text)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM sio.sio_keys k WHERE k.namespace = p_namespace AND k.key = p_key)
        -- A serializable transaction would depend on all others that emit with a key.
        OR current_setting('transaction_isolation') <> 'serializable' AND EXISTS (
            SELECT FROM sio.sio_relay r WHERE r.namespace = p_namespace AND r.key = p_key AND r.fault IS NULL);
END $$;

-- Returns the offset of the event that has a key, or null. The event itself is looked up, too, because rows of the log
-- may have been deleted by hand, or left out of a dump. The caller holds the log's lock.
CREATE FUNCTION sio.sio_keyed_event(p_namespace text, p_key text)
 RETURNS bigint
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
AS $$
BEGIN
    RETURN (SELECT k."offset" FROM sio.sio_keys k
            WHERE k.namespace = p_namespace AND k.key = p_key
              AND ((SELECT p."offset" FROM sio.sio_packets_0 p WHERE p."offset" = k."offset") IS NOT NULL
                   OR (SELECT p."offset" FROM sio.sio_packets_1 p WHERE p."offset" = k."offset") IS NOT NULL));
END $$;

-- Returns the offsets of a batch of events as sio_append_batch returns them. New ones begin above p_prev. p_args: the
-- key of each event, in JSON, or null. If events of the batch have the same key, the first is stored.
CREATE FUNCTION sio.sio_keyed_offsets(p_prev bigint, p_namespaces text[], p_args text[])
 RETURNS bigint[]
 LANGUAGE plpgsql
 STABLE
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
AS $$
BEGIN
    RETURN ARRAY(
        SELECT CASE WHEN o.met IS NOT NULL THEN -o.met
                    WHEN o.is_first THEN o."offset"
                    ELSE -min(o."offset") OVER (PARTITION BY o.namespace, o.key) END
        FROM (SELECT e.*, p_prev + count(*) FILTER (WHERE e.met IS NULL AND e.is_first) OVER (ORDER BY e.i) AS "offset"
              FROM (SELECT b.namespace, b.key, b.i,
                           b.key IS NULL OR b.i = min(b.i) OVER (PARTITION BY b.namespace, b.key) AS is_first,
                           (SELECT k."offset" FROM sio.sio_keys k
                            WHERE k.namespace = b.namespace AND k.key = b.key
                              AND ((SELECT p."offset" FROM sio.sio_packets_0 p WHERE p."offset" = k."offset") IS NOT NULL
                                   OR (SELECT p."offset" FROM sio.sio_packets_1 p WHERE p."offset" = k."offset")
                                      IS NOT NULL)) AS met
                    FROM (SELECT u.namespace, u.args::json->>'key' AS key, u.i
                          FROM unnest(p_namespaces, p_args) WITH ORDINALITY AS u (namespace, args, i)) b) e) o
        ORDER BY o.i);
END $$;

-- Gives a key to an event that has just been appended. The caller holds the log's lock and has found no event with the
-- key, so a row with the key belongs to an event that is gone. If the transaction is stricter than read committed,
-- the row may also be newer than its snapshot. PostgreSQL then raises serialization_failure.
CREATE FUNCTION sio.sio_take_key(p_namespace text, p_key text, p_offset bigint)
 RETURNS void
 LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO sio.sio_keys (namespace, key, "offset") VALUES (p_namespace, p_key, p_offset)
    ON CONFLICT (namespace, key) DO UPDATE SET "offset" = excluded."offset";
END $$;

-- Appends. A node changes the log and sessions by sio_append_batch, sio_append_event and sio_move_members. Transactional
-- emits (outbox.sql), expiry, retention and epochs have functions of their own.

-- Waits for the log's lock as an append does, for at most p_wait milliseconds, and gives it back. Writes nothing.
CREATE FUNCTION sio.sio_wait_for_lock(p_wait integer)
 RETURNS void
 LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM set_config('lock_timeout', p_wait::text, true);
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
END $$;

-- Appends one record of a kind other than an event, and returns its offset. The caller holds the log's lock.
CREATE FUNCTION sio.sio_put_record(p_batch bigint, p_kind integer, p_namespace text, p_room text, p_sid text, p_generation bigint DEFAULT NULL::bigint, p_as_of bigint DEFAULT NULL::bigint, p_node uuid DEFAULT NULL::uuid, p_data text DEFAULT NULL::text, p_rooms text[] DEFAULT NULL::text[], p_skip_sids text[] DEFAULT NULL::text[], p_skip_rooms text[] DEFAULT NULL::text[])
 RETURNS bigint
 LANGUAGE plpgsql
AS $$
DECLARE v_offset bigint; v_segment bigint := (SELECT last_value FROM sio.sio_active_segment);
BEGIN
    IF v_segment = 0 THEN
        INSERT INTO sio.sio_packets_0 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, sid, generation,
                                       as_of, node, data, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), p_kind, p_namespace, coalesce(p_room, ''), p_rooms, p_skip_sids,
                p_skip_rooms, p_sid, p_generation, p_as_of, p_node, p_data, p_batch)
        RETURNING "offset" INTO v_offset;
    ELSE
        INSERT INTO sio.sio_packets_1 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, sid, generation,
                                       as_of, node, data, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), p_kind, p_namespace, coalesce(p_room, ''), p_rooms, p_skip_sids,
                p_skip_rooms, p_sid, p_generation, p_as_of, p_node, p_data, p_batch)
        RETURNING "offset" INTO v_offset;
    END IF;
    RETURN v_offset;
END $$;

-- Appends a batch of waiting entries in order, with one lock, one commit and one notification.
--
-- Arrays have one element for each entry. p_room_lists: a JSON array of all rooms, if there are several.
-- p_skip_lists: a JSON array of the sids that do not get the event. p_skip_room_lists: of the rooms whose members do not.
-- p_args: the arguments of the functions below, or the key of an event.
-- p_carry: the records for the notification, if they fit. p_drain: false for the relay, which appends its own rows.
--
-- prev: the last offset before the batch. offsets: the offset of each entry. An entry that changed nothing has minus the
-- offset of the record that it met, or 0. A refused entry has null. An event whose key is taken changes nothing.
-- results: the answers of the session functions.
CREATE FUNCTION sio.sio_append_batch(p_batch bigint, p_kinds smallint[], p_namespaces text[], p_rooms text[], p_room_lists text[], p_skip_lists text[], p_skip_room_lists text[], p_sids text[], p_bodies text[], p_parts bytea[], p_attachments uuid[], p_args text[], p_carry text, p_drain boolean DEFAULT true, OUT prev bigint, OUT offsets bigint[], OUT results text[])
 RETURNS record
 LANGUAGE plpgsql
AS $$
DECLARE
    v_segment bigint; v_last bigint; v_offset bigint; v_result json; v_channel text; v_rooms text[]; v_skips text[];
    v_skip_rooms text[]; v_key text; r record;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    IF p_drain THEN
        PERFORM sio.sio_relay_before();
    END IF;
    PERFORM sio.sio_check_epoch();
    -- Sequences are read under the lock, and show their present value whatever the snapshot.
    SELECT CASE WHEN o.is_called THEN o.last_value ELSE o.last_value - 1 END, s.last_value INTO prev, v_segment
    FROM sio.sio_packets_offset_seq o, sio.sio_active_segment s;
    IF 0 = ALL (p_kinds) THEN
        IF p_args IS NULL THEN
            v_last := setval('sio.sio_packets_offset_seq', prev + cardinality(p_kinds));
            offsets := ARRAY(SELECT generate_series(prev + 1, v_last));
        ELSE
            offsets := sio.sio_keyed_offsets(prev, p_namespaces, p_args);
            v_last := setval('sio.sio_packets_offset_seq', greatest(prev, (SELECT max(o) FROM unnest(offsets) o)));
            INSERT INTO sio.sio_keys (namespace, key, "offset")
            SELECT e.namespace, e.args::json->>'key', offsets[e.i]
            FROM unnest(p_namespaces, p_args) WITH ORDINALITY AS e (namespace, args, i)
            WHERE e.args::json->>'key' IS NOT NULL AND offsets[e.i] > 0
            ON CONFLICT (namespace, key) DO UPDATE SET "offset" = excluded."offset";  -- as in sio_take_key()
        END IF;
        IF v_segment = 0 THEN
            INSERT INTO sio.sio_packets_0 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                           attachment, batch)
            SELECT offsets[e.i], 0, e.namespace, e.room,
                   CASE WHEN e.rooms IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.rooms::json)) END,
                   CASE WHEN e.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.skips::json)) END,
                   CASE WHEN e.skip_rooms IS NOT NULL THEN
                       ARRAY(SELECT json_array_elements_text(e.skip_rooms::json)) END,
                   e.body, e.parts, e.attachment, p_batch
            FROM unnest(p_namespaces, p_rooms, p_room_lists, p_skip_lists, p_skip_room_lists, p_bodies, p_parts,
                        p_attachments)
                WITH ORDINALITY AS e (namespace, room, rooms, skips, skip_rooms, body, parts, attachment, i)
            WHERE offsets[e.i] > 0;
        ELSE
            INSERT INTO sio.sio_packets_1 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                           attachment, batch)
            SELECT offsets[e.i], 0, e.namespace, e.room,
                   CASE WHEN e.rooms IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.rooms::json)) END,
                   CASE WHEN e.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.skips::json)) END,
                   CASE WHEN e.skip_rooms IS NOT NULL THEN
                       ARRAY(SELECT json_array_elements_text(e.skip_rooms::json)) END,
                   e.body, e.parts, e.attachment, p_batch
            FROM unnest(p_namespaces, p_rooms, p_room_lists, p_skip_lists, p_skip_room_lists, p_bodies, p_parts,
                        p_attachments)
                WITH ORDINALITY AS e (namespace, room, rooms, skips, skip_rooms, body, parts, attachment, i)
            WHERE offsets[e.i] > 0;
        END IF;
        IF EXISTS (SELECT FROM unnest(p_room_lists) l WHERE l IS NOT NULL) THEN
            IF v_segment = 0 THEN
                INSERT INTO sio.sio_packet_rooms_0 (namespace, room, "offset")
                SELECT DISTINCT p_namespaces[l.i], x.room, offsets[l.i]
                FROM unnest(p_room_lists) WITH ORDINALITY AS l (rooms, i)
                    CROSS JOIN LATERAL json_array_elements_text(l.rooms::json) WITH ORDINALITY AS x (room, j)
                WHERE x.j > 1 AND offsets[l.i] > 0;
            ELSE
                INSERT INTO sio.sio_packet_rooms_1 (namespace, room, "offset")
                SELECT DISTINCT p_namespaces[l.i], x.room, offsets[l.i]
                FROM unnest(p_room_lists) WITH ORDINALITY AS l (rooms, i)
                    CROSS JOIN LATERAL json_array_elements_text(l.rooms::json) WITH ORDINALITY AS x (room, j)
                WHERE x.j > 1 AND offsets[l.i] > 0;
            END IF;
        END IF;
    ELSE
        FOR r IN SELECT * FROM unnest(p_kinds, p_namespaces, p_rooms, p_room_lists, p_skip_lists, p_skip_room_lists,
                                      p_sids, p_bodies, p_parts, p_attachments, p_args)
                     WITH ORDINALITY AS e (kind, namespace, room, rooms, skips, skip_rooms, sid, body, parts,
                                           attachment, args, i)
                 ORDER BY i
        LOOP
            v_offset := 0;
            v_result := NULL;
            CASE r.kind
            WHEN 0 THEN
                v_key := r.args::json->>'key';
                v_offset := CASE WHEN v_key IS NOT NULL THEN -sio.sio_keyed_event(r.namespace, v_key) END;
                v_rooms := NULL;
                v_skips := NULL;
                v_skip_rooms := NULL;
                IF r.rooms IS NOT NULL THEN
                    v_rooms := ARRAY(SELECT json_array_elements_text(r.rooms::json));
                END IF;
                IF r.skips IS NOT NULL THEN
                    v_skips := ARRAY(SELECT json_array_elements_text(r.skips::json));
                END IF;
                IF r.skip_rooms IS NOT NULL THEN
                    v_skip_rooms := ARRAY(SELECT json_array_elements_text(r.skip_rooms::json));
                END IF;
                -- The further rooms are written at once, because a claim behind the event in this batch reads them.
                IF v_offset IS NOT NULL THEN
                    v_key := NULL;  -- it is taken
                ELSIF v_segment = 0 THEN
                    INSERT INTO sio.sio_packets_0 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body,
                                                   parts, attachment, batch)
                    VALUES (nextval('sio.sio_packets_offset_seq'), 0, r.namespace, r.room, v_rooms, v_skips,
                            v_skip_rooms, r.body, r.parts, r.attachment, p_batch)
                    RETURNING "offset" INTO v_offset;
                    IF v_rooms IS NOT NULL THEN
                        INSERT INTO sio.sio_packet_rooms_0 (namespace, room, "offset")
                        SELECT DISTINCT r.namespace, x.room, v_offset FROM unnest(v_rooms[2:]) AS x (room);
                    END IF;
                ELSE
                    INSERT INTO sio.sio_packets_1 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body,
                                                   parts, attachment, batch)
                    VALUES (nextval('sio.sio_packets_offset_seq'), 0, r.namespace, r.room, v_rooms, v_skips,
                            v_skip_rooms, r.body, r.parts, r.attachment, p_batch)
                    RETURNING "offset" INTO v_offset;
                    IF v_rooms IS NOT NULL THEN
                        INSERT INTO sio.sio_packet_rooms_1 (namespace, room, "offset")
                        SELECT DISTINCT r.namespace, x.room, v_offset FROM unnest(v_rooms[2:]) AS x (room);
                    END IF;
                END IF;
                IF v_key IS NOT NULL THEN
                    PERFORM sio.sio_take_key(r.namespace, v_key, v_offset);
                END IF;
            WHEN 1, 2 THEN
                v_offset := sio.sio_move(p_batch, r.kind, r.namespace, r.room, r.sid, r.args::json);
            WHEN 3 THEN v_offset := sio.sio_close(p_batch, r.namespace, r.room);
            WHEN 4 THEN
                v_result := sio.sio_claim(p_batch, r.namespace, r.args::json);
                v_offset := coalesce((v_result->>'offset')::bigint, 0);
            WHEN 5 THEN v_offset := sio.sio_kick(p_batch, r.namespace, r.sid);
            WHEN 6, 7, 8 THEN  -- only from the relay
                v_offset := sio.sio_change_members(
                    p_batch, r.kind, r.namespace, ARRAY(SELECT json_array_elements_text(r.args::json->'members')),
                    CASE WHEN r.rooms IS NULL THEN ARRAY[r.room]
                         ELSE ARRAY(SELECT json_array_elements_text(r.rooms::json)) END,
                    ARRAY(SELECT json_array_elements_text(r.skips::json)),
                    ARRAY(SELECT json_array_elements_text(r.skip_rooms::json)));
            WHEN 10 THEN v_result := sio.sio_open(r.namespace, r.sid, r.body, r.args::json);
            WHEN 11 THEN v_result := sio.sio_settle(r.args::json);
            WHEN 12 THEN PERFORM sio.sio_release(r.args::json);
            WHEN 13 THEN v_result := sio.sio_end(r.args::json);
            WHEN 14 THEN v_result := sio.sio_save(r.namespace, r.sid, r.body, r.args::json);
            END CASE;
            offsets := array_append(offsets, v_offset);
            results := array_append(results, v_result::text);
        END LOOP;
        SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_last
        FROM sio.sio_packets_offset_seq;
    END IF;
    IF v_last > prev THEN
        SELECT channel INTO v_channel FROM sio.sio_log;
        -- The notification only rings while a listener sits idle in a transaction. The queue holds 8 GB, and once it is
        -- full every commit with a notification fails.
        PERFORM pg_notify(v_channel, CASE WHEN p_drain THEN '' ELSE 'relay ' END || prev || ' ' || v_last || CASE
            WHEN p_carry IS NULL OR v_last - prev < cardinality(p_kinds) OR pg_notification_queue_usage() > 0.1 THEN ''
            ELSE ' ' || p_carry END);
    END IF;
END $$;

-- Appends one event for one room, which is what a quiet node emits, and returns its offset. The offset before it is one
-- less, or belongs to a rolled-back transaction or a former epoch. If its key is taken, the function appends nothing, and
-- returns minus the offset of the event with that key.
--
-- It takes no arrays. Apart from the commit, they would take half of the time, here and in the client. It runs as few
-- statements as possible, since each one finds the processor's caches cold on a node that does other work in between.
CREATE FUNCTION sio.sio_append_event(p_batch bigint, p_namespace text, p_room text, p_body text, p_key text, p_carry text)
 RETURNS bigint
 LANGUAGE plpgsql
AS $$
DECLARE
    v_segment bigint; v_channel text; v_known boolean; v_offset bigint; v_notified varchar; v_relay bigint; v_last bigint;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    -- An assignment of a function is no query. A SELECT from the three sequences would take 10 us of 60.
    v_segment := coalesce(pg_sequence_last_value('sio.sio_active_segment'), 0);
    v_relay := pg_sequence_last_value('sio.sio_relay_state');
    v_last := pg_sequence_last_value('sio.sio_packets_offset_seq');  -- null before the first nextval(), when no epoch runs
    -- As in sio_last_in_epoch() and sio_is_behind(). The calls would take twice as long.
    SELECT l.channel,
           v_last >= l.floor AND EXISTS (
               SELECT FROM sio.sio_marker
               WHERE fingerprint = sio.sio_fingerprint() AND v_last - began_at BETWEEN 0 AND 1099511627774)
           AND (SELECT "offset" FROM sio.sio_packets_0 WHERE "offset" > v_last ORDER BY "offset" LIMIT 1) IS NULL
           AND (SELECT "offset" FROM sio.sio_packets_1 WHERE "offset" > v_last ORDER BY "offset" LIMIT 1) IS NULL
    INTO v_channel, v_known FROM sio.sio_log l;
    IF v_relay > 0 THEN
        PERFORM sio.sio_relay_drain();
    END IF;
    IF NOT v_known THEN
        PERFORM sio.sio_check_epoch();
    END IF;
    IF p_key IS NOT NULL THEN
        v_offset := -sio.sio_keyed_event(p_namespace, p_key);
        IF v_offset IS NOT NULL THEN
            RETURN v_offset;
        END IF;
    END IF;
    IF v_segment = 0 THEN
        INSERT INTO sio.sio_packets_0 AS p ("offset", kind, namespace, room, body, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), 0, p_namespace, p_room, p_body, p_batch)
        RETURNING p."offset", pg_notify(v_channel, concat(p."offset" - 1, ' ', p."offset", CASE
            WHEN pg_notification_queue_usage() <= 0.1 THEN ' ' || p_carry END))::varchar
        INTO v_offset, v_notified;
    ELSE
        INSERT INTO sio.sio_packets_1 AS p ("offset", kind, namespace, room, body, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), 0, p_namespace, p_room, p_body, p_batch)
        RETURNING p."offset", pg_notify(v_channel, concat(p."offset" - 1, ' ', p."offset", CASE
            WHEN pg_notification_queue_usage() <= 0.1 THEN ' ' || p_carry END))::varchar
        INTO v_offset, v_notified;
    END IF;
    IF p_key IS NOT NULL THEN
        PERFORM sio.sio_take_key(p_namespace, p_key, v_offset);
    END IF;
    RETURN v_offset;
END $$;

-- Returns the records of a batch whose answer was lost, above an offset known from before it. It waits until no append is
-- in progress. One statement waits and reads, for the same reason as in sio_move_members.
CREATE FUNCTION sio.sio_stored_batch(p_after bigint, p_batch bigint)
 RETURNS TABLE("offset" bigint, kind smallint)
 LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    RETURN QUERY
    SELECT p."offset", p.kind FROM sio.sio_packets p
    WHERE p."offset" > p_after AND p.batch = p_batch ORDER BY p."offset";
END $$;

-- Room changes, as entries of a batch. The caller holds the log's lock.

-- Bounds the memberships of a session that have ended: above a hundred of them, only the last fifty stay. A claim reads
-- them under the log's lock, so a client that enters and leaves a room 10,000 times would hold up all appends. If a
-- membership that goes had an event, a client at a lower offset cannot recover any more, because it would not get that
-- event. The event may be deleted already, which a floor says. The same holds if an event skips the room, because the
-- client would get that event.
CREATE FUNCTION sio.sio_forget_rooms(p_session bigint)
 RETURNS void
 LANGUAGE plpgsql
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
AS $$
DECLARE v_sid text := (SELECT sid FROM sio.sio_sessions WHERE id = p_session); v_lost bigint := 0; r record;
BEGIN
    FOR r IN DELETE FROM sio.sio_rooms x WHERE session = p_session AND left_at <= (
                 SELECT left_at FROM sio.sio_rooms WHERE session = p_session AND left_at IS NOT NULL
                 ORDER BY left_at DESC OFFSET 50 LIMIT 1)
             RETURNING namespace, room, joined_at, left_at
    LOOP
        v_lost := greatest(
            v_lost, (SELECT d FROM sio.sio_last_due(r.namespace, r.room, v_sid, r.joined_at, r.left_at) d),
            sio.sio_last_skipping(r.namespace, r.room, r.joined_at, r.left_at),
            (SELECT least(d, r.left_at - 1)
             FROM sio.sio_deleted(p_session, r.namespace, r.room, r.joined_at, r.left_at) d WHERE d > r.joined_at));
    END LOOP;
    UPDATE sio.sio_sessions SET lost_below = v_lost WHERE id = p_session AND lost_below < v_lost;
END $$;

-- Appends that a sid enters (kind 1) or leaves (kind 2) a room. Returns the offset, minus the offset of an earlier record
-- if nothing changed, 0 if the caller does not hold the sid any more, or null if the room is another client's own.
--
-- p_args: generation, if the caller means only the connection that it holds. member, to change nothing, and return 0 if
-- the sid is not in the room. as_of, for a room that the handler of a recovery leaves: the membership ends at the
-- offset that the client presented.
CREATE FUNCTION sio.sio_move(p_batch bigint, p_kind integer, p_namespace text, p_room text, p_sid text, p_args json)
 RETURNS bigint
 LANGUAGE plpgsql
AS $$
DECLARE
    v_session bigint; v_generation bigint; v_offset bigint; v_as_of bigint := (p_args->>'as_of')::bigint;
BEGIN
    SELECT id, generation INTO v_session, v_generation
    FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = p_sid;
    IF v_generation IS DISTINCT FROM coalesce((p_args->>'generation')::bigint, v_generation) THEN
        RETURN 0;
    END IF;
    SELECT joined_at INTO v_offset FROM sio.sio_rooms
    WHERE session = v_session AND room = p_room AND left_at IS NULL;
    IF p_kind = 1 THEN
        IF v_offset IS NOT NULL THEN
            RETURN -v_offset;
        END IF;
        IF p_args->>'member' IS NOT NULL THEN
            RETURN 0;
        ELSIF EXISTS (SELECT FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = p_room) THEN
            RETURN NULL;
        END IF;
        v_offset := sio.sio_put_record(p_batch, 1, p_namespace, p_room, p_sid, p_generation => v_generation);
        IF v_session IS NOT NULL THEN
            INSERT INTO sio.sio_rooms (session, room, joined_at, namespace)
            VALUES (v_session, p_room, v_offset, p_namespace);
            -- Every membership that ends has begun here, in sio_change_members, or with the session.
            IF EXISTS (SELECT FROM sio.sio_rooms WHERE session = v_session AND left_at IS NOT NULL
                       ORDER BY left_at OFFSET 100) THEN
                PERFORM sio.sio_forget_rooms(v_session);
            END IF;
        END IF;
        RETURN v_offset;
    END IF;
    IF v_session IS NOT NULL AND v_offset IS NULL AND v_as_of IS NULL THEN
        RETURN coalesce((SELECT -max(left_at) FROM sio.sio_rooms WHERE session = v_session AND room = p_room), 0);
    END IF;
    v_offset := sio.sio_put_record(p_batch, 2, p_namespace, p_room, p_sid, p_as_of => v_as_of);
    UPDATE sio.sio_rooms SET left_at = coalesce(v_as_of, v_offset)
    WHERE session = v_session AND room = p_room
      AND (left_at IS NULL OR left_at > v_as_of);
    DELETE FROM sio.sio_rooms  -- memberships that span no offset
    WHERE session = v_session AND room = p_room AND left_at <= joined_at + 1;
    RETURN v_offset;
END $$;

-- Appends that everybody leaves a room. Returns null if the room is a client's own.
CREATE FUNCTION sio.sio_close(p_batch bigint, p_namespace text, p_room text)
 RETURNS bigint
 LANGUAGE plpgsql
AS $$
DECLARE v_offset bigint;
BEGIN
    IF EXISTS (SELECT FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = p_room) THEN
        RETURN NULL;
    END IF;
    v_offset := sio.sio_put_record(p_batch, 3, p_namespace, p_room, NULL);
    UPDATE sio.sio_rooms SET left_at = v_offset
    WHERE namespace = p_namespace AND room = p_room AND left_at IS NULL;
    RETURN v_offset;
END $$;

-- Returns the sessions of the members of rooms, away or not. '' means everybody. Each of the three sources has an index.
-- Members of p_skip_rooms are left out.
CREATE FUNCTION sio.sio_members(p_namespace text, p_rooms text[], p_skip_sids text[], p_skip_rooms text[])
 RETURNS SETOF bigint
 LANGUAGE sql
 STABLE
AS $$
    SELECT s.id FROM sio.sio_sessions s
    WHERE (s.expires_at IS NULL OR s.expires_at > clock_timestamp()) AND s.sid <> ALL (p_skip_sids || p_skip_rooms)
      AND (p_skip_rooms = '{}' OR NOT EXISTS (
          SELECT FROM sio.sio_rooms k WHERE k.session = s.id AND k.room = ANY (p_skip_rooms) AND k.left_at IS NULL))
      AND s.id IN (
        SELECT session FROM sio.sio_rooms
        WHERE namespace = p_namespace AND room = ANY (p_rooms) AND left_at IS NULL
        UNION ALL
        SELECT id FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = ANY (p_rooms)
        UNION ALL
        SELECT id FROM sio.sio_sessions WHERE namespace = p_namespace AND '' = ANY (p_rooms))
$$;

-- Appends that the members of rooms enter (p_kind 6) or leave (7) each of the rooms p_targets, or are kicked (8). Returns
-- the offset, or null if a target is a client's own room.
--
-- It is one record for all members, because all appends would wait while ten thousand records are written. Each node
-- finds out which of its clients are members at that offset, so the record also reaches clients that are in no table.
-- Each kicked session has a record of its own before it. That holds the session data for the disconnect handler,
-- because the session is deleted.
CREATE FUNCTION sio.sio_change_members(p_batch bigint, p_kind integer, p_namespace text, p_members text[], p_targets text[], p_skip_sids text[], p_skip_rooms text[])
 RETURNS bigint
 LANGUAGE plpgsql
AS $$
DECLARE v_sessions bigint[]; v_offset bigint;
BEGIN
    IF p_kind = 6 AND EXISTS (
        SELECT FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = ANY (p_targets)) THEN
        RETURN NULL;
    END IF;
    v_sessions := ARRAY(SELECT sio.sio_members(p_namespace, p_members, p_skip_sids, p_skip_rooms));
    IF p_kind = 8 THEN
        IF (SELECT last_value FROM sio.sio_active_segment) = 0 THEN
            WITH gone AS (DELETE FROM sio.sio_sessions WHERE id = ANY (v_sessions) RETURNING sid, data)
            INSERT INTO sio.sio_packets_0 ("offset", kind, namespace, sid, data, batch)
            SELECT nextval('sio.sio_packets_offset_seq'), 5, p_namespace, sid, data, p_batch FROM gone;
        ELSE
            WITH gone AS (DELETE FROM sio.sio_sessions WHERE id = ANY (v_sessions) RETURNING sid, data)
            INSERT INTO sio.sio_packets_1 ("offset", kind, namespace, sid, data, batch)
            SELECT nextval('sio.sio_packets_offset_seq'), 5, p_namespace, sid, data, p_batch FROM gone;
        END IF;
        DELETE FROM sio.sio_rooms WHERE session = ANY (v_sessions);  -- no cascade in the replica role
    END IF;
    v_offset := sio.sio_put_record(
        p_batch, p_kind, p_namespace, p_targets[1], NULL, p_data => array_to_json(p_members)::text,
        p_rooms => CASE WHEN cardinality(p_targets) > 1 THEN p_targets END,
        p_skip_sids => CASE WHEN cardinality(p_skip_sids) > 0 THEN p_skip_sids END,
        p_skip_rooms => CASE WHEN cardinality(p_skip_rooms) > 0 THEN p_skip_rooms END);
    IF p_kind = 6 THEN
        INSERT INTO sio.sio_rooms (session, room, joined_at, namespace)
        SELECT m.session, t.room, v_offset, p_namespace
        FROM unnest(v_sessions) m (session) CROSS JOIN unnest(p_targets) t (room)
        WHERE NOT EXISTS (SELECT FROM sio.sio_rooms x
                          WHERE x.session = m.session AND x.room = t.room AND x.left_at IS NULL);
        PERFORM sio.sio_forget_rooms(s.id) FROM sio.sio_sessions s
        WHERE s.id = ANY (v_sessions)
          AND EXISTS (SELECT FROM sio.sio_rooms x WHERE x.session = s.id AND x.left_at IS NOT NULL
                      ORDER BY x.left_at OFFSET 100);
    ELSIF p_kind = 7 THEN
        UPDATE sio.sio_rooms SET left_at = v_offset
        WHERE session = ANY (v_sessions) AND room = ANY (p_targets) AND left_at IS NULL;
        DELETE FROM sio.sio_rooms  -- memberships that span no offset
        WHERE session = ANY (v_sessions) AND room = ANY (p_targets) AND joined_at = v_offset - 1;
    END IF;
    RETURN v_offset;
END $$;

-- Appends that members enter (p_kind 1) or leave (2) each of the rooms p_targets, or are kicked (5). The members are
-- those of the rooms p_rooms, away or not, where '' means everybody. The sids p_unstored, which have no session, are
-- added. The sids p_skip_sids and the members of p_skip_rooms are left out. All of it counts from one offset.
--
-- Lock, move and commit are one statement. If they were three, a node that vanished between them would hold the log's
-- lock until TCP gives up.
--
-- prev and offsets are those of sio_append_batch. offsets is empty if nobody moves. It is null, and nothing is written,
-- if a target is another client's own room.
CREATE FUNCTION sio.sio_move_members(p_batch bigint, p_kind smallint, p_namespace text, p_rooms text[], p_unstored text[], p_skip_sids text[], p_skip_rooms text[], p_targets text[], OUT prev bigint, OUT offsets bigint[])
 RETURNS record
 LANGUAGE plpgsql
AS $$
DECLARE v_rooms text[]; v_sids text[]; v_count integer;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    PERFORM sio.sio_relay_before();
    SELECT coalesce(array_agg(t.room), '{}'), array_agg(m.sid) INTO v_rooms, v_sids
    FROM (SELECT sid FROM sio.sio_sessions
          WHERE id IN (SELECT sio.sio_members(p_namespace, p_rooms, p_skip_sids, p_skip_rooms))
          UNION
          SELECT u.sid FROM unnest(p_unstored) u (sid) WHERE u.sid <> ALL (p_skip_sids || p_skip_rooms)) m
        CROSS JOIN unnest(p_targets) t (room)
    WHERE m.sid <> t.room;
    v_count := cardinality(v_rooms);
    IF v_count = 0 THEN
        offsets := '{}';
    ELSIF p_kind <> 1
          OR NOT EXISTS (SELECT FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = ANY (v_rooms)) THEN
        SELECT w.prev, w.offsets INTO prev, offsets
        FROM sio.sio_append_batch(
            p_batch, array_fill(p_kind, ARRAY[v_count]), array_fill(p_namespace, ARRAY[v_count]), v_rooms, NULL, NULL,
            NULL, v_sids, NULL, NULL, NULL, NULL, NULL) w;
    END IF;
END $$;

-- Sessions, as entries of a batch. The functions take and return JSON. The caller holds the log's lock.

-- Opens a session. p_args: pid_hash, identity (null for none), node, start, joined and stale (offsets, see
-- sio_sessions), cursor (of the node, when it noted the rooms) and rooms (an array of [room, joined, left]). Room
-- changes and kicks above the cursor are not in `rooms` yet, so the function follows them in log order. Returns the id,
-- or null as the id if the session was kicked. Returns null and opens nothing if `joined` is above the end of the log.
-- The node has then read another copy of the log, and the session would not be due the next events.
--
-- since: the positions from which rooms were entered, each as [offset, key of its epoch]. If the log has lost one of
-- them, or records above it, the id is null, and `lost` is true.
--
-- If retention is deleting records right now, and the session may be due some of them, the id is null, and `lost` is
-- false. Retention may not see this session, and would not note that its rooms lost records. The row lock on sio_log
-- keeps retention away until the commit, and nobody waits for that lock. Retention deletes no record of the last two
-- minutes, so most sessions need no lock. The others have positions, or their connect handler took minutes.
CREATE FUNCTION sio.sio_open(p_namespace text, p_sid text, p_data text, p_args json)
 RETURNS json
 LANGUAGE plpgsql
AS $$
DECLARE v_session bigint; v_start bigint := (p_args->>'start')::bigint; r record;
BEGIN
    IF (p_args->>'joined')::bigint > (SELECT last_value FROM sio.sio_packets_offset_seq) THEN
        RETURN NULL;
    END IF;
    IF p_args->>'since' IS NOT NULL
       OR least((SELECT created_at FROM sio.sio_packets_0 WHERE "offset" > v_start ORDER BY "offset" LIMIT 1),
                (SELECT created_at FROM sio.sio_packets_1 WHERE "offset" > v_start ORDER BY "offset" LIMIT 1))
          < clock_timestamp() - interval '1 minute' THEN
        PERFORM FROM sio.sio_log FOR SHARE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN json_build_object('id', NULL, 'lost', false);
        END IF;
    END IF;
    -- lost_below is the floor of the log. If the node is so far behind that the session starts below that, its rooms
    -- may have no floors, because those are kept only for existing sessions.
    INSERT INTO sio.sio_sessions (id, pid_hash, namespace, sid, identity, data, node, start_offset, joined_at,
                                  stale_offset, lost_below)
    VALUES (('x' || left(p_args->>'pid_hash', 15))::bit(60)::bigint, decode(p_args->>'pid_hash', 'hex'), p_namespace,
            p_sid, p_args->>'identity', p_data, (p_args->>'node')::uuid, v_start,
            (p_args->>'joined')::bigint, (p_args->>'stale')::bigint, (SELECT floor FROM sio.sio_log))
    ON CONFLICT (pid_hash) DO NOTHING
    RETURNING id INTO v_session;
    IF v_session IS NULL THEN  -- the same call, sent again
        RETURN (SELECT json_build_object('id', id) FROM sio.sio_sessions
                WHERE pid_hash = decode(p_args->>'pid_hash', 'hex'));
    END IF;
    IF p_args->>'since' IS NOT NULL AND (v_start < (SELECT floor FROM sio.sio_log) OR EXISTS (
        SELECT FROM json_array_elements(p_args->'since') x WHERE NOT sio.sio_in_log((x->>0)::bigint, x->>1))) THEN
        DELETE FROM sio.sio_sessions WHERE id = v_session;
        RETURN json_build_object('id', NULL, 'lost', true);
    END IF;
    INSERT INTO sio.sio_rooms (session, room, joined_at, left_at, namespace)
    SELECT v_session, x->>0, (x->>1)::bigint, (x->>2)::bigint, p_namespace
    FROM json_array_elements(p_args->'rooms') x;
    FOR r IN SELECT kind, room, rooms, skip_sids, skip_rooms, data, "offset" FROM sio.sio_packets
             WHERE "offset" > (p_args->>'cursor')::bigint AND namespace = p_namespace
               AND (sid = p_sid OR kind IN (3, 6, 7, 8))  -- events have no sid
             ORDER BY "offset"
    LOOP
        CONTINUE WHEN r.kind > 5 AND (
            p_sid = ANY (r.skip_sids)
            OR sio.sio_is_skipped(v_session, p_sid, r.skip_rooms, r."offset")
            OR NOT EXISTS (SELECT FROM json_array_elements_text(r.data::json) m (room)
                           WHERE m.room IN ('', p_sid) OR m.room IN (
                               SELECT x.room FROM sio.sio_rooms x WHERE x.session = v_session AND x.left_at IS NULL)));
        IF r.kind IN (1, 6) THEN
            INSERT INTO sio.sio_rooms (session, room, joined_at, namespace)
            SELECT v_session, t.room, r."offset", p_namespace FROM unnest(coalesce(r.rooms, ARRAY[r.room])) t (room)
            WHERE NOT EXISTS (SELECT FROM sio.sio_rooms x
                              WHERE x.session = v_session AND x.room = t.room AND x.left_at IS NULL);
        ELSIF r.kind IN (5, 8) THEN
            DELETE FROM sio.sio_sessions WHERE id = v_session;
            RETURN json_build_object('id', NULL);
        ELSIF r.kind IN (2, 3, 7) THEN
            UPDATE sio.sio_rooms SET left_at = r."offset"
            WHERE session = v_session AND room = ANY (coalesce(r.rooms, ARRAY[r.room])) AND left_at IS NULL;
            DELETE FROM sio.sio_rooms  -- memberships that span no offset
            WHERE session = v_session AND room = ANY (coalesce(r.rooms, ARRAY[r.room])) AND left_at <= joined_at + 1;
        END IF;
    END LOOP;
    RETURN json_build_object('id', v_session);
END $$;

-- Returns whether an offset is in this log: its epoch has the key that it was signed with, and did not end before it.
CREATE FUNCTION sio.sio_in_log(p_offset bigint, p_key text)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE
AS $$
BEGIN
    RETURN p_offset IS NULL OR EXISTS (
        SELECT FROM sio.sio_epochs e WHERE e.epoch = p_offset >> 40 AND encode(e.key, 'hex') = p_key
          AND p_offset <= coalesce((SELECT x.began_after FROM sio.sio_epochs x WHERE x.epoch > e.epoch
                                    ORDER BY x.epoch LIMIT 1), 9223372036854775807));
END $$;

-- Claims a session for a node. The newest claim wins, because it raises the generation. Returns everything that the
-- verdict needs. Returns null and changes nothing if there is no such session, or if it is another identity's.
--
-- p_args: pid_hash, identity (of the client, null for none), node, after (the client's offset, null for the start), key
-- (of the offset's epoch), missed (the cap), page (how many records may come along, 0 for none) and page_bytes.
-- The page holds the first events that the client missed, each as [offset, rooms, skip_sids, body]. It ends before
-- binary and before large bodies. `upto` is the offset that it reaches.
CREATE FUNCTION sio.sio_claim(p_batch bigint, p_namespace text, p_args json)
 RETURNS json
 LANGUAGE plpgsql
AS $$
DECLARE
    s sio.sio_sessions; n sio.sio_nodes; v_node uuid := (p_args->>'node')::uuid; v_offset bigint; v_after bigint;
    v_missed bigint; v_cap bigint := (p_args->>'missed')::bigint; v_held boolean := false; v_lost boolean := false;
    v_limit integer := (p_args->>'page')::integer; v_due integer; v_page json; v_upto bigint;
    v_carried integer;
BEGIN
    SELECT * INTO s FROM sio.sio_sessions
    WHERE pid_hash = decode(p_args->>'pid_hash', 'hex') AND namespace = p_namespace;
    IF s.id IS NULL OR s.expires_at <= clock_timestamp() OR s.identity IS DISTINCT FROM p_args->>'identity' THEN
        RETURN NULL;
    END IF;
    v_after := (p_args->>'after')::bigint;
    IF NOT sio.sio_in_log(v_after, p_args->>'key') THEN
        RETURN NULL;
    END IF;
    IF s.node IS NOT NULL THEN
        SELECT * INTO n FROM sio.sio_nodes WHERE id = s.node;
        IF sio.sio_node_expiry(n.died_at, n.recovery_seconds) <= clock_timestamp() THEN
            RETURN NULL;
        END IF;
        v_held := sio.sio_node_alive(n.number, n.role);
    END IF;
    v_offset := sio.sio_put_record(p_batch, 4, p_namespace, '', s.sid, p_generation => s.generation + 1,
                                   p_node => v_node);
    UPDATE sio.sio_sessions
    SET generation = s.generation + 1, node = v_node, expires_at = NULL,
        settled = CASE WHEN v_held THEN s.settled ELSE s.generation + 1 END
    WHERE id = s.id;
    v_after := greatest(v_after, s.start_offset);
    v_missed := v_offset - v_after;  -- an upper bound
    IF v_limit > 0 AND NOT v_held THEN
        SELECT count(*), count(*) FILTER (WHERE x.fits), max(x."offset") FILTER (WHERE x.fits),
               json_agg(json_build_array(x."offset", coalesce(x.rooms, ARRAY[x.room]), x.skip_sids, x.body)
                        ORDER BY x."offset") FILTER (WHERE x.fits)
        INTO v_due, v_carried, v_upto, v_page
        FROM (SELECT p."offset", p.room, p.rooms, p.skip_sids, p.body,
                     sum(octet_length(p.body)) OVER w <= (p_args->>'page_bytes')::integer
                     AND bool_and(p.attachment IS NULL AND p.parts IS NULL) OVER w AS fits
              FROM sio.sio_due(s.id, v_after, v_limit) d JOIN sio.sio_packets p ON p."offset" = d
              WINDOW w AS (ORDER BY p."offset")) x;
        v_upto := CASE WHEN v_due < v_limit AND v_carried = v_due THEN v_offset ELSE coalesce(v_upto, v_after) END;
    END IF;
    -- The floor is read after the page, because retention may have deleted records in the meantime.
    IF v_after < greatest(s.lost_below, (SELECT floor FROM sio.sio_log)) THEN
        v_lost := sio.sio_lost(s.id, v_after);
    END IF;
    IF v_due < v_limit THEN
        v_missed := v_due;
    ELSIF v_missed > v_cap THEN
        v_missed := NULL;
    END IF;
    RETURN json_build_object(
        'id', s.id, 'sid', s.sid, 'generation', s.generation + 1, 'data', s.data, 'start', s.start_offset,
        'joined', s.joined_at, 'stale', coalesce((p_args->>'after')::bigint = s.stale_offset, false),
        'former', CASE WHEN v_held THEN s.settled END, 'offset', v_offset, 'missed', v_missed, 'lost', v_lost,
        'page', coalesce(v_page, '[]'), 'upto', v_upto,
        'rooms', (SELECT coalesce(json_agg(json_build_array(room, joined_at, left_at)), '[]')
                  FROM sio.sio_rooms WHERE session = s.id AND (left_at IS NULL OR left_at > v_after)));
END $$;

-- Ends the writes of a claimed session's former holder. p_args: id, generation.
CREATE FUNCTION sio.sio_settle(p_args json)
 RETURNS json
 LANGUAGE sql
AS $$
    UPDATE sio.sio_sessions SET settled = generation
    WHERE id = (p_args->>'id')::bigint AND generation = (p_args->>'generation')::bigint
    RETURNING json_build_object('data', data)
$$;

-- Releases a session whose client is away. p_args: id, generation, seconds until it expires (null for ever) and since
-- (seconds for which the client has been away). If another node claimed the session in the meantime, that node is
-- notified that the former holder has let go. The claim is then settled. A later claim waits for that node, and not for
-- a release that was announced already.
CREATE FUNCTION sio.sio_release(p_args json)
 RETURNS void
 LANGUAGE plpgsql
AS $$
DECLARE s sio.sio_sessions; v_generation bigint := (p_args->>'generation')::bigint;
BEGIN
    SELECT * INTO s FROM sio.sio_sessions WHERE id = (p_args->>'id')::bigint;
    IF s.generation = v_generation THEN
        UPDATE sio.sio_sessions
        SET node = NULL, settled = generation,
            expires_at = CASE WHEN p_args->>'seconds' IS NULL THEN 'infinity'::timestamptz
                ELSE clock_timestamp() + make_interval(
                    secs => (p_args->>'seconds')::float8 - (p_args->>'since')::float8) END
        WHERE id = s.id;
    ELSIF s.settled = v_generation THEN
        UPDATE sio.sio_sessions SET settled = generation WHERE id = s.id;
        PERFORM pg_notify(channel, 'released ' || s.id || ' ' || v_generation)
        FROM sio.sio_nodes WHERE id = s.node;
    END IF;
END $$;

-- Ends a session. p_args: id, generation. A lower generation is in a copy of the log that lost the claim, and that
-- session ends, too.
CREATE FUNCTION sio.sio_end(p_args json)
 RETURNS json
 LANGUAGE sql
AS $$
    DELETE FROM sio.sio_sessions
    WHERE id = (p_args->>'id')::bigint AND generation <= (p_args->>'generation')::bigint
    RETURNING json_build_object('data', data)
$$;

-- Saves session data. p_args: id and generation, if the caller holds the session. A former holder may still write while
-- a claim waits for it. Without them the data is saved wherever the sid is. expected: the SHA-256 in hexadecimal of the
-- data that is to be replaced, if any other data is to stay. The same call, sent again, finds its own data.
CREATE FUNCTION sio.sio_save(p_namespace text, p_sid text, p_data text, p_args json)
 RETURNS json
 LANGUAGE sql
AS $$
    UPDATE sio.sio_sessions SET data = p_data
    WHERE namespace = p_namespace AND sid = p_sid
      AND CASE WHEN p_args->>'id' IS NULL THEN expires_at IS NULL OR expires_at > clock_timestamp()
          ELSE id = (p_args->>'id')::bigint AND (p_args->>'generation')::bigint IN (generation, settled) END
      AND (p_args->>'expected' IS NULL OR data = p_data
           OR encode(sha256(convert_to(data, 'UTF8')), 'hex') = p_args->>'expected')
    RETURNING json_build_object('id', id)
$$;

-- Ends the session of a sid, wherever it is, and appends a kick with the session data.
CREATE FUNCTION sio.sio_kick(p_batch bigint, p_namespace text, p_sid text)
 RETURNS bigint
 LANGUAGE plpgsql
AS $$
DECLARE v_session bigint; v_data text;
BEGIN
    DELETE FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = p_sid RETURNING id, data INTO v_session, v_data;
    DELETE FROM sio.sio_rooms WHERE session = v_session;  -- no cascade in the replica role
    RETURN sio.sio_put_record(p_batch, 5, p_namespace, '', p_sid, p_data => v_data);
END $$;

-- Replays: the events that a session missed, and whether some of them are gone.

-- Returns the memberships of a session above an offset. Everybody and its own room are among them.
CREATE FUNCTION sio.sio_memberships(p_session bigint, p_after bigint)
 RETURNS TABLE(namespace text, sid text, room text, joined_at bigint, left_at bigint)
 LANGUAGE sql
 STABLE
AS $$
    SELECT s.namespace, s.sid, x.room, s.joined_at, NULL::bigint
    FROM sio.sio_sessions s CROSS JOIN LATERAL (VALUES (''), (s.sid)) AS x (room)
    WHERE s.id = p_session
    UNION ALL
    SELECT s.namespace, s.sid, r.room, r.joined_at, r.left_at
    FROM sio.sio_sessions s JOIN sio.sio_rooms r ON r.session = s.id
    WHERE s.id = p_session AND (r.left_at IS NULL OR r.left_at > p_after)
$$;

-- Returns whether a session was in one of an event's skip_rooms at the offset of the event. Its own room is one, too.
CREATE FUNCTION sio.sio_is_skipped(p_session bigint, p_sid text, p_skip_rooms text[], p_offset bigint)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE
AS $$
BEGIN
    RETURN p_sid = ANY (p_skip_rooms) OR EXISTS (
        SELECT FROM sio.sio_rooms
        WHERE session = p_session AND room = ANY (p_skip_rooms) AND joined_at < p_offset
          AND (left_at IS NULL OR left_at > p_offset));
END $$;

-- Returns the offsets of the events that a session is due above p_after, in order, at most p_limit of them.
--
-- Each membership has an index scan of its own in each segment, with its own ORDER BY and LIMIT. The scans are then
-- merged. The segments are named, because a plan for sio_packets that was made while they were empty, and kept, would
-- read and sort all of their rows.
--
-- Two bounds give the room. If it were equal to a value, the primary key would have the right order, too, and PostgreSQL
-- would walk it through all events of other rooms (350 ms among 100,000, with fresh statistics). For the same reason the
-- settings force one plan for all values, without the methods that read more than the LIMIT asks for. `room <=` only
-- repeats the row comparison below it, which does not end a scan before PostgreSQL 18.
CREATE FUNCTION sio.sio_due(p_session bigint, p_after bigint, p_limit integer)
 RETURNS SETOF bigint
 LANGUAGE plpgsql
 STABLE ROWS 20
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
AS $$
BEGIN
    RETURN QUERY
    SELECT DISTINCT d."offset"
    FROM sio.sio_memberships(p_session, p_after) m CROSS JOIN LATERAL (
        (SELECT p."offset" FROM sio.sio_packets_0 p
         WHERE p.kind = 0 AND p.namespace = m.namespace AND p.room <= m.room
           AND (p.room, p."offset") > (m.room, greatest(p_after, m.joined_at))
           AND (p.room, p."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
           AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
           AND (p.skip_rooms IS NULL OR NOT sio.sio_is_skipped(p_session, m.sid, p.skip_rooms, p."offset"))
         ORDER BY p.room, p."offset" LIMIT p_limit)
        UNION ALL
        (SELECT x."offset" FROM sio.sio_packet_rooms_0 x JOIN sio.sio_packets_0 p ON p."offset" = x."offset"
         WHERE x.namespace = m.namespace AND x.room <= m.room
           AND (x.room, x."offset") > (m.room, greatest(p_after, m.joined_at))
           AND (x.room, x."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
           AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
           AND (p.skip_rooms IS NULL OR NOT sio.sio_is_skipped(p_session, m.sid, p.skip_rooms, p."offset"))
         ORDER BY x.room, x."offset" LIMIT p_limit)
        UNION ALL
        (SELECT p."offset" FROM sio.sio_packets_1 p
         WHERE p.kind = 0 AND p.namespace = m.namespace AND p.room <= m.room
           AND (p.room, p."offset") > (m.room, greatest(p_after, m.joined_at))
           AND (p.room, p."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
           AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
           AND (p.skip_rooms IS NULL OR NOT sio.sio_is_skipped(p_session, m.sid, p.skip_rooms, p."offset"))
         ORDER BY p.room, p."offset" LIMIT p_limit)
        UNION ALL
        (SELECT x."offset" FROM sio.sio_packet_rooms_1 x JOIN sio.sio_packets_1 p ON p."offset" = x."offset"
         WHERE x.namespace = m.namespace AND x.room <= m.room
           AND (x.room, x."offset") > (m.room, greatest(p_after, m.joined_at))
           AND (x.room, x."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
           AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
           AND (p.skip_rooms IS NULL OR NOT sio.sio_is_skipped(p_session, m.sid, p.skip_rooms, p."offset"))
         ORDER BY x.room, x."offset" LIMIT p_limit)
    ) d
    ORDER BY 1 LIMIT p_limit;
END $$;

-- Returns how many events there are for some rooms, each above an offset of its own. Counts up to p_limit. It is for a
-- session that is still to be opened. The scans are those of sio_history.
CREATE FUNCTION sio.sio_count_since(p_namespace text, p_rooms text[], p_afters bigint[], p_limit integer)
 RETURNS bigint
 LANGUAGE plpgsql
 STABLE
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
AS $$
BEGIN
    RETURN (SELECT count(*) FROM (
        SELECT DISTINCT d."offset"
        FROM unnest(p_rooms, p_afters) AS m (room, after) CROSS JOIN LATERAL (
            (SELECT p."offset" FROM sio.sio_packets_0 p
             WHERE p.kind = 0 AND p.namespace = p_namespace AND p.room <= m.room
               AND (p.room, p."offset") > (m.room, m.after)
             ORDER BY p.room, p."offset" LIMIT p_limit)
            UNION ALL
            (SELECT x."offset" FROM sio.sio_packet_rooms_0 x
             WHERE x.namespace = p_namespace AND x.room <= m.room AND (x.room, x."offset") > (m.room, m.after)
             ORDER BY x.room, x."offset" LIMIT p_limit)
            UNION ALL
            (SELECT p."offset" FROM sio.sio_packets_1 p
             WHERE p.kind = 0 AND p.namespace = p_namespace AND p.room <= m.room
               AND (p.room, p."offset") > (m.room, m.after)
             ORDER BY p.room, p."offset" LIMIT p_limit)
            UNION ALL
            (SELECT x."offset" FROM sio.sio_packet_rooms_1 x
             WHERE x.namespace = p_namespace AND x.room <= m.room AND (x.room, x."offset") > (m.room, m.after)
             ORDER BY x.room, x."offset" LIMIT p_limit)
        ) d LIMIT p_limit) c);
END $$;

-- Returns how many events a session is due above p_after and up to p_upto, counted up to p_limit.
CREATE FUNCTION sio.sio_missed(p_session bigint, p_after bigint, p_upto bigint, p_limit integer)
 RETURNS bigint
 LANGUAGE sql
 STABLE
AS $$
    SELECT count(*) FROM sio.sio_due(p_session, p_after, p_limit) d WHERE d <= p_upto
$$;

-- Returns the highest offset of the deleted events that a session was due by a membership. There is no row if retention
-- deleted no event of the room. An offset at or below p_joined_at means that the session lost nothing.
--
-- The membership has a floor of its own in sio_session_floors if it lost less than the room. That one counts, unless
-- retention has since deleted an event above it that the session may have been due.
CREATE FUNCTION sio.sio_deleted(p_session bigint, p_namespace text, p_room text, p_joined_at bigint, p_left_at bigint)
 RETURNS SETOF bigint
 LANGUAGE sql
 STABLE
AS $$
    SELECT CASE WHEN o.upto >= least(f."offset", p_left_at - 1) THEN o."offset" ELSE f."offset" END
    FROM sio.sio_room_floors f
    LEFT JOIN sio.sio_session_floors o ON o.session = p_session AND o.room = p_room AND o.joined_at = p_joined_at
    WHERE f.namespace = p_namespace AND f.room = p_room
$$;

-- Returns whether an event that a session is due above p_after is gone, or may be because its membership is not stored.
-- The deleted event of the room may lie above the end of the membership, so the end bounds it.
CREATE FUNCTION sio.sio_lost(p_session bigint, p_after bigint)
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $$
    SELECT EXISTS (SELECT FROM sio.sio_sessions WHERE id = p_session AND p_after < lost_below)
        OR p_after < (SELECT floor FROM sio.sio_log) AND EXISTS (
        SELECT FROM sio.sio_memberships(p_session, p_after) m
        CROSS JOIN LATERAL sio.sio_deleted(p_session, m.namespace, m.room, m.joined_at, m.left_at) d
        WHERE least(d, m.left_at - 1) > greatest(p_after, m.joined_at))
$$;

-- Returns the highest offset of the stored events of a room that do not skip a sid, between two offsets, both exclusive.
-- Null if there is none. Events that skip rooms count. A client that comes back may still leave such a room as of its
-- offset, and is due the event then. As in sio_due, two bounds give the room, and the callers force one plan for all values. These
-- scans run backwards, so the lower bound is the one that is repeated.
CREATE FUNCTION sio.sio_last_due(p_namespace text, p_room text, p_sid text, p_above bigint, p_below bigint)
 RETURNS SETOF bigint
 LANGUAGE sql
 STABLE
AS $$
    SELECT greatest(
        (SELECT "offset" FROM sio.sio_packets_0
         WHERE kind = 0 AND namespace = p_namespace AND room >= p_room
           AND (room, "offset") > (p_room, p_above) AND (room, "offset") < (p_room, p_below)
           AND NOT p_sid = ANY (coalesce(skip_sids, ARRAY[]::text[]))
         ORDER BY room DESC, "offset" DESC LIMIT 1),
        (SELECT "offset" FROM sio.sio_packets_1
         WHERE kind = 0 AND namespace = p_namespace AND room >= p_room
           AND (room, "offset") > (p_room, p_above) AND (room, "offset") < (p_room, p_below)
           AND NOT p_sid = ANY (coalesce(skip_sids, ARRAY[]::text[]))
         ORDER BY room DESC, "offset" DESC LIMIT 1),
        (SELECT x."offset" FROM sio.sio_packet_rooms_0 x JOIN sio.sio_packets_0 p ON p."offset" = x."offset"
         WHERE x.namespace = p_namespace AND x.room >= p_room
           AND (x.room, x."offset") > (p_room, p_above) AND (x.room, x."offset") < (p_room, p_below)
           AND NOT p_sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
         ORDER BY x.room DESC, x."offset" DESC LIMIT 1),
        (SELECT x."offset" FROM sio.sio_packet_rooms_1 x JOIN sio.sio_packets_1 p ON p."offset" = x."offset"
         WHERE x.namespace = p_namespace AND x.room >= p_room
           AND (x.room, x."offset") > (p_room, p_above) AND (x.room, x."offset") < (p_room, p_below)
           AND NOT p_sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
         ORDER BY x.room DESC, x."offset" DESC LIMIT 1))
$$;

-- Returns the highest offset of the stored events that skip the members of a room, between two offsets, both exclusive.
-- Null if there is none. It looks at a thousand of the events that skip any room, and counts the last one that it reaches.
CREATE FUNCTION sio.sio_last_skipping(p_namespace text, p_room text, p_above bigint, p_below bigint)
 RETURNS bigint
 LANGUAGE sql
 STABLE
AS $$
    SELECT max(x."offset") FROM (
        (SELECT "offset", row_number() OVER (ORDER BY "offset" DESC) = 1000 OR namespace = p_namespace
                AND p_room = ANY (skip_rooms) AS counts
         FROM sio.sio_packets_0
         WHERE skip_rooms IS NOT NULL AND "offset" > p_above AND "offset" < p_below
         ORDER BY "offset" DESC LIMIT 1000)
        UNION ALL
        (SELECT "offset", row_number() OVER (ORDER BY "offset" DESC) = 1000 OR namespace = p_namespace
                AND p_room = ANY (skip_rooms)
         FROM sio.sio_packets_1
         WHERE skip_rooms IS NOT NULL AND "offset" > p_above AND "offset" < p_below
         ORDER BY "offset" DESC LIMIT 1000)) x
    WHERE x.counts
$$;

-- History: the stored events of a room, for applications.

-- Returns the offsets of at most p_limit events that were emitted to a room. These are the first above p_after, in
-- order. If p_after is null, they are the last up to p_upto, in reverse order. The comment above sio_due explains the
-- bounds and the settings.
--
-- A scan has one bound on offsets, and LIMIT ends it. With p_after, p_upto is applied after that LIMIT. As a bound it
-- would not end a scan before PostgreSQL 18.
CREATE FUNCTION sio.sio_history(p_namespace text, p_room text, p_after bigint, p_upto bigint, p_limit integer)
 RETURNS SETOF bigint
 LANGUAGE plpgsql
 STABLE ROWS 20
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
AS $$
BEGIN
    IF p_after IS NOT NULL THEN
        RETURN QUERY
        SELECT e."offset" FROM (
            SELECT DISTINCT h."offset" FROM (
                (SELECT p."offset" FROM sio.sio_packets_0 p
                 WHERE p.kind = 0 AND p.namespace = p_namespace AND p.room <= p_room
                   AND (p.room, p."offset") > (p_room, p_after)
                 ORDER BY p.room, p."offset" LIMIT p_limit)
                UNION ALL
                (SELECT x."offset" FROM sio.sio_packet_rooms_0 x
                 WHERE x.namespace = p_namespace AND x.room <= p_room AND (x.room, x."offset") > (p_room, p_after)
                 ORDER BY x.room, x."offset" LIMIT p_limit)
                UNION ALL
                (SELECT p."offset" FROM sio.sio_packets_1 p
                 WHERE p.kind = 0 AND p.namespace = p_namespace AND p.room <= p_room
                   AND (p.room, p."offset") > (p_room, p_after)
                 ORDER BY p.room, p."offset" LIMIT p_limit)
                UNION ALL
                (SELECT x."offset" FROM sio.sio_packet_rooms_1 x
                 WHERE x.namespace = p_namespace AND x.room <= p_room AND (x.room, x."offset") > (p_room, p_after)
                 ORDER BY x.room, x."offset" LIMIT p_limit)
            ) h ORDER BY 1 LIMIT p_limit) e
        WHERE e."offset" <= p_upto;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT DISTINCT h."offset" FROM (
        (SELECT p."offset" FROM sio.sio_packets_0 p
         WHERE p.kind = 0 AND p.namespace = p_namespace AND p.room >= p_room
           AND (p.room, p."offset") <= (p_room, p_upto)
         ORDER BY p.room DESC, p."offset" DESC LIMIT p_limit)
        UNION ALL
        (SELECT x."offset" FROM sio.sio_packet_rooms_0 x
         WHERE x.namespace = p_namespace AND x.room >= p_room AND (x.room, x."offset") <= (p_room, p_upto)
         ORDER BY x.room DESC, x."offset" DESC LIMIT p_limit)
        UNION ALL
        (SELECT p."offset" FROM sio.sio_packets_1 p
         WHERE p.kind = 0 AND p.namespace = p_namespace AND p.room >= p_room
           AND (p.room, p."offset") <= (p_room, p_upto)
         ORDER BY p.room DESC, p."offset" DESC LIMIT p_limit)
        UNION ALL
        (SELECT x."offset" FROM sio.sio_packet_rooms_1 x
         WHERE x.namespace = p_namespace AND x.room >= p_room AND (x.room, x."offset") <= (p_room, p_upto)
         ORDER BY x.room DESC, x."offset" DESC LIMIT p_limit)
    ) h ORDER BY 1 DESC LIMIT p_limit;
END $$;

-- Presence: which nodes live.

-- Returns whether a node lives: a backend of its own role holds its lock. The role counts, because any role may take
-- advisory locks.
CREATE FUNCTION sio.sio_node_alive(p_number integer, p_role oid)
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $$
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
          AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
          AND l.classid = 'sio.sio_nodes'::regclass::oid AND l.objid = p_number::bigint::oid
          AND a.usesysid = p_role)
$$;

-- Returns when the sessions of a dead node expire: null while it lives, infinity if they never do.
CREATE FUNCTION sio.sio_node_expiry(p_died_at timestamp with time zone, p_seconds double precision)
 RETURNS timestamp with time zone
 LANGUAGE sql
 IMMUTABLE
AS $$
    SELECT CASE WHEN p_died_at IS NULL THEN NULL
                WHEN p_seconds IS NULL THEN 'infinity'::timestamptz
                ELSE p_died_at + make_interval(secs => p_seconds) END
$$;

-- Checks which nodes live. A node is dead when two checks ten seconds apart found no lock, and its sessions expire from
-- then on. Returns how many nodes are missing but not dead yet.
CREATE FUNCTION sio.sio_check_nodes()
 RETURNS integer
 LANGUAGE plpgsql
AS $$
DECLARE n record; v_missing integer := 0;
BEGIN
    FOR n IN SELECT * FROM sio.sio_nodes WHERE stopped_at IS NULL AND died_at IS NULL LOOP
        IF sio.sio_node_alive(n.number, n.role) THEN
            UPDATE sio.sio_nodes SET missed_at = NULL WHERE id = n.id AND missed_at IS NOT NULL;
        ELSIF n.missed_at IS NULL THEN
            UPDATE sio.sio_nodes SET missed_at = clock_timestamp() WHERE id = n.id AND missed_at IS NULL;
            v_missing := v_missing + 1;
        ELSIF n.missed_at > clock_timestamp() - interval '10 seconds' THEN
            v_missing := v_missing + 1;
        ELSE
            UPDATE sio.sio_nodes SET died_at = clock_timestamp() WHERE id = n.id AND died_at IS NULL;
        END IF;
    END LOOP;
    RETURN v_missing;
END $$;

-- Expiry: the end of sessions whose time is up.

-- Returns the expired sessions, those of dead nodes included.
CREATE FUNCTION sio.sio_expired()
 RETURNS SETOF sio.sio_sessions
 LANGUAGE sql
 STABLE
AS $$
    SELECT * FROM sio.sio_sessions WHERE expires_at <= clock_timestamp()
    UNION ALL
    SELECT s.* FROM sio.sio_nodes n JOIN sio.sio_sessions s ON s.node = n.id
    WHERE sio.sio_node_expiry(n.died_at, n.recovery_seconds) <= clock_timestamp()
$$;

-- Deletes expired sessions for which no handler is to be called, and returns how many.
CREATE FUNCTION sio.sio_expire(p_limit integer)
 RETURNS integer
 LANGUAGE plpgsql
AS $$
DECLARE v_count integer;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;  -- before any row, like every function that changes a session
    PERFORM sio.sio_check_isolation();
    WITH gone AS (
        DELETE FROM sio.sio_sessions WHERE id IN (
            SELECT e.id FROM sio.sio_expired() e
            WHERE NOT EXISTS (SELECT FROM sio.sio_expiry_handlers h WHERE h.namespace IN (e.namespace, '*'))
            LIMIT p_limit)
        RETURNING id
    )
    SELECT count(*) INTO v_count FROM gone;
    RETURN v_count;
END $$;

-- Takes expired sessions for the handlers of a node. They cannot be claimed any more, and a former holder that comes back
-- holds them no more. Sessions that a node took before it died are taken again.
CREATE FUNCTION sio.sio_take_expired(p_namespaces text[], p_node uuid, p_limit integer)
 RETURNS TABLE(id bigint, namespace text, sid text, data text)
 LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    RETURN QUERY
    UPDATE sio.sio_sessions s
    SET node = NULL, expires_at = least(s.expires_at, clock_timestamp()), generation = s.generation + 1,
        expiry_node = p_node, expiry_taken_at = clock_timestamp()
    WHERE s.id IN (
        SELECT e.id FROM sio.sio_expired() e LEFT JOIN sio.sio_nodes n ON n.id = e.expiry_node
        WHERE (e.namespace = ANY (p_namespaces) OR '*' = ANY (p_namespaces))
          AND (n.id IS NULL OR n.stopped_at IS NOT NULL OR NOT sio.sio_node_alive(n.number, n.role)
               OR e.expiry_taken_at < clock_timestamp() - interval '10 minutes')
        LIMIT p_limit)
    RETURNING s.id, s.namespace, s.sid, s.data;
END $$;

-- Deletes expired sessions whose handlers a node has called. Like every function that changes a session, it takes the
-- log's lock first. If it locked rows before, it could deadlock with a kick or with a TRUNCATE of the log.
CREATE FUNCTION sio.sio_delete_expired(p_sessions bigint[], p_node uuid)
 RETURNS void
 LANGUAGE plpgsql
AS $$
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    DELETE FROM sio.sio_sessions WHERE id = ANY (p_sessions) AND expiry_node = p_node;
END $$;

-- Retention: the end of records whose time is up. A segment goes as a whole if that is possible. Records are deleted one
-- by one while the log is small, while a segment cannot be locked at once (because pg_dump reads it, for example), and if
-- the role may not truncate.

-- Locks a segment for no longer than a moment, and returns whether it could. Nobody has to wait behind this lock. It is
-- tried for half a second, since a reader takes less than a millisecond.
CREATE FUNCTION sio.sio_lock_segment(p_segment integer)
 RETURNS boolean
 LANGUAGE plpgsql
AS $$
BEGIN
    FOR i IN 1..50 LOOP
        BEGIN
            IF p_segment = 0 THEN
                LOCK TABLE sio.sio_packets_0, sio.sio_packet_rooms_0 IN ACCESS EXCLUSIVE MODE NOWAIT;
            ELSE
                LOCK TABLE sio.sio_packets_1, sio.sio_packet_rooms_1 IN ACCESS EXCLUSIVE MODE NOWAIT;
            END IF;
            RETURN true;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.005 + random() * 0.01);
        END;
    END LOOP;
    RETURN false;
END $$;

-- Returns whether this role may truncate both segments.
CREATE FUNCTION sio.sio_may_truncate()
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $$
    SELECT bool_and(has_table_privilege(t, 'TRUNCATE')) FROM unnest(ARRAY[
        'sio.sio_packets_0', 'sio.sio_packets_1', 'sio.sio_packet_rooms_0', 'sio.sio_packet_rooms_1'
    ]::regclass[]) t
$$;

-- Truncates a segment that retention has locked. The setting keeps sio_truncated from ending sessions. It is local to
-- the transaction, and an error takes it back with the subtransaction. The function does not SET it in its definition,
-- because only a superuser may create such a function.
CREATE FUNCTION sio.sio_empty_segment(p_segment integer)
 RETURNS void
 LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM set_config('sio_pg_adapter.retention', 'on', true);
    IF p_segment = 0 THEN
        TRUNCATE sio.sio_packets_0, sio.sio_packet_rooms_0;
    ELSE
        TRUNCATE sio.sio_packets_1, sio.sio_packet_rooms_1;
    END IF;
    PERFORM set_config('sio_pg_adapter.retention', 'off', true);
END $$;

-- Makes the other segment the active one, if it is empty and the switch is worth it: the active segment has over 16 MB
-- and a record older than p_keep seconds. Returns whether it did. The empty segment is truncated, too. VACUUM may have
-- noted that its size is zero, and plans made for that size would read all of its later rows.
CREATE FUNCTION sio.sio_switch_segment(p_keep double precision)
 RETURNS boolean
 LANGUAGE plpgsql
AS $$
DECLARE v_segment bigint := (SELECT last_value FROM sio.sio_active_segment); v_due boolean;
BEGIN
    PERFORM sio.sio_check_isolation();
    PERFORM FROM sio.sio_log FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;  -- another node is doing this
    END IF;
    IF v_segment = 0 THEN
        SELECT created_at < clock_timestamp() - make_interval(secs => p_keep)
               AND pg_table_size('sio.sio_packets_0') > 16777216
               AND NOT EXISTS (SELECT FROM sio.sio_packets_1)
               AND sio.sio_may_truncate()
        INTO v_due FROM sio.sio_packets_0 ORDER BY "offset" LIMIT 1;
        -- It is null if the segment is empty, and `null AND` would call the function.
        IF v_due IS TRUE AND sio.sio_lock_segment(1) THEN
            IF EXISTS (SELECT FROM sio.sio_packets_1) THEN
                RETURN false;  -- before the lock another node switched to it, or appended late
            END IF;
            PERFORM sio.sio_empty_segment(1);
            PERFORM setval('sio.sio_active_segment', 1);
            RETURN true;
        END IF;
    ELSE
        SELECT created_at < clock_timestamp() - make_interval(secs => p_keep)
               AND pg_table_size('sio.sio_packets_1') > 16777216
               AND NOT EXISTS (SELECT FROM sio.sio_packets_0)
               AND sio.sio_may_truncate()
        INTO v_due FROM sio.sio_packets_1 ORDER BY "offset" LIMIT 1;
        IF v_due IS TRUE AND sio.sio_lock_segment(0) THEN
            IF EXISTS (SELECT FROM sio.sio_packets_0) THEN
                RETURN false;
            END IF;
            PERFORM sio.sio_empty_segment(0);
            PERFORM setval('sio.sio_active_segment', 0);
            RETURN true;
        END IF;
    END IF;
    RETURN false;
END $$;

-- Returns whether a session may ask for the floor of a room. It does if it became a member below the floor. So there
-- are no more floors than memberships, however many rooms there ever were.
CREATE FUNCTION sio.sio_needs_floor(p_namespace text, p_room text, p_floor bigint)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM sio.sio_rooms
                   WHERE namespace = p_namespace AND room = p_room AND joined_at < p_floor)
        OR EXISTS (SELECT FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = p_room)
        OR p_room = '' AND EXISTS (SELECT FROM sio.sio_sessions WHERE namespace = p_namespace);
END $$;

-- Raises the floors of rooms whose events retention is about to delete. p_lasts: the last of these events in each room.
-- p_floor and p_upto: the floor of the log before and after. The caller deletes nothing before this.
--
-- The floor of a room is too high for a session that was not due the last deleted event. It had left the room, or the
-- event skipped its sid. Such a session gets a floor of its own. So a client recovers that skips its own events, or
-- that left a busy room.
--
-- A node could not write these floors when it releases a session. It knows what it sent, but not what the client
-- received, because events may be on their way when a connection breaks. A node that is killed would write nothing.
--
-- At most 10,000 memberships get a floor at a time, which takes less than a second. For the others the floor of the room
-- counts, which is never too low.
CREATE FUNCTION sio.sio_raise_floors(p_floor bigint, p_upto bigint, p_namespaces text[], p_rooms text[], p_lasts bigint[])
 RETURNS void
 LANGUAGE plpgsql
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
AS $$
BEGIN
    INSERT INTO sio.sio_session_floors (session, room, joined_at, "offset", upto)
    SELECT m.session, m.room, m.joined_at,
           coalesce(greatest(
               (SELECT d FROM sio.sio_deleted(m.session, m.namespace, m.room, m.joined_at, m.left_at) d),
               (SELECT d FROM sio.sio_last_due(m.namespace, m.room, m.sid, p_floor, least(m.left_at, p_upto + 1)) d)),
               0),
           p_upto
    FROM (
        SELECT r.session, r.namespace, s.sid, r.room, r.joined_at, r.left_at
        FROM unnest(p_namespaces, p_rooms, p_lasts) AS t (namespace, room, last)
        JOIN sio.sio_rooms r ON r.namespace = t.namespace AND r.room = t.room AND r.left_at <= t.last
        JOIN sio.sio_sessions s ON s.id = r.session
        WHERE NOT EXISTS (SELECT FROM sio.sio_session_floors o
                          WHERE o.session = r.session AND o.room = r.room AND o.joined_at = r.joined_at
                            AND o.upto >= r.left_at - 1)
        UNION
        SELECT s.id, t.namespace, s.sid, t.room, m.joined_at, m.left_at
        FROM unnest(p_namespaces, p_rooms, p_lasts) AS t (namespace, room, last)
        CROSS JOIN LATERAL (
            SELECT skip_sids FROM sio.sio_packets_0 WHERE "offset" = t.last
            UNION ALL
            SELECT skip_sids FROM sio.sio_packets_1 WHERE "offset" = t.last) p
        CROSS JOIN LATERAL unnest(p.skip_sids) AS x (sid)
        JOIN sio.sio_sessions s ON s.namespace = t.namespace AND s.sid = x.sid
        CROSS JOIN LATERAL sio.sio_memberships(s.id, t.last) m
        WHERE m.room = t.room AND m.joined_at < t.last) m
    LIMIT 10000
    ON CONFLICT (session, room, joined_at) DO UPDATE SET "offset" = excluded."offset", upto = excluded.upto;
    INSERT INTO sio.sio_room_floors AS f (namespace, room, "offset")
    SELECT * FROM unnest(p_namespaces, p_rooms, p_lasts)
    ON CONFLICT (namespace, room) DO UPDATE SET "offset" = greatest(f."offset", excluded."offset");
END $$;

-- Truncates the segment that is not active, if all of its records are older than p_keep seconds. Returns how many they
-- were, and 0 if it is too early. Returns null if the segment is empty, if records of the active segment lie between its
-- records, or if the role may not truncate. The caller has locked the row of sio_log.
CREATE FUNCTION sio.sio_truncate_segment(p_keep double precision)
 RETURNS integer
 LANGUAGE plpgsql
AS $$
DECLARE
    v_segment integer := (SELECT 1 - last_value FROM sio.sio_active_segment);
    v_last bigint; v_last_locked bigint; v_first bigint; v_youngest timestamptz; v_count integer;
    v_namespaces text[]; v_rooms text[]; v_lasts bigint[];
    v_before timestamptz := clock_timestamp() - make_interval(secs => p_keep);
BEGIN
    IF v_segment = 0 THEN
        SELECT "offset", created_at INTO v_last, v_youngest FROM sio.sio_packets_0 ORDER BY "offset" DESC LIMIT 1;
        SELECT min("offset") INTO v_first FROM sio.sio_packets_1;
    ELSE
        SELECT "offset", created_at INTO v_last, v_youngest FROM sio.sio_packets_1 ORDER BY "offset" DESC LIMIT 1;
        SELECT min("offset") INTO v_first FROM sio.sio_packets_0;
    END IF;
    IF v_last IS NULL OR v_first < v_last OR NOT sio.sio_may_truncate() THEN
        RETURN NULL;
    ELSIF v_youngest >= v_before THEN
        RETURN 0;
    END IF;
    -- Floors that no session can ask for are left out.
    IF v_segment = 0 THEN
        WITH rooms AS (
            SELECT namespace, room, kind = 0 AS counts, max("offset") AS last, max(created_at) AS youngest,
                   count(*) AS records
            FROM sio.sio_packets_0 GROUP BY 1, 2, 3
            UNION ALL
            SELECT namespace, room, true, max("offset"), NULL, 0 FROM sio.sio_packet_rooms_0 GROUP BY 1, 2
        ), floors AS (
            SELECT namespace, room, max(last) AS last FROM rooms
            WHERE counts AND last > (SELECT min(start_offset) FROM sio.sio_sessions)
            GROUP BY 1, 2 HAVING sio.sio_needs_floor(namespace, room, max(last))
        )
        SELECT (SELECT sum(records) FROM rooms), (SELECT max(youngest) FROM rooms),
               array_agg(namespace), array_agg(room), array_agg(last)
        INTO v_count, v_youngest, v_namespaces, v_rooms, v_lasts FROM floors;
        DELETE FROM sio.sio_attachments a USING sio.sio_packets_0 p
        WHERE p.attachment IS NOT NULL AND a.id = p.attachment;
    ELSE
        WITH rooms AS (
            SELECT namespace, room, kind = 0 AS counts, max("offset") AS last, max(created_at) AS youngest,
                   count(*) AS records
            FROM sio.sio_packets_1 GROUP BY 1, 2, 3
            UNION ALL
            SELECT namespace, room, true, max("offset"), NULL, 0 FROM sio.sio_packet_rooms_1 GROUP BY 1, 2
        ), floors AS (
            SELECT namespace, room, max(last) AS last FROM rooms
            WHERE counts AND last > (SELECT min(start_offset) FROM sio.sio_sessions)
            GROUP BY 1, 2 HAVING sio.sio_needs_floor(namespace, room, max(last))
        )
        SELECT (SELECT sum(records) FROM rooms), (SELECT max(youngest) FROM rooms),
               array_agg(namespace), array_agg(room), array_agg(last)
        INTO v_count, v_youngest, v_namespaces, v_rooms, v_lasts FROM floors;
        DELETE FROM sio.sio_attachments a USING sio.sio_packets_1 p
        WHERE p.attachment IS NOT NULL AND a.id = p.attachment;
    END IF;
    DELETE FROM sio.sio_keys WHERE "offset" > (SELECT floor FROM sio.sio_log) AND "offset" <= v_last;
    PERFORM sio.sio_raise_floors((SELECT floor FROM sio.sio_log), v_last, v_namespaces, v_rooms, v_lasts);
    IF v_youngest < v_before AND sio.sio_lock_segment(v_segment) THEN
        IF v_segment = 0 THEN
            SELECT max("offset") INTO v_last_locked FROM sio.sio_packets_0;
        ELSE
            SELECT max("offset") INTO v_last_locked FROM sio.sio_packets_1;
        END IF;
    END IF;
    IF v_last_locked IS DISTINCT FROM v_last THEN  -- a young record among the old, a reader that stays, or a late append
        RAISE lock_not_available;
    END IF;
    PERFORM sio.sio_empty_segment(v_segment);
    UPDATE sio.sio_log SET floor = greatest(floor, v_last);
    RETURN v_count;
EXCEPTION WHEN lock_not_available THEN
    RETURN 0;  -- all of it is taken back
END $$;

-- Deletes the oldest records if they are older than p_keep seconds: a segment as a whole, else at most p_limit records.
-- Returns how many. The floors move in the same transaction, so a reader sees either the records or that they are gone.
CREATE FUNCTION sio.sio_trim(p_keep double precision, p_limit integer)
 RETURNS integer
 LANGUAGE plpgsql
AS $$
DECLARE v_floor bigint; v_upto bigint; v_count integer; v_namespaces text[]; v_rooms text[]; v_lasts bigint[];
BEGIN
    PERFORM sio.sio_check_isolation();
    SELECT floor INTO v_floor FROM sio.sio_log FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;  -- another node is doing this
    END IF;
    v_count := sio.sio_truncate_segment(p_keep);
    IF v_count IS NOT NULL THEN
        RETURN v_count;
    END IF;
    SELECT max(x."offset") FILTER (WHERE x.old) INTO v_upto FROM (
        SELECT o."offset", bool_and(o.created_at < clock_timestamp() - make_interval(secs => p_keep))
            OVER (ORDER BY o."offset") AS old
        FROM (SELECT "offset", created_at FROM sio.sio_packets
              WHERE "offset" > v_floor ORDER BY "offset" LIMIT p_limit) o) x;
    IF v_upto IS NULL THEN
        RETURN 0;
    END IF;
    SELECT array_agg(f.namespace), array_agg(f.room), array_agg(f.last) INTO v_namespaces, v_rooms, v_lasts
    FROM (SELECT g.namespace, g.room, max(g."offset") AS last
          FROM (SELECT namespace, room, "offset" FROM sio.sio_packets
                WHERE kind = 0 AND "offset" > v_floor AND "offset" <= v_upto
                UNION ALL
                SELECT namespace, room, "offset" FROM sio.sio_packet_rooms
                WHERE "offset" > v_floor AND "offset" <= v_upto) g
          GROUP BY 1, 2 HAVING sio.sio_needs_floor(g.namespace, g.room, max(g."offset"))) f;
    PERFORM sio.sio_raise_floors(v_floor, v_upto, v_namespaces, v_rooms, v_lasts);
    -- From the floor on: deleted rows are still in the index, and a scan from its start would walk them each time.
    DELETE FROM sio.sio_packet_rooms WHERE "offset" > v_floor AND "offset" <= v_upto;
    DELETE FROM sio.sio_keys WHERE "offset" > v_floor AND "offset" <= v_upto;
    WITH gone AS (
        DELETE FROM sio.sio_packets WHERE "offset" > v_floor AND "offset" <= v_upto RETURNING attachment
    ), bodies AS (
        DELETE FROM sio.sio_attachments a USING gone g WHERE a.id = g.attachment
    )
    SELECT count(*) INTO v_count FROM gone;
    UPDATE sio.sio_log SET floor = v_upto;
    RETURN v_count;
END $$;

-- The relay: transactional emits without the log's lock and without NOTIFY.
--
-- While the relay is on, events, room changes and kicks of an application's transaction are only inserted into sio_relay.
-- A node moves committed rows to the log in batches, every few milliseconds.
--
-- Order. One statement finds the committed rows. If a transaction B knows of the commit of A, then A committed before B
-- did, so a statement that sees rows of B sees those of A. If B emitted after that, its rows have higher ids, because the
-- sequence of the ids has no cache. Transactions are ordered by their last ids. So all rows of A come before all rows of B,
-- and the rows of one transaction stay together. They are moved in this order, in batches of whole transactions. If several
-- nodes move rows at once, the first one moves each row. A node that moves B has moved A before, or another node has. A
-- crash may take the move of A back. It ends the epoch, and the node then finds the rows again.
--
-- Every function that appends first moves all committed rows, and finds them under the log's lock. So a direct append comes
-- after the rows of each transaction whose commit its caller knows.
--
-- Waking. A quiet cluster is silent, so no node polls while nothing happens, and a commit has to ring. NOTIFY would make
-- commits wait for each other, so they ring only while no node polls. sio_relay_state says that. No row waits unnoticed:
--
-- 1. An emit locks sio_relay with its INSERT, until its transaction ends. Only then it reads the state. Unless some node
--    moves rows, it notifies.
-- 2. A node that has been idle for a second first sets "about to fall asleep". Each emit that reads the state from here on
--    rings. Each emit that read it before has its lock. So the node lists the transactions that hold that lock, and goes on
--    looking for rows until all of them have ended, and once more after that. Then it sets "asleep".
-- 3. A ring reaches every node that listens. A node looks for rows each time it begins to listen.
-- 4. If the node dies that moves rows, or that is about to fall asleep, the state still names it. The other nodes look once
--    a second, until the state is "asleep". One of them takes over.
--
-- The same locks show when the relay is off: no emit that read "on" is left.

-- Finds the committed rows that wait, in the order in which they are moved, in batches of whole transactions. It takes no
-- lock. p_limit: a batch has the transactions that begin within so many rows. p_most: transactions that come after so many
-- rows are left out. p_upto: so are those with a row above this id, and rows below the floor are not left
-- out. After a restore, the floor may be above waiting rows, because sequences are not part of the snapshot of pg_dump.
--
-- Each call sorts all rows that wait. A caller that has many to move has to take many at once.
CREATE FUNCTION sio.sio_relay_waiting(p_limit integer, p_most integer DEFAULT NULL::integer, p_upto bigint DEFAULT NULL::bigint)
 RETURNS SETOF bigint[]
 LANGUAGE plpgsql
AS $$
DECLARE v_floor bigint;
BEGIN
    SELECT CASE WHEN p_upto IS NULL THEN last_value ELSE 0 END INTO v_floor FROM sio.sio_relay_floor;
    IF (SELECT r.id FROM sio.sio_relay r WHERE r.id > v_floor AND r.fault IS NULL ORDER BY r.id LIMIT 1) IS NULL THEN
        RETURN;  -- as nearly always
    END IF;
    RETURN QUERY
        WITH waiting AS (
            SELECT r.id, max(r.id) OVER (PARTITION BY r.transaction) AS last
            FROM sio.sio_relay r WHERE r.id > v_floor AND r.fault IS NULL),
        ranked AS (SELECT w.id, w.last, rank() OVER (ORDER BY w.last) AS rank FROM waiting w)
        SELECT array_agg(t.id ORDER BY t.last, t.id) FROM ranked t
        WHERE (t.rank > p_most) IS NOT TRUE AND (t.last > p_upto) IS NOT TRUE
        GROUP BY (t.rank - 1) / p_limit ORDER BY (t.rank - 1) / p_limit;
END $$;

-- Moves some waiting rows to the log, in the order of p_ids, and returns how many still waited. The caller holds the log's
-- lock.
CREATE FUNCTION sio.sio_relay_append(p_ids bigint[])
 RETURNS integer
 LANGUAGE plpgsql
AS $$
DECLARE e record; v_offsets bigint[];
BEGIN
    WITH moved AS (DELETE FROM sio.sio_relay WHERE id = ANY (p_ids) RETURNING *)
    SELECT array_agg(kind) AS kinds, array_agg(namespace) AS namespaces, array_agg(room) AS rooms,
           array_agg(x.rooms) AS room_lists, array_agg(skip_sids) AS skip_lists,
           array_agg(skip_rooms) AS skip_room_lists, array_agg(sid) AS sids, array_agg(body) AS bodies,
           array_agg(parts) AS parts, array_agg(attachment) AS attachments,
           CASE WHEN count(key) + count(members) > 0 THEN array_agg(
               CASE WHEN key IS NOT NULL THEN json_build_object('key', key)::text
                    WHEN members IS NOT NULL THEN json_build_object('members', members::json)::text END) END AS args,
           CASE WHEN sum(octet_length(body)) < 7600
                     AND bool_and(kind = 0 AND parts IS NULL AND attachment IS NULL) THEN
               json_agg(json_build_array(namespace, coalesce(x.rooms::json, json_build_array(room)),
                                         coalesce(skip_sids::json, '[]'), coalesce(skip_rooms::json, '[]'),
                                         body))::text END AS carry
    INTO e FROM (SELECT m.* FROM unnest(p_ids) WITH ORDINALITY o (id, i) JOIN moved m USING (id) ORDER BY o.i) x;
    IF e.kinds IS NULL THEN
        RETURN 0;
    END IF;
    SELECT w.offsets INTO v_offsets
    FROM sio.sio_append_batch(
        NULL, e.kinds, e.namespaces, e.rooms, e.room_lists, e.skip_lists, e.skip_room_lists, e.sids, e.bodies,
        e.parts, e.attachments, e.args, CASE WHEN octet_length(e.carry) <= 7600 THEN e.carry END, false) w;
    IF array_position(v_offsets, NULL) IS NOT NULL THEN  -- since the call, a client has connected whose sid is the name
        RAISE data_exception USING MESSAGE = 'a room is the own room of a client, which nobody enters or closes';
    END IF;
    RETURN cardinality(e.kinds);
END $$;

-- Does the same. A row that cannot be appended must not stop the others. It stays in the table with the reason.
CREATE FUNCTION sio.sio_relay_append_or_keep(p_ids bigint[])
 RETURNS integer
 LANGUAGE plpgsql
AS $$
DECLARE v_id bigint; v_moved integer := 0;
BEGIN
    BEGIN
        RETURN sio.sio_relay_append(p_ids);
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR case_not_found THEN
        NULL;  -- some row is at fault: one by one
    END;
    FOREACH v_id IN ARRAY p_ids LOOP
        BEGIN
            v_moved := v_moved + sio.sio_relay_append(ARRAY[v_id]);
        EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR case_not_found THEN
            UPDATE sio.sio_relay SET fault = SQLERRM WHERE id = v_id;
        END;
    END LOOP;
    RETURN v_moved;
END $$;

-- Moves all committed rows to the log. The caller holds the log's lock, and is read committed.
CREATE FUNCTION sio.sio_relay_drain()
 RETURNS void
 LANGUAGE plpgsql
AS $$
DECLARE v_ids bigint[];
BEGIN
    FOR v_ids IN SELECT w FROM sio.sio_relay_waiting(500) w LOOP
        PERFORM sio.sio_relay_append_or_keep(v_ids);
    END LOOP;
END $$;

-- Does the same, if the relay is or was on.
CREATE FUNCTION sio.sio_relay_before()
 RETURNS void
 LANGUAGE plpgsql
AS $$
BEGIN
    IF (SELECT last_value FROM sio.sio_relay_state) > 0 THEN
        PERFORM sio.sio_relay_drain();
    END IF;
END $$;

-- Does the same for the commit of a transaction that emitted before the relay was switched on. It runs with the rights of
-- the owner, in a search_path of the application.
CREATE FUNCTION sio.sio_relay_before_commit()
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    -- The snapshot of a stricter transaction is older than the rows that it might move. It knows of none of them.
    IF current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        PERFORM sio.sio_relay_drain();
    END IF;
END $$;

REVOKE ALL ON FUNCTION sio.sio_relay_before_commit FROM PUBLIC;

-- Moves a batch of rows that a node has found, and returns how many still waited. p_epoch: the epoch that ran when it
-- found them. If another one runs, or none, the function moves nothing and returns null. PostgreSQL has then crashed, or
-- another server has taken over, and rows that had been moved may wait again. They come first.
CREATE FUNCTION sio.sio_relay_move(p_ids bigint[], p_epoch bigint)
 RETURNS integer
 LANGUAGE plpgsql
AS $$
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;  -- before the rows, which its holder may be about to move
    IF (sio.sio_last_in_epoch() >> 40 = p_epoch) IS NOT TRUE THEN
        PERFORM sio.sio_check_epoch();
        RETURN NULL;
    END IF;
    RETURN sio.sio_relay_append_or_keep(p_ids);
END $$;

-- Asks which part a node has in the relay. If rows wait and no other living node moves them, this one does from now on.
-- Returns 'off', 'ending' (it is being switched off), 'asleep', 'other' (another node moves) or 'moving'.
CREATE FUNCTION sio.sio_relay_attend(p_node uuid)
 RETURNS text
 LANGUAGE plpgsql
AS $$
DECLARE v_state bigint; v_own bigint; n sio.sio_nodes;
BEGIN
    FOR i IN 1..2 LOOP
        SELECT last_value INTO v_state FROM sio.sio_relay_state;
        IF v_state = 0 THEN
            RETURN 'off';
        ELSIF v_state = 2 THEN
            RETURN 'ending';
        ELSIF v_state = 1 THEN
            IF NOT EXISTS (SELECT FROM sio.sio_relay r WHERE r.fault IS NULL) THEN
                RETURN 'asleep';
            END IF;
        ELSE
            SELECT * INTO n FROM sio.sio_nodes WHERE number = (v_state - 3) / 2;
            IF n.id <> p_node AND sio.sio_node_alive(n.number, n.role) THEN
                RETURN 'other';
            END IF;
        END IF;
        IF i = 1 THEN
            LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
        END IF;
    END LOOP;
    SELECT 3 + 2 * number::bigint INTO STRICT v_own FROM sio.sio_nodes WHERE id = p_node;
    IF v_state <> v_own THEN
        PERFORM setval('sio.sio_relay_state', v_own);
    END IF;
    RETURN 'moving';
END $$;

-- Changes the state of the relay from one value to another, for the node that moves. Returns whether it had the first.
CREATE FUNCTION sio.sio_relay_change(p_node uuid, p_from text, p_to text)
 RETURNS boolean
 LANGUAGE plpgsql
AS $$
DECLARE v_number bigint := (SELECT number FROM sio.sio_nodes WHERE id = p_node); v_from bigint; v_to bigint;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    SELECT max(s.value) FILTER (WHERE s.name = p_from), max(s.value) FILTER (WHERE s.name = p_to) INTO v_from, v_to
    FROM (VALUES ('off', 0), ('asleep', 1), ('ending', 2), ('moving', 3 + 2 * v_number), ('drowsy', 4 + 2 * v_number))
        AS s (name, value);
    IF v_from = (SELECT last_value FROM sio.sio_relay_state) THEN
        PERFORM setval('sio.sio_relay_state', v_to);
        RETURN true;
    END IF;
    RETURN false;
END $$;

-- Switches the relay on or off. It is off for new emits at once, and nodes move what open transactions have inserted.
CREATE FUNCTION sio.sio_set_relay(p_on boolean)
 RETURNS void
 LANGUAGE plpgsql
AS $$
DECLARE v_state bigint;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    SELECT last_value INTO v_state FROM sio.sio_relay_state;
    IF p_on AND v_state IN (0, 2) THEN
        PERFORM setval('sio.sio_relay_state', 1);
    ELSIF NOT p_on AND v_state NOT IN (0, 2) THEN
        PERFORM setval('sio.sio_relay_state', 2);
    ELSE
        RETURN;
    END IF;
    PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
END $$;

-- The outbox: events that are part of an application's own transaction.
--
-- An offset taken in the middle of a transaction would become visible out of order. An event therefore waits in
-- sio_outbox and gets its offset at the commit, under the log's lock, by deferred constraint triggers in two stages.
-- PostgreSQL runs deferred triggers in rounds, and triggers queued in one round run in the next. The first stage only
-- deletes the row, which queues the second. The second takes the lock, after every constraint that was queued before the
-- commit. With one stage a deferred foreign key check that waited for a row held the log's lock, and an unrelated append
-- waited 3.0 s. With two stages it waited 3 ms.
--
-- No row of the outbox outlives its transaction. Rows are found by their place and not by an index. Two serializable
-- transactions that read and write one index page depend on each other, and one of them would fail.

-- Stage one: takes the event out, which queues stage two.
--
-- random_page_cost: after a VACUUM the table may look so small that a kept plan would read all of it. A serializable
-- transaction would then depend on all others.
CREATE FUNCTION sio.sio_outbox_take()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET random_page_cost TO '0'
AS $$
BEGIN
    DELETE FROM sio.sio_outbox WHERE ctid OPERATOR(pg_catalog.=) NEW.ctid;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION sio.sio_outbox_take FROM PUBLIC;

-- Fails the transaction with an error that can be retried, because the sequence was set back below records of the log.
-- The sequence is set below every epoch first. That outlasts the rollback, so the next append or the next try begins an
-- epoch. The caller holds the log's lock.
CREATE FUNCTION sio.sio_outbox_retry()
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    PERFORM setval('sio.sio_packets_offset_seq', 1, false);
    RAISE serialization_failure USING MESSAGE =
        'could not serialize access: the sequence of the log was set back, and a new epoch has to begin';
END $$;

REVOKE ALL ON FUNCTION sio.sio_outbox_retry FROM PUBLIC;

-- Begins an epoch if needed. The caller holds the log's lock. p_above: the last offset at the time of the emit. If the
-- sequence was moved since then, there may be an epoch or records that an older snapshot does not show.
CREATE FUNCTION sio.sio_outbox_epoch(p_above bigint)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        IF p_above IS NOT NULL THEN
            PERFORM sio.sio_outbox_retry();
        ELSIF (SELECT last_value FROM sio.sio_packets_offset_seq) >> 40 > (SELECT max(epoch) FROM sio.sio_epochs) THEN
            RAISE serialization_failure USING MESSAGE =
                'could not serialize access: the log began a new epoch after this transaction''s snapshot';
        END IF;
    END IF;
    PERFORM sio.sio_check_epoch(coalesce(p_above, 0));
END $$;

REVOKE ALL ON FUNCTION sio.sio_outbox_epoch FROM PUBLIC;

-- Bounds the rest of the transaction, because all appends wait for it from here on. Constraints that the commit itself
-- queued may still come. If constraints were set IMMEDIATE for a second time (p_immediate), which PostgreSQL does not
-- distinguish from the commit, other statements may come, too.
CREATE FUNCTION sio.sio_outbox_bounds(p_immediate boolean)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    PERFORM set_config(b.name, b.most, true) FROM (VALUES
        (false, 'lock_timeout', '2s'), (true, 'statement_timeout', '10s'),
        (true, 'idle_in_transaction_session_timeout', '10s'),
        (true, 'transaction_timeout', '20s')) AS b (immediate, name, most)  -- the last from PostgreSQL 17 on
    WHERE (p_immediate OR NOT b.immediate)
      AND current_setting(b.name, true)::interval NOT BETWEEN '1 ms' AND b.most::interval;
END $$;

REVOKE ALL ON FUNCTION sio.sio_outbox_bounds FROM PUBLIC;

-- Stage two: appends the event to the log.
--
-- Little is done under the lock, because a process is slow right after a long wait, and everybody waits for it. So the
-- function sets no search_path, and names operators in full instead.
--
-- The snapshot of a repeatable read or serializable transaction may be older than the last append, so the function reads
-- sequences instead of tables. It also looks for records above the sequence, but not in a serializable transaction, which
-- would then depend on all others. If an offset is taken, ON CONFLICT leads to an error that can be retried, whatever the
-- snapshot shows.
CREATE FUNCTION sio.sio_outbox_append()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
AS $$
DECLARE v_segment bigint; v_last bigint; v_offset bigint; v_unused varchar; v_relay bigint;
BEGIN
    IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.>) 1 THEN
        -- This is the DELETE of stage one and not the commit: the application has its constraints IMMEDIATE. The event
        -- still waits for the commit.
        SET CONSTRAINTS sio.sio_outbox_append DEFERRED;
        INSERT INTO sio.sio_outbox
        VALUES (OLD.namespace, OLD.room, OLD.rooms, OLD.skip_sids, OLD.skip_rooms, OLD.body, OLD.parts, OLD.attachment,
                OLD.channel, OLD.carried, OLD.above, true, OLD.key);
        RETURN NULL;
    END IF;
    IF pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off' THEN
        v_unused := pg_catalog.set_config('synchronous_commit', 'on', true);  -- clients will have seen the event
    END IF;
    -- Before the lock: rows of the relay that are committed from here on are not known to this transaction's caller.
    v_relay := pg_catalog.pg_sequence_last_value('sio.sio_relay_state');
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;  -- before nextval, so that offsets become visible in their order
    v_segment := coalesce(pg_catalog.pg_sequence_last_value('sio.sio_active_segment'), 0);
    v_last := pg_catalog.pg_sequence_last_value('sio.sio_packets_offset_seq');
    IF v_last IS NULL THEN  -- no nextval() since a setval()
        SELECT last_value OPERATOR(pg_catalog.-) 1 INTO v_last FROM sio.sio_packets_offset_seq;
    END IF;
    IF v_relay OPERATOR(pg_catalog.>) 0 THEN
        PERFORM sio.sio_relay_before_commit();
    END IF;
    IF OLD.immediate OR pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.<>) '0' THEN
        PERFORM sio.sio_outbox_bounds(OLD.immediate);
    ELSE
        v_unused := pg_catalog.set_config('lock_timeout', '2s', true);
    END IF;
    IF (v_last OPERATOR(pg_catalog.>=) OLD.above) IS NOT TRUE
       OR pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'serializable'
          AND ((SELECT p."offset" FROM sio.sio_packets_0 p WHERE p."offset" OPERATOR(pg_catalog.>) v_last
                ORDER BY p."offset" LIMIT 1) IS NOT NULL
               OR (SELECT p."offset" FROM sio.sio_packets_1 p WHERE p."offset" OPERATOR(pg_catalog.>) v_last
                   ORDER BY p."offset" LIMIT 1) IS NOT NULL) THEN
        PERFORM sio.sio_outbox_epoch(OLD.above);
    END IF;
    IF OLD.key IS NOT NULL AND sio.sio_keyed_event(OLD.namespace, OLD.key) IS NOT NULL THEN
        -- Another event with the key was first. The pruner deletes a large body to which nothing refers. The notification
        -- is for PREPARE TRANSACTION, as in sio_changes_append().
        PERFORM pg_catalog.pg_notify(OLD.channel, '0 0');
        RETURN NULL;
    END IF;
    -- The offset before it is one less, or belongs to a rolled-back transaction or a former epoch.
    IF v_segment OPERATOR(pg_catalog.=) 0 THEN
        INSERT INTO sio.sio_packets_0 AS p ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                            attachment)
        VALUES (pg_catalog.nextval('sio.sio_packets_offset_seq'), 0, OLD.namespace, OLD.room, OLD.rooms,
                OLD.skip_sids, OLD.skip_rooms, OLD.body, OLD.parts, OLD.attachment)
        ON CONFLICT ("offset") DO NOTHING
        RETURNING p."offset", pg_catalog.pg_notify(OLD.channel, pg_catalog.concat(
            p."offset" OPERATOR(pg_catalog.-) 1, ' ', p."offset", OLD.carried))::varchar
        INTO v_offset, v_unused;
        IF OLD.rooms IS NOT NULL AND v_offset IS NOT NULL THEN
            INSERT INTO sio.sio_packet_rooms_0 (namespace, room, "offset")
            SELECT DISTINCT OLD.namespace, r.room, v_offset FROM pg_catalog.unnest(OLD.rooms[2:]) AS r (room);
        END IF;
    ELSE
        INSERT INTO sio.sio_packets_1 AS p ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                            attachment)
        VALUES (pg_catalog.nextval('sio.sio_packets_offset_seq'), 0, OLD.namespace, OLD.room, OLD.rooms,
                OLD.skip_sids, OLD.skip_rooms, OLD.body, OLD.parts, OLD.attachment)
        ON CONFLICT ("offset") DO NOTHING
        RETURNING p."offset", pg_catalog.pg_notify(OLD.channel, pg_catalog.concat(
            p."offset" OPERATOR(pg_catalog.-) 1, ' ', p."offset", OLD.carried))::varchar
        INTO v_offset, v_unused;
        IF OLD.rooms IS NOT NULL AND v_offset IS NOT NULL THEN
            INSERT INTO sio.sio_packet_rooms_1 (namespace, room, "offset")
            SELECT DISTINCT OLD.namespace, r.room, v_offset FROM pg_catalog.unnest(OLD.rooms[2:]) AS r (room);
        END IF;
    END IF;
    IF v_offset IS NULL THEN
        PERFORM sio.sio_outbox_retry();
    ELSIF OLD.key IS NOT NULL THEN
        PERFORM sio.sio_take_key(OLD.namespace, OLD.key, v_offset);
    END IF;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION sio.sio_outbox_append FROM PUBLIC;

-- Emits from any transaction. These functions run with the rights of the owner, so an application needs no rights on the
-- tables.

-- Emits an event that the caller has encoded: for the package's emitters, and for other languages. All parameters but one
-- are text, so that no driver needs to know a type.
--
-- p_body: the JSON array of the event's name and arguments. p_parts: its binary parts, each after its length in four
-- bytes. p_rooms: a JSON array of all rooms if there are several, of which p_room is the first. p_skips: a JSON array of
-- the sids that do not get the event. p_key: the idempotency key. p_skip_rooms: a JSON array of the rooms whose members do
-- not get the event.
--
-- Returns whether the event will be stored: false if the log or the relay has an event with the key, and null without a
-- key. The key is taken at the commit, under the log's lock. An append would otherwise wait, under that lock, for the key
-- of an open transaction, which may itself wait for the lock. So an event with the key that is committed in between wins.
CREATE FUNCTION sio.sio_emit_encoded(p_namespace text, p_room text, p_rooms text, p_skips text, p_body text, p_parts bytea, p_key text DEFAULT NULL::text, p_skip_rooms text DEFAULT NULL::text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
DECLARE
    v_rooms text[]; v_skips text[]; v_skip_rooms text[]; v_attachment uuid; v_at integer := 0;
    v_size bigint; v_count integer := 0; v_state bigint;
    v_name text;  -- the event's name, if it is short, and may be a reserved one
BEGIN
    v_state := pg_sequence_last_value('sio.sio_relay_state');
    IF v_state NOT IN (0, 2) THEN
        -- Most events are for one room and have no more than a body. This one statement checks and stores them, because
        -- plpgsql prepares each of its expressions again in each transaction. It inserts nothing if it is any other event,
        -- or if the namespace, the room or the body is null.
        --
        -- The statement locks sio_relay before it runs, and so before it reads the state.
        WITH state AS MATERIALIZED (
            SELECT last_value FROM sio.sio_relay_state
            WHERE last_value NOT IN (0, 2) AND p_rooms IS NULL AND p_skips IS NULL AND p_skip_rooms IS NULL
              AND p_parts IS NULL AND p_key IS NULL
              AND octet_length(p_body) <= 65536 AND octet_length(p_namespace) + octet_length(p_room) <= 512
              AND p_body::json IS NOT NULL AND right(p_body, 1) = ']'
              AND substring(left(p_body, 100) FROM '^\["([^"\\]*)"') NOT IN (
                  'connect', 'connect_error', 'disconnect', 'disconnecting', 'newListener', 'removeListener')),
        inserted AS (
            INSERT INTO sio.sio_relay (transaction, kind, namespace, room, body)
            SELECT pg_current_xact_id()::text::bigint, 0, p_namespace, p_room, p_body FROM state)
        SELECT last_value INTO v_state FROM state;
        IF v_state IS NOT NULL THEN
            IF v_state = 1 OR v_state % 2 = 0 THEN
                PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
            END IF;
            RETURN NULL;
        END IF;
    END IF;
    v_size := octet_length(p_body) + coalesce(octet_length(p_parts), 0);
    IF (p_namespace IS NOT NULL AND p_room IS NOT NULL AND p_body::json IS NOT NULL
        AND left(p_body, 2) = '["' AND right(p_body, 1) = ']') IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'an event has a namespace, a room and a body: a JSON array that'
            ' begins with the event''s name, without space around it';
    END IF;
    -- The characters of a reserved name may be escaped. PostgreSQL does not unescape all that JSON may have.
    v_name := substring(left(p_body, 100) FROM '^\[("(?:[^"\\]|\\.)*")');
    v_name := CASE WHEN v_name !~* '\\u(0000|d[89a-f])' THEN v_name::json #>> '{}' END;
    IF v_name IN ('connect', 'connect_error', 'disconnect', 'disconnecting', 'newListener', 'removeListener') THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'the event name "%s" is reserved in Socket.IO: JavaScript clients close the connection when they get it,'
            ' come back and get it again. Rename the event', v_name);
    END IF;
    -- Most events have none of these. JSON text is never shorter than the names in it.
    IF v_size > 65536 OR p_parts IS NOT NULL OR p_rooms IS NOT NULL OR p_skips IS NOT NULL
       OR p_skip_rooms IS NOT NULL OR p_key IS NOT NULL OR octet_length(p_namespace) + octet_length(p_room) > 512 THEN
        IF p_rooms IS NOT NULL THEN
            v_rooms := ARRAY(SELECT json_array_elements_text(p_rooms::json));
            IF array_position(v_rooms, NULL) IS NOT NULL OR v_rooms[1] IS DISTINCT FROM p_room
               OR cardinality(v_rooms) > 1 AND array_position(v_rooms, '') IS NOT NULL THEN
                RAISE invalid_parameter_value USING MESSAGE =
                    'rooms are text, and the first is the room. None of several is empty, which would reach everybody';
            END IF;
        END IF;
        IF p_skips IS NOT NULL THEN
            v_skips := nullif(array_remove(ARRAY(SELECT json_array_elements_text(p_skips::json)), NULL), '{}');
        END IF;
        IF p_skip_rooms IS NOT NULL THEN
            v_skip_rooms := nullif(ARRAY(SELECT r FROM json_array_elements_text(p_skip_rooms::json) r WHERE r <> ''), '{}');
        END IF;
        IF (SELECT max(octet_length(n)) FROM unnest(v_rooms || v_skips || v_skip_rooms || ARRAY[p_namespace, p_room]) n)
           > 512 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'a namespace, room or sid is longer than 512 bytes';
        END IF;
        WHILE v_at <= octet_length(p_parts) - 4 LOOP  -- a node that cannot take them apart would stand still
            v_count := v_count + 1;
            v_at := least(2147483647, v_at + 4 + (get_byte(p_parts, v_at)::bigint << 24)
                + (get_byte(p_parts, v_at + 1) << 16) + (get_byte(p_parts, v_at + 2) << 8)
                + get_byte(p_parts, v_at + 3));
        END LOOP;
        IF v_at <> octet_length(p_parts) THEN
            RAISE invalid_parameter_value USING MESSAGE = 'each binary part stands after its length';
        END IF;
        IF v_count > 10 THEN
            RAISE program_limit_exceeded USING MESSAGE = format(
                'an event has %s binary parts, and JavaScript clients take 10 at most. Join them, or send several events',
                v_count);
        END IF;
        IF v_size > 268435456 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'an event is larger than 256 MiB';
        END IF;
        IF p_key = '' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'the key of an event is not empty; leave it out, or null';
        ELSIF octet_length(p_key) > 512 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'the key of an event is longer than 512 bytes';
        ELSIF sio.sio_has_key(p_namespace, p_key) THEN
            RETURN false;
        END IF;
        IF v_size > 65536 THEN  -- now and not under the log's lock, where 50 MB held up others for 1.7 s
            v_attachment := gen_random_uuid();
            INSERT INTO sio.sio_attachments (id, data, ephemeral)
            VALUES (v_attachment, int4send(octet_length(convert_to(p_body, 'UTF8')))
                || convert_to(p_body, 'UTF8') || coalesce(p_parts, ''), false);
        END IF;
    END IF;
    v_state := pg_sequence_last_value('sio.sio_relay_state');
    IF v_state NOT IN (0, 2) THEN
        WITH state AS MATERIALIZED (SELECT last_value FROM sio.sio_relay_state WHERE last_value NOT IN (0, 2)),
        inserted AS (
            INSERT INTO sio.sio_relay (transaction, kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                       attachment, key)
            SELECT pg_current_xact_id()::text::bigint, 0, p_namespace, p_room, p_rooms,
                   array_to_json(v_skips)::text, array_to_json(v_skip_rooms)::text,
                   CASE WHEN v_attachment IS NULL THEN p_body END, CASE WHEN v_attachment IS NULL THEN p_parts END,
                   v_attachment, p_key
            FROM state)
        SELECT last_value INTO v_state FROM state;
        IF v_state = 1 OR v_state % 2 = 0 THEN
            PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
        END IF;
        IF v_state IS NOT NULL THEN
            RETURN CASE WHEN p_key IS NOT NULL THEN true END;
        END IF;
    END IF;
    -- A notification of 7,999 bytes carries the record if that fits, and if the queue is far from full. The queue holds
    -- every message until the slowest listener has read it.
    --
    -- The marker may go between here and the commit, by a crash, which this transaction does not survive, or by a
    -- TRUNCATE of the log, which ends all sessions. Neither does harm.
    INSERT INTO sio.sio_outbox
    SELECT p_namespace, p_room, v_rooms, v_skips, v_skip_rooms, CASE WHEN v_attachment IS NULL THEN p_body END,
           CASE WHEN v_attachment IS NULL THEN p_parts END, v_attachment, (SELECT channel FROM sio.sio_log),
           CASE WHEN octet_length(c.carried) <= 7600 THEN c.carried ELSE '' END,
           sio.sio_last_in_epoch(), false, p_key
    FROM (SELECT CASE
              WHEN v_size >= 7600 OR p_parts IS NOT NULL OR pg_notification_queue_usage() >= 0.1 THEN NULL
              -- As in store/batches.py: for one room it is written out, which costs less here and on each node.
              WHEN v_rooms IS NULL AND v_skips IS NULL AND v_skip_rooms IS NULL
                   AND octet_length(p_namespace || p_room || p_body) = length(p_namespace || p_room || p_body) THEN
                  concat(' =', length(p_namespace), ' ', length(p_room), ' ', p_namespace, p_room, p_body)
              ELSE ' ' || json_build_array(json_build_array(
                  p_namespace, coalesce(v_rooms, ARRAY[p_room]), coalesce(v_skips, ARRAY[]::text[]),
                  coalesce(v_skip_rooms, ARRAY[]::text[]), p_body))::text END) AS c (carried);
    RETURN CASE WHEN p_key IS NOT NULL THEN true END;
END $$;

REVOKE ALL ON FUNCTION sio.sio_emit_encoded FROM PUBLIC;

-- Emits an event from SQL. A null room is refused: 'user:' || id with a null id must not reach everybody. An empty room
-- among others is left out. An empty array of rooms reaches nobody, so nothing is stored and the key is not taken.
-- Returns what sio_emit_encoded returns, and null if the event reaches nobody.
CREATE FUNCTION sio.sio_emit(event text, data json DEFAULT NULL::json, room text DEFAULT ''::text, rooms text[] DEFAULT '{""}'::text[], namespace text DEFAULT '/'::text, skip_sids text[] DEFAULT '{}'::text[], key text DEFAULT NULL::text, skip_rooms text[] DEFAULT '{}'::text[])
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
DECLARE v_rooms text[];
BEGIN
    IF event IS NULL OR room IS NULL OR rooms IS NULL OR array_position(rooms, NULL) IS NOT NULL
       OR namespace IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE =
            'sio_emit: event, room, rooms and namespace are not null; leave room out to reach everybody';
    END IF;
    IF octet_length(event) > 512 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'sio_emit: the name of an event is longer than 512 bytes';
    END IF;
    IF room = '' AND cardinality(rooms) = 0 THEN
        RETURN NULL;
    END IF;
    v_rooms := ARRAY(SELECT r FROM unnest(room || rooms) WITH ORDINALITY AS x (r, i)
                     WHERE r <> '' GROUP BY r ORDER BY min(i));
    IF cardinality(v_rooms) = 0 THEN
        IF cardinality(rooms) > 1 THEN
            RAISE invalid_parameter_value USING MESSAGE =
                'sio_emit: all rooms are empty, which would reach everybody; leave rooms out for that';
        END IF;
        v_rooms := ARRAY[''];
    END IF;
    RETURN sio.sio_emit_encoded(
        namespace, v_rooms[1], CASE WHEN cardinality(v_rooms) > 1 THEN array_to_json(v_rooms)::text END,
        CASE WHEN cardinality(skip_sids) > 0 THEN array_to_json(skip_sids)::text END,
        '[' || to_json(event)::text || coalesce(',' || data::text, '') || ']', NULL, key,
        CASE WHEN cardinality(skip_rooms) > 0 THEN array_to_json(skip_rooms)::text END);
END $$;

COMMENT ON FUNCTION sio.sio_emit IS
    'Sends a Socket.IO event if and when this transaction commits. data: one argument, as JSON. Without it the '
    'event has no argument. room, rooms: who gets the event. Without them everybody in the namespace gets it. '
    'skip_sids, skip_rooms: clients, and rooms whose members at the commit, do not get it. key: an event whose key '
    'an event in the log has is not stored. Returns whether it will be stored, and null without a key.';

REVOKE ALL ON FUNCTION sio.sio_emit FROM PUBLIC;

-- Sends an event to all nodes that live, for the package's emitters. It is not stored. Nodes get it when the transaction
-- commits. What exceeds a notification goes through the attachment table, as in cluster/messages.py.
--
-- p_body: the JSON array of the event's name and arguments. p_parts: its binary parts, each after its length.
CREATE FUNCTION sio.sio_server_side_emit_encoded(p_namespace text, p_body text, p_parts bytea)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
DECLARE v_message text; v_key uuid := gen_random_uuid();
BEGIN
    IF (p_namespace IS NOT NULL AND p_body::json IS NOT NULL AND left(p_body, 2) = '["') IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a server event has a namespace and a body: a JSON array that begins'
            ' with the event''s name, without space before it';
    ELSIF octet_length(p_body) + octet_length(coalesce(p_parts, '')) > 268435456 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'an event is larger than 256 MiB';
    END IF;
    -- The key distinguishes it from equal messages, which PostgreSQL delivers once in a transaction.
    v_message := json_build_object('node', '', 'number', v_key, 'cursor', 0, 'kind', 'request', 'body', json_build_object(
        'what', 'server_event', 'fields', json_build_object('namespace', p_namespace, 'body', p_body)));
    IF p_parts IS NOT NULL OR octet_length(v_message) > 7900 THEN
        INSERT INTO sio.sio_attachments (id, data, ephemeral)
        VALUES (v_key, int4send(octet_length(convert_to(v_message, 'UTF8'))) || convert_to(v_message, 'UTF8')
            || coalesce(p_parts, ''), true);
        v_message := json_build_object('node', '', 'cursor', 0, 'attachment', v_key);
    END IF;
    PERFORM pg_notify(channel, v_message) FROM sio.sio_log;
END $$;

REVOKE ALL ON FUNCTION sio.sio_server_side_emit_encoded FROM PUBLIC;

-- Sends an event to all nodes that live, from SQL. args: a JSON array of its arguments.
CREATE FUNCTION sio.sio_server_side_emit(event text, args json DEFAULT '[]'::json, namespace text DEFAULT '/'::text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    IF event IS NULL OR args IS NULL OR namespace IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'sio_server_side_emit: event, args and namespace are not null';
    ELSIF json_typeof(args) <> 'array' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'sio_server_side_emit: args is a JSON array';
    END IF;
    PERFORM sio.sio_server_side_emit_encoded(
        namespace,
        '[' || to_json(event)::text || coalesce((SELECT string_agg(',' || a::text, '' ORDER BY i)
                                                 FROM json_array_elements(args) WITH ORDINALITY AS x (a, i)), '') || ']',
        NULL);
END $$;

COMMENT ON FUNCTION sio.sio_server_side_emit IS
    'Calls the handlers of a server event in all server processes if and when this transaction commits. It is not '
    'stored: only servers that live then get it. args: a JSON array of arguments.';

REVOKE ALL ON FUNCTION sio.sio_server_side_emit FROM PUBLIC;

-- Room changes and kicks that are part of an application's own transaction.
--
-- They take the same path as its events (outbox.sql), through a table of their own, so that events do not cost more.
-- PostgreSQL runs deferred triggers in the order in which they were queued, whatever their tables, so the events
-- and changes of a transaction keep their order.
--
-- The tables of sessions and rooms are written at the commit, under the log's lock. The snapshot of a repeatable read or
-- serializable transaction is older than the lock, so it would miss the sessions and rooms that were written since.

-- Stage one: takes the change out, which queues stage two.
CREATE FUNCTION sio.sio_changes_take()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    DELETE FROM sio.sio_outbox_changes WHERE ctid = NEW.ctid;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION sio.sio_changes_take FROM PUBLIC;

-- Stage two: appends the change to the log, and writes the tables of sessions and rooms.
CREATE FUNCTION sio.sio_changes_append()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
DECLARE v_prev bigint; v_last bigint; v_room text; v_offset bigint;
BEGIN
    IF pg_trigger_depth() > 1 THEN
        -- As in sio_outbox_append(): the application has its constraints IMMEDIATE.
        SET CONSTRAINTS sio.sio_changes_append DEFERRED;
        INSERT INTO sio.sio_outbox_changes
        VALUES (OLD.kind, OLD.namespace, OLD.rooms, OLD.sid, OLD.members, OLD.skip_sids, OLD.skip_rooms,
                true);
        RETURN NULL;
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);  -- clients will have seen the change
    END IF;
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    PERFORM sio.sio_outbox_bounds(OLD.immediate);
    PERFORM sio.sio_relay_before();
    PERFORM sio.sio_check_epoch();
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_prev FROM sio.sio_packets_offset_seq;
    IF OLD.members IS NOT NULL THEN
        v_offset := sio.sio_change_members(
            NULL, CASE OLD.kind WHEN 1 THEN 6 WHEN 2 THEN 7 ELSE 8 END, OLD.namespace, OLD.members, OLD.rooms,
            OLD.skip_sids, OLD.skip_rooms);
    ELSIF OLD.kind = 5 THEN
        v_offset := sio.sio_kick(NULL, OLD.namespace, OLD.sid);
    ELSE
        FOREACH v_room IN ARRAY OLD.rooms LOOP
            IF OLD.kind = 3 THEN
                v_offset := sio.sio_close(NULL, OLD.namespace, v_room);
            ELSE
                v_offset := sio.sio_move(NULL, OLD.kind, OLD.namespace, v_room, OLD.sid, NULL);
            END IF;
            EXIT WHEN v_offset IS NULL;
        END LOOP;
    END IF;
    IF v_offset IS NULL THEN  -- since the call, a client has connected whose sid is the room's name
        RAISE invalid_parameter_value USING MESSAGE = 'a room is the own room of a client, which nobody enters or closes';
    END IF;
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_last FROM sio.sio_packets_offset_seq;
    -- This also notifies if nothing changed, because PostgreSQL refuses PREPARE TRANSACTION after a NOTIFY. A prepared
    -- transaction would hold the log's lock until COMMIT PREPARED. Nodes ignore '0 0'. The sequence's last offset would
    -- not do, because it may have no record.
    PERFORM pg_notify(channel, CASE WHEN v_last > v_prev THEN v_prev || ' ' || v_last ELSE '0 0' END) FROM sio.sio_log;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION sio.sio_changes_append FROM PUBLIC;

-- Changes rooms, or disconnects, at the commit. The package's functions call it. All parameters are text, so that no
-- driver needs to know a type.
--
-- p_change: enter_room, leave_room, close_room or disconnect. p_rooms: a JSON array of the rooms to enter, leave or
-- close. p_sid: the client that moves or is disconnected. p_members: instead of p_sid, a JSON array of rooms whose
-- members are meant. An empty name means everybody. p_skips: a JSON array of the sids of members that stay.
-- p_skip_rooms: of the rooms whose members stay.
CREATE FUNCTION sio.sio_change(p_change text, p_namespace text, p_rooms text, p_sid text, p_members text, p_skips text, p_skip_rooms text DEFAULT NULL::text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
DECLARE
    v_kind integer := CASE p_change WHEN 'enter_room' THEN 1 WHEN 'leave_room' THEN 2 WHEN 'close_room' THEN 3
                      WHEN 'disconnect' THEN 5 END;
    v_rooms text[]; v_members text[]; v_skips text[]; v_skip_rooms text[]; v_own text; v_state bigint;
BEGIN
    IF v_kind IS NULL OR p_namespace IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE =
            'a change is enter_room, leave_room, close_room or disconnect, in a namespace';
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE invalid_transaction_state USING MESSAGE = format(
            'sio_%s: this transaction is %s. Rooms change at the commit, with the members that they have then, and this '
            'transaction''s snapshot is older. Begin the transaction with ISOLATION LEVEL READ COMMITTED',
            p_change, current_setting('transaction_isolation'));
    END IF;
    v_rooms := ARRAY(SELECT DISTINCT json_array_elements_text(p_rooms::json));
    v_members := CASE WHEN p_members IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(p_members::json)) END;
    v_skips := ARRAY(SELECT json_array_elements_text(p_skips::json));
    v_skip_rooms := ARRAY(SELECT json_array_elements_text(p_skip_rooms::json));
    IF (cardinality(v_rooms) = 0) <> (v_kind = 5) OR '' = ANY (v_rooms) OR array_position(v_rooms, NULL) IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'sio_%s: name the room. It is not empty, since an empty name means everybody', p_change);
    END IF;
    IF v_kind <> 3 AND (p_sid IS NULL) = (v_members IS NULL) OR v_kind = 3 AND (p_sid IS NOT NULL OR v_members IS NOT NULL)
       OR p_sid = '' OR cardinality(v_members) = 0 OR array_position(v_members, NULL) IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'sio_%s: name one client by sid, or all members of a room by room', p_change);
    END IF;
    IF (SELECT max(octet_length(n)) FROM unnest(v_rooms || v_members || v_skips || v_skip_rooms
                                                || ARRAY[p_namespace, p_sid]) n) > 512 THEN
        RAISE program_limit_exceeded USING MESSAGE = format(
            'sio_%s: a namespace, room or sid is longer than 512 bytes', p_change);
    END IF;
    IF v_kind = 5 THEN
        v_rooms := ARRAY[''];
    ELSIF p_sid = ANY (v_rooms) THEN
        v_rooms := array_remove(v_rooms, p_sid);  -- a client is in its own room as long as it lives
        IF cardinality(v_rooms) = 0 THEN
            RETURN;
        END IF;
    END IF;
    IF v_kind IN (1, 3) THEN
        SELECT sid INTO v_own FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = ANY (v_rooms);
        IF v_own IS NOT NULL THEN
            RAISE invalid_parameter_value USING MESSAGE = format(
                'sio_%s: "%s" is the own room of a client, which nobody enters or closes', p_change, v_own);
        END IF;
    END IF;
    IF (SELECT last_value FROM sio.sio_relay_state) NOT IN (0, 2) THEN
        -- As in sio_emit_encoded().
        WITH state AS MATERIALIZED (SELECT last_value FROM sio.sio_relay_state WHERE last_value NOT IN (0, 2)),
        inserted AS (
            INSERT INTO sio.sio_relay (transaction, kind, namespace, room, rooms, skip_sids, skip_rooms, members, sid)
            SELECT pg_current_xact_id()::text::bigint,
                   CASE WHEN v_members IS NULL THEN v_kind WHEN v_kind = 1 THEN 6 WHEN v_kind = 2 THEN 7 ELSE 8 END,
                   p_namespace, c.rooms[1], CASE WHEN cardinality(c.rooms) > 1 THEN array_to_json(c.rooms)::text END,
                   CASE WHEN cardinality(v_skips) > 0 THEN array_to_json(v_skips)::text END,
                   CASE WHEN cardinality(v_skip_rooms) > 0 THEN array_to_json(v_skip_rooms)::text END,
                   array_to_json(v_members)::text, p_sid
            FROM state, (SELECT ARRAY[r.room] AS rooms FROM unnest(v_rooms) r (room) WHERE v_members IS NULL
                         UNION ALL
                         SELECT v_rooms WHERE v_members IS NOT NULL) c)
        SELECT last_value INTO v_state FROM state;
        IF v_state = 1 OR v_state % 2 = 0 THEN
            PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
        END IF;
        IF v_state IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    INSERT INTO sio.sio_outbox_changes
    VALUES (v_kind, p_namespace, v_rooms, p_sid, v_members, v_skips, v_skip_rooms, false);
END $$;

REVOKE ALL ON FUNCTION sio.sio_change FROM PUBLIC;

-- Checks the arguments of the functions for SQL, and calls sio_change. A null is refused, because 'user:' || id with a
-- null id is a mistake. An empty name stands for an argument that was left out.
CREATE FUNCTION sio.sio_change_named(p_change text, p_target text, p_sid text, p_room text, p_namespace text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    IF p_target IS NULL OR p_sid IS NULL OR p_room IS NULL OR p_namespace IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = format(
            'sio_%s: rooms, sid and namespace are not null. Leave out what you do not name', p_change);
    END IF;
    PERFORM sio.sio_change(
        p_change, p_namespace, CASE WHEN p_change <> 'disconnect' THEN json_build_array(p_target)::text END,
        nullif(p_sid, ''), CASE WHEN p_room <> '' THEN json_build_array(p_room)::text END, NULL);
END $$;

REVOKE ALL ON FUNCTION sio.sio_change_named FROM PUBLIC;

-- Adds a client, or all members of a room, to the room target.
CREATE FUNCTION sio.sio_enter_room(target text, sid text DEFAULT ''::text, room text DEFAULT ''::text, namespace text DEFAULT '/'::text)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
    SELECT sio.sio_change_named('enter_room', target, sid, room, namespace)
$$;

COMMENT ON FUNCTION sio.sio_enter_room IS
    'Adds a Socket.IO client (sid), or all members of a room (room), to the room target, if and when this '
    'transaction commits. Events emitted later reach them, in this transaction, too.';

REVOKE ALL ON FUNCTION sio.sio_enter_room FROM PUBLIC;

-- Removes a client, or all members of a room, from the room target.
CREATE FUNCTION sio.sio_leave_room(target text, sid text DEFAULT ''::text, room text DEFAULT ''::text, namespace text DEFAULT '/'::text)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
    SELECT sio.sio_change_named('leave_room', target, sid, room, namespace)
$$;

COMMENT ON FUNCTION sio.sio_leave_room IS
    'Removes a Socket.IO client (sid), or all members of a room (room), from the room target, if and when this '
    'transaction commits. Events emitted later do not reach them, in this transaction, too.';

REVOKE ALL ON FUNCTION sio.sio_leave_room FROM PUBLIC;

-- Removes everybody from a room.
CREATE FUNCTION sio.sio_close_room(room text, namespace text DEFAULT '/'::text)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
    SELECT sio.sio_change_named('close_room', room, '', '', namespace)
$$;

COMMENT ON FUNCTION sio.sio_close_room IS
    'Removes everybody from a Socket.IO room, if and when this transaction commits.';

REVOKE ALL ON FUNCTION sio.sio_close_room FROM PUBLIC;

-- Disconnects a client, or all members of a room, and ends their sessions for good.
CREATE FUNCTION sio.sio_disconnect(sid text DEFAULT ''::text, room text DEFAULT ''::text, namespace text DEFAULT '/'::text)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
    SELECT sio.sio_change_named('disconnect', '', sid, room, namespace)
$$;

COMMENT ON FUNCTION sio.sio_disconnect IS
    'Disconnects a Socket.IO client (sid), or all members of a room (room), and ends their sessions for good, if '
    'and when this transaction commits.';

REVOKE ALL ON FUNCTION sio.sio_disconnect FROM PUBLIC;

-- Positions: the end of the log as a snapshot sees it.

-- Returns the position of the calling statement's snapshot. An event whose transaction the snapshot sees is at or below
-- it. All others are above it. Offsets become visible in their order, so it is the last offset that the snapshot sees.
-- The function also works on a hot standby, where sequences and unlogged tables are no help.
--
-- A TRUNCATE is not MVCC-safe. An older snapshot finds the segment empty, and still sees the former floor. The row of
-- pg_class that the snapshot sees then names another file than the segment has now. The truncated segment had the lower
-- offsets. So if the snapshot sees a record of the other segment, that one has the last offset.
--
-- log/positions.py reads the text. It has the offset, the first bytes of a digest that names the epoch's key, and a
-- checksum of offset and namespace under that key. The checksum is a digest of a digest, which nobody can extend.
CREATE FUNCTION sio.sio_position(namespace text DEFAULT '/'::text)
 RETURNS text
 LANGUAGE plpgsql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $$
DECLARE
    v_last_0 bigint; v_last_1 bigint; v_kept_0 boolean; v_kept_1 boolean; v_floor bigint; v_offset bigint; v_key bytea;
BEGIN
    IF namespace IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'sio_position: namespace is not null; leave it out for "/"';
    END IF;
    -- The statement locks the segments before it looks at their files, so neither can be truncated in between. Scans end
    -- at the floor, because deleted rows stay in the index for a while, and each one would be looked at.
    SELECT (SELECT p."offset" FROM sio.sio_packets_0 p WHERE p."offset" > l.floor ORDER BY p."offset" DESC LIMIT 1),
           (SELECT p."offset" FROM sio.sio_packets_1 p WHERE p."offset" > l.floor ORDER BY p."offset" DESC LIMIT 1),
           (SELECT relfilenode = pg_relation_filenode(oid) FROM pg_class WHERE oid = 'sio.sio_packets_0'::regclass),
           (SELECT relfilenode = pg_relation_filenode(oid) FROM pg_class WHERE oid = 'sio.sio_packets_1'::regclass),
           greatest(l.floor, (SELECT began_after FROM sio.sio_epochs ORDER BY epoch DESC LIMIT 1))
    INTO v_last_0, v_last_1, v_kept_0, v_kept_1, v_floor
    FROM sio.sio_log l WHERE l.only_row;  -- by its index: a plan for sequential scans would be compiled (jit)
    IF NOT (v_kept_0 AND v_kept_1 OR v_kept_0 AND v_last_0 IS NOT NULL OR v_kept_1 AND v_last_1 IS NOT NULL) THEN
        RAISE serialization_failure USING MESSAGE =
            'could not serialize access: retention truncated the log after this transaction''s snapshot';
    END IF;
    v_offset := greatest(v_last_0, v_last_1, v_floor);
    SELECT key INTO STRICT v_key FROM sio.sio_epochs WHERE epoch = v_offset >> 40;
    RETURN translate(encode(
        int8send(v_offset) || substring(sha256(v_key || 'id') FROM 1 FOR 4)
        || substring(sha256(v_key || sha256(v_key || 'position' || int8send(v_offset) || convert_to(namespace, 'UTF8')))
                     FROM 1 FOR 15), 'base64'), '+/', '-_');
END $$;

COMMENT ON FUNCTION sio.sio_position IS
    'The end of the log as this statement sees it. A client that enters a room with since= gets the events after '
    'it.';

REVOKE ALL ON FUNCTION sio.sio_position FROM PUBLIC;

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packets_0 FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

ALTER TABLE sio.sio_packets_0 ENABLE ALWAYS TRIGGER sio_truncated;

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packets_1 FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

ALTER TABLE sio.sio_packets_1 ENABLE ALWAYS TRIGGER sio_truncated;

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packet_rooms_0 FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

ALTER TABLE sio.sio_packet_rooms_0 ENABLE ALWAYS TRIGGER sio_truncated;

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packet_rooms_1 FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

ALTER TABLE sio.sio_packet_rooms_1 ENABLE ALWAYS TRIGGER sio_truncated;

CREATE TRIGGER sio_into_segment BEFORE INSERT ON sio.sio_packets FOR EACH ROW EXECUTE FUNCTION sio.sio_into_segment();

ALTER TABLE sio.sio_packets ENABLE ALWAYS TRIGGER sio_into_segment;

CREATE TRIGGER sio_into_segment BEFORE INSERT ON sio.sio_packet_rooms FOR EACH ROW EXECUTE FUNCTION sio.sio_into_segment();

ALTER TABLE sio.sio_packet_rooms ENABLE ALWAYS TRIGGER sio_into_segment;

CREATE CONSTRAINT TRIGGER sio_outbox_take AFTER INSERT ON sio.sio_outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_outbox_take();

ALTER TABLE sio.sio_outbox ENABLE ALWAYS TRIGGER sio_outbox_take;

CREATE CONSTRAINT TRIGGER sio_outbox_append AFTER DELETE ON sio.sio_outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_outbox_append();

ALTER TABLE sio.sio_outbox ENABLE ALWAYS TRIGGER sio_outbox_append;

CREATE CONSTRAINT TRIGGER sio_changes_take AFTER INSERT ON sio.sio_outbox_changes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_changes_take();

ALTER TABLE sio.sio_outbox_changes ENABLE ALWAYS TRIGGER sio_changes_take;

CREATE CONSTRAINT TRIGGER sio_changes_append AFTER DELETE ON sio.sio_outbox_changes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_changes_append();

ALTER TABLE sio.sio_outbox_changes ENABLE ALWAYS TRIGGER sio_changes_append;
