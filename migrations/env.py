"""What alembic runs for `sio-pg migrate`: one transaction, under one lock, on the connection it was given.

An application that keeps these migrations as a branch of its own history uses its own env.py, not this one.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import func, select
from sqlalchemy.schema import CreateSchema

from sio_pg_adapter.migrate import SCHEMA_ATTRIBUTE, VERSION_TABLE, lock_key
from sio_pg_adapter.schema import metadata_in

connection = context.config.attributes.get("connection")
schema = context.config.attributes[SCHEMA_ATTRIBUTE]
# As SQLAlchemy reflects it: the connection's default schema has no name.
reflected = None if connection is not None and connection.dialect.default_schema_name == schema else schema


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """What `alembic check` looks at: this package's tables, and any that a migration made and nobody declared."""
    if kind == "schema":
        return name == reflected
    return kind != "table" or (str(name).startswith("sio_") and name != VERSION_TABLE)


context.configure(
    connection=connection,
    dialect_name=None if connection is not None else "postgresql",
    dialect_opts={"paramstyle": "named"},  # offline: no % doubled in the text that psql is to run
    literal_binds=connection is None,
    version_table=VERSION_TABLE,
    version_table_schema=schema,
    target_metadata=metadata_in(reflected),
    include_schemas=True,
    include_name=include_name,
)

with context.begin_transaction():
    # Taken before the version is read: of eight that start at once seven find the work done.
    context.execute(select(func.pg_advisory_xact_lock(lock_key(schema))))
    # Looked for first: CREATE SCHEMA IF NOT EXISTS wants the right to create it where it exists, too.
    if connection is None or not connection.dialect.has_schema(connection, schema):
        context.execute(CreateSchema(schema, if_not_exists=True))
    context.run_migrations()
