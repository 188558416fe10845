"""The tables of the log and of the sessions, and the functions that write them.

Revision ID: sio0001
Revises:
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

from sio_pg_adapter.migrate import run_sql

revision = "sio0001"
down_revision = None
branch_labels = ("sio_pg_adapter",)
depends_on = None

# In the .sql files the schema is named sio. A migration puts the name of the real one in its place.
SQL = Path(__file__).parents[1] / "sql" / "0001"
# In this order, since functions in SQL must find the tables and functions that they name.
SUBJECTS = (
    "tables", "epochs", "segments", "keys", "append", "rooms", "sessions", "replay", "history", "presence", "expiry",
    "retention", "relay", "outbox", "emit", "changes", "positions", "grants",
)  # fmt: skip
# The first rows. A migration writes them again if something has emptied their tables.
ROWS = SQL / "rows.sql"


def upgrade() -> None:
    run_sql(op, *(SQL / f"{subject}.sql" for subject in SUBJECTS), ROWS)


def downgrade() -> None:
    run_sql(op, SQL / "drop.sql")
