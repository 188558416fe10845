-- The relay: transactional emits without the log's lock and without NOTIFY.
--
-- While the relay is on, events, room changes and kicks of an application's transaction are only inserted into sio_relay.
-- A node moves committed rows to the log in batches, every few milliseconds.
--
-- Order. One statement finds the committed rows. If a transaction B knows of the commit of A, then A committed before B
-- did, so a statement that sees rows of B sees those of A. If B emitted after that, its rows have higher ids, because the
-- sequence of the ids has no cache. Transactions are ordered by their last ids. So all rows of A come before all rows of B,
-- and the rows of one transaction stay together. They are moved in this order, in batches of whole transactions. If several
-- nodes move rows at once, the first one moves each row. A node that moves B has moved A before, or another node has. A
-- crash may take the move of A back. It ends the epoch, and the node then finds the rows again.
--
-- Every function that appends first moves all committed rows, and finds them under the log's lock. So a direct append comes
-- after the rows of each transaction whose commit its caller knows.
--
-- Waking. A quiet cluster is silent, so no node polls while nothing happens, and a commit has to ring. NOTIFY would make
-- commits wait for each other, so they ring only while no node polls. sio_relay_state says that. No row waits unnoticed:
--
-- 1. An emit locks sio_relay with its INSERT, until its transaction ends. Only then it reads the state. Unless some node
--    moves rows, it notifies.
-- 2. A node that has been idle for a second first sets "about to fall asleep". Each emit that reads the state from here on
--    rings. Each emit that read it before has its lock. So the node lists the transactions that hold that lock, and goes on
--    looking for rows until all of them have ended, and once more after that. Then it sets "asleep".
-- 3. A ring reaches every node that listens. A node looks for rows each time it begins to listen.
-- 4. If the node dies that moves rows, or that is about to fall asleep, the state still names it. The other nodes look once
--    a second, until the state is "asleep". One of them takes over.
--
-- The same locks show when the relay is off: no emit that read "on" is left.

-- Finds the committed rows that wait, in the order in which they are moved, in batches of whole transactions. It takes no
-- lock. p_limit: a batch has the transactions that begin within so many rows. p_most: transactions that come after so many
-- rows are left out. p_upto: so are those with a row above this id, and rows below the floor are not left
-- out. After a restore, the floor may be above waiting rows, because sequences are not part of the snapshot of pg_dump.
--
-- Each call sorts all rows that wait. A caller that has many to move has to take many at once.
CREATE FUNCTION sio.sio_relay_waiting(p_limit integer, p_most integer DEFAULT NULL, p_upto bigint DEFAULT NULL)
RETURNS SETOF bigint[]
LANGUAGE plpgsql AS $$
DECLARE v_floor bigint;
BEGIN
    SELECT CASE WHEN p_upto IS NULL THEN last_value ELSE 0 END INTO v_floor FROM sio.sio_relay_floor;
    IF (SELECT r.id FROM sio.sio_relay r WHERE r.id > v_floor AND r.fault IS NULL ORDER BY r.id LIMIT 1) IS NULL THEN
        RETURN;  -- as nearly always
    END IF;
    RETURN QUERY
        WITH waiting AS (
            SELECT r.id, max(r.id) OVER (PARTITION BY r.transaction) AS last
            FROM sio.sio_relay r WHERE r.id > v_floor AND r.fault IS NULL),
        ranked AS (SELECT w.id, w.last, rank() OVER (ORDER BY w.last) AS rank FROM waiting w)
        SELECT array_agg(t.id ORDER BY t.last, t.id) FROM ranked t
        WHERE (t.rank > p_most) IS NOT TRUE AND (t.last > p_upto) IS NOT TRUE
        GROUP BY (t.rank - 1) / p_limit ORDER BY (t.rank - 1) / p_limit;
END $$;

