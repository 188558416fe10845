-- The statements that this package runs, each named and with a sentence. "sio." stands for the schema.
-- All changes of the log and of sessions go through functions of the migrations, sio_write and sio_write_event.
-- The log is sio_packets, and its rows are in two halves. What is asked often asks each of them, with its own ORDER BY
-- and LIMIT: a plan for both as one, made while they were empty and kept, would read all and sort it.

-- name: version
-- Which version of the tables is there, which is the oldest that they still serve, and where appends are announced.
SELECT version, compatible, channel FROM sio.sio_log

-- name: epochs
-- The histories of the log, to sign and to check offsets with.
SELECT epoch, key, lead(began_after) OVER (ORDER BY epoch) AS ended FROM sio.sio_epochs ORDER BY epoch

-- name: in_epoch
-- Is the running epoch of this server, database and table? Writes nothing.
SELECT EXISTS (SELECT FROM sio.sio_marker WHERE seen = sio.sio_seen())

-- name: check_epoch
-- Begin the next epoch, unless the running one is of this server, database and table.
SELECT sio.sio_lock_and_check_epoch()

-- name: head
-- Where a starting node begins to read: never the sequence, which counts what was rolled back.
SELECT greatest(coalesce(max("offset"), 0), (SELECT floor FROM sio.sio_log)) FROM sio.sio_packets

-- name: write
-- A batch of entries in order: one lock, one commit, one notification.
SELECT prev, offsets, results
FROM sio.sio_write($1::bigint, $2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                   $9::bytea[], $10::uuid[], $11::text[], $12::text)

-- name: write_event
-- The same of one event for one room: its offset.
SELECT sio.sio_write_event($1::bigint, $2::text, $3::text, $4::text, $5::text) AS at

-- name: move_members
-- After "lock", in its transaction: all members of some rooms ($4; '' is everybody), those away too, and sids that have
-- no session ($5), but not those in $6, enter (kind 1) or leave (2) each of the rooms $7, or are kicked (5). So it counts
-- from one place in the log. No row where nobody is moved.
SELECT w.prev, w.offsets
FROM (SELECT array_agg($2::smallint) AS kinds, array_agg($3::text) AS namespaces, array_agg(t.room) AS rooms,
             array_agg(NULL::text) AS nulls, array_agg(m.sid) AS sids, array_agg(NULL::bytea) AS parts,
             array_agg(NULL::uuid) AS attachments, array_agg('{}'::text) AS args
      FROM (SELECT sid FROM sio.sio_sessions
            WHERE namespace = $3::text AND (expires_at IS NULL OR expires_at > clock_timestamp())
              AND ('' = ANY ($4::text[]) OR sid = ANY ($4::text[]) OR id IN (
                   SELECT session FROM sio.sio_rooms
                   WHERE namespace = $3::text AND room = ANY ($4::text[]) AND left_at IS NULL))
            UNION
            SELECT unnest($5::text[])) m
          CROSS JOIN unnest($7::text[]) t (room)
      WHERE m.sid <> ALL ($6::text[]) AND m.sid <> t.room
      HAVING count(*) > 0) a
    CROSS JOIN LATERAL sio.sio_write($1::bigint, a.kinds, a.namespaces, a.rooms, a.nulls, a.nulls, a.sids, a.nulls,
                                     a.parts, a.attachments, a.args, NULL) w

-- name: emit
-- An event as part of the caller's transaction: in the log when that commits.
SELECT sio.sio_emit_encoded(CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text),
                            CAST($6 AS bytea))

-- name: attach
-- Large bodies, before the log's lock is taken for the records that refer to them.
INSERT INTO sio.sio_attachments (id, data, ephemeral)
SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::boolean[]) ON CONFLICT DO NOTHING

-- name: attachment
-- One large body.
SELECT data FROM sio.sio_attachments WHERE id = $1::uuid

-- name: backend
-- Which backend serves this connection: so that another can end it for certain.
SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()

-- name: end_backend
-- End a former connection's backend; no row once it is gone.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1::integer AND backend_start = $2::timestamptz

-- name: lock
-- Wait until no append is under way.
LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE

-- name: batch
-- What a batch, whose answer was lost, left in the log above an offset known from before it.
SELECT "offset", kind FROM sio.sio_packets WHERE "offset" > $1::bigint AND batch = $2::bigint ORDER BY "offset"

-- name: range
-- A page of the log above a cursor, in order, with the floor in its first row even where there is nothing.
SELECT l.floor, p."offset", p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.sid, p.generation, p.node, p.body,
       p.parts, p.attachment
