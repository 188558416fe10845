"""Upgrades and downgrades that a revision of an application's own calls."""

from __future__ import annotations

from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select
from sqlalchemy.schema import CreateSchema

from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.migrate import clause, config_for, relay_sql, writing_to
from sio_pg_adapter.schema_names import checked_schema

from .tables import metadata_in


def upgrade(
    op: Any, to: str = "head", schema: str = "public", from_: str | None = None, *, relay: bool | None = None
) -> None:
    """Bring the tables to revision ``to``, in a revision of the application's own.

    Runs this package's missing revisions in their order. It is no error if none is missing. The database says which
    are there, so a later revision of the application may call this function again.

    :param op: ``alembic.op``.
    :param to: "sio0001", or "head" for the newest revision of the installed package.
    :param schema: the schema of the tables, which is created if it is missing.
    :param from_: the revision of the tables, "base" for none. Only ``alembic upgrade --sql`` needs it, because it has
                  no database to look at.
    :param relay: whether transactional emits go through the relay. ``None`` leaves that as it is.
    :raises ConfigurationError: if a revision or the schema's name is wrong.
    """
    revisions = _revisions()
    last = _index(revisions, to)
    first = _index(revisions, _present(op, schema) if from_ is None else from_) + 1
    if first == 0 and (op.get_context().as_sql or not inspect(op.get_bind()).has_schema(schema)):
        op.execute(CreateSchema(schema, if_not_exists=True))
    with writing_to(schema):
        for script in revisions[first : last + 1]:
            _module(script, op).upgrade()
    if relay is not None:
        op.execute(clause(relay_sql(relay), schema))


def downgrade(op: Any, to: str = "base", schema: str = "public", from_: str | None = None) -> None:
    """Take the tables back to revision ``to``. "base" leaves nothing but the schema.

    Parameters and errors are those of :func:`upgrade`.
    """
    revisions = _revisions()
    first = _index(revisions, to) + 1
    last = _index(revisions, _present(op, schema) if from_ is None else from_)
    with writing_to(schema):
        for script in reversed(revisions[first : last + 1]):
            _module(script, op).downgrade()


def _revisions() -> list[Any]:
    """Return this package's revisions, the oldest first."""
    return list(ScriptDirectory.from_config(config_for("public")).walk_revisions())[::-1]


def _index(revisions: list[Any], revision: str) -> int:
    """Return the index of a revision, and -1 for "base"."""
    known = ["base", *(script.revision for script in revisions)]
    if revision == "head":
        return len(revisions) - 1
    if revision not in known:
        raise ConfigurationError(
            f"no revision {revision!r} in this version of sio-pg-adapter; it has {', '.join(known)}"
        )
    return known.index(revision) - 1


def _present(op: Any, schema: str) -> str:
    """Return the revision of the tables. Each revision sets ``sio_log.version`` to its number."""
    checked_schema(schema)
    if op.get_context().as_sql:
        raise ConfigurationError('with --sql there is no database to look at: say from_="base", or the revision')
    connection = op.get_bind()
    if not inspect(connection).has_table("sio_log", schema=schema):
        return "base"
    log = metadata_in(schema).tables[f"{schema}.sio_log"]
    return f"sio{connection.scalar(select(log.c.version)):04d}"


def _module(script: Any, op: Any) -> Any:
    script.module.op = op  # the module is loaded for this call alone
    return script.module
