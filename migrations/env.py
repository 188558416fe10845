"""What alembic runs for `sio-pg migrate`: one transaction, under one lock, on the connection it was given.

An application that keeps these migrations as a branch of its own history uses its own env.py, not this one.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import func, select
from sqlalchemy.schema import CreateSchema

from sio_pg_adapter.migrate import SCHEMA_ATTRIBUTE, VERSION_TABLE, lock_key

connection = context.config.attributes.get("connection")
schema = context.config.attributes[SCHEMA_ATTRIBUTE]

context.configure(
    connection=connection,
    dialect_name=None if connection is not None else "postgresql",
    dialect_opts={"paramstyle": "named"},  # offline: no % doubled in the text that psql is to run
    literal_binds=connection is None,
    version_table=VERSION_TABLE,
    version_table_schema=schema,
)

with context.begin_transaction():
    # Taken before the version is read: of eight that start at once seven find the work done.
    context.execute(select(func.pg_advisory_xact_lock(lock_key(schema))))
    # Looked for first: CREATE SCHEMA IF NOT EXISTS wants the right to create it where it exists, too.
    if connection is None or not connection.dialect.has_schema(connection, schema):
        context.execute(CreateSchema(schema, if_not_exists=True))
    context.run_migrations()
