"""Each test runs with nodes of each kind, or has a reason in tests/support/kinds.py."""

from __future__ import annotations

import re
from pathlib import Path

from support.kinds import ASYNC_ONLY, WITHOUT_NODES

MODULES = {path.stem: path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)}


def test_modules_without_nodes_are_listed():
    with_nodes = {
        name for name, text in MODULES.items() if re.search(r"def \w+\([^)]*\b(make_cluster|cluster|kind)\b", text)
    }
    assert with_nodes == MODULES.keys() - WITHOUT_NODES.keys()


def test_only_tests_of_nodes_are_excepted():
    tests = {f"{name}::{test}" for name, text in MODULES.items() for test in re.findall(r"def (test_\w+)", text)}
    assert ASYNC_ONLY.keys() <= tests
    assert not [test for test in ASYNC_ONLY if test.split("::")[0] in WITHOUT_NODES]
