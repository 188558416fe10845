"""``tests/mutation.py`` reports the mutants that the tests of a module let live, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/mutation.py"
PAGE = (ROOT / "docs/proof.md").read_text()

MODULE = """
from dataclasses import dataclass
from enum import Enum

class Color(Enum):
    RED = 1

def older(age, limit):
    return age > limit

def untested(age):
    return age

class Crate:
    def limit(self, most=2):
        return most

@dataclass
class Box:
    size: int = 3

def is_red(color=Color.RED):
    return color is Color.RED
"""

TESTS = """
from planted import Box, Crate, is_red, older

def test_older():
    assert older(3, 2) and not older(1, 2)

def test_crate():
    assert Crate().limit() == 2

def test_box():
    assert Box().size == 3

def test_is_red():
    assert is_red() is True and is_red(None) is False
"""

REPORT = """\
planted:9 older: age > limit  ->  age >= limit
planted:12 untested: return age  ->  return None  (no test reaches it)
planted: 11 mutants, 9 killed, 1 survivors, 1 not reached, 0 equivalent, """


def test_a_planted_survivor_is_reported(tmp_path):
    (tmp_path / "planted.py").write_text(MODULE)
    (tmp_path / "test_planted.py").write_text(TESTS)
    command = [sys.executable, SCRIPT, "planted", "--tests", "test_planted.py", "--jobs", "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert run.stdout.startswith(REPORT)


def test_the_page_on_proof_accounts_for_each_module_of_the_core():
    """A module of types has nothing to change."""
    rows = re.findall(r"^\| `(sio_pg_adapter\.\w+\.\w+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    modules = [path for each in ("log", "local") for path in (ROOT / "sio_pg_adapter" / each).glob("*.py")]
    assert {name for name, *_ in rows} == {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in modules
        if path.stem not in ("__init__", "protocols")
    }
    for name, *numbers in rows:
        mutants, *outcomes = map(int, numbers)
        assert mutants == sum(outcomes), name
