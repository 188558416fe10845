"""The outbox: events that are part of an application's own transaction.

Revision ID: sio0002
Revises: sio0001

An offset that was taken in the middle of a transaction becomes visible out of order. So an event waits in
``sio_outbox`` and gets its offset at the commit, under the log's lock, by deferred constraint triggers in two
stages. PostgreSQL runs deferred triggers in rounds: what one round queues runs in the next. The first stage only
deletes the row, which queues the second; the second takes the lock, after every constraint that was queued before
the commit. (With one stage a deferred foreign key check that waited for a row lock held the log's lock: an
unrelated append waited 3.0 s; with two, 3 ms.)

No row of the outbox outlives its transaction. It is found by its place and by no index: an index page that two
serializable transactions read and write makes each of them depend on the other, and one of them would fail.
"""

from __future__ import annotations

from alembic import op

from sio_pg_adapter.migrate import filled_in, statement, target_schema

revision = "sio0002"
down_revision = "sio0001"
branch_labels = None
depends_on = None

OUTBOX = (
    # Unlogged: its rows live and die in one transaction. Never cut shorter: that takes a lock that emits wait for.
    """
    CREATE UNLOGGED TABLE {s}.sio_outbox (
        namespace text NOT NULL,
        room text NOT NULL,
        rooms text[],
        skip_sids text[],
        body text,
        parts bytea,
        attachment uuid,
        channel text NOT NULL,
        carried text NOT NULL,
        seen boolean NOT NULL,
        put_off boolean NOT NULL
    ) WITH (vacuum_truncate = off)
    """,
    """COMMENT ON TABLE {s}.sio_outbox IS 'Events of transactions that are under way, as in sio_packets; always empty to others. channel: of the notification; carried: what that brings along. seen: the running epoch was found; put_off: the application has its constraints IMMEDIATE.'""",
    # -- stage one: takes the event out, which queues stage two -----------------------------------------
    # random_page_cost: after a VACUUM the table may look so small that it would be read as a whole, once and
    # for all in a plan that is kept; and a serializable transaction would depend on all others.
    """
    CREATE FUNCTION {s}.sio_outbox_take() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET random_page_cost = 0 AS $$
    BEGIN
        DELETE FROM {s}.sio_outbox WHERE ctid OPERATOR(pg_catalog.=) NEW.ctid;
        RETURN NULL;
    END $$
    """,
    # -- stage two: the event enters the log ------------------------------------------------------------
    # Begins an epoch, under the lock.
    """
    CREATE FUNCTION {s}.sio_outbox_epoch() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM {s}.sio_check_epoch();
    EXCEPTION WHEN unique_violation THEN
        RAISE serialization_failure USING MESSAGE =
            'could not serialize access: the log began a new epoch after this transaction''s snapshot';
    END $$
    """,
    # From here on all that append wait for this transaction. Constraints that it queued in its commit itself
    # may still come; and the rest of it, if constraints were set IMMEDIATE for a second time (p_put_off), which
    # PostgreSQL does not tell from the commit.
    """
    CREATE FUNCTION {s}.sio_outbox_bounds(p_put_off boolean) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM set_config(b.name, b.most, true) FROM (VALUES
            (false, 'lock_timeout', '2s'), (true, 'statement_timeout', '10s'),
            (true, 'idle_in_transaction_session_timeout', '10s'),
            (true, 'transaction_timeout', '20s')) AS b (put_off, name, most)  -- the last from PostgreSQL 17 on
        WHERE (p_put_off OR NOT b.put_off)
          AND current_setting(b.name, true)::interval NOT BETWEEN '1 ms' AND b.most::interval;
    END $$
    """,
    # What is done under the lock is little, and the function sets no search_path, but writes all names out,
    # operators too: what a process does right after a long wait is slow, and everybody waits for it. Nothing is
    # read, so the snapshot of a repeatable read or serializable transaction may be older than the last append.
    """
    CREATE FUNCTION {s}.sio_outbox_append() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE v_at bigint; v_set varchar;
    BEGIN
        IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.>) 1 THEN
            -- Not at the commit, but in stage one's DELETE: the application has its constraints IMMEDIATE.
            -- This one is not checked any earlier for that.
            SET CONSTRAINTS {s}.sio_outbox_append DEFERRED;
            INSERT INTO {s}.sio_outbox
            VALUES (OLD.namespace, OLD.room, OLD.rooms, OLD.skip_sids, OLD.body, OLD.parts, OLD.attachment,
                    OLD.channel, OLD.carried, OLD.seen, true);
            RETURN NULL;
        END IF;
        IF pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off' THEN
            v_set := pg_catalog.set_config('synchronous_commit', 'on', true);  -- clients will have seen it
        END IF;
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;  -- before nextval: offsets become visible in their order
        IF OLD.put_off OR pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.<>) '0' THEN
            PERFORM {s}.sio_outbox_bounds(OLD.put_off);
        ELSE
            v_set := pg_catalog.set_config('lock_timeout', '2s', true);
        END IF;
        IF NOT OLD.seen THEN
            PERFORM {s}.sio_outbox_epoch();
        END IF;
        -- The offset before it is one less, or belongs to what was rolled back or to a former epoch.
        INSERT INTO {s}.sio_packets AS p (kind, namespace, room, rooms, skip_sids, body, parts, attachment)
        VALUES (0, OLD.namespace, OLD.room, OLD.rooms, OLD.skip_sids, OLD.body, OLD.parts, OLD.attachment)
        RETURNING p."offset",
                  pg_catalog.pg_notify(OLD.channel, pg_catalog.concat(
                      p."offset" OPERATOR(pg_catalog.-) 1, ' ', p."offset", OLD.carried))::varchar
        INTO v_at, v_set;
        IF OLD.rooms IS NOT NULL THEN
            INSERT INTO {s}.sio_packet_rooms (namespace, room, "offset")
            SELECT DISTINCT OLD.namespace, r.room, v_at FROM pg_catalog.unnest(OLD.rooms[2:]) AS r (room);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER sio_outbox_take AFTER INSERT ON {s}.sio_outbox
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {s}.sio_outbox_take()
    """,
    """
    CREATE CONSTRAINT TRIGGER sio_outbox_append AFTER DELETE ON {s}.sio_outbox
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {s}.sio_outbox_append()
    """,
    # -- the ways in: with the rights of the owner, so that an application needs none on the tables ---------
    # For emitter.py, and clients in other languages that encode themselves. p_body: the JSON array of the
    # event's name and arguments. p_parts: its binary parts, each behind its length in four bytes. p_more:
    # a JSON array of all rooms, where there are several, of which p_room is the first. p_skips: likewise.
    # All text, so that no driver needs to know a type.
    """
    CREATE FUNCTION {s}.sio_emit_encoded(p_namespace text, p_room text, p_more text, p_skips text, p_body text,
                                         p_parts bytea) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        v_rooms text[]; v_skips text[]; v_attachment uuid; v_at integer := 0;
        v_size bigint := octet_length(p_body) + coalesce(octet_length(p_parts), 0);
    BEGIN
        IF (p_namespace IS NOT NULL AND p_room IS NOT NULL AND p_body::json IS NOT NULL
            AND left(p_body, 2) = '["' AND right(p_body, 1) = ']') IS NOT TRUE THEN
            RAISE invalid_parameter_value USING MESSAGE = 'an event has a namespace, a room and a body, which is a'
                ' JSON array that begins with its name, without space around it';
        END IF;
        -- What most events have none of. Names: JSON text is never shorter than what it stands for.
        IF v_size > 65536 OR p_parts IS NOT NULL OR p_more IS NOT NULL OR p_skips IS NOT NULL
           OR octet_length(p_namespace) + octet_length(p_room) > 512 THEN
            IF p_more IS NOT NULL THEN
                v_rooms := ARRAY(SELECT json_array_elements_text(p_more::json));
                IF array_position(v_rooms, NULL) IS NOT NULL OR v_rooms[1] IS DISTINCT FROM p_room
                   OR cardinality(v_rooms) > 1 AND array_position(v_rooms, '') IS NOT NULL THEN
                    RAISE invalid_parameter_value USING MESSAGE =
                        'rooms are text, the first as given alone, none of several empty: that would reach everybody';
                END IF;
            END IF;
            IF p_skips IS NOT NULL THEN
                v_skips := array_remove(ARRAY(SELECT json_array_elements_text(p_skips::json)), NULL);
            END IF;
            IF (SELECT max(octet_length(n)) FROM unnest(v_rooms || v_skips || ARRAY[p_namespace, p_room]) n) > 512
            THEN
                RAISE program_limit_exceeded USING MESSAGE = 'a namespace, room or sid is longer than 512 bytes';
            END IF;
            WHILE v_at < octet_length(p_parts) LOOP  -- a node that cannot take them apart would stand still
                EXIT WHEN v_at + 4 > octet_length(p_parts);
                v_at := least(2147483647, v_at + 4 + (get_byte(p_parts, v_at)::bigint << 24)
                    + (get_byte(p_parts, v_at + 1) << 16) + (get_byte(p_parts, v_at + 2) << 8)
                    + get_byte(p_parts, v_at + 3));
            END LOOP;
            IF v_at <> octet_length(p_parts) THEN
                RAISE invalid_parameter_value USING MESSAGE = 'binary parts each stand behind their length';
            END IF;
            IF v_size > 268435456 THEN
                RAISE program_limit_exceeded USING MESSAGE = 'an event is larger than 256 MiB';
            END IF;
            IF v_size > 65536 THEN  -- now, not under the log's lock: 50 MB there held others up for 1.7 s
                v_attachment := gen_random_uuid();
                INSERT INTO {s}.sio_attachments (id, data, ephemeral)
                VALUES (v_attachment, int4send(octet_length(convert_to(p_body, 'UTF8')))
                    || convert_to(p_body, 'UTF8') || coalesce(p_parts, ''), false);
            END IF;
        END IF;
        -- Carried is what fits a notification, of 7,999 bytes, while its queue is far from full: that holds every
        -- message until the slowest listener has read it.
        -- The marker goes by a crash, which this transaction does not survive, or by a TRUNCATE of the log, which
        -- ends all sessions: that it goes between here and the commit does no harm.
        INSERT INTO {s}.sio_outbox
        SELECT p_namespace, p_room, v_rooms, v_skips, CASE WHEN v_attachment IS NULL THEN p_body END,
               CASE WHEN v_attachment IS NULL THEN p_parts END, v_attachment, (SELECT channel FROM {s}.sio_log),
               CASE WHEN octet_length(c.carried) <= 7600 THEN c.carried ELSE '' END,
               EXISTS (SELECT FROM {s}.sio_marker WHERE seen = {s}.sio_seen()), false
        FROM (SELECT CASE WHEN v_size < 7600 AND p_parts IS NULL AND pg_notification_queue_usage() < 0.1 THEN
                  ' ' || json_build_array(json_build_array(
                      p_namespace, coalesce(v_rooms, ARRAY[p_room]), coalesce(v_skips, ARRAY[]::text[]),
                      p_body))::text END) AS c (carried);
    END $$
    """,
    # For SQL. A null room is refused: 'user:' || id, where id is null, must not tell everybody; and one that is
    # empty beside others is left out. No room in `rooms` is nobody.
    """
    CREATE FUNCTION {s}.sio_emit(event text, data json DEFAULT NULL, room text DEFAULT '',
                                 rooms text[] DEFAULT '{""}', namespace text DEFAULT '/',
                                 skip_sids text[] DEFAULT '{{}}') RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE v_rooms text[];
    BEGIN
        IF event IS NULL OR room IS NULL OR rooms IS NULL OR array_position(rooms, NULL) IS NOT NULL
           OR namespace IS NULL THEN
            RAISE null_value_not_allowed USING MESSAGE =
                'sio_emit: event, room, rooms and namespace are not null; leave room out to tell everybody';
        END IF;
        IF octet_length(event) > 512 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'sio_emit: the name of an event is longer than 512 bytes';
        END IF;
        IF room = '' AND cardinality(rooms) = 0 THEN
            RETURN;
        END IF;
        v_rooms := ARRAY(SELECT r FROM unnest(room || rooms) WITH ORDINALITY AS x (r, i)
                         WHERE r <> '' GROUP BY r ORDER BY min(i));
        IF cardinality(v_rooms) = 0 THEN
            IF cardinality(rooms) > 1 THEN
                RAISE invalid_parameter_value USING MESSAGE =
                    'sio_emit: rooms names none, which would reach everybody; leave rooms out for that';
            END IF;
            v_rooms := ARRAY[''];
        END IF;
        PERFORM {s}.sio_emit_encoded(
            namespace, v_rooms[1], CASE WHEN cardinality(v_rooms) > 1 THEN array_to_json(v_rooms)::text END,
            CASE WHEN cardinality(skip_sids) > 0 THEN array_to_json(skip_sids)::text END,
            '[' || to_json(event)::text || coalesce(',' || data::text, '') || ']', NULL);
    END $$
    """,
    """COMMENT ON FUNCTION {s}.sio_emit IS 'Sends a Socket.IO event if and when this transaction commits. data: one argument, as JSON; left out: none. room, rooms: to whom; left out: everybody in the namespace.'""",
    # Whoever may call these may tell every client anything: see docs/transactions.md for whom to grant it.
    """
    REVOKE ALL ON FUNCTION {s}.sio_emit, {s}.sio_emit_encoded, {s}.sio_outbox_take, {s}.sio_outbox_append,
        {s}.sio_outbox_epoch, {s}.sio_outbox_bounds
    FROM PUBLIC
    """,
    # Servers of version 1 go on working: `compatible` stays.
    """UPDATE {s}.sio_log SET version = 2""",
)

DROPPED = (
    """UPDATE {s}.sio_log SET version = 1""",
    """DROP FUNCTION {s}.sio_emit""",
    """DROP FUNCTION {s}.sio_emit_encoded""",
    """DROP TABLE {s}.sio_outbox""",
    """DROP FUNCTION {s}.sio_outbox_take""",
    """DROP FUNCTION {s}.sio_outbox_append""",
    """DROP FUNCTION {s}.sio_outbox_epoch""",
    """DROP FUNCTION {s}.sio_outbox_bounds""",
)


def _execute(ddl: str, schema: str) -> None:
    op.execute(statement(filled_in(ddl, schema)))


def upgrade() -> None:
    schema = target_schema(op)
    for ddl in OUTBOX:
        _execute(ddl, schema)


def downgrade() -> None:
    schema = target_schema(op)
    for ddl in DROPPED:
        _execute(ddl, schema)
