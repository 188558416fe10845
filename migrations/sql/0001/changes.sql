-- Room changes and kicks that are part of an application's own transaction.
--
-- They take the same path as its events (outbox.sql), through a table of their own, so that events do not cost more.
-- PostgreSQL runs deferred triggers in the order in which they were queued, whatever their tables, so the events
-- and changes of a transaction keep their order.
--
-- The tables of sessions and rooms are written at the commit, under the log's lock. The snapshot of a repeatable read or
-- serializable transaction is older than the lock, so it would miss the sessions and rooms that were written since.

-- Stage one: takes the change out, which queues stage two.
CREATE FUNCTION sio.sio_changes_take() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM sio.sio_outbox_changes WHERE ctid = NEW.ctid;
    RETURN NULL;
END $$;

-- Stage two: appends the change to the log, and writes the tables of sessions and rooms.
CREATE FUNCTION sio.sio_changes_append() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE v_prev bigint; v_last bigint; v_room text; v_offset bigint;
BEGIN
    IF pg_trigger_depth() > 1 THEN
        -- As in sio_outbox_append(): the application has its constraints IMMEDIATE.
        SET CONSTRAINTS sio.sio_changes_append DEFERRED;
        INSERT INTO sio.sio_outbox_changes
        VALUES (OLD.kind, OLD.namespace, OLD.rooms, OLD.sid, OLD.members, OLD.skip_sids, OLD.skip_rooms,
                true);
        RETURN NULL;
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);  -- clients will have seen the change
    END IF;
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    PERFORM sio.sio_check_isolation();
    PERFORM sio.sio_outbox_bounds(OLD.immediate);
    PERFORM sio.sio_relay_before();
    PERFORM sio.sio_check_epoch();
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_prev FROM sio.sio_packets_offset_seq;
    IF OLD.members IS NOT NULL THEN
        v_offset := sio.sio_change_members(
            NULL, CASE OLD.kind WHEN 1 THEN 6 WHEN 2 THEN 7 ELSE 8 END, OLD.namespace, OLD.members, OLD.rooms,
            OLD.skip_sids, OLD.skip_rooms);
    ELSIF OLD.kind = 5 THEN
        v_offset := sio.sio_kick(NULL, OLD.namespace, OLD.sid);
    ELSE
        FOREACH v_room IN ARRAY OLD.rooms LOOP
            IF OLD.kind = 3 THEN
                v_offset := sio.sio_close(NULL, OLD.namespace, v_room);
            ELSE
                v_offset := sio.sio_move(NULL, OLD.kind, OLD.namespace, v_room, OLD.sid, NULL);
            END IF;
            EXIT WHEN v_offset IS NULL;
        END LOOP;
    END IF;
    IF v_offset IS NULL THEN  -- since the call, a client has connected whose sid is the room's name
        RAISE invalid_parameter_value USING MESSAGE = 'a room is the own room of a client, which nobody enters or closes';
    END IF;
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_last FROM sio.sio_packets_offset_seq;
    -- This also notifies if nothing changed, because PostgreSQL refuses PREPARE TRANSACTION after a NOTIFY. A prepared
    -- transaction would hold the log's lock until COMMIT PREPARED. Nodes ignore '0 0'. The sequence's last offset would
    -- not do, because it may have no record.
    PERFORM pg_notify(channel, CASE WHEN v_last > v_prev THEN v_prev || ' ' || v_last ELSE '0 0' END) FROM sio.sio_log;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER sio_changes_take AFTER INSERT ON sio.sio_outbox_changes
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_changes_take();

CREATE CONSTRAINT TRIGGER sio_changes_append AFTER DELETE ON sio.sio_outbox_changes
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_changes_append();

-- ALWAYS: also in sessions whose session_replication_role is replica, such as bulk loads.
ALTER TABLE sio.sio_outbox_changes ENABLE ALWAYS TRIGGER sio_changes_take;

ALTER TABLE sio.sio_outbox_changes ENABLE ALWAYS TRIGGER sio_changes_append;

