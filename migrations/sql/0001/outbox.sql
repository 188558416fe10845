-- The outbox: events that are part of an application's own transaction.
--
-- An offset taken in the middle of a transaction would become visible out of order. An event therefore waits in
-- sio_outbox and gets its offset at the commit, under the log's lock, by deferred constraint triggers in two stages.
-- PostgreSQL runs deferred triggers in rounds, and triggers queued in one round run in the next. The first stage only
-- deletes the row, which queues the second. The second takes the lock, after every constraint that was queued before the
-- commit. With one stage a deferred foreign key check that waited for a row held the log's lock, and an unrelated append
-- waited 3.0 s. With two stages it waited 3 ms.
--
-- No row of the outbox outlives its transaction. Rows are found by their place and not by an index. Two serializable
-- transactions that read and write one index page depend on each other, and one of them would fail.

-- Stage one: takes the event out, which queues stage two.
--
-- random_page_cost: after a VACUUM the table may look so small that a kept plan would read all of it. A serializable
-- transaction would then depend on all others.
CREATE FUNCTION sio.sio_outbox_take() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET random_page_cost = 0 AS $$
BEGIN
    DELETE FROM sio.sio_outbox WHERE ctid OPERATOR(pg_catalog.=) NEW.ctid;
    RETURN NULL;
END $$;

-- Fails the transaction with an error that can be retried, because the sequence was set back below records of the log.
-- The sequence is set below every epoch first. That outlasts the rollback, so the next append or the next try begins an
-- epoch. The caller holds the log's lock.
CREATE FUNCTION sio.sio_outbox_retry() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM setval('sio.sio_packets_offset_seq', 1, false);
    RAISE serialization_failure USING MESSAGE =
        'could not serialize access: the sequence of the log was set back, and a new epoch has to begin';
END $$;

