-- The statements that this package runs, each with a name and a sentence. "sio." stands for the schema.
--
-- Nodes append to the log and change sessions by three functions, sio_append_batch, sio_append_event and
-- sio_move_members.
--
-- The log is sio_packets, and its rows are in two segments. Frequent statements read each segment with its own ORDER BY
-- and LIMIT. A plan for sio_packets that was made while the segments were empty, and kept, would read and sort all rows.

-- name: version
-- The version of the tables, the oldest package version that they serve, and the channel that announces appends.
SELECT version, compatible, channel FROM sio.sio_log

-- name: epochs
-- The epochs of the log, which sign and check offsets.
SELECT epoch, key, lead(began_after) OVER (ORDER BY epoch) AS ended FROM sio.sio_epochs ORDER BY epoch

-- name: in_epoch
-- Whether the running epoch goes on. Writes nothing.
SELECT sio.sio_last_in_epoch() IS NOT NULL

-- name: check_epoch
-- Begin the next epoch, unless the running one goes on.
SELECT sio.sio_lock_and_check_epoch()

-- name: head
-- The offset from which a starting node reads. The sequence would not do, since it also counts rolled-back appends.
SELECT greatest(coalesce(max("offset"), 0), (SELECT floor FROM sio.sio_log)) FROM sio.sio_packets

-- name: write
-- Append a batch of entries in order, with one lock, one commit and one notification.
SELECT prev, offsets, results, sio.sio_fingerprint() AS server
FROM sio.sio_append_batch($1::bigint, $2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                          $8::text[], $9::text[], $10::bytea[], $11::text[]::uuid[], $12::text[], $13::text)

-- name: write_event
-- Append one event for one room, and return its offset. If the log has an event with the same key, append nothing, and
-- return minus the offset of that event.
SELECT sio.sio_append_event($1::bigint, $2::text, $3::text, $4::text, $5::text, $6::text) AS at,
       sio.sio_fingerprint() AS server

-- name: write_unflushed
-- The same, without waiting until the commit is on disk. Only for batches of events.
SELECT prev, offsets, results, sio.sio_fingerprint() AS server
FROM set_config('synchronous_commit', 'off', true),
     sio.sio_append_batch($1::bigint, $2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                          $8::text[], $9::text[], $10::bytea[], $11::text[]::uuid[], $12::text[], $13::text)

-- name: write_event_unflushed
-- The same for one event for one room.
SELECT sio.sio_append_event($1::bigint, $2::text, $3::text, $4::text, $5::text, $6::text) AS at,
       sio.sio_fingerprint() AS server
FROM set_config('synchronous_commit', 'off', true)

-- name: move_members
-- Move all members of some rooms, or kick them.
SELECT prev, offsets, sio.sio_fingerprint() AS server
FROM sio.sio_move_members($1::bigint, $2::smallint, $3::text, $4::text[], $5::text[], $6::text[], $7::text[],
                          $8::text[])

-- name: emit
-- Emit an event as part of the caller's transaction. It enters the log when that transaction commits.
SELECT sio.sio_emit_encoded(CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text),
                            CAST($6 AS bytea), CAST($7 AS text), CAST($8 AS text))

-- name: server_side_emit
-- Send a server event to all nodes when the caller's transaction commits.
SELECT sio.sio_server_side_emit_encoded(CAST($1 AS text), CAST($2 AS text), CAST($3 AS bytea))

-- name: relay_attend
-- Ask which part this node has in the relay. It may be the one that moves rows from now on.
SELECT sio.sio_relay_attend($1::text::uuid)

-- name: relay_waiting
-- The ids of the committed rows of the relay, in batches, in the order in which they have to be moved, and the epoch.
SELECT w AS ids, sio.sio_last_in_epoch() >> 40 AS epoch FROM sio.sio_relay_waiting($1::integer, $2::integer, $3::bigint) w

-- name: relay_newest
-- The highest id of the committed rows of the relay. Null if there are none.
SELECT max(id) FROM sio.sio_relay

-- name: relay_move
-- Move a batch of these rows to the log, and return how many nobody else has moved. Null if the epoch is another one.
SELECT sio.sio_relay_move($1::bigint[], $2::bigint)