-- Changes rooms, or disconnects, at the commit. The package's functions call it. All parameters are text, so that no
-- driver needs to know a type.
--
-- p_change: enter_room, leave_room, close_room or disconnect. p_rooms: a JSON array of the rooms to enter, leave or
-- close. p_sid: the client that moves or is disconnected. p_members: instead of p_sid, a JSON array of rooms whose
-- members are meant. An empty name means everybody. p_skips: a JSON array of the sids of members that stay.
-- p_skip_rooms: of the rooms whose members stay.
CREATE FUNCTION sio.sio_change(p_change text, p_namespace text, p_rooms text, p_sid text, p_members text, p_skips text,
                               p_skip_rooms text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_kind integer := CASE p_change WHEN 'enter_room' THEN 1 WHEN 'leave_room' THEN 2 WHEN 'close_room' THEN 3
                      WHEN 'disconnect' THEN 5 END;
    v_rooms text[]; v_members text[]; v_skips text[]; v_skip_rooms text[]; v_own text; v_state bigint;
BEGIN
    IF v_kind IS NULL OR p_namespace IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE =
            'a change is enter_room, leave_room, close_room or disconnect, in a namespace';
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE invalid_transaction_state USING MESSAGE = format(
            'sio_%s: this transaction is %s. Rooms change at the commit, with the members that they have then, and this '
            'transaction''s snapshot is older. Begin the transaction with ISOLATION LEVEL READ COMMITTED',
            p_change, current_setting('transaction_isolation'));
    END IF;
    v_rooms := ARRAY(SELECT DISTINCT json_array_elements_text(p_rooms::json));
    v_members := CASE WHEN p_members IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(p_members::json)) END;
    v_skips := ARRAY(SELECT json_array_elements_text(p_skips::json));
    v_skip_rooms := ARRAY(SELECT json_array_elements_text(p_skip_rooms::json));
    IF (cardinality(v_rooms) = 0) <> (v_kind = 5) OR '' = ANY (v_rooms) OR array_position(v_rooms, NULL) IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'sio_%s: name the room. It is not empty, since an empty name means everybody', p_change);
    END IF;
    IF v_kind <> 3 AND (p_sid IS NULL) = (v_members IS NULL) OR v_kind = 3 AND (p_sid IS NOT NULL OR v_members IS NOT NULL)
       OR p_sid = '' OR cardinality(v_members) = 0 OR array_position(v_members, NULL) IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format(
            'sio_%s: name one client by sid, or all members of a room by room', p_change);
    END IF;
    IF (SELECT max(octet_length(n)) FROM unnest(v_rooms || v_members || v_skips || v_skip_rooms
                                                || ARRAY[p_namespace, p_sid]) n) > 512 THEN
        RAISE program_limit_exceeded USING MESSAGE = format(
            'sio_%s: a namespace, room or sid is longer than 512 bytes', p_change);
    END IF;
    IF v_kind = 5 THEN
        v_rooms := ARRAY[''];
    ELSIF p_sid = ANY (v_rooms) THEN
        v_rooms := array_remove(v_rooms, p_sid);  -- a client is in its own room as long as it lives
        IF cardinality(v_rooms) = 0 THEN
            RETURN;
        END IF;
    END IF;
    IF v_kind IN (1, 3) THEN
        SELECT sid INTO v_own FROM sio.sio_sessions WHERE namespace = p_namespace AND sid = ANY (v_rooms);
        IF v_own IS NOT NULL THEN
            RAISE invalid_parameter_value USING MESSAGE = format(
                'sio_%s: "%s" is the own room of a client, which nobody enters or closes', p_change, v_own);
        END IF;
    END IF;
    IF (SELECT last_value FROM sio.sio_relay_state) NOT IN (0, 2) THEN
        -- As in sio_emit_encoded().
        WITH state AS MATERIALIZED (SELECT last_value FROM sio.sio_relay_state WHERE last_value NOT IN (0, 2)),
        inserted AS (
            INSERT INTO sio.sio_relay (transaction, kind, namespace, room, rooms, skip_sids, skip_rooms, members, sid)
            SELECT pg_current_xact_id()::text::bigint,
                   CASE WHEN v_members IS NULL THEN v_kind WHEN v_kind = 1 THEN 6 WHEN v_kind = 2 THEN 7 ELSE 8 END,
                   p_namespace, c.rooms[1], CASE WHEN cardinality(c.rooms) > 1 THEN array_to_json(c.rooms)::text END,
                   CASE WHEN cardinality(v_skips) > 0 THEN array_to_json(v_skips)::text END,
                   CASE WHEN cardinality(v_skip_rooms) > 0 THEN array_to_json(v_skip_rooms)::text END,
                   array_to_json(v_members)::text, p_sid
            FROM state, (SELECT ARRAY[r.room] AS rooms FROM unnest(v_rooms) r (room) WHERE v_members IS NULL
                         UNION ALL
                         SELECT v_rooms WHERE v_members IS NOT NULL) c)
        SELECT last_value INTO v_state FROM state;
        IF v_state = 1 OR v_state % 2 = 0 THEN
            PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
        END IF;
        IF v_state IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    INSERT INTO sio.sio_outbox_changes
    VALUES (v_kind, p_namespace, v_rooms, p_sid, v_members, v_skips, v_skip_rooms, false);
