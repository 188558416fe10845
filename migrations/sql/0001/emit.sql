-- Emits from any transaction. These functions run with the rights of the owner, so an application needs no rights on the
-- tables.

-- Emits an event that the caller has encoded: for the package's emitters, and for other languages. All parameters but one
-- are text, so that no driver needs to know a type.
--
-- p_body: the JSON array of the event's name and arguments. p_parts: its binary parts, each after its length in four
-- bytes. p_rooms: a JSON array of all rooms if there are several, of which p_room is the first. p_skips: a JSON array of
-- the sids that do not get the event. p_key: the idempotency key. p_skip_rooms: a JSON array of the rooms whose members do
-- not get the event.
--
-- Returns whether the event will be stored: false if the log or the relay has an event with the key, and null without a
-- key. The key is taken at the commit, under the log's lock. An append would otherwise wait, under that lock, for the key
-- of an open transaction, which may itself wait for the lock. So an event with the key that is committed in between wins.
CREATE FUNCTION sio.sio_emit_encoded(p_namespace text, p_room text, p_rooms text, p_skips text, p_body text,
                                     p_parts bytea, p_key text DEFAULT NULL, p_skip_rooms text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_rooms text[]; v_skips text[]; v_skip_rooms text[]; v_attachment uuid; v_at integer := 0;
    v_size bigint; v_count integer := 0; v_state bigint;
    v_name text;  -- the event's name, if it is short, and may be a reserved one
BEGIN
    v_state := pg_sequence_last_value('sio.sio_relay_state');
    IF v_state NOT IN (0, 2) THEN
        -- Most events are for one room and have no more than a body. This one statement checks and stores them, because
        -- plpgsql prepares each of its expressions again in each transaction. It inserts nothing if it is any other event,
        -- or if the namespace, the room or the body is null.
        --
        -- The statement locks sio_relay before it runs, and so before it reads the state.
        WITH state AS MATERIALIZED (
            SELECT last_value FROM sio.sio_relay_state
            WHERE last_value NOT IN (0, 2) AND p_rooms IS NULL AND p_skips IS NULL AND p_skip_rooms IS NULL
              AND p_parts IS NULL AND p_key IS NULL
              AND octet_length(p_body) <= 65536 AND octet_length(p_namespace) + octet_length(p_room) <= 512
              AND p_body::json IS NOT NULL AND right(p_body, 1) = ']'
              AND substring(left(p_body, 100) FROM '^\["([^"\\]*)"') NOT IN (
                  'connect', 'connect_error', 'disconnect', 'disconnecting', 'newListener', 'removeListener')),
        inserted AS (
            INSERT INTO sio.sio_relay (transaction, kind, namespace, room, body)
            SELECT pg_current_xact_id()::text::bigint, 0, p_namespace, p_room, p_body FROM state)
        SELECT last_value INTO v_state FROM state;
        IF v_state IS NOT NULL THEN
            IF v_state = 1 OR v_state % 2 = 0 THEN
                PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
            END IF;
            RETURN NULL;
        END IF;
    END IF;
    v_size := octet_length(p_body) + coalesce(octet_length(p_parts), 0);
    IF (p_namespace IS NOT NULL AND p_room IS NOT NULL AND p_body::json IS NOT NULL
        AND left(p_body, 2) = '["' AND right(p_body, 1) = ']') IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'an event has a namespace, a room and a body: a JSON array that'
            ' begins with the event''s name, without space around it';
    END IF;
    -- The characters of a reserved name may be escaped. PostgreSQL does not unescape all that JSON may have.
    v_name := substring(left(p_body, 100) FROM '^\[("(?:[^"\\]|\\.)*")');
    v_name := CASE WHEN v_name !~* '\\u(0000|d[89a-f])' THEN v_name::json #>> '{}' END;
    IF v_name IN ('connect', 'connect_error', 'disconnect', 'disconnecting', 'newListener', 'removeListener') THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'the event name "%s" is reserved in Socket.IO: JavaScript clients close the connection when they get it,'
            ' come back and get it again. Rename the event', v_name);
    END IF;
    -- Most events have none of these. JSON text is never shorter than the names in it.
    IF v_size > 65536 OR p_parts IS NOT NULL OR p_rooms IS NOT NULL OR p_skips IS NOT NULL
       OR p_skip_rooms IS NOT NULL OR p_key IS NOT NULL OR octet_length(p_namespace) + octet_length(p_room) > 512 THEN
        IF p_rooms IS NOT NULL THEN
            v_rooms := ARRAY(SELECT json_array_elements_text(p_rooms::json));
            IF array_position(v_rooms, NULL) IS NOT NULL OR v_rooms[1] IS DISTINCT FROM p_room
               OR cardinality(v_rooms) > 1 AND array_position(v_rooms, '') IS NOT NULL THEN
                RAISE invalid_parameter_value USING MESSAGE =
                    'rooms are text, and the first is the room. None of several is empty, which would reach everybody';
            END IF;
        END IF;
        IF p_skips IS NOT NULL THEN
            v_skips := nullif(array_remove(ARRAY(SELECT json_array_elements_text(p_skips::json)), NULL), '{}');
        END IF;
        IF p_skip_rooms IS NOT NULL THEN
            v_skip_rooms := nullif(ARRAY(SELECT r FROM json_array_elements_text(p_skip_rooms::json) r WHERE r <> ''), '{}');
        END IF;
        IF (SELECT max(octet_length(n)) FROM unnest(v_rooms || v_skips || v_skip_rooms || ARRAY[p_namespace, p_room]) n)
           > 512 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'a namespace, room or sid is longer than 512 bytes';
        END IF;
        WHILE v_at <= octet_length(p_parts) - 4 LOOP  -- a node that cannot take them apart would stand still
            v_count := v_count + 1;
            v_at := least(2147483647, v_at + 4 + (get_byte(p_parts, v_at)::bigint << 24)
                + (get_byte(p_parts, v_at + 1) << 16) + (get_byte(p_parts, v_at + 2) << 8)
                + get_byte(p_parts, v_at + 3));
        END LOOP;
        IF v_at <> octet_length(p_parts) THEN
            RAISE invalid_parameter_value USING MESSAGE = 'each binary part stands after its length';
        END IF;
        IF v_count > 10 THEN
            RAISE program_limit_exceeded USING MESSAGE = format(
                'an event has %s binary parts, and JavaScript clients take 10 at most. Join them, or send several events',
                v_count);
        END IF;
        IF v_size > 268435456 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'an event is larger than 256 MiB';
        END IF;
        IF p_key = '' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'the key of an event is not empty; leave it out, or null';
        ELSIF octet_length(p_key) > 512 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'the key of an event is longer than 512 bytes';
        ELSIF sio.sio_has_key(p_namespace, p_key) THEN
            RETURN false;
        END IF;
        IF v_size > 65536 THEN  -- now and not under the log's lock, where 50 MB held up others for 1.7 s
            v_attachment := gen_random_uuid();
            INSERT INTO sio.sio_attachments (id, data, ephemeral)
            VALUES (v_attachment, int4send(octet_length(convert_to(p_body, 'UTF8')))
                || convert_to(p_body, 'UTF8') || coalesce(p_parts, ''), false);
        END IF;
    END IF;
    v_state := pg_sequence_last_value('sio.sio_relay_state');
    IF v_state NOT IN (0, 2) THEN
        WITH state AS MATERIALIZED (SELECT last_value FROM sio.sio_relay_state WHERE last_value NOT IN (0, 2)),
        inserted AS (
            INSERT INTO sio.sio_relay (transaction, kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                       attachment, key)
            SELECT pg_current_xact_id()::text::bigint, 0, p_namespace, p_room, p_rooms,
                   array_to_json(v_skips)::text, array_to_json(v_skip_rooms)::text,
                   CASE WHEN v_attachment IS NULL THEN p_body END, CASE WHEN v_attachment IS NULL THEN p_parts END,
                   v_attachment, p_key
            FROM state)
        SELECT last_value INTO v_state FROM state;
        IF v_state = 1 OR v_state % 2 = 0 THEN
            PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
        END IF;
        IF v_state IS NOT NULL THEN
            RETURN CASE WHEN p_key IS NOT NULL THEN true END;
        END IF;
    END IF;
    -- A notification of 7,999 bytes carries the record if that fits, and if the queue is far from full. The queue holds
    -- every message until the slowest listener has read it.
    --
    -- The marker may go between here and the commit, by a crash, which this transaction does not survive, or by a
    -- TRUNCATE of the log, which ends all sessions. Neither does harm.
    INSERT INTO sio.sio_outbox
    SELECT p_namespace, p_room, v_rooms, v_skips, v_skip_rooms, CASE WHEN v_attachment IS NULL THEN p_body END,
           CASE WHEN v_attachment IS NULL THEN p_parts END, v_attachment, (SELECT channel FROM sio.sio_log),
           CASE WHEN octet_length(c.carried) <= 7600 THEN c.carried ELSE '' END,
           sio.sio_last_in_epoch(), false, p_key
    FROM (SELECT CASE
              WHEN v_size >= 7600 OR p_parts IS NOT NULL OR pg_notification_queue_usage() >= 0.1 THEN NULL
              -- As in store/batches.py: for one room it is written out, which costs less here and on each node.
              WHEN v_rooms IS NULL AND v_skips IS NULL AND v_skip_rooms IS NULL
                   AND octet_length(p_namespace || p_room || p_body) = length(p_namespace || p_room || p_body) THEN
                  concat(' =', length(p_namespace), ' ', length(p_room), ' ', p_namespace, p_room, p_body)
              ELSE ' ' || json_build_array(json_build_array(
                  p_namespace, coalesce(v_rooms, ARRAY[p_room]), coalesce(v_skips, ARRAY[]::text[]),
                  coalesce(v_skip_rooms, ARRAY[]::text[]), p_body))::text END) AS c (carried);
    RETURN CASE WHEN p_key IS NOT NULL THEN true END;
