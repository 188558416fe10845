"""``tests/mutation.py`` reports the mutants that the tests of a module let live, and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "mutation.py"

MODULE = """
def older(age, limit):
    return age > limit

def untested(age):
    return age

class Crate:
    def limit(self, most=2):
        return most
"""

TESTS = """
from planted import Crate, older

def test_older():
    assert older(3, 2) and not older(1, 2)

def test_crate():
    assert Crate().limit() == 2
"""

REPORT = """\
planted:3 older: age > limit  ->  age >= limit
planted:6 untested: return age  ->  return None  (no test reaches it)
planted: 7 mutants, 5 killed, 1 survivors, 1 not reached, 0 equivalent, """


def test_a_planted_survivor_is_reported(tmp_path):
    (tmp_path / "planted.py").write_text(MODULE)
    (tmp_path / "test_planted.py").write_text(TESTS)
    command = [sys.executable, SCRIPT, "planted", "--tests", "test_planted.py", "--jobs", "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert run.stdout.startswith(REPORT)
