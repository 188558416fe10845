-- Waits no longer than a second for transactions that use the log, because all others would wait behind it, and tries
-- again. The order is the one in which everybody takes these locks.
DO $$
DECLARE v_former text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '1s', true);
    FOR i IN 1..20 LOOP
        BEGIN
            LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;
            LOCK TABLE sio.sio_packets IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF i = 20 THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.5);
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', v_former, true);
END $$;
