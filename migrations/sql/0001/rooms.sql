-- Room changes, as entries of a batch. The caller holds the log's lock.

-- Bounds the memberships of a session that have ended: above a hundred of them, only the last fifty stay. A claim reads
-- them under the log's lock, so a client that enters and leaves a room 10,000 times would hold up all appends. If a
-- membership that goes had an event, a client at a lower offset cannot recover any more, because it would not get that
-- event. The event may be deleted already, which a floor says. The same holds if an event skips the room, because the
-- client would get that event.
CREATE FUNCTION sio.sio_forget_rooms(p_session bigint) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_close(p_batch bigint, p_namespace text, p_room text) RETURNS bigint
LANGUAGE plpgsql AS $$
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
LANGUAGE sql STABLE AS $$
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
CREATE FUNCTION sio.sio_change_members(p_batch bigint, p_kind integer, p_namespace text, p_members text[],
                                       p_targets text[], p_skip_sids text[], p_skip_rooms text[]) RETURNS bigint
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_move_members(
    p_batch bigint, p_kind smallint, p_namespace text, p_rooms text[], p_unstored text[], p_skip_sids text[],
    p_skip_rooms text[], p_targets text[], OUT prev bigint, OUT offsets bigint[])
LANGUAGE plpgsql AS $$
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