-- name: relay_change
-- Change the state of the relay, if it has the first of two values.
SELECT sio.sio_relay_change($1::text::uuid, $2::text, $3::text)

-- name: relay_open
-- The open transactions that have inserted into the relay.
SELECT l.virtualtransaction FROM pg_catalog.pg_locks l
WHERE l.granted AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.relation = 'sio.sio_relay'::regclass
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()

-- name: relay_last_id
-- The last id of the relay that was taken, and the epoch.
SELECT last_value AS id, sio.sio_last_in_epoch() >> 40 AS epoch FROM sio.sio_relay_id_seq

-- name: relay_floor
-- Note that no row at or below an id waits, if the epoch still runs in which that was found.
SELECT setval('sio.sio_relay_floor', greatest(last_value, $1::bigint)) FROM sio.sio_relay_floor
WHERE sio.sio_last_in_epoch() >> 40 = $2::bigint

-- name: relay_status
-- Whether the relay is on, how many rows wait, for how many seconds, and how many cannot be moved.
SELECT (SELECT last_value FROM sio.sio_relay_state) NOT IN (0, 2) AS is_on,
       count(*) FILTER (WHERE fault IS NULL) AS waiting,
       extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE fault IS NULL))::double precision AS seconds,
       count(*) FILTER (WHERE fault IS NOT NULL) AS faults
FROM sio.sio_relay

-- name: position
-- The end of the log as this statement sees it, signed for a namespace.
SELECT sio.sio_position(CAST($1 AS text))

-- name: change
-- Change rooms, or disconnect, as part of the caller's transaction.
SELECT sio.sio_change(CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS text), CAST($5 AS text),
                      CAST($6 AS text), CAST($7 AS text))

-- name: attach
-- Store large bodies, before the log's lock is taken for the records that refer to them.
INSERT INTO sio.sio_attachments (id, data, ephemeral)
SELECT * FROM unnest($1::text[]::uuid[], $2::bytea[], $3::boolean[]) ON CONFLICT DO NOTHING

-- name: attachment
-- One large body.
SELECT data FROM sio.sio_attachments WHERE id = $1::text::uuid

-- name: backend
-- The backend of this connection, so that another connection can end it for certain.
SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint AS started FROM pg_stat_activity WHERE pid = pg_backend_pid()

-- name: end_backend
-- End the backend of a former connection. There is no row once it is gone.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = $1::integer AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2::bigint

-- name: batch
-- The records of a batch whose answer was lost, once no append is in progress.
SELECT "offset", kind FROM sio.sio_stored_batch($1::bigint, $2::bigint)

-- name: keyed_events
-- The offsets of the events that have these keys, in the order of the keys. Null if there is none.
SELECT sio.sio_keyed_event(k.namespace, k.key) AS "offset"
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (namespace, key, i) ORDER BY k.i

-- name: range
-- A page of the log above a cursor, in order. The floor is in the first row, even if there is no record.
SELECT l.floor, p."offset", p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.skip_rooms, p.sid, p.generation, p.as_of,
       p.node::text AS node, p.body, p.parts, p.data, p.attachment::text AS attachment
FROM sio.sio_log l LEFT JOIN LATERAL (
    (SELECT * FROM sio.sio_packets_0 WHERE "offset" > $1::bigint ORDER BY "offset" LIMIT $2::integer)
    UNION ALL
    (SELECT * FROM sio.sio_packets_1 WHERE "offset" > $1::bigint ORDER BY "offset" LIMIT $2::integer)
    ORDER BY "offset" LIMIT $2::integer) p ON true
ORDER BY p."offset"

-- name: page
-- A page of the events that a session missed above an offset. The head and the loss are in the first row. There is no
-- row at all if a newer claim holds the session, or if it has ended.
SELECT h.head, h.lost, p."offset", p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.skip_rooms, p.sid, p.generation, p.as_of,
       p.node::text AS node, p.body, p.parts, p.data, p.attachment::text AS attachment
