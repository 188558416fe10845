"""The rights of a node on the tables and functions. The page on transactions in the documentation lists them."""

from __future__ import annotations

from .tables import metadata_in

FUNCTIONS = {
    "sio_emit",
    "sio_emit_encoded",
    "sio_position",
    "sio_enter_room",
    "sio_leave_room",
    "sio_close_room",
    "sio_disconnect",
    "sio_change",
    "sio_server_side_emit",
    "sio_server_side_emit_encoded",
}
"""The functions that are granted to emitters and nodes."""

NODE_PRIVILEGES = {"SELECT", "INSERT", "UPDATE", "DELETE"}
"""The privileges of a node on each of its tables."""

NODE_TABLES = set(metadata_in(None).tables) - {"sio_outbox", "sio_outbox_changes"}
"""The tables of a node."""

TRUNCATED = {"sio_packets_0", "sio_packets_1", "sio_packet_rooms_0", "sio_packet_rooms_1"}
"""The tables that a node may truncate as well."""

SEQUENCES = {
    "sio_packets_offset_seq",
    "sio_active_segment",
    "sio_relay_id_seq",
    "sio_relay_state",
    "sio_relay_floor",
}
"""The sequences that a node reads and sets."""


def grants(role: str) -> str:
    """Return the statements that give a role the rights of a node, on the tables in the schema ``public``."""
    rights = [
        ("USAGE", ["SCHEMA public"]),
        (", ".join(sorted(NODE_PRIVILEGES)), sorted(NODE_TABLES)),
        ("TRUNCATE", sorted(TRUNCATED)),
        ("SELECT, UPDATE", [f"SEQUENCE {', '.join(sorted(SEQUENCES))}"]),
        ("EXECUTE", [f"FUNCTION {', '.join(sorted(FUNCTIONS))}"]),
    ]
    return "".join(f"GRANT {privileges} ON {', '.join(names)} TO {role};\n" for privileges, names in rights)