FROM sio.sio_log l LEFT JOIN LATERAL (
    (SELECT * FROM sio.sio_packets_0 WHERE "offset" > $1::bigint ORDER BY "offset" LIMIT $2::integer)
    UNION ALL
    (SELECT * FROM sio.sio_packets_1 WHERE "offset" > $1::bigint ORDER BY "offset" LIMIT $2::integer)
    ORDER BY "offset" LIMIT $2::integer) p ON true
ORDER BY p."offset"

-- name: page
-- A page of what a session missed above an offset, with head and loss in its first row; no row at all where a
-- newer claim holds the session, or it has ended.
SELECT h.head, h.lost, p."offset", p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.sid, p.generation, p.node,
       p.body, p.parts, p.attachment
FROM (SELECT greatest((SELECT max("offset") FROM sio.sio_packets_0), (SELECT max("offset") FROM sio.sio_packets_1), 0)
                 AS head, sio.sio_lost(id, $3::bigint) AS lost
      FROM sio.sio_sessions WHERE id = $1::bigint AND generation = $2::bigint) h
LEFT JOIN LATERAL (
    SELECT q.* FROM sio.sio_due($1::bigint, $3::bigint, $4::integer) d CROSS JOIN LATERAL (
        SELECT * FROM sio.sio_packets_0 WHERE "offset" = d
        UNION ALL
        SELECT * FROM sio.sio_packets_1 WHERE "offset" = d) q) p ON true
ORDER BY p."offset"

-- name: memberships
-- A session's rooms and the last offset that they hold for; no row where a newer claim holds it.
SELECT greatest((SELECT max("offset") FROM sio.sio_packets_0), (SELECT max("offset") FROM sio.sio_packets_1), 0) AS head,
       (SELECT coalesce(json_agg(json_build_array(room, joined_at, left_at)), '[]')::text
        FROM sio.sio_rooms WHERE session = s.id) AS rooms
FROM sio.sio_sessions s WHERE s.id = $1::bigint AND s.generation = $2::bigint

-- name: session_data
-- The session data of a sid, wherever it is.
SELECT data FROM sio.sio_sessions
WHERE namespace = $1::text AND sid = $2::text AND (expires_at IS NULL OR expires_at > clock_timestamp())

-- name: sessions_data
-- The session data of several sids.
SELECT sid, data FROM sio.sio_sessions WHERE namespace = $1::text AND sid = ANY ($2::text[])

-- name: session_rooms
-- The rooms of a sid, wherever it is; no row for one that has no session.
SELECT ARRAY(SELECT room FROM sio.sio_rooms WHERE session = s.id AND left_at IS NULL ORDER BY joined_at) AS rooms
FROM sio.sio_sessions s
WHERE s.namespace = $1::text AND s.sid = $2::text AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())

-- name: notify
-- Messages that are not kept, to the nodes that listen.
SELECT count(pg_notify(channel, payload)) FROM unnest($1::text[], $2::text[]) AS m (channel, payload)

-- name: node_start
-- A node enters the cluster: on the connection whose role and lock show that it lives.
INSERT INTO sio.sio_nodes (id, channel, role, recovery_seconds, margin_seconds)
SELECT $1::uuid, $2::text, r.oid, $3::double precision, $4::double precision
FROM pg_catalog.pg_roles r WHERE r.rolname = session_user
ON CONFLICT (id) DO UPDATE SET missed_at = NULL RETURNING number, xmax = 0 AS is_new

-- name: node_lock
-- Show that this node lives, for as long as the connection does.
SELECT pg_try_advisory_lock_shared('sio.sio_nodes'::regclass::oid::bigint::bit(32)::integer, $1::integer)

-- name: node_renumber
-- Give a node another lock to hold.
UPDATE sio.sio_nodes SET number = DEFAULT WHERE id = $1::uuid RETURNING number

-- name: node_back
-- A node is back on the log; a row if it had been missed.
UPDATE sio.sio_nodes n SET missed_at = NULL, died_at = NULL
FROM (SELECT id, died_at FROM sio.sio_nodes WHERE id = $1::uuid) o
WHERE n.id = o.id AND n.missed_at IS NOT NULL RETURNING o.died_at

-- name: others
-- The other nodes that are there: each shows it by its lock.
SELECT id FROM sio.sio_nodes WHERE id <> $1::uuid AND stopped_at IS NULL AND sio.sio_alive(number, role)

-- name: node_sessions
-- The sessions that a node still holds.
SELECT id, generation FROM sio.sio_sessions WHERE node = $1::uuid

-- name: node_stop
-- A node leaves in order. What it could not let go runs out from now; its options still say how long records
-- are kept.
UPDATE sio.sio_nodes SET stopped_at = clock_timestamp(), died_at = clock_timestamp() WHERE id = $1::uuid

