"""A later revision, which no package has. It shows how to write one, and what may run at the same time.

Revision ID: sio0002
Revises: sio0001
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

from sio_pg_adapter.migrate import run_sql

revision = "sio0002"
down_revision = "sio0001"
branch_labels = None
depends_on = None

SQL = Path(__file__).parent
ROWS = SQL / "rows.sql"


def upgrade() -> None:
    run_sql(op, SQL / "lock.sql", SQL / "upgrade.sql", ROWS)


def downgrade() -> None:
    run_sql(op, SQL / "lock.sql", SQL / "downgrade.sql")
