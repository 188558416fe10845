"""The log in two halves, of which the older goes as a whole.

Revision ID: sio0003
Revises: sio0002

A million rows that are deleted one by one take seconds, and leave as many dead rows behind. So appends go to one of
two tables until its oldest record has had its time; then they go to the other, and when the last record of the first
has had its time, too, that one is truncated. ``sio_packets`` has no rows of its own: the halves inherit from it, and
who reads it reads both. A log that stays small is not worth the turning: there records are deleted one by one. So
they are where a half cannot be locked at once (a ``pg_dump`` reads it), or the role may not truncate it.

No row is moved: the table that was there becomes the first half.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from alembic import op

from sio_pg_adapter.migrate import filled_in, statement, target_schema

revision = "sio0003"
down_revision = "sio0002"
branch_labels = None
depends_on = None


def for_half(ddl: str) -> str:
    """Write what is in ``[[ ]]`` twice, for the half that ``v_half`` tells: {h} is its number, {o} the other's."""

    def twice(found: re.Match[str]) -> str:
        first, second = (found[1].replace("{h}", h).replace("{o}", o) for h, o in ("01", "10"))
        return f"IF v_half OPERATOR(pg_catalog.=) 0 THEN{first}ELSE{second}END IF;"

    return re.sub(r"\[\[(.*?)\]\]", twice, ddl, flags=re.DOTALL)


# Waits a second at the most for who uses the tables, since all others would wait behind it, and tries again.
# In the order in which everybody else takes these locks.
LOCKS = """
    DO $$
    DECLARE v_former text := current_setting('lock_timeout');
    BEGIN
        PERFORM set_config('lock_timeout', '1s', true);
        FOR i IN 1..20 LOOP
            BEGIN
                LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
                LOCK TABLE {s}.sio_packets, {s}.sio_packet_rooms IN ACCESS EXCLUSIVE MODE;
                EXIT;
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                IF i = 20 THEN
                    RAISE;
                END IF;
                PERFORM pg_sleep(0.5);
            END;
        END LOOP;
        PERFORM set_config('lock_timeout', v_former, true);
    END $$
"""

# PostgreSQL 18 names these constraints after the table, and leaves their names when the table gets another.
NOT_NULLS = """
    DO $$
    DECLARE r record;
    BEGIN
        FOR r IN
            SELECT t.oid::regclass AS relation, c.conname, t.relname || '_' || a.attname || '_not_null' AS name
            FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
                JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = c.conkey[1]
            WHERE c.contype = 'n' AND t.relnamespace = '{l}'::regnamespace
              AND t.relname ~ '^sio_packet(s|_rooms)(_[01])?$'
              AND c.conname <> t.relname || '_' || a.attname || '_not_null'
        LOOP
            EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', r.relation, r.conname, r.name);
        END LOOP;
    END $$
"""

# Who may do something with the log may do it with its halves.
GRANTS = """
    DO $$
    DECLARE r record;
    BEGIN
        FOR r IN
            SELECT n.oid::regclass AS relation, a.privilege_type,
                   CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee,
                   CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option
            FROM pg_class o JOIN pg_class n ON n.relnamespace = o.relnamespace
                 AND (o.relkind = 'r' AND n.relname = replace(o.relname, '_0', '')
                      OR o.relkind = 'r' AND n.relname = replace(o.relname, '_0', '_1')
                      OR o.relkind = 'S' AND n.relname = 'sio_half')
                CROSS JOIN LATERAL aclexplode(o.relacl) a
            WHERE o.relnamespace = '{l}'::regnamespace AND a.grantee <> o.relowner
              AND o.relname IN ('sio_packets_0', 'sio_packet_rooms_0', 'sio_packets_offset_seq')
        LOOP
            EXECUTE format('GRANT %s ON %s TO %s', r.privilege_type, r.relation, r.grantee) || r.option;
        END LOOP;
    END $$
"""

# Who finds the running epoch by what sio_seen() told until now shall find it by what it tells from now on.
MARKER_KEPT = "UPDATE {s}.sio_marker SET seen = {new} WHERE seen = {s}.sio_seen()"
SEEN = """extract(epoch FROM pg_catalog.pg_postmaster_start_time()) || ' '
            || pg_catalog.pg_relation_filepath('{l}.sio_lock'::regclass)"""