-- name: look
-- Who is there? How many nodes are missing and not found dead yet.
SELECT sio.sio_look()

-- name: probe
-- Is the other side still there? Writes nothing.
SELECT 1

-- name: due_to_prune
-- Is there anything for the pruner, and how long are records kept? Null: all of them, since sessions last for
-- ever, or while those of a node that is missing or newly found dead may still come back. Writes nothing.
SELECT k.keep, k.missing,
       EXISTS (SELECT FROM sio.sio_expired()) AS sessions,
       EXISTS (SELECT FROM (SELECT created_at FROM sio.sio_packets ORDER BY "offset" LIMIT 1) p
               WHERE p.created_at < clock_timestamp() - make_interval(secs => k.keep)) AS records,
       EXISTS (SELECT FROM sio.sio_attachments
               WHERE created_at < clock_timestamp() - CASE WHEN ephemeral THEN interval '2 minutes'
                                                           ELSE interval '1 hour' END) AS attachments
FROM (SELECT coalesce(bool_or(o.missing), false) AS missing,
             CASE WHEN bool_or(o.recovery_seconds IS NULL OR o.missing
                               OR sio.sio_runs_out(o.died_at, o.recovery_seconds) > clock_timestamp()
                                  AND EXISTS (SELECT FROM sio.sio_sessions s WHERE s.node = o.id)) THEN NULL
                  ELSE coalesce(max(o.recovery_seconds), 120) + coalesce(max(o.margin_seconds), 205) END AS keep
      FROM (SELECT *, stopped_at IS NULL AND died_at IS NULL AND NOT sio.sio_alive(number, role) AS missing
            FROM sio.sio_nodes) o) k

-- name: expire
-- End sessions whose time is up.
SELECT sio.sio_expire($1::integer)

-- name: take_expired
-- Take expired sessions of some namespaces (* is all) to call handlers for.
SELECT id, namespace, sid, data FROM sio.sio_expire_told($1::text[], $2::uuid, $3::integer)

-- name: delete_expired
-- Their handlers have been called.
DELETE FROM sio.sio_sessions WHERE id = ANY ($1::bigint[]) AND told_by = $2::uuid

-- name: expiry_handlers
-- From now on these namespaces' expired sessions are for nodes with a handler.
INSERT INTO sio.sio_expiry_handlers SELECT unnest($1::text[]) ON CONFLICT DO NOTHING

-- name: switch_segment
-- Append to the other half of the log, once the one in use is large and its oldest record may go.
SELECT sio.sio_turn($1::double precision)

-- name: trim
-- Delete the oldest records, and move the floors, in one transaction: a half of the log as a whole, where it can be.
SELECT sio.sio_trim($1::double precision, $2::integer)

-- name: drop_attachments
-- Bodies that no record refers to: of messages, and of appends that came to nothing.
DELETE FROM sio.sio_attachments a WHERE id IN (
    SELECT id FROM sio.sio_attachments b
    WHERE b.ephemeral AND b.created_at < clock_timestamp() - interval '2 minutes'
       OR b.created_at < clock_timestamp() - interval '1 hour'
          AND NOT EXISTS (SELECT FROM sio.sio_packets p WHERE p.attachment = b.id)
    LIMIT $1::integer)

-- name: drop_nodes
-- Nodes that ended so long ago that nothing depends on their options any more.
DELETE FROM sio.sio_nodes n
WHERE coalesce(stopped_at, died_at) < clock_timestamp() - make_interval(secs => recovery_seconds + margin_seconds)
      AND NOT EXISTS (SELECT FROM sio.sio_sessions s WHERE s.node = n.id)
   OR stopped_at IS NOT NULL AND recovery_seconds IS NULL
      AND EXISTS (SELECT FROM sio.sio_nodes o WHERE o.recovery_seconds IS NULL AND o.number > n.number)

-- name: drop_room_floors
-- Floors of rooms that lie below the start of every session: nobody can ask about them.
DELETE FROM sio.sio_room_floors
WHERE "offset" <= (SELECT coalesce(min(start_offset), 9223372036854775807) FROM sio.sio_sessions)

-- name: status_nodes
-- Nodes as presence shows them, with the sessions that the tables have them hold. Those that ended are left out, unless
-- they left sessions, or died a short time ago.
SELECT * FROM (
    SELECT n.id, n.started_at, n.died_at, n.stopped_at, sio.sio_alive(n.number, n.role) AS alive,
           extract(epoch FROM statement_timestamp() - n.started_at)::double precision AS seconds,
           (SELECT count(*) FROM sio.sio_sessions s WHERE s.node = n.id) AS sessions
    FROM sio.sio_nodes n) m
