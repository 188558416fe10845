-- The first rows.

-- The channel's name has 128 random bits. It is a secret, because NOTIFY has no permissions.
INSERT INTO sio.sio_log (version, compatible, channel)
VALUES (1, 1, 'sio_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')::varchar(40));

INSERT INTO sio.sio_epochs (epoch, key, began_after)
VALUES (0, sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')), 0);
