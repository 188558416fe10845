-- Servers of version 1 go on working, so `compatible` stays.
UPDATE sio.sio_log SET version = 2;
