"""The table of the field kit in CONTRIBUTING.md names tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_mechanism_of_the_table_has_a_test_in_the_kit():
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("### Its mechanisms")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    defined = {
        node.name
        for path in (ROOT / "tests/field").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AsyncFunctionDef)
    }
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)", row)
        assert named and defined.issuperset(named), row