TABLES = (
    # Which half is appended to. A sequence, which is seen as it is now and not as of a snapshot: a repeatable read
    # transaction that began before the halves were turned appends to the right one.
    """CREATE SEQUENCE {s}.sio_half AS smallint MINVALUE 0 MAXVALUE 1 START 0""",
    """ALTER TABLE {s}.sio_packets RENAME TO sio_packets_0""",
    """ALTER INDEX {s}.sio_packets_pkey RENAME TO sio_packets_0_pkey""",
    """ALTER INDEX {s}.sio_packets_room RENAME TO sio_packets_0_room""",
    """ALTER INDEX {s}.sio_packets_attachment RENAME TO sio_packets_0_attachment""",
    """CREATE TABLE {s}.sio_packets (LIKE {s}.sio_packets_0 INCLUDING DEFAULTS)""",
    """ALTER TABLE {s}.sio_packets ADD PRIMARY KEY ("offset")""",
    """ALTER SEQUENCE {s}.sio_packets_offset_seq OWNED BY {s}.sio_packets."offset" """,
    # Given by name: alembic takes a default from a sequence for a change where the sequence is another table's.
    """ALTER TABLE {s}.sio_packets_0 ALTER COLUMN "offset" DROP DEFAULT""",
    """CREATE TABLE {s}.sio_packets_1 (LIKE {s}.sio_packets_0 INCLUDING DEFAULTS)""",
    """ALTER TABLE {s}.sio_packets_1 ADD PRIMARY KEY ("offset")""",
    """CREATE INDEX sio_packets_1_room ON {s}.sio_packets_1 (namespace, room, "offset") WHERE kind = 0""",
    """CREATE INDEX sio_packets_1_attachment ON {s}.sio_packets_1 (attachment) WHERE attachment IS NOT NULL""",
    """COMMENT ON TABLE {s}.sio_packets IS 'The log. kind: 0 event, 1 enter room, 2 leave room, 3 close room, 4 claim, 5 kick. room: the empty string is everybody. rooms: all of them, where there are several. The rows are in sio_packets_0 and sio_packets_1.'""",
    """COMMENT ON TABLE {s}.sio_packets_0 IS 'A half of the log: appended to, or left until all of it may go.'""",
    """COMMENT ON TABLE {s}.sio_packets_1 IS 'A half of the log: appended to, or left until all of it may go.'""",
    """ALTER TABLE {s}.sio_packet_rooms RENAME TO sio_packet_rooms_0""",
    """ALTER INDEX {s}.sio_packet_rooms_pkey RENAME TO sio_packet_rooms_0_pkey""",
    """ALTER INDEX {s}.sio_packet_rooms_offset RENAME TO sio_packet_rooms_0_offset""",
    """CREATE TABLE {s}.sio_packet_rooms_1 (LIKE {s}.sio_packet_rooms_0)""",
    """ALTER TABLE {s}.sio_packet_rooms_1 ADD PRIMARY KEY (namespace, room, "offset")""",
    """CREATE INDEX sio_packet_rooms_1_offset ON {s}.sio_packet_rooms_1 ("offset")""",
    """CREATE TABLE {s}.sio_packet_rooms (LIKE {s}.sio_packet_rooms_0)""",
    """ALTER TABLE {s}.sio_packet_rooms ADD PRIMARY KEY (namespace, room, "offset")""",
    """COMMENT ON TABLE {s}.sio_packet_rooms IS 'The second and further rooms of events that are for several. The rows are in sio_packet_rooms_0 and sio_packet_rooms_1.'""",
    """COMMENT ON TABLE {s}.sio_packet_rooms_0 IS 'Of the events in sio_packets_0.'""",
    """COMMENT ON TABLE {s}.sio_packet_rooms_1 IS 'Of the events in sio_packets_1.'""",
    NOT_NULLS,
    """ALTER TABLE {s}.sio_packets_0 INHERIT {s}.sio_packets""",
    """ALTER TABLE {s}.sio_packets_1 INHERIT {s}.sio_packets""",
    """ALTER TABLE {s}.sio_packet_rooms_0 INHERIT {s}.sio_packet_rooms""",
    """ALTER TABLE {s}.sio_packet_rooms_1 INHERIT {s}.sio_packet_rooms""",
    GRANTS,
    # What is inserted into the whole: by a function that ran, and waited for the lock, while this was done; and
    # below, by COPY, which knows no rules, from a dump of the data alone.
    """
    CREATE RULE sio_into_half AS ON INSERT TO {s}.sio_packets DO INSTEAD
    INSERT INTO {s}.sio_packets_0 VALUES (NEW.*) RETURNING *
    """,
    """
    CREATE RULE sio_into_half AS ON INSERT TO {s}.sio_packet_rooms DO INSTEAD
    INSERT INTO {s}.sio_packet_rooms_0 VALUES (NEW.*)
    """,
    """
    CREATE FUNCTION {s}.sio_into_half() RETURNS trigger
    LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE format('INSERT INTO %I.%I SELECT ($1).*', TG_TABLE_SCHEMA, TG_TABLE_NAME || '_0') USING NEW;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER sio_into_half BEFORE INSERT ON {s}.sio_packets
    FOR EACH ROW EXECUTE FUNCTION {s}.sio_into_half()
    """,
    """
    CREATE TRIGGER sio_into_half BEFORE INSERT ON {s}.sio_packet_rooms
    FOR EACH ROW EXECUTE FUNCTION {s}.sio_into_half()
    """,
    """
    CREATE TRIGGER sio_truncated AFTER TRUNCATE ON {s}.sio_packets_1
    FOR EACH STATEMENT EXECUTE FUNCTION {s}.sio_truncated()
    """,
    """
    CREATE TRIGGER sio_truncated AFTER TRUNCATE ON {s}.sio_packet_rooms_0
    FOR EACH STATEMENT EXECUTE FUNCTION {s}.sio_truncated()
    """,
    """
    CREATE TRIGGER sio_truncated AFTER TRUNCATE ON {s}.sio_packet_rooms_1
    FOR EACH STATEMENT EXECUTE FUNCTION {s}.sio_truncated()
    """,
)

