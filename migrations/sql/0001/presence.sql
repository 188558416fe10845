-- Presence: which nodes live.

-- Returns whether a node lives: a backend of its own role holds its lock. The role counts, because any role may take
-- advisory locks.
CREATE FUNCTION sio.sio_node_alive(p_number integer, p_role oid) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
          AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
          AND l.classid = 'sio.sio_nodes'::regclass::oid AND l.objid = p_number::bigint::oid
          AND a.usesysid = p_role)
$$;

-- Returns when the sessions of a dead node expire: null while it lives, infinity if they never do.
CREATE FUNCTION sio.sio_node_expiry(p_died_at timestamptz, p_seconds double precision) RETURNS timestamptz
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_died_at IS NULL THEN NULL
                WHEN p_seconds IS NULL THEN 'infinity'::timestamptz
                ELSE p_died_at + make_interval(secs => p_seconds) END
$$;

-- Checks which nodes live. A node is dead when two checks ten seconds apart found no lock, and its sessions expire from
-- then on. Returns how many nodes are missing but not dead yet.
CREATE FUNCTION sio.sio_check_nodes() RETURNS integer
LANGUAGE plpgsql AS $$
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
