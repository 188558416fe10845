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
CREATE FUNCTION sio.sio_open(p_namespace text, p_sid text, p_data text, p_args json) RETURNS json
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_in_log(p_offset bigint, p_key text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
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
CREATE FUNCTION sio.sio_claim(p_batch bigint, p_namespace text, p_args json) RETURNS json
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_settle(p_args json) RETURNS json
LANGUAGE sql AS $$
    UPDATE sio.sio_sessions SET settled = generation
    WHERE id = (p_args->>'id')::bigint AND generation = (p_args->>'generation')::bigint
    RETURNING json_build_object('data', data)
$$;

-- Releases a session whose client is away. p_args: id, generation, seconds until it expires (null for ever) and since
-- (seconds for which the client has been away). If another node claimed the session in the meantime, that node is
-- notified that the former holder has let go. The claim is then settled. A later claim waits for that node, and not for
-- a release that was announced already.
CREATE FUNCTION sio.sio_release(p_args json) RETURNS void
LANGUAGE plpgsql AS $$
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
CREATE FUNCTION sio.sio_end(p_args json) RETURNS json
LANGUAGE sql AS $$
    DELETE FROM sio.sio_sessions
    WHERE id = (p_args->>'id')::bigint AND generation <= (p_args->>'generation')::bigint
    RETURNING json_build_object('data', data)
$$;

-- Saves session data. p_args: id and generation, if the caller holds the session. A former holder may still write while
-- a claim waits for it. Without them the data is saved wherever the sid is. expected: the SHA-256 in hexadecimal of the
-- data that is to be replaced, if any other data is to stay. The same call, sent again, finds its own data.
CREATE FUNCTION sio.sio_save(p_namespace text, p_sid text, p_data text, p_args json) RETURNS json
LANGUAGE sql AS $$
    UPDATE sio.sio_sessions SET data = p_data
    WHERE namespace = p_namespace AND sid = p_sid
      AND CASE WHEN p_args->>'id' IS NULL THEN expires_at IS NULL OR expires_at > clock_timestamp()
          ELSE id = (p_args->>'id')::bigint AND (p_args->>'generation')::bigint IN (generation, settled) END
      AND (p_args->>'expected' IS NULL OR data = p_data
           OR encode(sha256(convert_to(data, 'UTF8')), 'hex') = p_args->>'expected')
    RETURNING json_build_object('id', id)
$$;

-- Ends the session of a sid, wherever it is, and appends a kick with the session data.
CREATE FUNCTION sio.sio_kick(p_batch bigint, p_namespace text, p_sid text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_session bigint; v_data text;
BEGIN
    DELETE FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = p_sid RETURNING id, data INTO v_session, v_data;
    DELETE FROM sio.sio_rooms WHERE session = v_session;  -- no cascade in the replica role
    RETURN sio.sio_put_record(p_batch, 5, p_namespace, '', p_sid, p_data => v_data);
END $$;