FUNCTIONS = (
    # The lock's file, and not that of the log any more, which retention replaces.
    """
    CREATE OR REPLACE FUNCTION {s}.sio_seen() RETURNS text
    LANGUAGE sql STABLE AS $$
        SELECT """
    + SEEN
    + """  -- base/database/file
    $$
    """,
    # Somebody emptied the log, or a part: what clients missed is gone, and for which rooms nobody knows any more.
    """
    CREATE OR REPLACE FUNCTION {s}.sio_truncated() RETURNS trigger
    LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('sio_pg_adapter.retention', true) = 'on' THEN
            RETURN NULL;  -- sio_cut: all of it has had its time, and the floors tell of it
        END IF;
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
        DELETE FROM {s}.sio_packets;
        DELETE FROM {s}.sio_packet_rooms;
        DELETE FROM {s}.sio_sessions;
        UPDATE {s}.sio_log SET floor = (SELECT last_value FROM {s}.sio_packets_offset_seq);
        DELETE FROM {s}.sio_marker;
        RETURN NULL;
    END $$
    """,
    for_half("""
    CREATE OR REPLACE FUNCTION {s}.sio_put(p_batch bigint, p_kind integer, p_namespace text, p_room text, p_sid text,
                                p_generation bigint, p_node uuid, p_body text) RETURNS bigint
    LANGUAGE plpgsql AS $$
    DECLARE v_at bigint; v_half bigint := (SELECT last_value FROM {s}.sio_half);
    BEGIN
        [[
            INSERT INTO {s}.sio_packets_{h} ("offset", kind, namespace, room, sid, generation, node, body, batch)
            VALUES (nextval('{l}.sio_packets_offset_seq'), p_kind, p_namespace, coalesce(p_room, ''), p_sid, p_generation,
                    p_node, p_body, p_batch)
            RETURNING "offset" INTO v_at;
        ]]
        RETURN v_at;
    END $$
    """),
    # -- the offsets that a session is due above p_after, in order, at most p_limit --------------------
    # As before, of each half: not through the table that the halves inherit from, where a plan made while they were
    # empty, and kept, would read and sort all of them.
    """
    CREATE OR REPLACE FUNCTION {s}.sio_due(p_session bigint, p_after bigint, p_limit integer) RETURNS SETOF bigint
    LANGUAGE plpgsql STABLE ROWS 20
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    BEGIN
        RETURN QUERY
        SELECT DISTINCT d."offset"
        FROM {s}.sio_memberships(p_session, p_after) m CROSS JOIN LATERAL (
            """
    + "UNION ALL".join(
        """
            (SELECT p."offset" FROM {s}.sio_packets_{h} p
             WHERE p.kind = 0 AND p.namespace = m.namespace AND p.room <= m.room
               AND (p.room, p."offset") > (m.room, greatest(p_after, m.joined_at))
               AND (p.room, p."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
               AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
             ORDER BY p.room, p."offset" LIMIT p_limit)
            UNION ALL
            (SELECT x."offset" FROM {s}.sio_packet_rooms_{h} x JOIN {s}.sio_packets_{h} p ON p."offset" = x."offset"
             WHERE x.namespace = m.namespace AND x.room <= m.room
               AND (x.room, x."offset") > (m.room, greatest(p_after, m.joined_at))
               AND (x.room, x."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
               AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
             ORDER BY x.room, x."offset" LIMIT p_limit)
            """.replace("{h}", half)
        for half in "01"
    )
    + """) d
        ORDER BY 1 LIMIT p_limit;
    END $$
    """,
    # -- the one way to write -----------------------------------------------------------------------
    # As before, to the half that is appended to.
    for_half("""
    CREATE OR REPLACE FUNCTION {s}.sio_write(
        p_batch bigint, p_kinds smallint[], p_namespaces text[], p_rooms text[], p_more text[], p_skips text[],
        p_sids text[], p_bodies text[], p_parts bytea[], p_attachments uuid[], p_args text[], p_carry text,
        OUT prev bigint, OUT offsets bigint[], OUT results text[])
    LANGUAGE plpgsql AS $$
    DECLARE v_last bigint; v_at bigint; v_result json; v_channel text; v_half bigint; r record;
    BEGIN
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
        PERFORM {s}.sio_check_epoch();
        SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END, h.last_value INTO prev, v_half
        FROM {s}.sio_packets_offset_seq s, {s}.sio_half h;
        IF 0 = ALL (p_kinds) THEN
            v_last := setval('{l}.sio_packets_offset_seq', prev + cardinality(p_kinds));
            [[
                INSERT INTO {s}.sio_packets_{h} ("offset", kind, namespace, room, rooms, skip_sids, body, parts,
                                             attachment, batch)
                SELECT prev + x.i, 0, x.namespace, x.room,
                       CASE WHEN x.more IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.more::json)) END,
                       CASE WHEN x.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.skips::json)) END,
                       x.body, x.parts, x.attachment, p_batch
                FROM unnest(p_namespaces, p_rooms, p_more, p_skips, p_bodies, p_parts, p_attachments)
                    WITH ORDINALITY AS x (namespace, room, more, skips, body, parts, attachment, i);
            ]]
            offsets := ARRAY(SELECT generate_series(prev + 1, v_last));
            IF EXISTS (SELECT FROM unnest(p_more) m WHERE m IS NOT NULL) THEN
                [[
                    INSERT INTO {s}.sio_packet_rooms_{h} (namespace, room, "offset")
                    SELECT DISTINCT p_namespaces[x.i], e.room, offsets[x.i]
                    FROM unnest(p_more) WITH ORDINALITY AS x (more, i)
                        CROSS JOIN LATERAL json_array_elements_text(x.more::json) WITH ORDINALITY AS e (room, j)
                    WHERE x.more IS NOT NULL AND e.j > 1;
                ]]
            END IF;
        ELSE
            FOR r IN SELECT * FROM unnest(p_kinds, p_namespaces, p_rooms, p_more, p_skips, p_sids, p_bodies,
                                          p_parts, p_attachments, p_args)
                         WITH ORDINALITY AS x (kind, namespace, room, more, skips, sid, body, parts, attachment,
                                               args, i)
                     ORDER BY i
            LOOP
                v_at := 0;
                v_result := NULL;
                CASE r.kind
                WHEN 0 THEN
                    [[
                        INSERT INTO {s}.sio_packets_{h} ("offset", kind, namespace, room, rooms, skip_sids, body, parts,
                                                     attachment, batch)
                        VALUES (nextval('{l}.sio_packets_offset_seq'), 0, r.namespace, r.room,
                            CASE WHEN r.more IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(r.more::json)) END,
                            CASE WHEN r.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(r.skips::json)) END,
                            r.body, r.parts, r.attachment, p_batch)
                        RETURNING "offset" INTO v_at;
                    ]]
                    IF r.more IS NOT NULL THEN  -- at once: a claim behind it in the batch reads what it is due
                        [[
                            INSERT INTO {s}.sio_packet_rooms_{h} (namespace, room, "offset")
                            SELECT DISTINCT r.namespace, e.room, v_at
                            FROM json_array_elements_text(r.more::json) WITH ORDINALITY AS e (room, j)
                            WHERE e.j > 1;
                        ]]
                    END IF;
                WHEN 1, 2 THEN
                    v_at := {s}.sio_move(p_batch, r.kind, r.namespace, r.room, r.sid, r.args::json);
                WHEN 3 THEN v_at := {s}.sio_close(p_batch, r.namespace, r.room);
                WHEN 4 THEN
                    v_result := {s}.sio_claim(p_batch, r.namespace, r.args::json);
                    v_at := coalesce((v_result->>'offset')::bigint, 0);
                WHEN 5 THEN v_at := {s}.sio_kick(p_batch, r.namespace, r.sid);
                WHEN 10 THEN v_result := {s}.sio_open(r.namespace, r.sid, r.body, r.args::json);
                WHEN 11 THEN v_result := {s}.sio_settle(r.args::json);
                WHEN 12 THEN v_result := {s}.sio_release(r.args::json);
                WHEN 13 THEN v_result := {s}.sio_end(r.args::json);
                WHEN 14 THEN v_result := {s}.sio_save(r.namespace, r.sid, r.body, r.args::json);
                END CASE;
                offsets := array_append(offsets, v_at);
                results := array_append(results, v_result::text);
            END LOOP;
            SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO v_last
            FROM {s}.sio_packets_offset_seq;
        END IF;
        IF v_last > prev THEN
            SELECT channel INTO v_channel FROM {s}.sio_log;
            -- Rings alone while a listener somewhere sits idle in a transaction: the queue holds 8 GB, and once it
            -- is full every commit with a notification fails.
            PERFORM pg_notify(v_channel, prev || ' ' || v_last || CASE
                WHEN p_carry IS NULL OR pg_notification_queue_usage() > 0.1 THEN '' ELSE ' ' || p_carry END);
        END IF;
    END $$
    """),
    # What an emit on a quiet node is: one event, for one room. No arrays, which take half of the time that is left
    # beside the commit, here and in the client; and as few statements as can be, since on a node that does other things
    # in between, each of them finds the processor's caches cold. Returns the offset. The one before it is one less, or
    # belongs to what was rolled back or to a former epoch.
    for_half("""
    CREATE FUNCTION {s}.sio_write_event(p_batch bigint, p_namespace text, p_room text, p_body text, p_carry text)
    RETURNS bigint
    LANGUAGE plpgsql AS $$
    DECLARE v_channel text; v_half bigint; v_known boolean; v_at bigint; v_sent varchar;
    BEGIN
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
        SELECT h.last_value, l.channel, EXISTS (SELECT FROM {s}.sio_marker WHERE seen = {s}.sio_seen())
        INTO v_half, v_channel, v_known FROM {s}.sio_half h, {s}.sio_log l;
        IF NOT v_known THEN
            PERFORM {s}.sio_check_epoch();
        END IF;
        [[
            INSERT INTO {s}.sio_packets_{h} AS p ("offset", kind, namespace, room, body, batch)
            VALUES (nextval('{l}.sio_packets_offset_seq'), 0, p_namespace, p_room, p_body, p_batch)
            RETURNING p."offset", pg_notify(v_channel, concat(p."offset" - 1, ' ', p."offset", CASE
                WHEN pg_notification_queue_usage() <= 0.1 THEN ' ' || p_carry END))::varchar
            INTO v_at, v_sent;
        ]]
        RETURN v_at;
    END $$
    """),
    # A sequence is no table: the snapshot may still be older than the last append.
    for_half("""
    CREATE OR REPLACE FUNCTION {s}.sio_outbox_append() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE v_at bigint; v_set varchar; v_half bigint;
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
        v_half := (SELECT h.last_value FROM {s}.sio_half h);
        IF OLD.put_off OR pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.<>) '0' THEN
            PERFORM {s}.sio_outbox_bounds(OLD.put_off);
        ELSE
            v_set := pg_catalog.set_config('lock_timeout', '2s', true);
        END IF;
        IF NOT OLD.seen THEN
            PERFORM {s}.sio_outbox_epoch();
        END IF;
        -- The offset before it is one less, or belongs to what was rolled back or to a former epoch.
        [[
            INSERT INTO {s}.sio_packets_{h} AS p ("offset", kind, namespace, room, rooms, skip_sids, body, parts,
                                                          attachment)
            VALUES (pg_catalog.nextval('{l}.sio_packets_offset_seq'), 0, OLD.namespace, OLD.room, OLD.rooms, OLD.skip_sids, OLD.body, OLD.parts, OLD.attachment)
            RETURNING p."offset",
                      pg_catalog.pg_notify(OLD.channel, pg_catalog.concat(
                          p."offset" OPERATOR(pg_catalog.-) 1, ' ', p."offset", OLD.carried))::varchar
            INTO v_at, v_set;
        ]]
        IF OLD.rooms IS NOT NULL THEN
            [[
                INSERT INTO {s}.sio_packet_rooms_{h} (namespace, room, "offset")
                SELECT DISTINCT OLD.namespace, r.room, v_at FROM pg_catalog.unnest(OLD.rooms[2:]) AS r (room);
            ]]
        END IF;
        RETURN NULL;
    END $$
    """),
    # -- retention ----------------------------------------------------------------------------------
    # Lock a half for nothing longer than a moment, or not at all: nobody shall have to wait behind this. Tried
    # again for half a second, since a reader takes less than a millisecond.
    """
    CREATE FUNCTION {s}.sio_lock_half(p_half integer) RETURNS boolean
    LANGUAGE plpgsql AS $$
    BEGIN
        FOR i IN 1..50 LOOP
            BEGIN
                IF p_half = 0 THEN
                    LOCK TABLE {s}.sio_packets_0, {s}.sio_packet_rooms_0 IN ACCESS EXCLUSIVE MODE NOWAIT;
                ELSE
                    LOCK TABLE {s}.sio_packets_1, {s}.sio_packet_rooms_1 IN ACCESS EXCLUSIVE MODE NOWAIT;
                END IF;
                RETURN true;
            EXCEPTION WHEN lock_not_available THEN
                PERFORM pg_sleep(0.005 + random() * 0.01);
            END;
        END LOOP;
        RETURN false;
    END $$
    """,
    # May this role truncate both halves?
    """
    CREATE FUNCTION {s}.sio_may_truncate() RETURNS boolean
    LANGUAGE sql STABLE AS $$
        SELECT bool_and(has_table_privilege(t, 'TRUNCATE')) FROM unnest(ARRAY[
            '{l}.sio_packets_0', '{l}.sio_packets_1', '{l}.sio_packet_rooms_0', '{l}.sio_packet_rooms_1'
        ]::regclass[]) t
    $$
    """,
    # Lets appends go to the other half, if that is empty and this one is worth it: over 16 MB, and with a record
    # of more than p_keep seconds. The empty half is truncated, too: VACUUM may have noted its size as none, and
    # plans that were made for that would read all of what it is to hold.
    for_half("""
    CREATE FUNCTION {s}.sio_turn(p_keep double precision) RETURNS boolean
    LANGUAGE plpgsql SET sio_pg_adapter.retention = 'on' AS $$
    DECLARE v_half bigint := (SELECT last_value FROM {s}.sio_half); v_due boolean;
    BEGIN
        PERFORM FROM {s}.sio_log FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN false;  -- another node is at it
        END IF;
        [[
            SELECT created_at < clock_timestamp() - make_interval(secs => p_keep)
                   AND pg_table_size('{l}.sio_packets_{h}') > 16777216
                   AND NOT EXISTS (SELECT FROM {s}.sio_packets_{o})
                   AND {s}.sio_may_truncate()
            INTO v_due FROM {s}.sio_packets_{h} ORDER BY "offset" LIMIT 1;
            IF v_due AND {s}.sio_lock_half({o}) THEN
                IF EXISTS (SELECT FROM {s}.sio_packets_{o}) THEN
                    RETURN false;  -- before it was locked, somebody turned to it, or appended late
                END IF;
                TRUNCATE {s}.sio_packets_{o}, {s}.sio_packet_rooms_{o};
                PERFORM setval('{l}.sio_half', {o});
                RETURN true;
            END IF;
        ]]
        RETURN false;
    END $$
    """),
    # Truncates the half that is not appended to, if all its records are older than p_keep seconds. Returns how
    # many they were; 0: not yet; null: there are none, or records of the other half lie between them, or it may not.
    # The caller has locked the row of sio_log.
    for_half("""
    CREATE FUNCTION {s}.sio_cut(p_keep double precision) RETURNS integer
    LANGUAGE plpgsql SET sio_pg_adapter.retention = 'on' AS $$
    DECLARE
        v_half bigint := (SELECT 1 - last_value FROM {s}.sio_half);
        v_last bigint; v_again bigint; v_first bigint; v_young timestamptz; v_count integer;
        v_before timestamptz := clock_timestamp() - make_interval(secs => p_keep);
    BEGIN
        [[
            SELECT "offset", created_at INTO v_last, v_young FROM {s}.sio_packets_{h} ORDER BY "offset" DESC LIMIT 1;
            SELECT min("offset") INTO v_first FROM {s}.sio_packets_{o};
            IF v_last IS NULL OR v_first < v_last OR NOT {s}.sio_may_truncate() THEN
                RETURN NULL;
            ELSIF v_young >= v_before THEN
                RETURN 0;
            END IF;
            WITH rooms AS (
                SELECT namespace, room, kind = 0 AS counts, max("offset") AS last, max(created_at) AS young,
                       count(*) AS packets
                FROM {s}.sio_packets_{h} GROUP BY 1, 2, 3
                UNION ALL
                SELECT namespace, room, true, max("offset"), NULL, 0 FROM {s}.sio_packet_rooms_{h} GROUP BY 1, 2
            ), floors AS (
                INSERT INTO {s}.sio_room_floors AS f (namespace, room, "offset")
                SELECT namespace, room, max(last) FROM rooms
                WHERE counts AND last > (SELECT coalesce(min(start_offset), 9223372036854775807)
                                         FROM {s}.sio_sessions)  -- else nobody can ask about it
                GROUP BY 1, 2
                ON CONFLICT (namespace, room) DO UPDATE SET "offset" = greatest(f."offset", excluded."offset")
            )
            SELECT sum(packets), max(young) INTO v_count, v_young FROM rooms;
            DELETE FROM {s}.sio_attachments a USING {s}.sio_packets_{h} p
            WHERE p.attachment IS NOT NULL AND a.id = p.attachment;
            IF v_young < v_before AND {s}.sio_lock_half({h}) THEN
                SELECT max("offset") INTO v_again FROM {s}.sio_packets_{h};
            END IF;
            IF v_again IS DISTINCT FROM v_last THEN  -- a young one among them, a reader that stays, or one more
                RAISE lock_not_available;
            END IF;
            TRUNCATE {s}.sio_packets_{h}, {s}.sio_packet_rooms_{h};
            UPDATE {s}.sio_log SET floor = greatest(floor, v_last);
            RETURN v_count;
        ]]
    EXCEPTION WHEN lock_not_available THEN
        RETURN 0;  -- all of it is taken back
    END $$
    """),
    # Deletes the oldest records that are older than p_keep seconds: a half as a whole, else at most p_limit. Floors
    # move in the same transaction: who reads sees either the records or that they are gone.
    """
    CREATE OR REPLACE FUNCTION {s}.sio_trim(p_keep double precision, p_limit integer) RETURNS integer
    LANGUAGE plpgsql AS $$
    DECLARE v_floor bigint; v_upto bigint; v_count integer;
    BEGIN
        SELECT floor INTO v_floor FROM {s}.sio_log FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN 0;  -- another node is at it
        END IF;
        v_count := {s}.sio_cut(p_keep);
        IF v_count IS NOT NULL THEN
            RETURN v_count;
        END IF;
        SELECT max(x."offset") FILTER (WHERE x.old) INTO v_upto FROM (
            SELECT o."offset", bool_and(o.created_at < clock_timestamp() - make_interval(secs => p_keep))
                OVER (ORDER BY o."offset") AS old
            FROM (SELECT "offset", created_at FROM {s}.sio_packets
                  WHERE "offset" > v_floor ORDER BY "offset" LIMIT p_limit) o) x;
        IF v_upto IS NULL THEN
            RETURN 0;
        END IF;
        INSERT INTO {s}.sio_room_floors AS f (namespace, room, "offset")
        SELECT g.namespace, g.room, max(g."offset") FROM (
            SELECT namespace, room, "offset" FROM {s}.sio_packets
            WHERE kind = 0 AND "offset" > v_floor AND "offset" <= v_upto
            UNION ALL
            SELECT namespace, room, "offset" FROM {s}.sio_packet_rooms
            WHERE "offset" > v_floor AND "offset" <= v_upto) g
        GROUP BY 1, 2
        ON CONFLICT (namespace, room) DO UPDATE SET "offset" = greatest(f."offset", excluded."offset");
        -- From the floor on: what was deleted before is still in the index, and would be walked through each time.
        DELETE FROM {s}.sio_packet_rooms WHERE "offset" > v_floor AND "offset" <= v_upto;
        WITH gone AS (
            DELETE FROM {s}.sio_packets WHERE "offset" > v_floor AND "offset" <= v_upto RETURNING attachment
        ), parts AS (
            DELETE FROM {s}.sio_attachments a USING gone g WHERE a.id = g.attachment
        )
        SELECT count(*) INTO v_count FROM gone;
        UPDATE {s}.sio_log SET floor = v_upto;
        RETURN v_count;
    END $$
    """,
    # Servers of version 1 go on working: `compatible` stays.
    """UPDATE {s}.sio_log SET version = 3""",
)

