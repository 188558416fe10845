-- Rows that somebody inserts into sio_packets or sio_packet_rooms itself. Nodes read the segments alone, so these rows
-- go to a segment.

-- An INSERT is rewritten, so that its RETURNING still works.
CREATE RULE sio_into_segment AS ON INSERT TO sio.sio_packets DO INSTEAD
INSERT INTO sio.sio_packets_0 VALUES (NEW.*) RETURNING *;

CREATE RULE sio_into_segment AS ON INSERT TO sio.sio_packet_rooms DO INSTEAD
INSERT INTO sio.sio_packet_rooms_0 VALUES (NEW.*);

-- COPY knows no rules.
CREATE FUNCTION sio.sio_into_segment() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('INSERT INTO %I.%I SELECT ($1).*', TG_TABLE_SCHEMA, TG_TABLE_NAME || '_0') USING NEW;
    RETURN NULL;
END $$;

CREATE TRIGGER sio_into_segment BEFORE INSERT ON sio.sio_packets
FOR EACH ROW EXECUTE FUNCTION sio.sio_into_segment();

CREATE TRIGGER sio_into_segment BEFORE INSERT ON sio.sio_packet_rooms
FOR EACH ROW EXECUTE FUNCTION sio.sio_into_segment();

-- ALWAYS: also in sessions whose session_replication_role is replica, such as bulk loads.
ALTER TABLE sio.sio_packets ENABLE ALWAYS RULE sio_into_segment;

ALTER TABLE sio.sio_packet_rooms ENABLE ALWAYS RULE sio_into_segment;

ALTER TABLE sio.sio_packets ENABLE ALWAYS TRIGGER sio_into_segment;

ALTER TABLE sio.sio_packet_rooms ENABLE ALWAYS TRIGGER sio_into_segment;
