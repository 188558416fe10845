-- The way back: drops all that the other files make.

-- It depends on the type of sio_sessions.
DROP FUNCTION sio.sio_expired;

DROP TABLE sio.sio_outbox_changes, sio.sio_relay;

DROP TABLE sio.sio_outbox, sio.sio_rooms, sio.sio_sessions, sio.sio_expiry_handlers, sio.sio_nodes, sio.sio_attachments,
    sio.sio_packet_rooms_0, sio.sio_packet_rooms_1, sio.sio_packet_rooms, sio.sio_packets_0, sio.sio_packets_1,
    sio.sio_packets, sio.sio_room_floors, sio.sio_session_floors, sio.sio_keys, sio.sio_marker, sio.sio_epochs,
    sio.sio_log, sio.sio_lock;

DROP SEQUENCE sio.sio_active_segment, sio.sio_relay_state, sio.sio_relay_floor;

DROP FUNCTION sio.sio_fingerprint, sio.sio_check_isolation, sio.sio_last_in_epoch, sio.sio_is_behind,
    sio.sio_check_epoch, sio.sio_lock_and_check_epoch, sio.sio_truncated, sio.sio_into_segment, sio.sio_put_record,
    sio.sio_append_batch, sio.sio_append_event, sio.sio_move, sio.sio_close, sio.sio_move_members, sio.sio_stored_batch,
    sio.sio_open, sio.sio_claim, sio.sio_settle, sio.sio_release, sio.sio_end, sio.sio_save, sio.sio_kick,
    sio.sio_memberships, sio.sio_due, sio.sio_lost, sio.sio_node_alive, sio.sio_node_expiry, sio.sio_check_nodes,
    sio.sio_expire, sio.sio_take_expired, sio.sio_lock_segment, sio.sio_may_truncate, sio.sio_empty_segment,
    sio.sio_switch_segment, sio.sio_truncate_segment, sio.sio_trim, sio.sio_outbox_take, sio.sio_outbox_epoch,
    sio.sio_outbox_retry, sio.sio_outbox_bounds, sio.sio_outbox_append, sio.sio_emit_encoded, sio.sio_emit,
    sio.sio_wait_for_lock, sio.sio_forget_rooms, sio.sio_missed, sio.sio_needs_floor, sio.sio_delete_expired,
    sio.sio_has_key, sio.sio_keyed_event, sio.sio_keyed_offsets, sio.sio_take_key, sio.sio_position, sio.sio_in_log,
    sio.sio_count_since, sio.sio_history, sio.sio_deleted, sio.sio_last_due, sio.sio_raise_floors,
    sio.sio_is_skipped, sio.sio_last_skipping, sio.sio_server_side_emit, sio.sio_server_side_emit_encoded;

DROP FUNCTION sio.sio_members, sio.sio_change_members, sio.sio_changes_take, sio.sio_changes_append, sio.sio_change,
    sio.sio_change_named, sio.sio_enter_room, sio.sio_leave_room, sio.sio_close_room, sio.sio_disconnect;

DROP FUNCTION sio.sio_relay_waiting, sio.sio_relay_append, sio.sio_relay_append_or_keep, sio.sio_relay_drain,
    sio.sio_relay_before, sio.sio_relay_before_commit, sio.sio_relay_move, sio.sio_relay_attend, sio.sio_relay_change,
    sio.sio_set_relay;
