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
CREATE FUNCTION sio.sio_position(namespace text DEFAULT '/') RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
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
    'The end of the log as this statement sees it. A client that enters a room with since= gets the events after it.';
