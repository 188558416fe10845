-- Retention: the end of records whose time is up. A segment goes as a whole if that is possible. Records are deleted one
-- by one while the log is small, while a segment cannot be locked at once (because pg_dump reads it, for example), and if
-- the role may not truncate.

-- Locks a segment for no longer than a moment, and returns whether it could. Nobody has to wait behind this lock. It is
-- tried for half a second, since a reader takes less than a millisecond.
CREATE FUNCTION sio.sio_lock_segment(p_segment integer) RETURNS boolean
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_may_truncate() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT bool_and(has_table_privilege(t, 'TRUNCATE')) FROM unnest(ARRAY[
        'sio.sio_packets_0', 'sio.sio_packets_1', 'sio.sio_packet_rooms_0', 'sio.sio_packet_rooms_1'
    ]::regclass[]) t
$$;

-- Truncates a segment that retention has locked. The setting keeps sio_truncated from ending sessions. It is local to
-- the transaction, and an error takes it back with the subtransaction. The function does not SET it in its definition,
-- because only a superuser may create such a function.
CREATE FUNCTION sio.sio_empty_segment(p_segment integer) RETURNS void
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_switch_segment(p_keep double precision) RETURNS boolean
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_needs_floor(p_namespace text, p_room text, p_floor bigint) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
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
CREATE FUNCTION sio.sio_raise_floors(
    p_floor bigint, p_upto bigint, p_namespaces text[], p_rooms text[], p_lasts bigint[]) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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
CREATE FUNCTION sio.sio_truncate_segment(p_keep double precision) RETURNS integer
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_trim(p_keep double precision, p_limit integer) RETURNS integer
LANGUAGE plpgsql AS $$
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
