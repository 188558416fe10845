"""The models in proof/ name functions and tests that exist. ``proof/check.py`` checks the models themselves."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = sorted((ROOT / "proof").glob("*.pml"))
SQL = re.compile(r"^CREATE FUNCTION sio\.(\w+)\(", re.MULTILINE)
QUERY = re.compile(r"^-- name: (\w+)$", re.MULTILINE)

pytestmark = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.stem)


def about(model):
    return tomllib.loads(model.with_suffix(".toml").read_text(encoding="utf-8"))


def names(path):
    """Return the functions, methods and classes of a module, as the models write them."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            functions = [x for x in node.body if isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{function.name}" for function in functions}
    return found


def exists(place):
    package = ROOT / "sio_pg_adapter"
    if place.endswith("()"):
        return place[:-2] in SQL.findall((package / "store/schema.sql").read_text(encoding="utf-8"))
    path, _, name = place.partition(" ")
    if path == "store/queries.sql":
        return name in QUERY.findall((package / path).read_text(encoding="utf-8"))
    return (package / path).is_file() and name in names(package / path)


def is_test(name):
    path, _, function = name.partition("::")
    return (ROOT / path).is_file() and function.startswith("test_") and function in names(ROOT / path)


def test_the_steps_of_a_model_name_code_that_exists(model):
    places = [place for places in about(model)["steps"].values() for place in places]
    assert [place for place in places if not exists(place)] == []


def test_a_model_names_tests_of_each_invariant_that_exist(model):
    tests = about(model)["tests"]
    assert set(tests) == set(about(model)["invariants"])
    assert all(tests.values())
    assert [test for of_one in tests.values() for test in of_one if not is_test(test)] == []


def test_a_model_has_a_page_that_others_lead_to(model):
    page = f"proof/{model.stem}.md"
    assert (ROOT / "docs" / page).is_file()
    assert f"]({page})" in (ROOT / "docs/proof.md").read_text(encoding="utf-8")
    assert page in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_each_invariant_of_a_model_has_a_mutant_that_violates_it(model):
    stated = set(re.findall(r"\bholds\((\w+),", model.read_text(encoding="utf-8"))) - {"name"}
    violated = {mutant["violates"] for mutant in about(model)["mutants"]}
    assert stated == set(about(model)["invariants"]) == violated