WHERE stopped_at IS NULL AND died_at IS NULL OR sessions > 0 OR died_at > statement_timestamp() - interval '10 minutes'
ORDER BY started_at, id

-- name: status_sessions
-- Sessions of each namespace: held by a node that is there; away; and those whose time is up.
WITH nodes AS MATERIALIZED (
    SELECT id, stopped_at IS NULL AND died_at IS NULL AND sio.sio_alive(number, role) AS alive,
           sio.sio_runs_out(died_at, recovery_seconds) AS runs_out FROM sio.sio_nodes)
SELECT namespace, count(*) FILTER (WHERE alive AND NOT up) AS live,
       count(*) FILTER (WHERE NOT alive AND NOT up) AS away, count(*) FILTER (WHERE up) AS expiring
FROM (SELECT s.namespace, s.expires_at IS NULL AND coalesce(n.alive, false) AS alive,
             coalesce(s.expires_at <= statement_timestamp(), n.runs_out <= statement_timestamp(), false) AS up
      FROM sio.sio_sessions s LEFT JOIN nodes n ON n.id = s.node) t
GROUP BY namespace ORDER BY namespace

-- name: status_log
-- Where the log ends and begins, and how many records of its last 100,000 are of the last minute.
SELECT current_setting('server_version') AS server, l.version, l.floor, r.records, r.began_at, o.created_at AS oldest_at,
       statement_timestamp() AS now, (SELECT max(epoch) FROM sio.sio_epochs) AS epoch,
       greatest((SELECT max("offset") FROM sio.sio_packets), l.floor) AS head
FROM sio.sio_log l
CROSS JOIN (SELECT count(*) AS records, min(created_at) AS began_at
            FROM (SELECT created_at FROM sio.sio_packets ORDER BY "offset" DESC LIMIT 100000) q
            WHERE created_at > statement_timestamp() - interval '1 minute') r
LEFT JOIN (SELECT created_at FROM sio.sio_packets ORDER BY "offset" LIMIT 1) o ON true

-- name: status_lag
-- How many records lie between each of some cursors and the head, at most 100,000, and for how many seconds the first
-- of them has been there.
SELECT c.cursor, (SELECT count(*) FROM (SELECT FROM sio.sio_packets p
                                        WHERE p."offset" > c.cursor AND p."offset" <= $2::bigint LIMIT 100000) b) AS records,
       coalesce((SELECT extract(epoch FROM statement_timestamp() - p.created_at) FROM sio.sio_packets p
                 WHERE p."offset" > c.cursor AND p."offset" <= $2::bigint
                 ORDER BY p."offset" LIMIT 1), 0)::double precision AS seconds
FROM unnest($1::bigint[]) AS c (cursor)

-- name: status_tables
-- What the tables and their indexes take up; rows by PostgreSQL's running count.
SELECT c.relname AS name, pg_stat_get_live_tuples(c.oid) AS rows, coalesce(pg_table_size(c.oid), 0) AS table_bytes,
       coalesce(pg_indexes_size(c.oid), 0) AS index_bytes
FROM pg_class c
WHERE c.relkind IN ('r', 'p', 'm') AND c.relname LIKE 'sio\_%'
  AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = (SELECT tableoid FROM sio.sio_log))
ORDER BY pg_total_relation_size(c.oid) DESC, 1

-- name: tail
-- A page of the log above an offset as people read it: when, how large, and of the body no more than the event's name
-- needs, unless $3. A name has 512 bytes, which JSON writes in 3,074 at the most.
SELECT p."offset", p.created_at, p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.sid, p.node,
       coalesce(octet_length(a.data), octet_length(p.body) + coalesce(octet_length(p.parts), 0), 0) AS bytes,
       CASE WHEN $3::boolean THEN p.body ELSE left(p.body, 3074) END AS body,
       CASE WHEN $3::boolean THEN p.parts END AS parts,
       CASE WHEN $3::boolean THEN a.data ELSE substring(a.data FROM 1 FOR 3078) END AS data
FROM (SELECT * FROM sio.sio_packets WHERE "offset" > $1::bigint ORDER BY "offset" LIMIT $2::integer) p
LEFT JOIN sio.sio_attachments a ON a.id = p.attachment
ORDER BY p."offset"

-- name: back
-- Below how many offsets the last records up to one ($1) begin, if $2 of them are wanted; null where there are none.
SELECT min("offset") - 1
FROM (SELECT "offset" FROM sio.sio_packets WHERE "offset" <= $1::bigint ORDER BY "offset" DESC LIMIT $2::integer) b
