-- Idempotency keys. A key belongs to the first event that has it, for as long as that event is in the log.

-- A plan that was made while a table was empty would read all of its later rows. The settings of these functions prevent
-- that.

-- Returns whether a key is taken. It does not read the log. Retention could not truncate a segment that an application's
-- transaction has read until that transaction ends.
CREATE FUNCTION sio.sio_has_key(p_namespace text, p_key text) RETURNS boolean
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN EXISTS (SELECT FROM sio.sio_keys k WHERE k.namespace = p_namespace AND k.key = p_key)
        -- A serializable transaction would depend on all others that emit with a key.
        OR current_setting('transaction_isolation') <> 'serializable' AND EXISTS (
            SELECT FROM sio.sio_relay r WHERE r.namespace = p_namespace AND r.key = p_key AND r.fault IS NULL);
END $$;

-- Returns the offset of the event that has a key, or null. The event itself is looked up, too, because rows of the log
-- may have been deleted by hand, or left out of a dump. The caller holds the log's lock.
CREATE FUNCTION sio.sio_keyed_event(p_namespace text, p_key text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN (SELECT k."offset" FROM sio.sio_keys k
            WHERE k.namespace = p_namespace AND k.key = p_key
              AND ((SELECT p."offset" FROM sio.sio_packets_0 p WHERE p."offset" = k."offset") IS NOT NULL
                   OR (SELECT p."offset" FROM sio.sio_packets_1 p WHERE p."offset" = k."offset") IS NOT NULL));
END $$;

-- Returns the offsets of a batch of events as sio_append_batch returns them. New ones begin above p_prev. p_args: the
-- key of each event, in JSON, or null. If events of the batch have the same key, the first is stored.
CREATE FUNCTION sio.sio_keyed_offsets(p_prev bigint, p_namespaces text[], p_args text[]) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
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
CREATE FUNCTION sio.sio_take_key(p_namespace text, p_key text, p_offset bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sio.sio_keys (namespace, key, "offset") VALUES (p_namespace, p_key, p_offset)
    ON CONFLICT (namespace, key) DO UPDATE SET "offset" = excluded."offset";
END $$;
