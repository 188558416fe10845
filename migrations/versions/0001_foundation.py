"""The log, its projections, and the functions that write them.

Revision ID: sio0001
Revises:
"""

from __future__ import annotations

from alembic import op

from sio_pg_adapter.migrate import filled_in, statement, target_schema

revision = "sio0001"
down_revision = None
branch_labels = ("sio_pg_adapter",)
depends_on = None

# "{s}" stands for the quoted schema, "{l}" for the same within a literal. Names are written out in full, since a function that sets its own
# search_path costs more at each call, and one that does not would follow the caller's.
TABLES = (
    # Locked IN EXCLUSIVE MODE by whoever writes: offsets then become visible in their order. A table and
    # not an advisory lock, which any role that may connect could see and take.
    """CREATE TABLE {s}.sio_lock ()""",
    """
    CREATE TABLE {s}.sio_log (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        version integer NOT NULL,
        compatible integer NOT NULL,
        channel text NOT NULL,
        floor bigint NOT NULL DEFAULT 0
    )
    """,
    """COMMENT ON TABLE {s}.sio_log IS 'One row. version: of this schema. compatible: the oldest version that a package may be made for and still work with it. channel: where appends are announced; a secret, since NOTIFY knows no permissions. floor: no record at or below it is stored.'""",
    """
    CREATE TABLE {s}.sio_epochs (
        epoch integer PRIMARY KEY,
        key bytea NOT NULL,
        began_after bigint NOT NULL,
        began_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """COMMENT ON TABLE {s}.sio_epochs IS 'The histories of the log. Epoch e owns the offsets from e * 2^40 on; key signs them on the wire; began_after: the highest offset before it.'""",
    # Empty after a crash and after a promotion; in a copy or a restored dump `seen` differs.
    """CREATE UNLOGGED TABLE {s}.sio_marker (seen text NOT NULL)""",
    """
    CREATE TABLE {s}.sio_packets (
        "offset" bigserial PRIMARY KEY,
        kind smallint NOT NULL,
        namespace text NOT NULL,
        room text NOT NULL DEFAULT '',
        rooms text[],
        skip_sids text[],
        sid text,
        generation bigint,
        node uuid,
        body text,
        parts bytea,
        attachment uuid,
        batch bigint,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """COMMENT ON TABLE {s}.sio_packets IS 'The log. kind: 0 event, 1 enter room, 2 leave room, 3 close room, 4 claim, 5 kick. room: the empty string is everybody. rooms: all of them, where there are several.'""",
    # What a reconnecting client missed: read for each room of its session, in offset order.
    """CREATE INDEX sio_packets_room ON {s}.sio_packets (namespace, room, "offset") WHERE kind = 0""",
    """CREATE INDEX sio_packets_attachment ON {s}.sio_packets (attachment) WHERE attachment IS NOT NULL""",
    """
    CREATE TABLE {s}.sio_packet_rooms (
        namespace text NOT NULL,
        room text NOT NULL,
        "offset" bigint NOT NULL,
        PRIMARY KEY (namespace, room, "offset")
    )
    """,
    """COMMENT ON TABLE {s}.sio_packet_rooms IS 'The second and further rooms of events that are for several.'""",
    """CREATE INDEX sio_packet_rooms_offset ON {s}.sio_packet_rooms ("offset")""",
    """
    CREATE TABLE {s}.sio_attachments (
        id uuid PRIMARY KEY,
        data bytea NOT NULL,
        ephemeral boolean NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """COMMENT ON TABLE {s}.sio_attachments IS 'Bodies too large for a row of the log or for a notification.'""",
    """CREATE INDEX sio_attachments_created ON {s}.sio_attachments (created_at)""",
    # Payloads are JSON text and binary that seldom compresses well: no time is spent on trying.
    """ALTER TABLE {s}.sio_attachments ALTER COLUMN data SET STORAGE EXTERNAL""",
    """
    CREATE TABLE {s}.sio_nodes (
        id uuid PRIMARY KEY,
        number integer GENERATED ALWAYS AS IDENTITY UNIQUE,
        channel text NOT NULL,
        role oid NOT NULL,
        recovery_seconds double precision,
        margin_seconds double precision NOT NULL,
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        missed_at timestamptz,
        died_at timestamptz,
        stopped_at timestamptz
    )
    """,
    """COMMENT ON TABLE {s}.sio_nodes IS 'Server processes. A node that lives holds a shared advisory lock on (oid of this table, number), by a backend of its role. recovery_seconds: max_disconnection_duration, null for ever. margin_seconds: how long a drop may go unnoticed, and a replay last. missed_at: first look that found no lock; died_at: the second.'""",
    """
    CREATE TABLE {s}.sio_sessions (
        id bigint PRIMARY KEY,
        pid_hash bytea NOT NULL UNIQUE,
        namespace text NOT NULL,
        sid text NOT NULL,
        data text NOT NULL DEFAULT '{{}}',
        node uuid,
        generation bigint NOT NULL DEFAULT 1,
        settled bigint NOT NULL DEFAULT 1,
        start_offset bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz,
        told_by uuid,
        told_at timestamptz,
        UNIQUE (namespace, sid)
    ) WITH (fillfactor = 70)
    """,
    """COMMENT ON TABLE {s}.sio_sessions IS 'One row a session, from its CONNECT to its end. id: the first 60 bits of pid_hash, so that one that was lost is not issued again. node: who holds it, null while the client is away; generation: raised by each claim; settled: the generation of the holder whose writes count, lower than generation while a claim waits for it; expires_at: null while it is held. told_by: the node that calls the expiry handler.'""",
    """CREATE INDEX sio_sessions_expires ON {s}.sio_sessions (expires_at) WHERE expires_at IS NOT NULL""",
    """CREATE INDEX sio_sessions_node ON {s}.sio_sessions (node) WHERE node IS NOT NULL""",
    """
    CREATE TABLE {s}.sio_rooms (
        session bigint NOT NULL REFERENCES {s}.sio_sessions ON DELETE CASCADE,
        room text NOT NULL,
        joined_at bigint NOT NULL,
        left_at bigint,
        namespace text NOT NULL,
        PRIMARY KEY (session, room, joined_at)
    )
    """,
    """COMMENT ON TABLE {s}.sio_rooms IS 'Who was in which room: at the offsets above joined_at and below left_at.'""",
    """CREATE INDEX sio_rooms_members ON {s}.sio_rooms (namespace, room) WHERE left_at IS NULL""",
    """CREATE TABLE {s}.sio_expiry_handlers (namespace text PRIMARY KEY)""",
    """COMMENT ON TABLE {s}.sio_expiry_handlers IS 'Namespaces (* is all) whose expired sessions are deleted only by nodes that call a handler first.'""",
    """
    CREATE TABLE {s}.sio_room_floors (
        namespace text NOT NULL,
        room text NOT NULL,
        "offset" bigint NOT NULL,
        PRIMARY KEY (namespace, room)
    )
    """,
    """COMMENT ON TABLE {s}.sio_room_floors IS 'The highest offset of each room that retention deleted: a session that it is above may have lost a packet.'""",
)

FUNCTIONS = (
    # -- histories ----------------------------------------------------------------------------------
    # What tells that this is the server, the database and the table that the running epoch began on. A
    # backup restored from files, or another timeline, comes with another start of the server.
    """
    CREATE FUNCTION {s}.sio_seen() RETURNS text
    LANGUAGE sql STABLE AS $$
        SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time()) || ' '
            || pg_catalog.pg_relation_filepath('{l}.sio_packets'::regclass)  -- base/database/file
    $$
    """,
    # Under the log's lock: is this still the history that the running epoch began in? If not, begin the next
    # one, above all numbers of the old: an offset that a lost commit had is never given to another packet.
    """
    CREATE FUNCTION {s}.sio_check_epoch() RETURNS boolean
    LANGUAGE plpgsql AS $$
    DECLARE v_epoch integer;
    BEGIN
        IF EXISTS (SELECT FROM {s}.sio_marker WHERE seen = {s}.sio_seen()) THEN
            RETURN false;
        END IF;
        INSERT INTO {s}.sio_epochs (epoch, key, began_after)
        SELECT max(epoch) + 1, sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')),
               greatest((SELECT max("offset") FROM {s}.sio_packets), (SELECT floor FROM {s}.sio_log))
        FROM {s}.sio_epochs
        RETURNING epoch INTO v_epoch;
        PERFORM setval('{l}.sio_packets_offset_seq', greatest(last_value, v_epoch * 1099511627776))
        FROM {s}.sio_packets_offset_seq;
        DELETE FROM {s}.sio_marker;
        INSERT INTO {s}.sio_marker (seen) VALUES ({s}.sio_seen());
        RETURN true;
    END $$
    """,
    """
    CREATE FUNCTION {s}.sio_lock_and_check_epoch() RETURNS boolean
    LANGUAGE plpgsql AS $$
    BEGIN
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
        RETURN {s}.sio_check_epoch();
    END $$
    """,
    # Somebody emptied the log: what clients missed is gone, and for which rooms nobody knows any more.
    """
    CREATE FUNCTION {s}.sio_truncated() RETURNS trigger
    LANGUAGE plpgsql AS $$
    BEGIN
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
        DELETE FROM {s}.sio_sessions;
        UPDATE {s}.sio_log SET floor = (SELECT last_value FROM {s}.sio_packets_offset_seq);
        DELETE FROM {s}.sio_marker;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER sio_truncated AFTER TRUNCATE ON {s}.sio_packets
    FOR EACH STATEMENT EXECUTE FUNCTION {s}.sio_truncated()
    """,
    # -- one record of a kind other than an event ------------------------------------------------------
    """
    CREATE FUNCTION {s}.sio_put(p_batch bigint, p_kind integer, p_namespace text, p_room text, p_sid text,
                                p_generation bigint, p_node uuid, p_body text) RETURNS bigint
    LANGUAGE sql AS $$
        INSERT INTO {s}.sio_packets (kind, namespace, room, sid, generation, node, body, batch)
        VALUES (p_kind, p_namespace, coalesce(p_room, ''), p_sid, p_generation, p_node, p_body, p_batch)
        RETURNING "offset"
    $$
    """,
    # -- what a session was a member of, everybody and its own room included --------------------------
    """
    CREATE FUNCTION {s}.sio_memberships(p_session bigint, p_after bigint)
    RETURNS TABLE (namespace text, sid text, room text, joined_at bigint, left_at bigint)
    LANGUAGE sql STABLE AS $$
        SELECT s.namespace, s.sid, x.room, s.start_offset, NULL::bigint
        FROM {s}.sio_sessions s CROSS JOIN LATERAL (VALUES (''), (s.sid)) AS x (room)
        WHERE s.id = p_session
        UNION ALL
        SELECT s.namespace, s.sid, r.room, r.joined_at, r.left_at
        FROM {s}.sio_sessions s JOIN {s}.sio_rooms r ON r.session = s.id
        WHERE s.id = p_session AND (r.left_at IS NULL OR r.left_at > p_after)
    $$
    """,
    # -- the offsets that a session is due above p_after, in order, at most p_limit --------------------
    # A scan of the rooms' index for each membership with its own ORDER BY and LIMIT, then a merge. The room is given
    # by two bounds: were it equal to something, the primary key would be in order, too, and PostgreSQL would walk
    # it through all that was sent to others (350 ms among 100,000, with fresh statistics). For the same reason it is
    # planned once, for whatever values, and without what reads more than the LIMIT asks for. `room <=` says no more than
    # the comparison of rows below it, which ends no scan before PostgreSQL 18.
    """
    CREATE FUNCTION {s}.sio_due(p_session bigint, p_after bigint, p_limit integer) RETURNS SETOF bigint
    LANGUAGE plpgsql STABLE ROWS 20
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    BEGIN
        RETURN QUERY
        SELECT DISTINCT d."offset"
        FROM {s}.sio_memberships(p_session, p_after) m CROSS JOIN LATERAL (
            (SELECT p."offset" FROM {s}.sio_packets p
             WHERE p.kind = 0 AND p.namespace = m.namespace AND p.room <= m.room
               AND (p.room, p."offset") > (m.room, greatest(p_after, m.joined_at))
               AND (p.room, p."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
               AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
             ORDER BY p.room, p."offset" LIMIT p_limit)
            UNION ALL
            (SELECT x."offset" FROM {s}.sio_packet_rooms x JOIN {s}.sio_packets p ON p."offset" = x."offset"
             WHERE x.namespace = m.namespace AND x.room <= m.room
               AND (x.room, x."offset") > (m.room, greatest(p_after, m.joined_at))
               AND (x.room, x."offset") < (m.room, coalesce(m.left_at, 9223372036854775807))
               AND NOT m.sid = ANY (coalesce(p.skip_sids, ARRAY[]::text[]))
             ORDER BY x.room, x."offset" LIMIT p_limit)
        ) d
        ORDER BY 1 LIMIT p_limit;
    END $$
    """,
    # -- did retention delete anything that a session may be due above p_after? -----------------------
    """
    CREATE FUNCTION {s}.sio_lost(p_session bigint, p_after bigint) RETURNS boolean
    LANGUAGE sql STABLE AS $$
        SELECT p_after < (SELECT floor FROM {s}.sio_log) AND EXISTS (
            SELECT FROM {s}.sio_memberships(p_session, p_after) m
            JOIN {s}.sio_room_floors f ON f.namespace = m.namespace AND f.room = m.room
            WHERE f."offset" > greatest(p_after, m.joined_at)
              AND coalesce(m.left_at, 9223372036854775807) > greatest(p_after, m.joined_at) + 1)
    $$
    """,
    # -- room moves ---------------------------------------------------------------------------------
    # p_args: generation, where the caller holds the sid and means only that connection of it; as_of, for
    # a room left by a recovery's own handler: it counts as left at the offset that the client presented.
    """
    CREATE FUNCTION {s}.sio_move(p_batch bigint, p_kind integer, p_namespace text, p_room text, p_sid text,
                                 p_args json) RETURNS bigint
    LANGUAGE plpgsql AS $$
    DECLARE
        v_session bigint; v_generation bigint; v_at bigint; v_as_of bigint := (p_args->>'as_of')::bigint;
    BEGIN
        SELECT id, generation INTO v_session, v_generation
        FROM {s}.sio_sessions WHERE namespace = p_namespace AND sid = p_sid;
        IF v_session IS NULL AND p_args->>'generation' IS NOT NULL
           OR v_generation <> (p_args->>'generation')::bigint THEN
            RETURN 0;
        END IF;
        SELECT max(joined_at) INTO v_at FROM {s}.sio_rooms
        WHERE session = v_session AND room = p_room AND left_at IS NULL;
        IF p_kind = 1 THEN
            IF v_at IS NOT NULL THEN
                RETURN -v_at;
            END IF;
            IF EXISTS (SELECT FROM {s}.sio_sessions WHERE namespace = p_namespace AND sid = p_room) THEN
                RETURN NULL;  -- another client's own room
            END IF;
            v_at := {s}.sio_put(p_batch, 1, p_namespace, p_room, p_sid, v_generation, NULL, NULL);
            IF v_session IS NOT NULL THEN
                INSERT INTO {s}.sio_rooms (session, room, joined_at, namespace)
                VALUES (v_session, p_room, v_at, p_namespace);
            END IF;
            RETURN v_at;
        END IF;
        IF v_session IS NOT NULL AND v_at IS NULL AND v_as_of IS NULL THEN
            RETURN coalesce((SELECT -max(left_at) FROM {s}.sio_rooms WHERE session = v_session AND room = p_room), 0);
        END IF;
        v_at := {s}.sio_put(p_batch, 2, p_namespace, p_room, p_sid, v_as_of, NULL, NULL);
        UPDATE {s}.sio_rooms SET left_at = coalesce(v_as_of, v_at)
        WHERE session = v_session AND room = p_room
          AND (left_at IS NULL OR v_as_of IS NOT NULL AND left_at > v_as_of);
        DELETE FROM {s}.sio_rooms  -- those that hold no offset
        WHERE session = v_session AND room = p_room AND left_at <= joined_at + 1;
        RETURN v_at;
    END $$
    """,
    """
    CREATE FUNCTION {s}.sio_close(p_batch bigint, p_namespace text, p_room text) RETURNS bigint
    LANGUAGE plpgsql AS $$
    DECLARE v_at bigint;
    BEGIN
        IF EXISTS (SELECT FROM {s}.sio_sessions WHERE namespace = p_namespace AND sid = p_room) THEN
            RETURN NULL;  -- a client's own room
        END IF;
        v_at := {s}.sio_put(p_batch, 3, p_namespace, p_room, NULL, NULL, NULL, NULL);
        UPDATE {s}.sio_rooms SET left_at = v_at
        WHERE namespace = p_namespace AND room = p_room AND left_at IS NULL;
        RETURN v_at;
    END $$
    """,
    # -- nodes --------------------------------------------------------------------------------------
    # Alive: the lock is held, by a backend of the node's own role: any role may take advisory locks.
    """
    CREATE FUNCTION {s}.sio_alive(p_number integer, p_role oid) RETURNS boolean
    LANGUAGE sql STABLE AS $$
        SELECT EXISTS (
            SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
              AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
              AND l.classid = '{l}.sio_nodes'::regclass::oid AND l.objid = p_number::bigint::oid
              AND a.usesysid = p_role)
    $$
    """,
    # When the sessions of a node that died have run out; null while it lives, or if they never do.
    """
    CREATE FUNCTION {s}.sio_runs_out(p_died_at timestamptz, p_seconds double precision) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE AS $$
        SELECT CASE WHEN p_died_at IS NULL THEN NULL
                    WHEN p_seconds IS NULL THEN 'infinity'::timestamptz
                    ELSE p_died_at + make_interval(secs => p_seconds) END
    $$
    """,
    # A look at who is there. A node is dead when two looks ten seconds apart found no lock: its sessions
    # run out from then. Returns how many nodes are missing and not found dead yet.
    """
    CREATE FUNCTION {s}.sio_look() RETURNS integer
    LANGUAGE plpgsql AS $$
    DECLARE n record; v_missing integer := 0; v_alive boolean;
    BEGIN
        FOR n IN SELECT * FROM {s}.sio_nodes WHERE stopped_at IS NULL AND died_at IS NULL LOOP
            v_alive := {s}.sio_alive(n.number, n.role);
            IF v_alive AND n.missed_at IS NOT NULL THEN
                UPDATE {s}.sio_nodes SET missed_at = NULL WHERE id = n.id;
            ELSIF NOT v_alive AND n.missed_at IS NULL THEN
                UPDATE {s}.sio_nodes SET missed_at = clock_timestamp() WHERE id = n.id AND missed_at IS NULL;
                v_missing := v_missing + 1;
            ELSIF NOT v_alive AND n.missed_at > clock_timestamp() - interval '10 seconds' THEN
                v_missing := v_missing + 1;
            ELSIF NOT v_alive THEN
                UPDATE {s}.sio_nodes SET died_at = clock_timestamp() WHERE id = n.id AND died_at IS NULL;
            END IF;
        END LOOP;
        RETURN v_missing;
    END $$
    """,
    # -- sessions: each takes and returns JSON ---------------------------------------------------------
    # pid_hash, node, start, cursor (of the node, when it took the rooms down), rooms [[room, joined, left]].
    # What moved the sid, or closed a room, above the cursor is not in `rooms` yet: it is followed here, in the
    # order of the log.
    """
    CREATE FUNCTION {s}.sio_open(p_namespace text, p_sid text, p_data text, p_args json) RETURNS json
    LANGUAGE plpgsql AS $$
    DECLARE v_session bigint; r record;
    BEGIN
        INSERT INTO {s}.sio_sessions (id, pid_hash, namespace, sid, data, node, start_offset)
        VALUES (('x' || left(p_args->>'pid_hash', 15))::bit(60)::bigint, decode(p_args->>'pid_hash', 'hex'), p_namespace, p_sid, coalesce(p_data, '{{}}'),
                (p_args->>'node')::uuid, (p_args->>'start')::bigint)
        ON CONFLICT (pid_hash) DO NOTHING
        RETURNING id INTO v_session;
        IF v_session IS NULL THEN  -- the same call, sent again
            RETURN (SELECT json_build_object('id', id) FROM {s}.sio_sessions
                    WHERE pid_hash = decode(p_args->>'pid_hash', 'hex'));
        END IF;
        INSERT INTO {s}.sio_rooms (session, room, joined_at, left_at, namespace)
        SELECT v_session, x->>0, (x->>1)::bigint, (x->>2)::bigint, p_namespace
        FROM json_array_elements(p_args->'rooms') x;
        FOR r IN SELECT kind, room, "offset" FROM {s}.sio_packets
                 WHERE "offset" > (p_args->>'cursor')::bigint AND kind <> 0 AND namespace = p_namespace
                   AND (sid = p_sid OR kind = 3)
                 ORDER BY "offset"
        LOOP
            IF r.kind = 1 THEN
                INSERT INTO {s}.sio_rooms (session, room, joined_at, namespace)
                SELECT v_session, r.room, r."offset", p_namespace
                WHERE NOT EXISTS (SELECT FROM {s}.sio_rooms
                                  WHERE session = v_session AND room = r.room AND left_at IS NULL);
            ELSIF r.kind = 5 THEN
                DELETE FROM {s}.sio_sessions WHERE id = v_session;
                RETURN json_build_object('id', NULL);
            ELSIF r.kind IN (2, 3) THEN
                UPDATE {s}.sio_rooms SET left_at = r."offset"
                WHERE session = v_session AND room = r.room AND left_at IS NULL;
                DELETE FROM {s}.sio_rooms
                WHERE session = v_session AND room = r.room AND left_at <= joined_at + 1;  -- it holds no offset
            END IF;
        END LOOP;
        RETURN json_build_object('id', v_session);
    END $$
    """,
    # pid_hash, node, after (null: since the start), missed (the cap), page (how many packets may come along, none
    # where it is missing) and page_bytes. The newest claim wins: it raises the generation. What the verdict needs
    # comes back with it; null: there is no such session. So does the first page of what was missed, [offset, rooms,
    # skip_sids, body] each, and `upto`: the offset that it reaches. It ends before binary and before large bodies.
    """
    CREATE FUNCTION {s}.sio_claim(p_batch bigint, p_namespace text, p_args json) RETURNS json
    LANGUAGE plpgsql AS $$
    DECLARE
        s {s}.sio_sessions; v_node uuid := (p_args->>'node')::uuid; v_at bigint; v_after bigint; v_missed bigint;
        v_cap bigint := (p_args->>'missed')::bigint; n {s}.sio_nodes; v_held boolean := false; v_lost boolean := false;
        v_limit integer := coalesce((p_args->>'page')::integer, 0); v_due integer; v_page json; v_upto bigint;
        v_carried integer;
    BEGIN
        SELECT * INTO s FROM {s}.sio_sessions
        WHERE pid_hash = decode(p_args->>'pid_hash', 'hex') AND namespace = p_namespace;
        IF s.id IS NULL OR s.expires_at <= clock_timestamp() THEN
            RETURN NULL;
        END IF;
        v_after := (p_args->>'after')::bigint;
        IF v_after IS NOT NULL AND NOT EXISTS (
            SELECT FROM {s}.sio_epochs e WHERE e.epoch = v_after >> 40 AND encode(e.key, 'hex') = p_args->>'key'
              AND v_after <= coalesce((SELECT x.began_after FROM {s}.sio_epochs x WHERE x.epoch = e.epoch + 1),
                                      9223372036854775807)) THEN
            RETURN NULL;  -- of another history: a packet that this one has lost, or never had
        END IF;
        IF s.node IS NOT NULL THEN
            SELECT * INTO n FROM {s}.sio_nodes WHERE id = s.node;
            IF {s}.sio_runs_out(n.died_at, n.recovery_seconds) <= clock_timestamp() THEN
                RETURN NULL;
            END IF;
            v_held := {s}.sio_alive(n.number, n.role);
        END IF;
        v_at := {s}.sio_put(p_batch, 4, p_namespace, '', s.sid, s.generation + 1, v_node, NULL);
        UPDATE {s}.sio_sessions
        SET generation = s.generation + 1, node = v_node, expires_at = NULL,
            settled = CASE WHEN v_held THEN s.settled ELSE s.generation + 1 END
        WHERE id = s.id;
        v_after := greatest(v_after, s.start_offset);
        v_missed := v_at - v_after;  -- at the most: counted only where that may be over the cap
        IF v_limit > 0 AND NOT v_held THEN
            SELECT max(x.n), count(*) FILTER (WHERE x.fits), max(x."offset") FILTER (WHERE x.fits),
                   json_agg(json_build_array(x."offset", coalesce(x.rooms, ARRAY[x.room]), x.skip_sids, x.body)
                            ORDER BY x."offset") FILTER (WHERE x.fits)
            INTO v_due, v_carried, v_upto, v_page
            FROM (SELECT p."offset", p.room, p.rooms, p.skip_sids, p.body, row_number() OVER w AS n,
                         sum(octet_length(p.body)) OVER w <= (p_args->>'page_bytes')::integer
                         AND bool_and(p.attachment IS NULL AND p.parts IS NULL) OVER w AS fits
                  FROM {s}.sio_due(s.id, v_after, v_limit) d JOIN {s}.sio_packets p ON p."offset" = d
                  WINDOW w AS (ORDER BY p."offset")) x;
            v_due := coalesce(v_due, 0);
            v_upto := CASE WHEN v_due < v_limit AND v_carried = v_due THEN v_at ELSE coalesce(v_upto, v_after) END;
        END IF;
        -- After the page: retention may have deleted while that was read, or was waited for.
        IF v_after < (SELECT floor FROM {s}.sio_log) THEN
            v_lost := {s}.sio_lost(s.id, v_after);
        END IF;
        IF v_due < v_limit THEN
            v_missed := v_due;
        ELSIF v_missed > v_cap THEN
            SELECT count(*) INTO v_missed FROM {s}.sio_due(s.id, v_after, (v_cap + 1)::integer);
        END IF;
        RETURN json_build_object(
            'id', s.id, 'sid', s.sid, 'generation', s.generation + 1, 'data', s.data, 'start', s.start_offset,
            'former', CASE WHEN v_held THEN s.settled END, 'offset', v_at, 'missed', v_missed, 'lost', v_lost,
            'page', coalesce(v_page, '[]'), 'upto', v_upto,
            'rooms', (SELECT coalesce(json_agg(json_build_array(room, joined_at, left_at)), '[]')
                      FROM {s}.sio_rooms WHERE session = s.id));
    END $$
    """,
    # id, generation: from here on the former holder writes nothing more.
    """
    CREATE FUNCTION {s}.sio_settle(p_args json) RETURNS json
    LANGUAGE sql AS $$
        UPDATE {s}.sio_sessions SET settled = generation
        WHERE id = (p_args->>'id')::bigint AND generation = (p_args->>'generation')::bigint
        RETURNING json_build_object('data', data)
    $$
    """,
    # id, generation, seconds (null: for ever), since (seconds that the client has been away). A holder
    # whose session was claimed meanwhile tells the one that claimed it that it has let go.
    """
    CREATE FUNCTION {s}.sio_release(p_args json) RETURNS json
    LANGUAGE plpgsql AS $$
    DECLARE s {s}.sio_sessions; v_generation bigint := (p_args->>'generation')::bigint;
    BEGIN
        SELECT * INTO s FROM {s}.sio_sessions WHERE id = (p_args->>'id')::bigint;
        IF s.generation = v_generation THEN
            UPDATE {s}.sio_sessions
            SET node = NULL, settled = generation,
                expires_at = CASE WHEN p_args->>'seconds' IS NULL THEN 'infinity'::timestamptz
                    ELSE clock_timestamp() + make_interval(
                        secs => (p_args->>'seconds')::float8 - coalesce((p_args->>'since')::float8, 0)) END
            WHERE id = s.id;
        ELSIF s.settled = v_generation THEN
            PERFORM pg_notify(channel, 'released ' || s.id || ' ' || v_generation)
            FROM {s}.sio_nodes WHERE id = s.node;
        END IF;
        RETURN json_build_object('released', s.generation = v_generation);
    END $$
    """,
    # A lower generation is of a history in which the claim was lost: that session is over, too.
    """
    CREATE FUNCTION {s}.sio_end(p_args json) RETURNS json
    LANGUAGE sql AS $$
        DELETE FROM {s}.sio_sessions
        WHERE id = (p_args->>'id')::bigint AND generation <= (p_args->>'generation')::bigint
        RETURNING json_build_object('data', data)
    $$
    """,
    # With id and generation: of a client that the caller holds; the former holder may still write while a
    # claim waits for it. Without: of a sid, wherever it is.
    """
    CREATE FUNCTION {s}.sio_save(p_namespace text, p_sid text, p_data text, p_args json) RETURNS json
    LANGUAGE sql AS $$
        UPDATE {s}.sio_sessions SET data = p_data
        WHERE namespace = p_namespace AND sid = p_sid
          AND (p_args->>'id' IS NULL OR id = (p_args->>'id')::bigint
               AND (p_args->>'generation')::bigint IN (generation, settled))
        RETURNING json_build_object('id', id)
    $$
    """,
    """
    CREATE FUNCTION {s}.sio_kick(p_batch bigint, p_namespace text, p_sid text) RETURNS bigint
    LANGUAGE plpgsql AS $$
    DECLARE v_data text;
    BEGIN
        DELETE FROM {s}.sio_sessions WHERE namespace = p_namespace AND sid = p_sid RETURNING data INTO v_data;
        RETURN {s}.sio_put(p_batch, 5, p_namespace, '', p_sid, NULL, NULL, v_data);
    END $$
    """,
    # -- the one way to write -----------------------------------------------------------------------
    # A batch of whatever was waiting, in order: one lock, one commit, one notification. For each entry
    # `offsets` has its offset (an entry that changed nothing: minus the offset of what it found, or 0; one that
    # is refused: null)
    # and `results` what a session function answered. `prev` is the last offset before the batch.
    """
    CREATE FUNCTION {s}.sio_write(
        p_batch bigint, p_kinds smallint[], p_namespaces text[], p_rooms text[], p_more text[], p_skips text[],
        p_sids text[], p_bodies text[], p_parts bytea[], p_attachments uuid[], p_args text[], p_carry text,
        OUT prev bigint, OUT offsets bigint[], OUT results text[])
    LANGUAGE plpgsql AS $$
    DECLARE v_last bigint; v_at bigint; v_result json; v_channel text; r record;
    BEGIN
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
        PERFORM {s}.sio_check_epoch();
        SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO prev
        FROM {s}.sio_packets_offset_seq;
        IF p_kinds = ARRAY[0]::smallint[] AND p_more[1] IS NULL AND p_skips[1] IS NULL THEN
            -- What an emit on a quiet node is: a fifth of the time that the set of rows below takes for one.
            INSERT INTO {s}.sio_packets (kind, namespace, room, body, parts, attachment, batch)
            VALUES (0, p_namespaces[1], p_rooms[1], p_bodies[1], p_parts[1], p_attachments[1], p_batch)
            RETURNING "offset" INTO v_last;
            offsets := ARRAY[v_last];
        ELSIF 0 = ALL (p_kinds) THEN
            v_last := setval('{l}.sio_packets_offset_seq', prev + cardinality(p_kinds));
            INSERT INTO {s}.sio_packets ("offset", kind, namespace, room, rooms, skip_sids, body, parts,
                                         attachment, batch)
            SELECT prev + x.i, 0, x.namespace, x.room,
                   CASE WHEN x.more IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.more::json)) END,
                   CASE WHEN x.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.skips::json)) END,
                   x.body, x.parts, x.attachment, p_batch
            FROM unnest(p_namespaces, p_rooms, p_more, p_skips, p_bodies, p_parts, p_attachments)
                WITH ORDINALITY AS x (namespace, room, more, skips, body, parts, attachment, i);
            offsets := ARRAY(SELECT generate_series(prev + 1, v_last));
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
                    INSERT INTO {s}.sio_packets (kind, namespace, room, rooms, skip_sids, body, parts,
                                                 attachment, batch)
                    VALUES (0, r.namespace, r.room,
                        CASE WHEN r.more IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(r.more::json)) END,
                        CASE WHEN r.skips IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(r.skips::json)) END,
                        r.body, r.parts, r.attachment, p_batch)
                    RETURNING "offset" INTO v_at;
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
        IF EXISTS (SELECT FROM unnest(p_more) m WHERE m IS NOT NULL) THEN
            INSERT INTO {s}.sio_packet_rooms (namespace, room, "offset")
            SELECT DISTINCT p_namespaces[x.i], e.room, offsets[x.i]
            FROM unnest(p_more) WITH ORDINALITY AS x (more, i)
                CROSS JOIN LATERAL json_array_elements_text(x.more::json) WITH ORDINALITY AS e (room, j)
            WHERE x.more IS NOT NULL AND e.j > 1;
        END IF;
        IF v_last > prev THEN
            SELECT channel INTO v_channel FROM {s}.sio_log;
            -- Rings alone while a listener somewhere sits idle in a transaction: the queue holds 8 GB, and once it
            -- is full every commit with a notification fails.
            PERFORM pg_notify(v_channel, prev || ' ' || v_last || CASE
                WHEN p_carry IS NULL OR pg_notification_queue_usage() > 0.1 THEN '' ELSE ' ' || p_carry END);
        END IF;
    END $$
    """,
    # -- retention ----------------------------------------------------------------------------------
    # Deletes the oldest records that are older than p_keep seconds, at most p_limit. A batch is short, and
    # floors move in its transaction: who reads sees either the records or that they are gone.
    """
    CREATE FUNCTION {s}.sio_trim(p_keep double precision, p_limit integer) RETURNS integer
    LANGUAGE plpgsql AS $$
    DECLARE v_floor bigint; v_upto bigint; v_count integer;
    BEGIN
        SELECT floor INTO v_floor FROM {s}.sio_log FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN 0;  -- another node is at it
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
            SELECT namespace, room, "offset" FROM {s}.sio_packets WHERE kind = 0 AND "offset" <= v_upto
            UNION ALL
            SELECT namespace, room, "offset" FROM {s}.sio_packet_rooms WHERE "offset" <= v_upto) g
        GROUP BY 1, 2
        ON CONFLICT (namespace, room) DO UPDATE SET "offset" = greatest(f."offset", excluded."offset");
        DELETE FROM {s}.sio_packet_rooms WHERE "offset" <= v_upto;
        WITH gone AS (
            DELETE FROM {s}.sio_packets WHERE "offset" <= v_upto RETURNING attachment
        ), parts AS (
            DELETE FROM {s}.sio_attachments a USING gone g WHERE a.id = g.attachment
        )
        SELECT count(*) INTO v_count FROM gone;
        UPDATE {s}.sio_log SET floor = v_upto;
        RETURN v_count;
    END $$
    """,
    # Sessions whose time is up, those of nodes that died too.
    """
    CREATE FUNCTION {s}.sio_expired() RETURNS SETOF {s}.sio_sessions
    LANGUAGE sql STABLE AS $$
        SELECT * FROM {s}.sio_sessions WHERE expires_at <= clock_timestamp()
        UNION ALL
        SELECT s.* FROM {s}.sio_nodes n JOIN {s}.sio_sessions s ON s.node = n.id
        WHERE {s}.sio_runs_out(n.died_at, n.recovery_seconds) <= clock_timestamp()
    $$
    """,
    # Deletes those for which nobody has to be told.
    """
    CREATE FUNCTION {s}.sio_expire(p_limit integer) RETURNS integer
    LANGUAGE plpgsql AS $$
    DECLARE v_count integer;
    BEGIN
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;  -- before any row, as everything that changes a session
        WITH gone AS (
            DELETE FROM {s}.sio_sessions WHERE id IN (
                SELECT e.id FROM {s}.sio_expired() e
                WHERE NOT EXISTS (SELECT FROM {s}.sio_expiry_handlers h WHERE h.namespace IN (e.namespace, '*'))
                LIMIT p_limit)
            RETURNING id
        )
        SELECT count(*) INTO v_count FROM gone;
        RETURN v_count;
    END $$
    """,
    # Takes expired sessions for this node's handlers. They cannot be claimed any more; who held them, and
    # comes back, holds them no more. What a node took that died meanwhile is taken again.
    """
    CREATE FUNCTION {s}.sio_expire_told(p_namespaces text[], p_node uuid, p_limit integer)
    RETURNS TABLE (id bigint, namespace text, sid text, data text)
    LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    BEGIN
        LOCK TABLE {s}.sio_lock IN EXCLUSIVE MODE;
        RETURN QUERY
        UPDATE {s}.sio_sessions s
        SET node = NULL, expires_at = least(s.expires_at, clock_timestamp()), generation = s.generation + 1,
            told_by = p_node, told_at = clock_timestamp()
        WHERE s.id IN (
            SELECT e.id FROM {s}.sio_expired() e LEFT JOIN {s}.sio_nodes n ON n.id = e.told_by
            WHERE (e.namespace = ANY (p_namespaces) OR '*' = ANY (p_namespaces))
              AND (e.told_by IS NULL OR n.id IS NULL OR n.stopped_at IS NOT NULL
                   OR NOT {s}.sio_alive(n.number, n.role) OR e.told_at < clock_timestamp() - interval '10 minutes')
            LIMIT p_limit)
        RETURNING s.id, s.namespace, s.sid, s.data;
    END $$
    """,
)

FIRST_ROWS = (
    """
    INSERT INTO {s}.sio_log (version, compatible, channel)
    VALUES (1, 1, 'sio_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')::varchar(40))
    """,
    """
    INSERT INTO {s}.sio_epochs (epoch, key, began_after)
    VALUES (0, sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')), 0)
    """,
)

DROPPED_FUNCTIONS = (
    "sio_write", "sio_trim", "sio_expire", "sio_open", "sio_claim", "sio_settle", "sio_release", "sio_end",
    "sio_save", "sio_kick", "sio_move", "sio_close", "sio_put", "sio_due", "sio_lost", "sio_memberships",
    "sio_lock_and_check_epoch", "sio_check_epoch", "sio_seen", "sio_expire_told", "sio_expired", "sio_look", "sio_runs_out", "sio_alive",
)  # fmt: skip
DROPPED_TABLES = (
    "sio_expiry_handlers", "sio_rooms", "sio_sessions", "sio_nodes", "sio_attachments", "sio_packet_rooms", "sio_packets",
    "sio_room_floors", "sio_marker", "sio_epochs", "sio_log", "sio_lock",
)  # fmt: skip


def _execute(ddl: str, schema: str) -> None:
    op.execute(statement(filled_in(ddl, schema)))


def upgrade() -> None:
    schema = target_schema(op)
    for ddl in (*TABLES, *FUNCTIONS, *FIRST_ROWS):
        _execute(ddl, schema)


def downgrade() -> None:
    schema = target_schema(op)
    for name in DROPPED_FUNCTIONS:
        _execute(f"DROP FUNCTION {{s}}.{name}", schema)
    for name in DROPPED_TABLES:
        _execute(f"DROP TABLE {{s}}.{name}", schema)
    _execute("DROP FUNCTION {s}.sio_truncated", schema)  # its trigger went with the table
