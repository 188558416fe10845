"""Check the models of the delicate protocols with SPIN, and their mutants.

Each model is three files: ``NAME.pml`` in Promela, ``NAME.toml`` with what it says and its mutants, and the page that
this script writes from both, ``docs/proof/NAME.md``. A mutant is the model with one mechanism taken out.

The check fails if

- SPIN finds an error in a model, or cannot search all of it,
- a mutant violates nothing, or another invariant than the one that it names,
- an invariant is violated by no mutant, so that nothing shows that it says something,
- a page in ``docs/proof`` is not the one that this run makes. ``--write`` writes it.

Usage: ``uv run python proof/check.py [MODEL ...] [--mutants] [--write]``. It needs ``spin`` and ``gcc``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "proof"

DEPTH = 50_000
"""The most steps of a run. A model that needs more is not searched in full, which fails the check."""

MEGABYTES = 2_000
"""The most memory of a search."""

SECONDS = 240
"""The longest time of a search."""

INCOMPLETE = (
    "max search depth too small",
    "reached -DMEMLIM bound",
    "out of memory",
    "VECTORSZ",
    "Search not completed",
)
"""What pan prints when it has not searched all of a model."""


NOISE = re.compile(r"\s*$|spin:|#|timeout|\d+ processes created|Never claim|-+$")
"""Lines of a replay that are not from the model."""


class CheckError(Exception):
    """The check failed. The message says how."""


@dataclass(frozen=True)
class Found:
    """The shortest run of a mutant that violates an invariant."""

    mutant: str
    invariant: str
    steps: list[str]


@dataclass(frozen=True)
class Model:
    """A model, as its two files have it."""

    name: str
    text: str
    about: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> Model:
        about = tomllib.loads((HERE / f"{name}.toml").read_text())
        return cls(name, (HERE / f"{name}.pml").read_text(), about)

    def mutated(self, mutant: dict[str, Any]) -> str:
        """Return the text of a mutant."""
        text = self.text
        for old, new in zip(texts(mutant["find"]), texts(mutant["replace"]), strict=True):
            if text.count(old) != 1:
                raise CheckError(f"{self.name}: the text that {mutant['name']} takes out is not there exactly once")
            text = text.replace(old, new)
        return text

    def check_invariants(self) -> None:
        """Check that the invariants in both files are the same, and that each has a mutant."""
        stated, listed = set(re.findall(r"\bholds\((\w+),", self.text)) - {"name"}, set(self.about["invariants"])
        if stated != listed:
            raise CheckError(f"{self.name}: the invariants of the two files differ: {sorted(stated ^ listed)}")
        if idle := listed - {mutant["violates"] for mutant in self.about["mutants"]}:
            raise CheckError(f"{self.name}: no mutant violates {', '.join(sorted(idle))}")


def texts(value: str | list[str]) -> list[str]:
    """Return one text or several, without the line breaks around them."""
    return [text.strip("\n") for text in ([value] if isinstance(value, str) else value)]


def search(name: str, text: str, *, shortest: bool) -> tuple[str, Found | None]:
    """Search all runs of a model. Return what SPIN says of the search, and the run that it found wrong.

    :param shortest: stop at the first violation, and search in breadth, so that its run is the shortest.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.pml").write_text(text)
        run(folder, "spin", "-a", f"{name}.pml")
        run(folder, "gcc", "-O1", "-DSAFETY", f"-DMEMLIM={MEGABYTES}", *(["-DBFS"] if shortest else []),
            "-o", "pan", "pan.c")  # fmt: skip
        said = run(folder, "./pan", f"-m{DEPTH}", "-w22")
        if "errors: 0" in said and any(words in said for words in INCOMPLETE):
            raise CheckError(f"{name}: SPIN did not search all of it:\n{said}")
        if not re.search(r"errors: \d", said):
            raise CheckError(f"{name}: SPIN did not come to an end:\n{said}")
        if "errors: 0" in said:
            return said, None
        return said, replay(folder, name, text)


def replay(folder: str, name: str, text: str) -> Found:
    """Return the run that a search found wrong: the invariant, and the steps, as the model prints them."""
    printed = run(folder, "spin", "-t", "-T", "-B", f"{name}.pml")
    place = re.search(r"\.pml:(\d+), Error: assertion violated", printed)
    if place is None:
        raise CheckError(f"{name}: a process stays where it may not end:\n{printed}")
    [violated] = re.findall(r"\bholds\((\w+),", text.splitlines()[int(place[1]) - 1])
    lines = [line.strip().replace("_", " ") for line in printed.splitlines() if not NOISE.match(line)]
    return Found(name, violated, lines)


