-- A role that may call these functions may send any event to any client, or change any client's rooms, so nobody may by
-- default. The page on transactions in the documentation says whom to grant them to.
REVOKE ALL ON FUNCTION sio.sio_emit, sio.sio_emit_encoded, sio.sio_outbox_take, sio.sio_outbox_append,
    sio.sio_outbox_epoch, sio.sio_outbox_retry, sio.sio_outbox_bounds, sio.sio_server_side_emit,
    sio.sio_server_side_emit_encoded
FROM PUBLIC;

-- A position is no secret, but reading one runs with the rights of the owner.
REVOKE ALL ON FUNCTION sio.sio_position FROM PUBLIC;
REVOKE ALL ON FUNCTION sio.sio_change, sio.sio_change_named, sio.sio_enter_room, sio.sio_leave_room, sio.sio_close_room,
    sio.sio_disconnect, sio.sio_changes_take, sio.sio_changes_append,
    sio.sio_relay_before_commit
FROM PUBLIC;

-- ALTER DEFAULT PRIVILEGES may have granted rights on all of this at its creation, to PUBLIC or to a role that anybody
-- may use through an HTTP interface. Nobody but the owner has a right until it is granted for these tables. The other
-- functions stay with PUBLIC, because they run with the rights of the caller.
DO $$
DECLARE v_revoke text;
BEGIN
    FOR v_revoke IN
        SELECT format('REVOKE ALL ON %s %s FROM %s', o.kind, o.name,
                      CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
        FROM (SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, oid::regclass::text AS name,
                     relowner AS owner, relacl AS acl
              FROM pg_class
              WHERE relkind IN ('r', 'S') AND relname LIKE 'sio\_%'
                AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'sio.sio_lock'::regclass)
                AND oid >= 'sio.sio_lock'::regclass  -- created here, and not by the application
              UNION ALL
              SELECT 'FUNCTION', oid::regprocedure::text, proowner, proacl
              FROM pg_proc
              WHERE proname LIKE 'sio\_%'
                AND pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'sio.sio_lock'::regclass)
                AND oid >= 'sio.sio_lock'::regclass) o,
            aclexplode(o.acl) a
        WHERE a.grantee <> o.owner AND (o.kind <> 'FUNCTION' OR a.grantee <> 0)
        GROUP BY o.kind, o.name, a.grantee
    LOOP
        EXECUTE v_revoke;
    END LOOP;
END $$;
