"""The migration operation that runs this package's own revisions on Django's connection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from django.db.migrations.operations.base import Operation
from sqlalchemy import ClauseElement
from sqlalchemy.dialects import postgresql

from sio_pg_adapter import schema as tables
from sio_pg_adapter.schema_names import quoted

from .settings import check_vendor, read_settings


class _Op:
    """The three methods of ``alembic.op`` that a revision uses, on a schema editor of Django's."""

    def __init__(self, schema_editor: Any) -> None:
        self._editor = schema_editor
        # named: "%" is no placeholder, so it is not doubled
        self._dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]

    def get_context(self) -> Any:
        return SimpleNamespace(as_sql=True, config=None)

    def execute(self, statement: ClauseElement) -> None:
        self._editor.execute(str(statement.compile(dialect=self._dialect)), params=None)


class UpgradeTables(Operation):
    """Bring the tables from one revision of this package to another, and back.

    It does nothing on databases other than the one that ``SIO_PG`` names. If ``sio-pg migrate`` has made the tables,
    only what is missing is run.

    :param to: the revision after the operation.
    :param from_: the revision before it. "base" is none.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, to: str, from_: str = "base") -> None:
        self.to, self.from_ = to, from_

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change no models: there are none."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Upgrade."""
        if schema := self._schema(schema_editor):
            at = _present(schema_editor, schema, self.from_)
            if at < self.to or at == "base":
                tables.upgrade(_Op(schema_editor), self.to, schema, at)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Downgrade."""
        if (schema := self._schema(schema_editor)) and (at := _present(schema_editor, schema, self.to)) != "base":
            tables.downgrade(_Op(schema_editor), self.from_, schema, at)

    def _schema(self, schema_editor: Any) -> str | None:
        """Return the schema, or ``None`` if the tables are in another database."""
        named = read_settings()
        if schema_editor.connection.alias != named.database:
            return None
        check_vendor(schema_editor.connection)
        return named.schema

    def describe(self) -> str:
        """Return the line of ``migrate --plan``."""
        return f"Bring the tables of sio_pg_adapter to revision {self.to}"


def _present(schema_editor: Any, schema: str, offline: str) -> str:
    """Return the revision of the tables. Each revision sets ``sio_log.version`` to its number.

    :param offline: the answer of ``sqlmigrate``, which looks at no database.
    """
    if schema_editor.collect_sql:
        return offline
    log = f"{quoted(schema)}.sio_log"
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", [log])
        if cursor.fetchone()[0] is None:
            return "base"
        cursor.execute(f"SELECT version FROM {log}")  # noqa: S608 - the name is quoted
        return f"sio{cursor.fetchone()[0]:04d}"
