-- Expiry: the end of sessions whose time is up.

-- Returns the expired sessions, those of dead nodes included.
CREATE FUNCTION sio.sio_expired() RETURNS SETOF sio.sio_sessions
LANGUAGE sql STABLE AS $$
    SELECT * FROM sio.sio_sessions WHERE expires_at <= clock_timestamp()
    UNION ALL
    SELECT s.* FROM sio.sio_nodes n JOIN sio.sio_sessions s ON s.node = n.id
    WHERE sio.sio_node_expiry(n.died_at, n.recovery_seconds) <= clock_timestamp()
$$;

-- Deletes expired sessions for which no handler is to be called, and returns how many.
CREATE FUNCTION sio.sio_expire(p_limit integer) RETURNS integer
LANGUAGE plpgsql AS $$
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
RETURNS TABLE (id bigint, namespace text, sid text, data text)
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_delete_expired(p_sessions bigint[], p_node uuid) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    DELETE FROM sio.sio_sessions WHERE id = ANY (p_sessions) AND expiry_node = p_node;
END $$;
