"""The statements' file: each has a name and a sentence, and nothing else runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sio_pg_adapter
from sio_pg_adapter.errors import ConfigurationError
from sio_pg_adapter.schema_names import quoted
from sio_pg_adapter.store.queries import Queries

PACKAGE = Path(sio_pg_adapter.__file__).parent
TEXT = (PACKAGE / "store/queries.sql").read_text(encoding="utf-8")
NAMES = re.findall(r"^-- name: (.*)$", TEXT, re.MULTILINE)
SQL = re.compile(r"\b(SELECT\s.+\sFROM|INSERT INTO|UPDATE \S+ SET|DELETE FROM|LOCK TABLE|pg_notify\()", re.DOTALL)


def test_every_name_is_one_query():
    assert len(NAMES) == len(set(NAMES)) == len(list(Queries("public")))
    assert all(Queries("public")[name] for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_query_has_a_sentence(name):
    comment = re.search(rf"^-- name: {name}\n((?:-- .*\n)+)", TEXT, re.MULTILINE)
    assert comment, f"{name} has no sentence"
    sentence = comment[1].replace("\n-- ", " ").removeprefix("-- ").strip()
    assert re.match(r"[A-Z].*[.?]$", sentence, re.DOTALL), sentence


def test_every_query_is_used_somewhere():
    code = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert [name for name in NAMES if f'"{name}"' not in code] == []


def test_no_other_statement_is_in_the_code_of_the_rooms():
    """One file holds the DML: no f-string, no literal. Session settings and pg_stat are none of it."""
    rooms = [
        path
        for path in PACKAGE.rglob("*.py")
        if not {"migrate", "embedded", "schema", "emitter", "migrations", "cli", "demo", "django"}
        & {*path.parts, path.stem}
    ]
    found = []
    for path in rooms:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found += [f"{path.name}:{node.lineno}" for _ in SQL.findall(node.value)]
    assert found == []


def test_case_98_the_schema_is_an_identifier():
    schema = '"; DROP TABLE x; -- \\1 sio.'
    statement = Queries(schema)["epochs"]
    assert '"""; DROP TABLE x; -- \\1 sio.".sio_epochs' in statement
    assert quoted('a"b') == '"a""b"'


@pytest.mark.parametrize("schema", ["", "x" * 64, "a\0"])
def test_a_schema_that_postgresql_takes_no_name_of_is_refused(schema):
    with pytest.raises(ConfigurationError):
        Queries(schema)


def test_every_statement_has_a_time_limit():
    """The connections of an application's pool may have none of their own, and a silent server never answers."""
    calls = (
        (path.name, call)
        for path in (PACKAGE / "store").glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
    )
    statements = [
        (f"{name}:{call.lineno}", {keyword.arg for keyword in call.keywords})
        for name, call in calls
        if call.func.attr in {"execute", "fetch", "fetchrow", "fetchval"}
        and ast.unparse(call.func.value).lower().endswith("connection")
    ]
    assert len(statements) > 20
    assert [place for place, options in statements if "timeout" not in options] == []
