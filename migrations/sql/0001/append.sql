-- Appends. A node changes the log and sessions by sio_append_batch, sio_append_event and sio_move_members. Transactional
-- emits (outbox.sql), expiry, retention and epochs have functions of their own.

-- Waits for the log's lock as an append does, for at most p_wait milliseconds, and gives it back. Writes nothing.
CREATE FUNCTION sio.sio_wait_for_lock(p_wait integer) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', p_wait::text, true);
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
END $$;

-- Appends one record of a kind other than an event, and returns its offset. The caller holds the log's lock.
CREATE FUNCTION sio.sio_put_record(
    p_batch bigint, p_kind integer, p_namespace text, p_room text, p_sid text,
    p_generation bigint DEFAULT NULL, p_as_of bigint DEFAULT NULL, p_node uuid DEFAULT NULL, p_data text DEFAULT NULL,
    p_rooms text[] DEFAULT NULL, p_skip_sids text[] DEFAULT NULL, p_skip_rooms text[] DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_offset bigint; v_segment bigint := (SELECT last_value FROM sio.sio_active_segment);
BEGIN
    IF v_segment = 0 THEN
        INSERT INTO sio.sio_packets_0 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, sid, generation,
                                       as_of, node, data, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), p_kind, p_namespace, coalesce(p_room, ''), p_rooms, p_skip_sids,
                p_skip_rooms, p_sid, p_generation, p_as_of, p_node, p_data, p_batch)
        RETURNING "offset" INTO v_offset;
    ELSE
        INSERT INTO sio.sio_packets_1 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, sid, generation,
                                       as_of, node, data, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), p_kind, p_namespace, coalesce(p_room, ''), p_rooms, p_skip_sids,
                p_skip_rooms, p_sid, p_generation, p_as_of, p_node, p_data, p_batch)
        RETURNING "offset" INTO v_offset;
    END IF;
    RETURN v_offset;
END $$;

-- Appends a batch of waiting entries in order, with one lock, one commit and one notification.
--
-- Arrays have one element for each entry. p_room_lists: a JSON array of all rooms, if there are several.
-- p_skip_lists: a JSON array of the sids that do not get the event. p_skip_room_lists: of the rooms whose members do not.
-- p_args: the arguments of the functions below, or the key of an event.
-- p_carry: the records for the notification, if they fit. p_drain: false for the relay, which appends its own rows.
--
-- prev: the last offset before the batch. offsets: the offset of each entry. An entry that changed nothing has minus the
-- offset of the record that it met, or 0. A refused entry has null. An event whose key is taken changes nothing.
-- results: the answers of the session functions.
CREATE FUNCTION sio.sio_append_batch(
    p_batch bigint, p_kinds smallint[], p_namespaces text[], p_rooms text[], p_room_lists text[], p_skip_lists text[],
    p_skip_room_lists text[], p_sids text[], p_bodies text[], p_parts bytea[], p_attachments uuid[], p_args text[],
    p_carry text, p_drain boolean DEFAULT true,
    OUT prev bigint, OUT offsets bigint[], OUT results text[])
