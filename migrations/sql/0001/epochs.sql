-- Epochs: an offset that a lost commit had is never given to another record.

-- Identifies the server and the database on which the running epoch began. A backup restored from files, or another
-- timeline, comes with another start of the server. The file is that of sio_lock, because retention replaces the files
-- of the segments. A path reads base/database/file.
CREATE FUNCTION sio.sio_fingerprint() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time()) || ' '
        || pg_catalog.pg_relation_filepath('sio.sio_lock'::regclass)
$$;

-- Refuses transactions that are stricter than read committed. Their statements read as of a moment before the log's lock
-- was granted, and miss the records that were committed while they waited for it.
CREATE FUNCTION sio.sio_check_isolation() RETURNS void
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_last_in_epoch() RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
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
CREATE FUNCTION sio.sio_is_behind(p_last bigint) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT "offset" FROM sio.sio_packets_0 WHERE "offset" > p_last ORDER BY "offset" LIMIT 1) IS NOT NULL
        OR (SELECT "offset" FROM sio.sio_packets_1 WHERE "offset" > p_last ORDER BY "offset" LIMIT 1) IS NOT NULL;
END $$;

-- Begins an epoch above all numbers that there are, unless the running one goes on, its last offset is p_above or higher,
-- and no record is above that. The caller holds the log's lock.
CREATE FUNCTION sio.sio_check_epoch(p_above bigint DEFAULT 0) RETURNS boolean
LANGUAGE plpgsql AS $$
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

CREATE FUNCTION sio.sio_lock_and_check_epoch() RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    RETURN sio.sio_check_epoch();
END $$;

-- Ends all sessions and the epoch when somebody truncates a table of the log. The events that clients missed are gone,
-- and nothing says for which rooms they were.
CREATE FUNCTION sio.sio_truncated() RETURNS trigger
LANGUAGE plpgsql AS $$
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

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packets_0
FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packets_1
FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packet_rooms_0
FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

CREATE TRIGGER sio_truncated AFTER TRUNCATE ON sio.sio_packet_rooms_1
FOR EACH STATEMENT EXECUTE FUNCTION sio.sio_truncated();

-- ALWAYS: also in sessions whose session_replication_role is replica, such as bulk loads.
ALTER TABLE sio.sio_packets_0 ENABLE ALWAYS TRIGGER sio_truncated;

ALTER TABLE sio.sio_packets_1 ENABLE ALWAYS TRIGGER sio_truncated;

ALTER TABLE sio.sio_packet_rooms_0 ENABLE ALWAYS TRIGGER sio_truncated;

ALTER TABLE sio.sio_packet_rooms_1 ENABLE ALWAYS TRIGGER sio_truncated;
