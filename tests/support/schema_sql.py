"""``sio_pg_adapter/store/schema.sql``: the schema that the migrations make, written from PostgreSQL's catalog.

Run ``uv run python tests/support/schema_sql.py`` to write the file. Its comments come from the migrations' files.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

import sio_pg_adapter
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import upgrade

PACKAGE = Path(sio_pg_adapter.__file__).parent
FILE = PACKAGE / "store" / "schema.sql"
SCHEMA = "sio"
HEADER = """\
-- The whole schema as the migrations make it, for reading. Nothing runs this file. It is generated, and a test
-- compares it with the migrations.
"""
CREATED = re.compile(
    r"((?:^--[^\n]*\n)*)^CREATE (?:OR REPLACE )?(?:UNLOGGED |CONSTRAINT )?"
    r"(TABLE|SEQUENCE|INDEX|FUNCTION|TRIGGER) (?:sio\.)?(\w+)",
    re.MULTILINE,
)

TABLES = """
    SELECT c.oid, c.relname AS name, c.relpersistence = 'u' AS unlogged, c.reloptions AS options,
           obj_description(c.oid, 'pg_class') AS comment,
           (SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid) AS parent
    FROM pg_class c WHERE c.relnamespace = 'sio'::regnamespace AND c.relkind = 'r' AND c.relname !~ 'alembic'
    ORDER BY c.oid
"""
COLUMNS = """
    SELECT quote_ident(a.attname) AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
           a.attislocal AS local, pg_get_expr(d.adbin, d.adrelid) AS value, a.attidentity <> '' AS identity,
           pg_get_serial_sequence(a.attrelid::regclass::text, a.attname) IS NOT NULL AS serial,
           CASE a.attstorage WHEN t.typstorage THEN NULL WHEN 'e' THEN 'EXTERNAL' END AS storage,
           d.adbin IS NULL AND EXISTS (
               SELECT FROM pg_inherits i JOIN pg_attrdef p ON p.adrelid = i.inhparent AND p.adnum = a.attnum
               WHERE i.inhrelid = a.attrelid) AS dropped
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
CONSTRAINTS = """
    SELECT conname AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint
    WHERE conrelid = %s AND contype IN ('p', 'u', 'c', 'f') ORDER BY contype <> 'p', oid
"""
INDEXES = """
    SELECT c.relname AS name, pg_get_indexdef(c.oid) AS definition
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = %s AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = c.oid AND conrelid = i.indrelid)
    ORDER BY c.oid
"""
SEQUENCES = """
    SELECT c.relname AS name, format_type(s.seqtypid, NULL) AS type, s.seqmin, s.seqmax, s.seqstart
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
    WHERE c.relnamespace = 'sio'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype IN ('a', 'i') AND refobjsubid > 0)
    ORDER BY c.oid
"""
FUNCTIONS = """
    SELECT proname AS name, pg_get_functiondef(oid) AS definition, obj_description(oid, 'pg_proc') AS comment,
           proacl IS NOT NULL AS revoked
    FROM pg_proc WHERE pronamespace = 'sio'::regnamespace ORDER BY oid
"""
TRIGGERS = """
    SELECT t.tgname AS name, t.tgrelid::regclass::text AS relation, pg_get_triggerdef(t.oid, true) AS definition,
           t.tgenabled = 'A' AS always
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = 'sio'::regnamespace AND NOT t.tgisinternal ORDER BY t.oid
"""


class Comments:
    """The comments in the migrations' .sql files: at the head of a file, and above a CREATE."""

    def __init__(self) -> None:
        self._above: dict[tuple[str, str], str] = {}
        self._head: dict[tuple[str, str], str] = {}
        for file in sorted((PACKAGE / "migrations" / "sql").rglob("*.sql")):
            text = file.read_text(encoding="utf-8")
            first = re.match(r"((?:--[^\n]*\n)+)\n", text)
            for above, kind, name in CREATED.findall(text):
                self._above[kind, name] = above or self._above.get((kind, name), "")
                self._head.setdefault((kind, name), first[1] if first else "")

    def above(self, kind: str, name: str) -> str:
        return self._above.get((kind, name), "")

    def head(self, kind: str, name: str) -> str:
        return self._head.get((kind, name), "")


