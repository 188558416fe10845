-- A role that may call these functions may send any event to any client, so nobody may by default. The page on
-- transactions in the documentation says whom to grant them to.
REVOKE ALL ON FUNCTION sio.sio_emit, sio.sio_emit_encoded, sio.sio_outbox_take, sio.sio_outbox_append,
    sio.sio_outbox_epoch, sio.sio_outbox_bounds
FROM PUBLIC;
