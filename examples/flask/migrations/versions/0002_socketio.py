"""The tables of sio-pg-adapter.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

from sio_pg_adapter import schema

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade():
    schema.upgrade(op, "sio0001")


def downgrade():
    schema.downgrade(op)
