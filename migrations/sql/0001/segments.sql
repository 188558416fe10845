-- Rows that somebody inserts or copies into sio_packets or sio_packet_rooms itself. Nodes read the segments alone, so the
-- rows go to a segment.

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
ALTER TABLE sio.sio_packets ENABLE ALWAYS TRIGGER sio_into_segment;

ALTER TABLE sio.sio_packet_rooms ENABLE ALWAYS TRIGGER sio_into_segment;