# One half as before, with the rows of both.
UNDONE = (
    """DROP FUNCTION {s}.sio_write_event""",
    """DROP FUNCTION {s}.sio_turn""",
    """DROP FUNCTION {s}.sio_cut""",
    """DROP FUNCTION {s}.sio_lock_half""",
    """DROP FUNCTION {s}.sio_may_truncate""",
    """ALTER TABLE {s}.sio_packets_0 NO INHERIT {s}.sio_packets""",
    """ALTER TABLE {s}.sio_packet_rooms_0 NO INHERIT {s}.sio_packet_rooms""",
    """INSERT INTO {s}.sio_packets_0 SELECT * FROM {s}.sio_packets_1""",
    """INSERT INTO {s}.sio_packet_rooms_0 SELECT * FROM {s}.sio_packet_rooms_1""",
    """ALTER SEQUENCE {s}.sio_packets_offset_seq OWNED BY {s}.sio_packets_0."offset" """,
    """ALTER TABLE {s}.sio_packets_0 ALTER COLUMN "offset" SET DEFAULT nextval('{l}.sio_packets_offset_seq')""",
    """DROP TABLE {s}.sio_packets_1""",
    """DROP TABLE {s}.sio_packet_rooms_1""",
    """DROP TABLE {s}.sio_packets""",
    """DROP TABLE {s}.sio_packet_rooms""",
    """DROP FUNCTION {s}.sio_into_half""",
    """DROP TRIGGER sio_truncated ON {s}.sio_packet_rooms_0""",
    """ALTER TABLE {s}.sio_packets_0 RENAME TO sio_packets""",
    """ALTER INDEX {s}.sio_packets_0_pkey RENAME TO sio_packets_pkey""",
    """ALTER INDEX {s}.sio_packets_0_room RENAME TO sio_packets_room""",
    """ALTER INDEX {s}.sio_packets_0_attachment RENAME TO sio_packets_attachment""",
    """ALTER TABLE {s}.sio_packet_rooms_0 RENAME TO sio_packet_rooms""",
    """ALTER INDEX {s}.sio_packet_rooms_0_pkey RENAME TO sio_packet_rooms_pkey""",
    """ALTER INDEX {s}.sio_packet_rooms_0_offset RENAME TO sio_packet_rooms_offset""",
    NOT_NULLS,
    """DROP SEQUENCE {s}.sio_half""",
    """UPDATE {s}.sio_log SET version = 2""",
)
FORMER = {
    "0001_foundation": ("sio_seen", "sio_truncated", "sio_put", "sio_due", "sio_write", "sio_trim"),
    "0002_outbox": ("sio_outbox_append",),
}