-- Moves some waiting rows to the log, in the order of p_ids, and returns how many still waited. The caller holds the log's
-- lock.
CREATE FUNCTION sio.sio_relay_append(p_ids bigint[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE e record; v_offsets bigint[];
BEGIN
    WITH moved AS (DELETE FROM sio.sio_relay WHERE id = ANY (p_ids) RETURNING *)
    SELECT array_agg(kind) AS kinds, array_agg(namespace) AS namespaces, array_agg(room) AS rooms,
           array_agg(x.rooms) AS room_lists, array_agg(skip_sids) AS skip_lists,
           array_agg(skip_rooms) AS skip_room_lists, array_agg(sid) AS sids, array_agg(body) AS bodies,
           array_agg(parts) AS parts, array_agg(attachment) AS attachments,
           CASE WHEN count(key) + count(members) > 0 THEN array_agg(
               CASE WHEN key IS NOT NULL THEN json_build_object('key', key)::text
                    WHEN members IS NOT NULL THEN json_build_object('members', members::json)::text END) END AS args,
           CASE WHEN sum(octet_length(body)) < 7600
                     AND bool_and(kind = 0 AND parts IS NULL AND attachment IS NULL) THEN
               json_agg(json_build_array(namespace, coalesce(x.rooms::json, json_build_array(room)),
                                         coalesce(skip_sids::json, '[]'), coalesce(skip_rooms::json, '[]'),
                                         body))::text END AS carry
    INTO e FROM (SELECT m.* FROM unnest(p_ids) WITH ORDINALITY o (id, i) JOIN moved m USING (id) ORDER BY o.i) x;
    IF e.kinds IS NULL THEN
        RETURN 0;
    END IF;
    SELECT w.offsets INTO v_offsets
    FROM sio.sio_append_batch(
        NULL, e.kinds, e.namespaces, e.rooms, e.room_lists, e.skip_lists, e.skip_room_lists, e.sids, e.bodies,
        e.parts, e.attachments, e.args, CASE WHEN octet_length(e.carry) <= 7600 THEN e.carry END, false) w;
    IF array_position(v_offsets, NULL) IS NOT NULL THEN  -- since the call, a client has connected whose sid is the name
        RAISE data_exception USING MESSAGE = 'a room is the own room of a client, which nobody enters or closes';
    END IF;
    RETURN cardinality(e.kinds);
END $$;

-- Does the same. A row that cannot be appended must not stop the others. It stays in the table with the reason.
CREATE FUNCTION sio.sio_relay_append_or_keep(p_ids bigint[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE v_id bigint; v_moved integer := 0;
BEGIN
    BEGIN
        RETURN sio.sio_relay_append(p_ids);
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR case_not_found THEN
        NULL;  -- some row is at fault: one by one
    END;
    FOREACH v_id IN ARRAY p_ids LOOP
        BEGIN
            v_moved := v_moved + sio.sio_relay_append(ARRAY[v_id]);
        EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR case_not_found THEN
            UPDATE sio.sio_relay SET fault = SQLERRM WHERE id = v_id;
        END;
    END LOOP;
    RETURN v_moved;
END $$;

-- Moves all committed rows to the log. The caller holds the log's lock, and is read committed.
CREATE FUNCTION sio.sio_relay_drain() RETURNS void
LANGUAGE plpgsql AS $$
DECLARE v_ids bigint[];
BEGIN
    FOR v_ids IN SELECT w FROM sio.sio_relay_waiting(500) w LOOP
        PERFORM sio.sio_relay_append_or_keep(v_ids);
    END LOOP;
END $$;

-- Does the same, if the relay is or was on.
CREATE FUNCTION sio.sio_relay_before() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT last_value FROM sio.sio_relay_state) > 0 THEN
        PERFORM sio.sio_relay_drain();
    END IF;
END $$;

-- Does the same for the commit of a transaction that emitted before the relay was switched on. It runs with the rights of
-- the owner, in a search_path of the application.
CREATE FUNCTION sio.sio_relay_before_commit() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- The snapshot of a stricter transaction is older than the rows that it might move. It knows of none of them.
    IF current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        PERFORM sio.sio_relay_drain();
    END IF;
END $$;

-- Moves a batch of rows that a node has found, and returns how many still waited. p_epoch: the epoch that ran when it
-- found them. If another one runs, or none, the function moves nothing and returns null. PostgreSQL has then crashed, or
-- another server has taken over, and rows that had been moved may wait again. They come first.
CREATE FUNCTION sio.sio_relay_move(p_ids bigint[], p_epoch bigint) RETURNS integer
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;  -- before the rows, which its holder may be about to move
    IF (sio.sio_last_in_epoch() >> 40 = p_epoch) IS NOT TRUE THEN
        PERFORM sio.sio_check_epoch();
        RETURN NULL;
    END IF;
    RETURN sio.sio_relay_append_or_keep(p_ids);
END $$;

-- Asks which part a node has in the relay. If rows wait and no other living node moves them, this one does from now on.
-- Returns 'off', 'ending' (it is being switched off), 'asleep', 'other' (another node moves) or 'moving'.
CREATE FUNCTION sio.sio_relay_attend(p_node uuid) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE v_state bigint; v_own bigint; n sio.sio_nodes;
BEGIN
    FOR i IN 1..2 LOOP
        SELECT last_value INTO v_state FROM sio.sio_relay_state;
        IF v_state = 0 THEN
            RETURN 'off';
        ELSIF v_state = 2 THEN
            RETURN 'ending';
        ELSIF v_state = 1 THEN
            IF NOT EXISTS (SELECT FROM sio.sio_relay r WHERE r.fault IS NULL) THEN
                RETURN 'asleep';
            END IF;
        ELSE
            SELECT * INTO n FROM sio.sio_nodes WHERE number = (v_state - 3) / 2;
            IF n.id <> p_node AND sio.sio_node_alive(n.number, n.role) THEN
                RETURN 'other';
            END IF;
        END IF;
        IF i = 1 THEN
            LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
        END IF;
    END LOOP;
    SELECT 3 + 2 * number::bigint INTO STRICT v_own FROM sio.sio_nodes WHERE id = p_node;
    IF v_state <> v_own THEN
        PERFORM setval('sio.sio_relay_state', v_own);
    END IF;
    RETURN 'moving';
END $$;

-- Changes the state of the relay from one value to another, for the node that moves. Returns whether it had the first.
CREATE FUNCTION sio.sio_relay_change(p_node uuid, p_from text, p_to text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE v_number bigint := (SELECT number FROM sio.sio_nodes WHERE id = p_node); v_from bigint; v_to bigint;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    SELECT max(s.value) FILTER (WHERE s.name = p_from), max(s.value) FILTER (WHERE s.name = p_to) INTO v_from, v_to
    FROM (VALUES ('off', 0), ('asleep', 1), ('ending', 2), ('moving', 3 + 2 * v_number), ('drowsy', 4 + 2 * v_number))
        AS s (name, value);
    IF v_from = (SELECT last_value FROM sio.sio_relay_state) THEN
        PERFORM setval('sio.sio_relay_state', v_to);
        RETURN true;
    END IF;
    RETURN false;
END $$;

-- Switches the relay on or off. It is off for new emits at once, and nodes move what open transactions have inserted.
CREATE FUNCTION sio.sio_set_relay(p_on boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE v_state bigint;
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
    SELECT last_value INTO v_state FROM sio.sio_relay_state;
    IF p_on AND v_state IN (0, 2) THEN
        PERFORM setval('sio.sio_relay_state', 1);
    ELSIF NOT p_on AND v_state NOT IN (0, 2) THEN
        PERFORM setval('sio.sio_relay_state', 2);
    ELSE
        RETURN;
    END IF;
    PERFORM pg_notify(channel, 'relay') FROM sio.sio_log;
END $$;