FROM (SELECT greatest((SELECT max("offset") FROM sio.sio_packets_0), (SELECT max("offset") FROM sio.sio_packets_1), 0)
                 AS head, sio.sio_lost(id, $3::bigint) AS lost
      FROM sio.sio_sessions WHERE id = $1::bigint AND generation = $2::bigint) h
LEFT JOIN LATERAL (
    SELECT q.* FROM sio.sio_due($1::bigint, $3::bigint, $4::integer) d CROSS JOIN LATERAL (
        SELECT * FROM sio.sio_packets_0 WHERE "offset" = d
        UNION ALL
        SELECT * FROM sio.sio_packets_1 WHERE "offset" = d) q) p ON true
ORDER BY p."offset"

-- name: history
-- Events of a room in order, with their times and large bodies: the first above $3 and up to $4, or the last up to $4. The
-- floor is in the first row, even if there is no event. The segments are named, so that they are locked before the
-- statement's snapshot is taken: a truncation in between would show no rows and the old floor.
SELECT l.floor, p."offset", p.at, p.body, p.parts, p.attached
FROM sio.sio_log l LEFT JOIN LATERAL (
    SELECT q."offset", (extract(epoch FROM q.created_at) * 1000000)::bigint AS at, q.body, q.parts, a.data AS attached
    FROM sio.sio_history($1::text, $2::text, $3::bigint, $4::bigint, $5::integer) d CROSS JOIN LATERAL (
        SELECT * FROM sio.sio_packets_0 WHERE "offset" = d
        UNION ALL
        SELECT * FROM sio.sio_packets_1 WHERE "offset" = d) q
    LEFT JOIN sio.sio_attachments a ON a.id = q.attachment) p ON true
ORDER BY p."offset"

-- name: missed
-- How many events a claimed session is due between two offsets, counted up to a limit, and whether some of them are gone.
SELECT sio.sio_missed($1::bigint, $2::bigint, $3::bigint, $4::integer) AS missed,
       sio.sio_lost($1::bigint, $2::bigint) AS lost

-- name: since
-- How many events there are for rooms above an offset of each, counted up to a limit, and the floor.
SELECT (SELECT floor FROM sio.sio_log) AS floor,
       sio.sio_count_since($1::text, $2::text[], $3::bigint[], $4::integer) AS missed

-- name: memberships
-- The rooms of a session, and the last offset for which they hold. There is no row if a newer claim holds the session.
SELECT greatest((SELECT max("offset") FROM sio.sio_packets_0), (SELECT max("offset") FROM sio.sio_packets_1), 0) AS head,
       (SELECT coalesce(json_agg(json_build_array(room, joined_at, left_at)), '[]')::text
        FROM sio.sio_rooms WHERE session = s.id) AS rooms
FROM sio.sio_sessions s WHERE s.id = $1::bigint AND s.generation = $2::bigint

-- name: held_by
-- The sessions that a node holds.
SELECT id, generation FROM sio.sio_sessions WHERE node = $1::text::uuid

-- name: session_data
-- The session data of a sid, whatever node holds it.
SELECT data FROM sio.sio_sessions
WHERE namespace = $1::text AND sid = $2::text AND (expires_at IS NULL OR expires_at > clock_timestamp())

-- name: sessions_data
-- The session data of several sids.
SELECT sid, data FROM sio.sio_sessions WHERE namespace = $1::text AND sid = ANY ($2::text[])

-- name: session_rooms
-- The rooms of a sid, whatever node holds it. There is no row if it has no session.
SELECT ARRAY(SELECT room FROM sio.sio_rooms WHERE session = s.id AND left_at IS NULL ORDER BY joined_at) AS rooms
FROM sio.sio_sessions s
WHERE s.namespace = $1::text AND s.sid = $2::text AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())

-- name: notify
-- Send messages that are not stored to the nodes that listen.
SELECT count(pg_notify(channel, payload)) FROM unnest($1::text[], $2::text[]) AS m (channel, payload)

