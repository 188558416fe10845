"""The published figures are those that were measured, and bench/compare.py says what got slower."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tables(text):
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def test_the_tables_are_made_of_the_figures_that_were_measured():
    files = sorted((ROOT / "bench" / "figures").glob("*.json"))
    made = subprocess.check_output([sys.executable, "bench/report.py", *files], cwd=ROOT, text=True)
    *pages, targets, _ = tables(made)
    assert pages == tables((ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8"))
    assert targets == tables((ROOT / "bench" / "REPORT.md").read_text(encoding="utf-8"))[0]


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("compare")


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("latency: p50 ms", [1.0, 1.2], [1.3, 1.5], "slower"),
        ("latency: p50 ms", [1.0, 1.3], [1.3, 1.5], ""),
        ("latency: p50 ms", [1.3, 1.5], [1.0, 1.2], "faster"),
        ("inflight: arrived ev/s", [100, 120], [80, 90], "slower"),
        ("inflight: arrived ev/s", [80, 90], [100, 120], "faster"),
        ("inflight: arrived ev/s", [80, 100], [90, 120], ""),
        ("fanout: deliveries/s", [100], [80], "slower"),
        ("storm: 500 recovered", [500, 500], [499, 498], "slower"),
        ("storm: 500 lost", [0, 0], [0, 0], ""),
        ("storm: 500 lost", [0, 0], [1, 2], "slower"),
    ],
)
def test_a_figure_is_slower_if_it_is_worse_beyond_the_spread_of_both(compare, name, old, new, said):
    assert compare.verdict(name, old, new) == said


def test_only_what_got_slower_fails(compare):
    old, new = {"latency: p50 ms": [1.0, 1.2]}, {"latency: p50 ms": [2.0, 2.4]}
    text, slower = compare.table(old, new)
    assert text.splitlines()[-1] == "| latency: p50 ms | 1.10 (1 to 1.20) | 2.20 (2 to 2.40) | 2.00 | slower |"
    assert slower
    assert not compare.table(new, old)[1]
