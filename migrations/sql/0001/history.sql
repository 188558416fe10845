-- History: the stored events of a room, for applications.

-- Returns the offsets of at most p_limit events that were emitted to a room. These are the first above p_after, in
-- order. If p_after is null, they are the last up to p_upto, in reverse order. The comment above sio_due explains the
-- bounds and the settings.
--
-- A scan has one bound on offsets, and LIMIT ends it. With p_after, p_upto is applied after that LIMIT. As a bound it
-- would not end a scan before PostgreSQL 18.
CREATE FUNCTION sio.sio_history(p_namespace text, p_room text, p_after bigint, p_upto bigint, p_limit integer)
RETURNS SETOF bigint
LANGUAGE plpgsql STABLE ROWS 20
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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