-- name: node_start
-- Enter a node in the cluster, on the connection whose role and lock show that it lives.
INSERT INTO sio.sio_nodes (id, channel, role, recovery_seconds, margin_seconds, retention_seconds)
SELECT $1::text::uuid, $2::text, a.usesysid, $3::double precision, $4::double precision, $5::double precision
FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_backend_pid()
ON CONFLICT (id) DO UPDATE SET missed_at = NULL, role = excluded.role RETURNING number, xmax = 0 AS is_new

-- name: node_lock
-- Show that this node lives, for as long as the connection does.
SELECT pg_try_advisory_lock_shared('sio.sio_nodes'::regclass::oid::bigint::bit(32)::integer, $1::integer)

-- name: node_renumber
-- Give a node another lock to hold.
UPDATE sio.sio_nodes SET number = DEFAULT WHERE id = $1::text::uuid RETURNING number

-- name: node_back
-- Note that a node reads the log again. There is a row if it had been missed.
UPDATE sio.sio_nodes n SET missed_at = NULL, died_at = NULL
FROM (SELECT id, died_at FROM sio.sio_nodes WHERE id = $1::text::uuid) o
WHERE n.id = o.id AND n.missed_at IS NOT NULL RETURNING o.died_at IS NOT NULL AS died

-- name: others
-- The other nodes that live, as their locks show.
SELECT replace(id::text, '-', '') AS id FROM sio.sio_nodes
WHERE id <> $1::text::uuid AND stopped_at IS NULL AND sio.sio_node_alive(number, role)

-- name: node_stop
-- Note that a node stops in order. Sessions that it could not release expire from now on. Its options still count for
-- how long records are kept.
UPDATE sio.sio_nodes SET stopped_at = clock_timestamp(), died_at = clock_timestamp() WHERE id = $1::text::uuid

-- name: look
-- Check which nodes live, and return how many are missing but not dead yet.
SELECT sio.sio_check_nodes()

-- name: fitness
-- What a connection is, in one round trip. As text, which no codec of an application's pool changes.
SELECT json_build_object(
    'server', sio.sio_fingerprint(), 'channel', (SELECT channel FROM sio.sio_log), 'role', current_user,
    'version', (SELECT version FROM sio.sio_log), 'compatible', (SELECT compatible FROM sio.sio_log),
    'isolation', current_setting('transaction_isolation'),
    'recovering', pg_is_in_recovery(), 'read_only', current_setting('transaction_read_only')::boolean,
    'lacks', coalesce(
        (SELECT p || ' on ' || c.relname
         FROM pg_catalog.pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
         WHERE c.oid = ANY (ARRAY[
             'sio.sio_lock', 'sio.sio_log', 'sio.sio_epochs', 'sio.sio_marker', 'sio.sio_packets', 'sio.sio_packets_0',
             'sio.sio_packets_1', 'sio.sio_packet_rooms', 'sio.sio_packet_rooms_0', 'sio.sio_packet_rooms_1',
             'sio.sio_room_floors', 'sio.sio_session_floors', 'sio.sio_keys', 'sio.sio_attachments', 'sio.sio_nodes',
             'sio.sio_sessions', 'sio.sio_rooms', 'sio.sio_expiry_handlers', 'sio.sio_relay']::regclass[]) AND NOT has_table_privilege(c.oid, p)
         LIMIT 1),
        (SELECT p || ' on ' || c.relname
         FROM pg_catalog.pg_class c, unnest(ARRAY['SELECT', 'UPDATE']) p
         WHERE c.oid = ANY (ARRAY['sio.sio_packets_offset_seq', 'sio.sio_active_segment', 'sio.sio_relay_id_seq',
                               'sio.sio_relay_state', 'sio.sio_relay_floor']::regclass[])
           AND NOT has_sequence_privilege(c.oid, p)
         LIMIT 1))
)::text

-- name: wait_for_lock
-- Wait for the log's lock as an append does, for some milliseconds. Writes nothing.
SELECT sio.sio_wait_for_lock($1::integer)

-- name: lock_holder
-- The backend that holds the log's lock. What it waits for is null for roles that may not see it.
SELECT l.pid, a.application_name::text AS application, a.wait_event::text AS waits_for
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE l.granted AND l.locktype = 'relation' AND l.mode <> 'AccessShareLock' AND l.relation = 'sio.sio_lock'::regclass
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) AND l.pid <> pg_backend_pid()
LIMIT 1