def _former(file: str, names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """What another revision made: these functions, to be replaced, and all comments on tables."""
    found = importlib.util.spec_from_file_location(file, Path(__file__).with_name(f"{file}.py"))
    assert found
    assert found.loader
    module: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    every = [ddl for group in ("TABLES", "FUNCTIONS", "OUTBOX") for ddl in getattr(module, group, ())]
    made = [ddl for ddl in every if any(f"CREATE FUNCTION {{s}}.{name}(" in ddl for name in names)]
    comments = [ddl for ddl in every if "COMMENT ON TABLE {s}.sio_packet" in ddl or "{s}.sio_log IS" in ddl]
    return [ddl.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION") for ddl in made], comments


def _execute(ddl: str, schema: str) -> None:
    op.execute(statement(filled_in(ddl, schema)))


def upgrade() -> None:
    schema = target_schema(op)
    for ddl in (LOCKS, MARKER_KEPT.replace("{new}", SEEN), *TABLES, *FUNCTIONS):
        _execute(ddl, schema)


def downgrade() -> None:
    schema = target_schema(op)
    former = [_former(file, names) for file, names in FORMER.items()]
    functions = [ddl for made, _ in former for ddl in made]
    # Found under its new name until it has its old one: the marker follows last.
    _execute(LOCKS, schema)
    for ddl in UNDONE:
        _execute(ddl, schema)
    _execute(MARKER_KEPT.replace("{new}", SEEN.replace("sio_lock", "sio_packets")), schema)
    for ddl in (*functions, *(ddl for _, comments in former for ddl in comments)):
        _execute(ddl, schema)
