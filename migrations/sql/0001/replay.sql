-- Replays: the events that a session missed, and whether some of them are gone.

-- Returns the memberships of a session above an offset. Everybody and its own room are among them.
CREATE FUNCTION sio.sio_memberships(p_session bigint, p_after bigint)
RETURNS TABLE (namespace text, sid text, room text, joined_at bigint, left_at bigint)
LANGUAGE sql STABLE AS $$
    SELECT s.namespace, s.sid, x.room, s.joined_at, NULL::bigint
    FROM sio.sio_sessions s CROSS JOIN LATERAL (VALUES (''), (s.sid)) AS x (room)
    WHERE s.id = p_session
    UNION ALL
    SELECT s.namespace, s.sid, r.room, r.joined_at, r.left_at
    FROM sio.sio_sessions s JOIN sio.sio_rooms r ON r.session = s.id
    WHERE s.id = p_session AND (r.left_at IS NULL OR r.left_at > p_after)
$$;

-- Returns whether a session was in one of an event's skip_rooms at the offset of the event. Its own room is one, too.
CREATE FUNCTION sio.sio_is_skipped(p_session bigint, p_sid text, p_skip_rooms text[], p_offset bigint) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
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
CREATE FUNCTION sio.sio_due(p_session bigint, p_after bigint, p_limit integer) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE ROWS 20
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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
CREATE FUNCTION sio.sio_count_since(p_namespace text, p_rooms text[], p_afters bigint[], p_limit integer) RETURNS bigint
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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
CREATE FUNCTION sio.sio_missed(p_session bigint, p_after bigint, p_upto bigint, p_limit integer) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT count(*) FROM sio.sio_due(p_session, p_after, p_limit) d WHERE d <= p_upto
$$;

-- Returns the highest offset of the deleted events that a session was due by a membership. There is no row if retention
-- deleted no event of the room. An offset at or below p_joined_at means that the session lost nothing.
--
-- The membership has a floor of its own in sio_session_floors if it lost less than the room. That one counts, unless
-- retention has since deleted an event above it that the session may have been due.
CREATE FUNCTION sio.sio_deleted(
    p_session bigint, p_namespace text, p_room text, p_joined_at bigint, p_left_at bigint) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN o.upto >= least(f."offset", p_left_at - 1) THEN o."offset" ELSE f."offset" END
    FROM sio.sio_room_floors f
    LEFT JOIN sio.sio_session_floors o ON o.session = p_session AND o.room = p_room AND o.joined_at = p_joined_at
    WHERE f.namespace = p_namespace AND f.room = p_room
$$;

-- Returns whether an event that a session is due above p_after is gone, or may be because its membership is not stored.
-- The deleted event of the room may lie above the end of the membership, so the end bounds it.
CREATE FUNCTION sio.sio_lost(p_session bigint, p_after bigint) RETURNS boolean
LANGUAGE sql STABLE AS $$
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
LANGUAGE sql STABLE AS $$
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
CREATE FUNCTION sio.sio_last_skipping(p_namespace text, p_room text, p_above bigint, p_below bigint) RETURNS bigint
LANGUAGE sql STABLE AS $$
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