-- name: support
-- What the server is, as far as it may not do: another database that speaks its protocol, another encoding, or hidden
-- rows.
SELECT json_build_object(
    'version', version(), 'encoding', current_setting('server_encoding'),
    'hidden', (SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_catalog.pg_class c
               WHERE c.relname LIKE 'sio\_%' AND c.relkind IN ('r', 'p') AND row_security_active(c.oid)
                 AND c.relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class
                                       WHERE oid = 'sio.sio_lock'::regclass)))::text

-- name: probe
-- What the connection of a node that listens is, whether others see that it lives, and where the log ends.
SELECT json_build_object(
    'server', sio.sio_fingerprint(), 'channels', ARRAY(SELECT pg_listening_channels()),
    'alive', (SELECT died_at IS NULL AND sio.sio_node_alive(number, role) AND EXISTS (
                  SELECT FROM pg_catalog.pg_locks l
                  WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory' AND l.objid = number::bigint::oid)
              FROM sio.sio_nodes WHERE id = $1::text::uuid),
    'relay_state', (SELECT last_value FROM sio.sio_relay_state),
    'relay_waiting', (SELECT count(*) FROM (SELECT FROM sio.sio_relay WHERE fault IS NULL LIMIT 10000) r),
    'relay_seconds', (SELECT extract(epoch FROM clock_timestamp() - created_at)::double precision
                      FROM sio.sio_relay WHERE fault IS NULL ORDER BY id LIMIT 1),
    'relay_faults', (SELECT count(*) FROM (SELECT FROM sio.sio_relay WHERE fault IS NOT NULL LIMIT 10000) r),
    'head', greatest((SELECT max("offset") FROM sio.sio_packets_0), (SELECT max("offset") FROM sio.sio_packets_1),
                     (SELECT floor FROM sio.sio_log), 0))::text

-- name: due_to_prune
-- Whether the pruner has work, and for how many seconds records are kept. Null keeps all of them: sessions or events last
-- for ever, or the sessions of a missing or newly dead node may still come back. Writes nothing.
SELECT k.keep, k.missing,
       EXISTS (SELECT FROM sio.sio_expired()) AS sessions,
       EXISTS (SELECT FROM (SELECT created_at FROM sio.sio_packets ORDER BY "offset" LIMIT 1) p
               WHERE p.created_at < clock_timestamp() - make_interval(secs => k.keep)) AS records,
       EXISTS (SELECT FROM sio.sio_attachments
               WHERE created_at < clock_timestamp() - CASE WHEN ephemeral THEN interval '2 minutes'
                                                           ELSE make_interval(secs => k.keep + 3600) END) AS attachments
FROM (SELECT coalesce(bool_or(o.missing), false) AS missing,
             CASE WHEN bool_or(o.recovery_seconds IS NULL OR o.retention_seconds IS NULL OR o.missing
                               OR sio.sio_node_expiry(o.died_at, o.recovery_seconds) > clock_timestamp()
                                  AND EXISTS (SELECT FROM sio.sio_sessions s WHERE s.node = o.id)) THEN NULL
                  ELSE greatest(coalesce(max(o.recovery_seconds), 120) + coalesce(max(o.margin_seconds), 205),
                                max(o.retention_seconds)) END AS keep
      FROM (SELECT *, stopped_at IS NULL AND died_at IS NULL AND NOT sio.sio_node_alive(number, role) AS missing
            FROM sio.sio_nodes) o) k

-- name: expire
-- Delete expired sessions for which no handler is to be called.
SELECT sio.sio_expire($1::integer)

-- name: take_expired
-- Take expired sessions of some namespaces (* for all), to call handlers for them.
SELECT id, namespace, sid, data FROM sio.sio_take_expired($1::text[], $2::text::uuid, $3::integer)

-- name: delete_expired
-- Delete expired sessions whose handlers have been called.
SELECT sio.sio_delete_expired($1::bigint[], $2::text::uuid)

-- name: expiry_handlers
-- Leave the expired sessions of these namespaces to nodes with a handler from now on.
INSERT INTO sio.sio_expiry_handlers SELECT unnest($1::text[]) ON CONFLICT DO NOTHING

-- name: switch_segment
-- Make the other segment the active one, once the active segment is large and its oldest record has expired.
SELECT sio.sio_switch_segment($1::double precision)

-- name: trim
-- Delete the oldest records and move the floors in one transaction: a segment as a whole, if that is possible.
SELECT sio.sio_trim($1::double precision, $2::integer)

-- name: drop_attachments
-- Delete bodies to which no record refers: those of messages, and of appends that failed. Only bodies that are older than
-- all kept records are looked at. Most younger ones have a record, and each pass would look for it. Return how many.
WITH gone AS (
    DELETE FROM sio.sio_attachments a WHERE id IN (
        SELECT id FROM sio.sio_attachments b
        WHERE b.ephemeral AND b.created_at < clock_timestamp() - interval '2 minutes'
           OR b.created_at < clock_timestamp() - make_interval(secs => $2::double precision + 3600)
              AND NOT EXISTS (SELECT FROM sio.sio_packets p WHERE p.attachment = b.id)
              AND NOT EXISTS (SELECT FROM sio.sio_relay r WHERE r.attachment = b.id)
        LIMIT $1::integer)
    RETURNING a.id)
SELECT count(*) FROM gone

-- name: drop_nodes
-- Delete nodes that ended so long ago that nothing depends on their options any more. The retention of a node counts until
-- it has passed since the node ended, because the whole cluster may be down meanwhile. It no longer counts if a later node
-- has the same or a longer retention.
DELETE FROM sio.sio_nodes n
WHERE (coalesce(stopped_at, died_at) < clock_timestamp() - make_interval(secs => recovery_seconds + margin_seconds)
           AND NOT EXISTS (SELECT FROM sio.sio_sessions s WHERE s.node = n.id)
       OR stopped_at IS NOT NULL AND recovery_seconds IS NULL
           AND EXISTS (SELECT FROM sio.sio_nodes o WHERE o.recovery_seconds IS NULL AND o.number > n.number))
  AND (coalesce(stopped_at, died_at) < clock_timestamp() - make_interval(secs => retention_seconds)
       OR EXISTS (SELECT FROM sio.sio_nodes o
                  WHERE coalesce(o.retention_seconds, 'infinity') >= coalesce(n.retention_seconds, 'infinity')
                    AND (coalesce(o.stopped_at, o.died_at, 'infinity'), o.number)
                        > (coalesce(n.stopped_at, n.died_at), n.number)))

-- name: drop_room_floors
-- Delete room floors that no session can ask for.
DELETE FROM sio.sio_room_floors
WHERE "offset" <= (SELECT coalesce(min(start_offset), 9223372036854775807) FROM sio.sio_sessions)
   OR NOT sio.sio_needs_floor(namespace, room, "offset")

-- name: drop_session_floors
-- Delete floors of memberships that are not stored any more.
DELETE FROM sio.sio_session_floors f
WHERE NOT EXISTS (SELECT FROM sio.sio_rooms r
                  WHERE r.session = f.session AND r.room = f.room AND r.joined_at = f.joined_at)
  AND NOT EXISTS (SELECT FROM sio.sio_sessions s WHERE s.id = f.session AND f.room IN ('', s.sid))

-- name: status_nodes
-- Nodes as presence shows them, with the number of their sessions. Nodes that ended are left out, unless they left
-- sessions, or died a short time ago.
SELECT * FROM (
    SELECT n.id, n.started_at, n.died_at, n.stopped_at, sio.sio_node_alive(n.number, n.role) AS alive,
           extract(epoch FROM statement_timestamp() - n.started_at)::double precision AS seconds,
           (SELECT count(*) FROM sio.sio_sessions s WHERE s.node = n.id) AS sessions
    FROM sio.sio_nodes n) m
WHERE stopped_at IS NULL AND died_at IS NULL OR sessions > 0 OR died_at > statement_timestamp() - interval '10 minutes'
ORDER BY started_at, id

-- name: status_sessions
-- The sessions of each namespace: held by a living node, away, and expired.
WITH nodes AS MATERIALIZED (
    SELECT id, stopped_at IS NULL AND died_at IS NULL AND sio.sio_node_alive(number, role) AS alive,
           sio.sio_node_expiry(died_at, recovery_seconds) AS runs_out FROM sio.sio_nodes)
SELECT namespace, count(*) FILTER (WHERE alive AND NOT up) AS live,
       count(*) FILTER (WHERE NOT alive AND NOT up) AS away, count(*) FILTER (WHERE up) AS expiring
FROM (SELECT s.namespace, s.expires_at IS NULL AND coalesce(n.alive, false) AS alive,
             coalesce(s.expires_at <= statement_timestamp(), n.runs_out <= statement_timestamp(), false) AS up
      FROM sio.sio_sessions s LEFT JOIN nodes n ON n.id = s.node) t
GROUP BY namespace ORDER BY namespace

-- name: status_log
-- The ends of the log, and how many of its last 100,000 records are of the last minute.
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
-- The sizes of the tables and their indexes. Rows are by PostgreSQL's running count.
SELECT c.relname AS name, pg_stat_get_live_tuples(c.oid) AS rows, coalesce(pg_table_size(c.oid), 0) AS table_bytes,
       coalesce(pg_indexes_size(c.oid), 0) AS index_bytes
FROM pg_class c
WHERE c.relkind IN ('r', 'p', 'm') AND c.relname LIKE 'sio\_%'
  AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = (SELECT tableoid FROM sio.sio_log))
