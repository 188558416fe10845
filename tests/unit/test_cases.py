"""The numbers in the names of tests agree with the rows of tests/CASES.md."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)
NAME = re.compile(r"def (test_cases?_\w+)")
NUMBERS = re.compile(r"test_(?:case_([1-9]\d*)|cases((?:_[1-9]\d*){2,}))_[a-z]")


def rows() -> list[int]:
    return [int(number) for number in ROW.findall((TESTS / "CASES.md").read_text(encoding="utf-8"))]


def names() -> list[str]:
    files = sorted(TESTS.glob("*/test_*.py"))
    return [name for file in files for name in NAME.findall(file.read_text(encoding="utf-8"))]


def numbers(name: str) -> set[int]:
    """Return the numbers of a name: `test_case_1_x` has one, `test_cases_1_2_x` has several."""
    match = NUMBERS.match(name)
    assert match, f"{name} is neither test_case_N_words nor test_cases_N_M_words"
    return {int(number) for number in re.findall(r"\d+", match[1] or match[2])}


def test_rows_are_in_order_and_unique():
    assert rows() == sorted(set(rows()))


def test_each_number_of_a_name_has_a_row():
    assert {name: strays for name in names() if (strays := numbers(name) - set(rows()))} == {}


def test_each_row_has_a_test():
    assert set(rows()) - set().union(*map(numbers, names())) == set()
