"""The alembic environment of `sio-pg migrate`: one transaction, under one lock, on the given connection.

An application that keeps these migrations as a branch of its own revisions uses its own env.py.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import func, select
from sqlalchemy.schema import CreateSchema

from sio_pg_adapter.migrate import SCHEMA_ATTRIBUTE, VERSION_TABLE, lock_key
from sio_pg_adapter.schema import metadata_in

connection = context.config.attributes.get("connection")
schema = context.config.attributes[SCHEMA_ATTRIBUTE]
# SQLAlchemy reflects the connection's default schema without a name.
reflected = None if connection is not None and connection.dialect.default_schema_name == schema else schema


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Limit `alembic check` to this package's tables, and tables that a migration made without a declaration."""
    if kind == "schema":
        return name == reflected
    return kind != "table" or (str(name).startswith("sio_") and name != VERSION_TABLE)


context.configure(
    connection=connection,
    dialect_name=None if connection is not None else "postgresql",
    dialect_opts={"paramstyle": "named"},  # offline: psql must not get a doubled %
    literal_binds=connection is None,
    version_table=VERSION_TABLE,
    version_table_schema=schema,
    target_metadata=metadata_in(reflected),
    include_schemas=True,
    include_name=include_name,
)

with context.begin_transaction():
    # The lock comes before the version is read. Of eight processes that start at once, seven find the work done.
    context.execute(select(func.pg_advisory_xact_lock(lock_key(schema))))
    # CREATE SCHEMA IF NOT EXISTS needs the right to create a schema even if that schema exists.
    if connection is None or not connection.dialect.has_schema(connection, schema):
        context.execute(CreateSchema(schema, if_not_exists=True))
    context.run_migrations()