LANGUAGE plpgsql AS $$
DECLARE
    v_segment bigint; v_last bigint; v_offset bigint; v_result json; v_channel text; v_rooms text[]; v_skips text[];
    v_skip_rooms text[]; v_key text; r record;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    IF p_drain THEN
        PERFORM sio.sio_relay_before();
    END IF;
    PERFORM sio.sio_check_epoch();
    -- Sequences are read under the lock, and show their present value whatever the snapshot.
    SELECT CASE WHEN o.is_called THEN o.last_value ELSE o.last_value - 1 END, s.last_value INTO prev, v_segment
    FROM sio.sio_packets_offset_seq o, sio.sio_active_segment s;
    IF 0 = ALL (p_kinds) THEN
        IF p_args IS NULL THEN
            v_last := setval('sio.sio_packets_offset_seq', prev + cardinality(p_kinds));
            offsets := ARRAY(SELECT generate_series(prev + 1, v_last));
        ELSE
            offsets := sio.sio_keyed_offsets(prev, p_namespaces, p_args);
            v_last := setval('sio.sio_packets_offset_seq', greatest(prev, (SELECT max(o) FROM unnest(offsets) o)));
            INSERT INTO sio.sio_keys (namespace, key, "offset")
            SELECT e.namespace, e.args::json->>'key', offsets[e.i]
            FROM unnest(p_namespaces, p_args) WITH ORDINALITY AS e (namespace, args, i)
            WHERE e.args::json->>'key' IS NOT NULL AND offsets[e.i] > 0
            ON CONFLICT (namespace, key) DO UPDATE SET "offset" = excluded."offset";  -- as in sio_take_key()
        END IF;
        IF v_segment = 0 THEN
            INSERT INTO sio.sio_packets_0 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                           attachment, batch)
            SELECT offsets[e.i], 0, e.namespace, e.room,
                   CASE WHEN e.rooms IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.rooms::json)) END,
                   CASE WHEN e.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.skips::json)) END,
                   CASE WHEN e.skip_rooms IS NOT NULL THEN
                       ARRAY(SELECT json_array_elements_text(e.skip_rooms::json)) END,
                   e.body, e.parts, e.attachment, p_batch
            FROM unnest(p_namespaces, p_rooms, p_room_lists, p_skip_lists, p_skip_room_lists, p_bodies, p_parts,
                        p_attachments)
                WITH ORDINALITY AS e (namespace, room, rooms, skips, skip_rooms, body, parts, attachment, i)
            WHERE offsets[e.i] > 0;
        ELSE
            INSERT INTO sio.sio_packets_1 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                           attachment, batch)
            SELECT offsets[e.i], 0, e.namespace, e.room,
                   CASE WHEN e.rooms IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.rooms::json)) END,
                   CASE WHEN e.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(e.skips::json)) END,
                   CASE WHEN e.skip_rooms IS NOT NULL THEN
                       ARRAY(SELECT json_array_elements_text(e.skip_rooms::json)) END,
                   e.body, e.parts, e.attachment, p_batch
            FROM unnest(p_namespaces, p_rooms, p_room_lists, p_skip_lists, p_skip_room_lists, p_bodies, p_parts,
                        p_attachments)
                WITH ORDINALITY AS e (namespace, room, rooms, skips, skip_rooms, body, parts, attachment, i)
            WHERE offsets[e.i] > 0;
        END IF;
        IF EXISTS (SELECT FROM unnest(p_room_lists) l WHERE l IS NOT NULL) THEN
            IF v_segment = 0 THEN
                INSERT INTO sio.sio_packet_rooms_0 (namespace, room, "offset")
                SELECT DISTINCT p_namespaces[l.i], x.room, offsets[l.i]
                FROM unnest(p_room_lists) WITH ORDINALITY AS l (rooms, i)
                    CROSS JOIN LATERAL json_array_elements_text(l.rooms::json) WITH ORDINALITY AS x (room, j)
                WHERE x.j > 1 AND offsets[l.i] > 0;
            ELSE
                INSERT INTO sio.sio_packet_rooms_1 (namespace, room, "offset")
                SELECT DISTINCT p_namespaces[l.i], x.room, offsets[l.i]
                FROM unnest(p_room_lists) WITH ORDINALITY AS l (rooms, i)
                    CROSS JOIN LATERAL json_array_elements_text(l.rooms::json) WITH ORDINALITY AS x (room, j)
                WHERE x.j > 1 AND offsets[l.i] > 0;
            END IF;
        END IF;
    ELSE
        FOR r IN SELECT * FROM unnest(p_kinds, p_namespaces, p_rooms, p_room_lists, p_skip_lists, p_skip_room_lists,
                                      p_sids, p_bodies, p_parts, p_attachments, p_args)
                     WITH ORDINALITY AS e (kind, namespace, room, rooms, skips, skip_rooms, sid, body, parts,
                                           attachment, args, i)
                 ORDER BY i
        LOOP
            v_offset := 0;
            v_result := NULL;
            CASE r.kind
            WHEN 0 THEN
                v_key := r.args::json->>'key';
                v_offset := CASE WHEN v_key IS NOT NULL THEN -sio.sio_keyed_event(r.namespace, v_key) END;
                v_rooms := NULL;
                v_skips := NULL;
                v_skip_rooms := NULL;
                IF r.rooms IS NOT NULL THEN
                    v_rooms := ARRAY(SELECT json_array_elements_text(r.rooms::json));
                END IF;
                IF r.skips IS NOT NULL THEN
                    v_skips := ARRAY(SELECT json_array_elements_text(r.skips::json));
                END IF;
                IF r.skip_rooms IS NOT NULL THEN
                    v_skip_rooms := ARRAY(SELECT json_array_elements_text(r.skip_rooms::json));
                END IF;
                -- The further rooms are written at once, because a claim behind the event in this batch reads them.
                IF v_offset IS NOT NULL THEN
                    v_key := NULL;  -- it is taken
                ELSIF v_segment = 0 THEN
                    INSERT INTO sio.sio_packets_0 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body,
                                                   parts, attachment, batch)
                    VALUES (nextval('sio.sio_packets_offset_seq'), 0, r.namespace, r.room, v_rooms, v_skips,
                            v_skip_rooms, r.body, r.parts, r.attachment, p_batch)
                    RETURNING "offset" INTO v_offset;
                    IF v_rooms IS NOT NULL THEN
                        INSERT INTO sio.sio_packet_rooms_0 (namespace, room, "offset")
                        SELECT DISTINCT r.namespace, x.room, v_offset FROM unnest(v_rooms[2:]) AS x (room);
                    END IF;
                ELSE
                    INSERT INTO sio.sio_packets_1 ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body,
                                                   parts, attachment, batch)
                    VALUES (nextval('sio.sio_packets_offset_seq'), 0, r.namespace, r.room, v_rooms, v_skips,
                            v_skip_rooms, r.body, r.parts, r.attachment, p_batch)
                    RETURNING "offset" INTO v_offset;
                    IF v_rooms IS NOT NULL THEN
                        INSERT INTO sio.sio_packet_rooms_1 (namespace, room, "offset")
                        SELECT DISTINCT r.namespace, x.room, v_offset FROM unnest(v_rooms[2:]) AS x (room);
                    END IF;
                END IF;
                IF v_key IS NOT NULL THEN
                    PERFORM sio.sio_take_key(r.namespace, v_key, v_offset);
                END IF;
            WHEN 1, 2 THEN
                v_offset := sio.sio_move(p_batch, r.kind, r.namespace, r.room, r.sid, r.args::json);
            WHEN 3 THEN v_offset := sio.sio_close(p_batch, r.namespace, r.room);
            WHEN 4 THEN
                v_result := sio.sio_claim(p_batch, r.namespace, r.args::json);
                v_offset := coalesce((v_result->>'offset')::bigint, 0);
            WHEN 5 THEN v_offset := sio.sio_kick(p_batch, r.namespace, r.sid);
            WHEN 6, 7, 8 THEN  -- only from the relay
                v_offset := sio.sio_change_members(
                    p_batch, r.kind, r.namespace, ARRAY(SELECT json_array_elements_text(r.args::json->'members')),
                    CASE WHEN r.rooms IS NULL THEN ARRAY[r.room]
                         ELSE ARRAY(SELECT json_array_elements_text(r.rooms::json)) END,
                    ARRAY(SELECT json_array_elements_text(r.skips::json)),
                    ARRAY(SELECT json_array_elements_text(r.skip_rooms::json)));
            WHEN 10 THEN v_result := sio.sio_open(r.namespace, r.sid, r.body, r.args::json);
            WHEN 11 THEN v_result := sio.sio_settle(r.args::json);
            WHEN 12 THEN PERFORM sio.sio_release(r.args::json);
            WHEN 13 THEN v_result := sio.sio_end(r.args::json);
            WHEN 14 THEN v_result := sio.sio_save(r.namespace, r.sid, r.body, r.args::json);
            END CASE;
            offsets := array_append(offsets, v_offset);
            results := array_append(results, v_result::text);
        END LOOP;
        SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_last
        FROM sio.sio_packets_offset_seq;
    END IF;
    IF v_last > prev THEN
        SELECT channel INTO v_channel FROM sio.sio_log;
        -- The notification only rings while a listener sits idle in a transaction. The queue holds 8 GB, and once it is
        -- full every commit with a notification fails.
        PERFORM pg_notify(v_channel, CASE WHEN p_drain THEN '' ELSE 'relay ' END || prev || ' ' || v_last || CASE
            WHEN p_carry IS NULL OR v_last - prev < cardinality(p_kinds) OR pg_notification_queue_usage() > 0.1 THEN ''
            ELSE ' ' || p_carry END);
    END IF;