def schema_sql(dsn: str) -> str:
    """Return the file's text for a database in which the schema "sio" is migrated."""
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        connection.execute("SET search_path = pg_catalog")  # so that all names come with their schema
        statements = "\n".join(_statements(connection, Comments()))
    return f"{HEADER}\nCREATE SCHEMA {SCHEMA};\n\n{statements}"


def _statements(connection: psycopg.Connection[Any], comments: Comments) -> Iterator[str]:
    for table in connection.execute(TABLES):
        yield comments.above("TABLE", table["name"]) + _table(connection, table)
        if table["comment"]:
            yield _comment(f"TABLE {SCHEMA}.{table['name']}", table["comment"])
        for index in connection.execute(INDEXES, [table["oid"]]):
            yield f"{comments.above('INDEX', index['name'])}{index['definition']};\n"
    for s in connection.execute(SEQUENCES):
        yield (
            f"{comments.above('SEQUENCE', s['name'])}CREATE SEQUENCE {SCHEMA}.{s['name']} AS {s['type']}"
            f" MINVALUE {s['seqmin']} MAXVALUE {s['seqmax']} START {s['seqstart']};\n"
        )
    yield from _functions(connection, comments)
    for trigger in connection.execute(TRIGGERS):
        yield f"{comments.above('TRIGGER', trigger['name'])}{trigger['definition']};\n"
        if trigger["always"]:
            yield f"ALTER TABLE {trigger['relation']} ENABLE ALWAYS TRIGGER {trigger['name']};\n"


def _functions(connection: psycopg.Connection[Any], comments: Comments) -> Iterator[str]:
    head = ""
    for function in connection.execute(FUNCTIONS):
        if head != (head := comments.head("FUNCTION", function["name"])):
            yield head
        definition = function["definition"].replace(f'"{SCHEMA}".', f"{SCHEMA}.").replace("$function$", "$$")
        definition = definition.replace("CREATE OR REPLACE", "CREATE", 1)
        yield f"{comments.above('FUNCTION', function['name'])}{definition.strip()};\n"
        if function["comment"]:
            yield _comment(f"FUNCTION {SCHEMA}.{function['name']}", function["comment"])
        if function["revoked"]:
            yield f"REVOKE ALL ON FUNCTION {SCHEMA}.{function['name']} FROM PUBLIC;\n"


def _table(connection: psycopg.Connection[Any], table: dict[str, Any]) -> str:
    columns = connection.execute(COLUMNS, [table["oid"]]).fetchall()
    constraints = connection.execute(CONSTRAINTS, [table["oid"]]).fetchall()
    lines = [_column(column) for column in columns if column["local"]]
    lines += [f"CONSTRAINT {constraint['name']} {constraint['definition']}" for constraint in constraints]
    body = "(\n" + ",\n".join(f"    {line}" for line in lines) + "\n)" if lines else "()"
    name = f"{SCHEMA}.{table['name']}"
    text = f"CREATE {'UNLOGGED ' if table['unlogged'] else ''}TABLE {name} {body}"
    if table["parent"]:
        text += f" INHERITS ({table['parent']})"
    if table["options"]:
        text += f" WITH ({', '.join(table['options'])})"
    text += ";\n"
    for column in columns:
        if column["dropped"]:
            text += f"\nALTER TABLE {name} ALTER COLUMN {column['name']} DROP DEFAULT;\n"
        if column["storage"]:
            text += f"\nALTER TABLE {name} ALTER COLUMN {column['name']} SET STORAGE {column['storage']};\n"
    return text


def _column(column: dict[str, Any]) -> str:
    if column["identity"]:
        return f"{column['name']} {column['type']} GENERATED ALWAYS AS IDENTITY"
    if column["serial"]:
        return f"{column['name']} bigserial"
    text = f"{column['name']} {column['type']}"
    if column["not_null"]:
        text += " NOT NULL"
    return text if column["value"] is None else f"{text} DEFAULT {column['value']}"


def _comment(on: str, text: str) -> str:
    quoted = text.replace("'", "''")
    lines = textwrap.wrap(quoted, 110, break_on_hyphens=False)
    return f"COMMENT ON {on} IS\n    '" + " '\n    '".join(lines) + "';\n"


def main() -> None:
    with EmbeddedPostgres() as postgres:
        upgrade(postgres.dsn(), schema=SCHEMA)
        FILE.write_text(schema_sql(postgres.dsn()), encoding="utf-8")


if __name__ == "__main__":
    main()