def run(folder: str, *command: str) -> str:
    """Return what a program prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    if (done.returncode and command[0] != "spin") or "Error: syntax error" in done.stdout:
        raise CheckError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def check_model(model: Model) -> int:
    """Search all runs of a model. Return how many states it has."""
    said, found = search(model.name, model.text, shortest=False)
    if found is not None:
        _, found = search(model.name, model.text, shortest=True)
        assert found is not None
        raise CheckError("\n  ".join([f"{model.name} violates {found.invariant}:", *found.steps]))
    states = re.search(r"(\d+) states, stored", said)
    assert states is not None
    return int(states[1])


def check_mutant(model: Model, mutant: dict[str, Any]) -> Found:
    """Search for the shortest run in which a mutant violates its invariant."""
    _, found = search(mutant["name"], model.mutated(mutant), shortest=True)
    if found is None:
        raise CheckError(f"{model.name}: the mutant {mutant['name']} violates nothing")
    if found.invariant != mutant["violates"]:
        story = "\n  ".join(found.steps)
        raise CheckError(f"{model.name}: the mutant {mutant['name']} violates {found.invariant}, and not "
                     f"{mutant['violates']}:\n  {story}")  # fmt: skip
    return found


# -- pages --------------------------------------------------------------------------------------------------
def page(model: Model, states: int, runs: list[Found]) -> str:
    """Return the page of a model."""
    about = model.about
    lines = [
        f"<!-- Written by proof/check.py from proof/{model.name}.toml. -->",
        f"# {about['title']}",
        "",
        about["claim"].strip(),
        "",
        f"[About these pages](../proof.md). The model is `proof/{model.name}.pml`.",
        f"SPIN searches all of its {states:,} states.",
        "",
        "## Words",
        "",
        "| Word | Meaning |",
        "| --- | --- |",
        *(f"| {word} | {meaning} |" for word, meaning in about["words"].items()),
        "",
        "## What is modelled",
        "",
        about["modelled"].strip(),
        "",
        f"Sizes: {about['sizes']}",
        "",
        "Left out:",
        "",
        about["left_out"].strip(),
        "",
        "## From the model to the code",
        "",
        "| Step of the model | Code |",
        "| --- | --- |",
        *(f"| {step} | {', '.join(f'`{place}`' for place in places)} |" for step, places in about["steps"].items()),
        "",
        "## Invariants",
        "",
        "| Invariant | It says | Tests of the code | Mutants that violate it |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{name}` | {says} | {lines_of(f'`{test}`' for test in about['tests'][name])} "
            f"| {lines_of(link(mutant) for mutant in about['mutants'] if mutant['violates'] == name)} |"
            for name, says in about["invariants"].items()
        ),
        "",
        "## Mutants",
        "",
        "Each mutant is the model with one mechanism taken out. The run below it is the shortest that goes wrong.",
    ]
    for mutant, found in zip(about["mutants"], runs, strict=True):
        story, out = found.steps, mutant["takes_out"][0].lower() + mutant["takes_out"][1:]
        lines += ["", f"### {mutant['name']}", "", f"Taken out: {out}. Then `{found.invariant}` fails:", ""]
        lines += ["```text", *(f"{i:2}  {step}" for i, step in enumerate(story, 1)), "```"]
    return "\n".join([*lines, ""])


def lines_of(cells: Iterable[str]) -> str:
    """Return a cell of a table with each text in a line of its own."""
    return "<br>".join(cells)


def link(mutant: dict[str, Any]) -> str:
    """Return a link to a mutant on its page."""
    return f"[{mutant['name']}](#{mutant['name']})"


def compare(model: Model, text: str, *, write: bool) -> None:
    """Compare the page of a model with a text, or write it."""
    path = PAGES / f"{model.name}.md"
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        raise CheckError(f"{path.relative_to(HERE.parent)} is not what this run makes: add --write")


# -- all of it ----------------------------------------------------------------------------------------------
class Report:
    """What went wrong so far."""

    def __init__(self) -> None:
        self.failures = 0

    def of(self, work: Callable[[], T]) -> T | None:
        """Return what some work returns. If its check fails, print how, and return nothing."""
        try:
            return work()
        except CheckError as e:
            self.failures += 1
            print(f"FAILED {e}", flush=True)
            return None


def main() -> int:
    """Check the models that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="the models to check. Without any: all of them")
    parser.add_argument("--mutants", action="store_true", help="check the mutants only, and no page")
    parser.add_argument("--write", action="store_true", help="write the pages instead of comparing them")
    options = parser.parse_args()
    models = [Model.read(name) for name in options.models or sorted(path.stem for path in HERE.glob("*.pml"))]
    begun, report = time.monotonic(), Report()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        wholes = [None if options.mutants else pool.submit(check_model, model) for model in models]
        searches = [[pool.submit(check_mutant, model, m) for m in model.about["mutants"]] for model in models]
        for model, whole, searched in zip(models, wholes, searches, strict=True):
            report.of(model.check_invariants)
            states = None if whole is None else report.of(whole.result)
            runs = [found for each in searched if (found := report.of(each.result)) is not None]
            print(f"{model.name}: {states or '-'} states, {len(runs)} mutants, {time.monotonic() - begun:.0f} s")
            for found in runs:
                print(f"  {found.mutant} violates {found.invariant} in {len(found.steps)} steps", flush=True)
            if states is not None and len(runs) == len(searched):
                report.of(functools.partial(compare, model, page(model, states, runs), write=options.write))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