END $$;

-- Appends one event for one room, which is what a quiet node emits, and returns its offset. The offset before it is one
-- less, or belongs to a rolled-back transaction or a former epoch. If its key is taken, the function appends nothing, and
-- returns minus the offset of the event with that key.
--
-- It takes no arrays. Apart from the commit, they would take half of the time, here and in the client. It runs as few
-- statements as possible, since each one finds the processor's caches cold on a node that does other work in between.
CREATE FUNCTION sio.sio_append_event(
    p_batch bigint, p_namespace text, p_room text, p_body text, p_key text, p_carry text)
RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_segment bigint; v_channel text; v_known boolean; v_offset bigint; v_notified varchar; v_relay bigint; v_last bigint;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    -- An assignment of a function is no query. A SELECT from the three sequences would take 10 us of 60.
    v_segment := coalesce(pg_sequence_last_value('sio.sio_active_segment'), 0);
    v_relay := pg_sequence_last_value('sio.sio_relay_state');
    v_last := pg_sequence_last_value('sio.sio_packets_offset_seq');  -- null before the first nextval(), when no epoch runs
    -- As in sio_last_in_epoch() and sio_is_behind(). The calls would take twice as long.
    SELECT l.channel,
           v_last >= l.floor AND EXISTS (
               SELECT FROM sio.sio_marker
               WHERE fingerprint = sio.sio_fingerprint() AND v_last - began_at BETWEEN 0 AND 1099511627774)
           AND (SELECT "offset" FROM sio.sio_packets_0 WHERE "offset" > v_last ORDER BY "offset" LIMIT 1) IS NULL
           AND (SELECT "offset" FROM sio.sio_packets_1 WHERE "offset" > v_last ORDER BY "offset" LIMIT 1) IS NULL
    INTO v_channel, v_known FROM sio.sio_log l;
    IF v_relay > 0 THEN
        PERFORM sio.sio_relay_drain();
    END IF;
    IF NOT v_known THEN
        PERFORM sio.sio_check_epoch();
    END IF;
    IF p_key IS NOT NULL THEN
        v_offset := -sio.sio_keyed_event(p_namespace, p_key);
        IF v_offset IS NOT NULL THEN
            RETURN v_offset;
        END IF;
    END IF;
    IF v_segment = 0 THEN
        INSERT INTO sio.sio_packets_0 AS p ("offset", kind, namespace, room, body, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), 0, p_namespace, p_room, p_body, p_batch)
        RETURNING p."offset", pg_notify(v_channel, concat(p."offset" - 1, ' ', p."offset", CASE
            WHEN pg_notification_queue_usage() <= 0.1 THEN ' ' || p_carry END))::varchar
        INTO v_offset, v_notified;
    ELSE
        INSERT INTO sio.sio_packets_1 AS p ("offset", kind, namespace, room, body, batch)
        VALUES (nextval('sio.sio_packets_offset_seq'), 0, p_namespace, p_room, p_body, p_batch)
        RETURNING p."offset", pg_notify(v_channel, concat(p."offset" - 1, ' ', p."offset", CASE
            WHEN pg_notification_queue_usage() <= 0.1 THEN ' ' || p_carry END))::varchar
        INTO v_offset, v_notified;
    END IF;
    IF p_key IS NOT NULL THEN
        PERFORM sio.sio_take_key(p_namespace, p_key, v_offset);
    END IF;
    RETURN v_offset;
END $$;

-- Returns the records of a batch whose answer was lost, above an offset known from before it. It waits until no append is
-- in progress. One statement waits and reads, for the same reason as in sio_move_members.
CREATE FUNCTION sio.sio_stored_batch(p_after bigint, p_batch bigint) RETURNS TABLE ("offset" bigint, kind smallint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    RETURN QUERY
    SELECT p."offset", p.kind FROM sio.sio_packets p
    WHERE p."offset" > p_after AND p.batch = p_batch ORDER BY p."offset";
END $$;
