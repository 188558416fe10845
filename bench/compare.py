"""What got slower between two commits: `python bench/compare.py OLD NEW`.

Both are measured by this checkout's programs, in turn, so only the package differs. A figure counts as slower if each
repeat of NEW is worse than each repeat of OLD, and as faster if each is better. The exit code is 1 if any figure got
slower.

`--only`, `--storms`, `--tuned`, `--quick` and `--tiny` are those of run.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from report import number

HERE = Path(__file__).parent
HIGHER_IS_BETTER = ("ev/s", "deliveries/s", "recovered")
ITEMS = "latency,sequential,inflight,inflight50k,fanout,recovery,storm"

Runs = dict[str, list[float]]
"""The figures of all repeats of a commit, by name."""


def commit(text: str) -> str:
    """Return the hash of a commit, for argparse."""
    command = ["git", "rev-parse", "--verify", "-q", f"{text}^{{commit}}"]
    found = subprocess.run(command, cwd=HERE, check=False, capture_output=True, text=True)
    if found.returncode:
        raise argparse.ArgumentTypeError(f"{text} is not a commit of this repository")
    return found.stdout.strip()


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check out a commit in a folder of its own, for as long as it is measured."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkout"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", folder, commit], cwd=HERE, check=True)
        try:
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=HERE, check=True)


def measure(folder: Path, options: Sequence[str]) -> dict[str, float]:
    """Run the benchmark once, with the package of a checkout."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "bench/run.py", "--repeats", "1", "--peers", "ours", "--json", file.name, *options]
        env = {**os.environ, "PYTHONPATH": str(folder)}  # before the package of this checkout
        subprocess.run(command, cwd=HERE.parent, env=env, check=True, stdout=subprocess.DEVNULL)
        return figures(json.loads(Path(file.name).read_text())["runs"])


def figures(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, float]:
    """Return the figures of one repeat of our own servers."""
    return {
        f"{item}: {figure}": value
        for item, peers in runs.items()
        for figure, value in peers["ours"][0].items()
        if value is not None
    }


def verdict(name: str, old: Sequence[float], new: Sequence[float]) -> str:
    """Return whether a figure got ``slower`` or ``faster`` beyond the spread of both, or nothing."""
    if name.endswith(HIGHER_IS_BETTER):
        old, new = [-value for value in old], [-value for value in new]
    if min(new) > max(old):
        return "slower"
    return "faster" if max(new) < min(old) else ""


def table(old: Runs, new: Runs) -> tuple[str, bool]:
    """Return the comparison as text, and whether any figure got slower."""
    rows = [["", "Old", "New", "New to old", ""], ["---"] * 5]
    slower = False
    for name in old:
        if name not in new:
            continue
        medians = statistics.median(old[name]), statistics.median(new[name])
        said = verdict(name, old[name], new[name])
        slower |= said == "slower"
        ratio = f"{medians[1] / medians[0]:.2f}" if medians[0] else ""
        rows.append([name, spread(old[name]), spread(new[name]), ratio, said])
    return "\n".join("| " + " | ".join(row).rstrip() + " |" for row in rows), slower


def spread(values: Sequence[float]) -> str:
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", type=commit, help="a commit")
    parser.add_argument("new", metavar="NEW", type=commit, help="a commit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=ITEMS)
    parser.add_argument("--storms", default="500")
    for flag in ("--tuned", "--quick", "--tiny"):
        parser.add_argument(flag, action="store_true")
    given = parser.parse_args()
    options = ["--only", given.only, *(["--storms", given.storms] if not given.tiny else [])]
    options += [f"--{flag}" for flag in ("tuned", "quick", "tiny") if getattr(given, flag)]
    runs: tuple[Runs, Runs] = {}, {}
    with checkout(given.old) as old, checkout(given.new) as new:
        for i in range(given.repeats):
            print(f"repeat {i + 1} of {given.repeats}", file=sys.stderr, flush=True)
            pair = list(zip((old, new), runs, strict=True))
            for folder, run in pair if i % 2 == 0 else reversed(pair):  # neither is always first
                for name, value in measure(folder, options).items():
                    run.setdefault(name, []).append(value)
    text, slower = table(*runs)
    print(text)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