END $$;

-- Emits an event from SQL. A null room is refused: 'user:' || id with a null id must not reach everybody. An empty room
-- among others is left out. An empty array of rooms reaches nobody, so nothing is stored and the key is not taken.
-- Returns what sio_emit_encoded returns, and null if the event reaches nobody.
CREATE FUNCTION sio.sio_emit(event text, data json DEFAULT NULL, room text DEFAULT '', rooms text[] DEFAULT '{""}',
                             namespace text DEFAULT '/', skip_sids text[] DEFAULT '{}', key text DEFAULT NULL,
                             skip_rooms text[] DEFAULT '{}')
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE v_rooms text[];
BEGIN
    IF event IS NULL OR room IS NULL OR rooms IS NULL OR array_position(rooms, NULL) IS NOT NULL
       OR namespace IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE =
            'sio_emit: event, room, rooms and namespace are not null; leave room out to reach everybody';
    END IF;
    IF octet_length(event) > 512 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'sio_emit: the name of an event is longer than 512 bytes';
    END IF;
    IF room = '' AND cardinality(rooms) = 0 THEN
        RETURN NULL;
    END IF;
    v_rooms := ARRAY(SELECT r FROM unnest(room || rooms) WITH ORDINALITY AS x (r, i)
                     WHERE r <> '' GROUP BY r ORDER BY min(i));
    IF cardinality(v_rooms) = 0 THEN
        IF cardinality(rooms) > 1 THEN
            RAISE invalid_parameter_value USING MESSAGE =
                'sio_emit: all rooms are empty, which would reach everybody; leave rooms out for that';
        END IF;
        v_rooms := ARRAY[''];
    END IF;
    RETURN sio.sio_emit_encoded(
        namespace, v_rooms[1], CASE WHEN cardinality(v_rooms) > 1 THEN array_to_json(v_rooms)::text END,
        CASE WHEN cardinality(skip_sids) > 0 THEN array_to_json(skip_sids)::text END,
        '[' || to_json(event)::text || coalesce(',' || data::text, '') || ']', NULL, key,
        CASE WHEN cardinality(skip_rooms) > 0 THEN array_to_json(skip_rooms)::text END);