END $$;

-- Checks the arguments of the functions for SQL, and calls sio_change. A null is refused, because 'user:' || id with a
-- null id is a mistake. An empty name stands for an argument that was left out.
CREATE FUNCTION sio.sio_change_named(p_change text, p_target text, p_sid text, p_room text, p_namespace text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_target IS NULL OR p_sid IS NULL OR p_room IS NULL OR p_namespace IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = format(
            'sio_%s: rooms, sid and namespace are not null. Leave out what you do not name', p_change);
    END IF;
    PERFORM sio.sio_change(
        p_change, p_namespace, CASE WHEN p_change <> 'disconnect' THEN json_build_array(p_target)::text END,
        nullif(p_sid, ''), CASE WHEN p_room <> '' THEN json_build_array(p_room)::text END, NULL);
END $$;

-- Adds a client, or all members of a room, to the room target.
CREATE FUNCTION sio.sio_enter_room(target text, sid text DEFAULT '', room text DEFAULT '', namespace text DEFAULT '/')
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT sio.sio_change_named('enter_room', target, sid, room, namespace)
$$;

-- Removes a client, or all members of a room, from the room target.
CREATE FUNCTION sio.sio_leave_room(target text, sid text DEFAULT '', room text DEFAULT '', namespace text DEFAULT '/')
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT sio.sio_change_named('leave_room', target, sid, room, namespace)
$$;

-- Removes everybody from a room.
CREATE FUNCTION sio.sio_close_room(room text, namespace text DEFAULT '/') RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT sio.sio_change_named('close_room', room, '', '', namespace)
$$;

-- Disconnects a client, or all members of a room, and ends their sessions for good.
CREATE FUNCTION sio.sio_disconnect(sid text DEFAULT '', room text DEFAULT '', namespace text DEFAULT '/') RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT sio.sio_change_named('disconnect', '', sid, room, namespace)
$$;

COMMENT ON FUNCTION sio.sio_enter_room IS
    'Adds a Socket.IO client (sid), or all members of a room (room), to the room target, if and when this transaction '
    'commits. Events emitted later reach them, in this transaction, too.';

COMMENT ON FUNCTION sio.sio_leave_room IS
    'Removes a Socket.IO client (sid), or all members of a room (room), from the room target, if and when this '
    'transaction commits. Events emitted later do not reach them, in this transaction, too.';

COMMENT ON FUNCTION sio.sio_close_room IS 'Removes everybody from a Socket.IO room, if and when this transaction commits.';

COMMENT ON FUNCTION sio.sio_disconnect IS
    'Disconnects a Socket.IO client (sid), or all members of a room (room), and ends their sessions for good, if and '
    'when this transaction commits.';
