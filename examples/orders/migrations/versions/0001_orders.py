"""Customers, orders and watchers.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = ("orders",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "customers",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("credit", sa.Integer, nullable=False),
        sa.CheckConstraint("credit >= 0", name="customers_credit_check"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer", sa.String, nullable=False),
        sa.Column("price", sa.Integer, nullable=False),
        sa.Column("paid", sa.Boolean, nullable=False),
    )
    op.create_table(
        "watchers",
        sa.Column("order", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("customer", sa.String, primary_key=True),
    )


def downgrade() -> None:
    op.drop_table("watchers")
    op.drop_table("orders")
    op.drop_table("customers")