END $$;

COMMENT ON FUNCTION sio.sio_emit IS
    'Sends a Socket.IO event if and when this transaction commits. data: one argument, as JSON. Without it the '
    'event has no argument. room, rooms: who gets the event. Without them everybody in the namespace gets it. '
    'skip_sids, skip_rooms: clients, and rooms whose members at the commit, do not get it. '
    'key: an event whose key an event in the log has is not stored. Returns whether it will be stored, and null '
    'without a key.';

-- Sends an event to all nodes that live, for the package's emitters. It is not stored. Nodes get it when the transaction
-- commits. What exceeds a notification goes through the attachment table, as in cluster/messages.py.
--
-- p_body: the JSON array of the event's name and arguments. p_parts: its binary parts, each after its length.
CREATE FUNCTION sio.sio_server_side_emit_encoded(p_namespace text, p_body text, p_parts bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE v_message text; v_key uuid := gen_random_uuid();
BEGIN
    IF (p_namespace IS NOT NULL AND p_body::json IS NOT NULL AND left(p_body, 2) = '["') IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a server event has a namespace and a body: a JSON array that begins'
            ' with the event''s name, without space before it';
    ELSIF octet_length(p_body) + octet_length(coalesce(p_parts, '')) > 268435456 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'an event is larger than 256 MiB';
    END IF;
    -- The key distinguishes it from equal messages, which PostgreSQL delivers once in a transaction.
    v_message := json_build_object('node', '', 'number', v_key, 'cursor', 0, 'kind', 'request', 'body', json_build_object(
        'what', 'server_event', 'fields', json_build_object('namespace', p_namespace, 'body', p_body)));
    IF p_parts IS NOT NULL OR octet_length(v_message) > 7900 THEN
        INSERT INTO sio.sio_attachments (id, data, ephemeral)
        VALUES (v_key, int4send(octet_length(convert_to(v_message, 'UTF8'))) || convert_to(v_message, 'UTF8')
            || coalesce(p_parts, ''), true);
        v_message := json_build_object('node', '', 'cursor', 0, 'attachment', v_key);
    END IF;
    PERFORM pg_notify(channel, v_message) FROM sio.sio_log;
END $$;

-- Sends an event to all nodes that live, from SQL. args: a JSON array of its arguments.
CREATE FUNCTION sio.sio_server_side_emit(event text, args json DEFAULT '[]', namespace text DEFAULT '/') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF event IS NULL OR args IS NULL OR namespace IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'sio_server_side_emit: event, args and namespace are not null';
    ELSIF json_typeof(args) <> 'array' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'sio_server_side_emit: args is a JSON array';
    END IF;
    PERFORM sio.sio_server_side_emit_encoded(
        namespace,
        '[' || to_json(event)::text || coalesce((SELECT string_agg(',' || a::text, '' ORDER BY i)
                                                 FROM json_array_elements(args) WITH ORDINALITY AS x (a, i)), '') || ']',
        NULL);
END $$;

COMMENT ON FUNCTION sio.sio_server_side_emit IS
    'Calls the handlers of a server event in all server processes if and when this transaction commits. It is not stored: '
    'only servers that live then get it. args: a JSON array of arguments.';