ORDER BY pg_total_relation_size(c.oid) DESC, 1

-- name: rights
-- The rights of roles other than the owner on the tables, the sequences and the functions that run with the owner's
-- rights. PUBLIC may call the other functions. Objects that were created before these tables are left out.
SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END AS role,
       a.privilege_type AS privilege, o.kind, o.name
FROM (SELECT CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind, c.relname::text AS name,
             c.relowner AS owner, c.relacl AS acl
      FROM pg_catalog.pg_class c
      WHERE c.relkind IN ('r', 'S') AND c.relname LIKE 'sio\_%' AND c.relname <> 'sio_alembic_version'
        AND c.oid >= 'sio.sio_lock'::regclass
        AND c.relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'sio.sio_lock'::regclass)
      UNION ALL
      SELECT 'function', p.proname::text, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
      FROM pg_catalog.pg_proc p
      WHERE p.prosecdef AND p.proname LIKE 'sio\_%' AND p.oid >= 'sio.sio_lock'::regclass
        AND p.pronamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'sio.sio_lock'::regclass)) o,
    aclexplode(o.acl) a
WHERE a.grantee <> o.owner

-- name: tail
-- A page of the log above an offset for people to read, with times and sizes. Without $3 the body has no more than the
-- name of the event needs. A name has up to 512 bytes, which take up to 3,074 bytes in JSON.
SELECT p."offset", p.created_at, p.kind, p.namespace, p.room, p.rooms, p.skip_sids, p.skip_rooms, p.sid,
       p.generation, p.as_of, p.node,
       coalesce(octet_length(a.data), octet_length(p.body) + coalesce(octet_length(p.parts), 0), octet_length(p.data), 0)
           AS bytes,
       CASE WHEN $3::boolean THEN p.body ELSE left(p.body, 3074) END AS body,
       CASE WHEN $3::boolean THEN p.parts END AS parts, p.data,
       CASE WHEN $3::boolean THEN a.data ELSE substring(a.data FROM 1 FOR 3078) END AS attached
FROM (SELECT * FROM sio.sio_packets WHERE "offset" > $1::bigint ORDER BY "offset" LIMIT $2::integer) p
LEFT JOIN sio.sio_attachments a ON a.id = p.attachment
ORDER BY p."offset"

-- name: back
-- The offset below the last $2 records up to $1, or null if there are none.
SELECT min("offset") - 1
FROM (SELECT "offset" FROM sio.sio_packets WHERE "offset" <= $1::bigint ORDER BY "offset" DESC LIMIT $2::integer) b