-- Begins an epoch if needed. The caller holds the log's lock. p_above: the last offset at the time of the emit. If the
-- sequence was moved since then, there may be an epoch or records that an older snapshot does not show.
CREATE FUNCTION sio.sio_outbox_epoch(p_above bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        IF p_above IS NOT NULL THEN
            PERFORM sio.sio_outbox_retry();
        ELSIF (SELECT last_value FROM sio.sio_packets_offset_seq) >> 40 > (SELECT max(epoch) FROM sio.sio_epochs) THEN
            RAISE serialization_failure USING MESSAGE =
                'could not serialize access: the log began a new epoch after this transaction''s snapshot';
        END IF;
    END IF;
    PERFORM sio.sio_check_epoch(coalesce(p_above, 0));
END $$;

-- Bounds the rest of the transaction, because all appends wait for it from here on. Constraints that the commit itself
-- queued may still come. If constraints were set IMMEDIATE for a second time (p_immediate), which PostgreSQL does not
-- distinguish from the commit, other statements may come, too.
CREATE FUNCTION sio.sio_outbox_bounds(p_immediate boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config(b.name, b.most, true) FROM (VALUES
        (false, 'lock_timeout', '2s'), (true, 'statement_timeout', '10s'),
        (true, 'idle_in_transaction_session_timeout', '10s'),
        (true, 'transaction_timeout', '20s')) AS b (immediate, name, most)  -- the last from PostgreSQL 17 on
    WHERE (p_immediate OR NOT b.immediate)
      AND current_setting(b.name, true)::interval NOT BETWEEN '1 ms' AND b.most::interval;
END $$;

-- Stage two: appends the event to the log.
--
-- Little is done under the lock, because a process is slow right after a long wait, and everybody waits for it. So the
-- function sets no search_path, and names operators in full instead.
--
-- The snapshot of a repeatable read or serializable transaction may be older than the last append, so the function reads
-- sequences instead of tables. It also looks for records above the sequence, but not in a serializable transaction, which
-- would then depend on all others. If an offset is taken, ON CONFLICT leads to an error that can be retried, whatever the
-- snapshot shows.
CREATE FUNCTION sio.sio_outbox_append() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE v_segment bigint; v_last bigint; v_offset bigint; v_unused varchar; v_relay bigint;
BEGIN
    IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.>) 1 THEN
        -- This is the DELETE of stage one and not the commit: the application has its constraints IMMEDIATE. The event
        -- still waits for the commit.
        SET CONSTRAINTS sio.sio_outbox_append DEFERRED;
        INSERT INTO sio.sio_outbox
        VALUES (OLD.namespace, OLD.room, OLD.rooms, OLD.skip_sids, OLD.skip_rooms, OLD.body, OLD.parts, OLD.attachment,
                OLD.channel, OLD.carried, OLD.above, true, OLD.key);
        RETURN NULL;
    END IF;
    IF pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off' THEN
        v_unused := pg_catalog.set_config('synchronous_commit', 'on', true);  -- clients will have seen the event
    END IF;
    -- Before the lock: rows of the relay that are committed from here on are not known to this transaction's caller.
    v_relay := pg_catalog.pg_sequence_last_value('sio.sio_relay_state');
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;  -- before nextval, so that offsets become visible in their order
    v_segment := coalesce(pg_catalog.pg_sequence_last_value('sio.sio_active_segment'), 0);
    v_last := pg_catalog.pg_sequence_last_value('sio.sio_packets_offset_seq');
    IF v_last IS NULL THEN  -- no nextval() since a setval()
        SELECT last_value OPERATOR(pg_catalog.-) 1 INTO v_last FROM sio.sio_packets_offset_seq;
    END IF;
    IF v_relay OPERATOR(pg_catalog.>) 0 THEN
        PERFORM sio.sio_relay_before_commit();
    END IF;
    IF OLD.immediate OR pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.<>) '0' THEN
        PERFORM sio.sio_outbox_bounds(OLD.immediate);
    ELSE
        v_unused := pg_catalog.set_config('lock_timeout', '2s', true);
    END IF;
    IF (v_last OPERATOR(pg_catalog.>=) OLD.above) IS NOT TRUE
       OR pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'serializable'
          AND ((SELECT p."offset" FROM sio.sio_packets_0 p WHERE p."offset" OPERATOR(pg_catalog.>) v_last
                ORDER BY p."offset" LIMIT 1) IS NOT NULL
               OR (SELECT p."offset" FROM sio.sio_packets_1 p WHERE p."offset" OPERATOR(pg_catalog.>) v_last
                   ORDER BY p."offset" LIMIT 1) IS NOT NULL) THEN
        PERFORM sio.sio_outbox_epoch(OLD.above);
    END IF;
    IF OLD.key IS NOT NULL AND sio.sio_keyed_event(OLD.namespace, OLD.key) IS NOT NULL THEN
        -- Another event with the key was first. The pruner deletes a large body to which nothing refers. The notification
        -- is for PREPARE TRANSACTION, as in sio_changes_append().
        PERFORM pg_catalog.pg_notify(OLD.channel, '0 0');
        RETURN NULL;
    END IF;
    -- The offset before it is one less, or belongs to a rolled-back transaction or a former epoch.
    IF v_segment OPERATOR(pg_catalog.=) 0 THEN
        INSERT INTO sio.sio_packets_0 AS p ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                            attachment)
        VALUES (pg_catalog.nextval('sio.sio_packets_offset_seq'), 0, OLD.namespace, OLD.room, OLD.rooms,
                OLD.skip_sids, OLD.skip_rooms, OLD.body, OLD.parts, OLD.attachment)
        ON CONFLICT ("offset") DO NOTHING
        RETURNING p."offset", pg_catalog.pg_notify(OLD.channel, pg_catalog.concat(
            p."offset" OPERATOR(pg_catalog.-) 1, ' ', p."offset", OLD.carried))::varchar
        INTO v_offset, v_unused;
        IF OLD.rooms IS NOT NULL AND v_offset IS NOT NULL THEN
            INSERT INTO sio.sio_packet_rooms_0 (namespace, room, "offset")
            SELECT DISTINCT OLD.namespace, r.room, v_offset FROM pg_catalog.unnest(OLD.rooms[2:]) AS r (room);
        END IF;
    ELSE
        INSERT INTO sio.sio_packets_1 AS p ("offset", kind, namespace, room, rooms, skip_sids, skip_rooms, body, parts,
                                            attachment)
        VALUES (pg_catalog.nextval('sio.sio_packets_offset_seq'), 0, OLD.namespace, OLD.room, OLD.rooms,
                OLD.skip_sids, OLD.skip_rooms, OLD.body, OLD.parts, OLD.attachment)
        ON CONFLICT ("offset") DO NOTHING
        RETURNING p."offset", pg_catalog.pg_notify(OLD.channel, pg_catalog.concat(
            p."offset" OPERATOR(pg_catalog.-) 1, ' ', p."offset", OLD.carried))::varchar
        INTO v_offset, v_unused;
        IF OLD.rooms IS NOT NULL AND v_offset IS NOT NULL THEN
            INSERT INTO sio.sio_packet_rooms_1 (namespace, room, "offset")
            SELECT DISTINCT OLD.namespace, r.room, v_offset FROM pg_catalog.unnest(OLD.rooms[2:]) AS r (room);
        END IF;
    END IF;
    IF v_offset IS NULL THEN
        PERFORM sio.sio_outbox_retry();
    ELSIF OLD.key IS NOT NULL THEN
        PERFORM sio.sio_take_key(OLD.namespace, OLD.key, v_offset);
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER sio_outbox_take AFTER INSERT ON sio.sio_outbox
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_outbox_take();

CREATE CONSTRAINT TRIGGER sio_outbox_append AFTER DELETE ON sio.sio_outbox
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sio.sio_outbox_append();

-- ALWAYS: also in sessions whose session_replication_role is replica, such as bulk loads.
ALTER TABLE sio.sio_outbox ENABLE ALWAYS TRIGGER sio_outbox_take;

ALTER TABLE sio.sio_outbox ENABLE ALWAYS TRIGGER sio_outbox_append;
