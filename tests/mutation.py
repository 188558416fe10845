"""Mutation tests: change one thing in a module, and see whether a unit test fails.

``python tests/mutation.py sio_pg_adapter.log.verdict`` prints each mutant that survives. It changes no file. A
mutant is compiled in memory, in a fork of a process that has loaded pytest and the dependencies. The fork runs the
tests that reach the changed line.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.util
import json
import os
import resource
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import coverage
import hypothesis
import pytest

FAULT = 70
"""The exit code of a fork in which not a test, but this script failed."""

CPU_SECONDS = 60
"""A mutant that takes more has an endless loop, and so is killed."""

FAILURES = tempfile.TemporaryDirectory()
"""Has a file for each fork in which a test failed, with that test."""

MEMORY = 8 * 1024**3

EQUIVALENT = Path(__file__).parent / "equivalent_mutants.toml"
"""The mutants that no test can kill, by module, and why."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
CALLS = {"max": "min", "min": "max", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed copy of a module.

    :ivar name: the function, and the change.
    :ivar line: the line of the change.
    :ivar lines: the lines whose tests may see it.
    """

    name: str
    line: int
    lines: frozenset[int]
    tree: ast.Module


def changes(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901, PLR0912 - a list of cases
    """Yield what an expression or a statement is replaced with, one after another."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for i, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:i], other(), *ops[i + 1 :]], comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Slice(lower=lower, upper=upper, step=step):
            yield from (ast.Slice(x, upper, step) for x in shifted(lower))
            yield from (ast.Slice(lower, x, step) for x in shifted(upper))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in CALLS:
            yield ast.Call(ast.Name(CALLS[name], ast.Load()), args, keywords)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.If(test=test, body=body, orelse=orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.While(test=test, body=body, orelse=orelse) if not isinstance(test, ast.Constant):
            yield ast.While(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.comprehension(target=target, iter=iterable, ifs=ifs, is_async=is_async) if ifs:
            yield ast.comprehension(target, iterable, [], is_async)
        case ast.Return(value=value) if value is not None and not is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=value) if not isinstance(value, ast.Constant | ast.Yield | ast.YieldFrom):
            yield ast.Pass()
        case ast.Raise() | ast.Continue() | ast.Break() | ast.AugAssign() | ast.Delete():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() | ast.Tuple()]):
            yield ast.Pass()


def shifted(bound: ast.expr | None) -> Iterator[ast.expr]:
    if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):  # those are changed themselves
        yield ast.BinOp(bound, ast.Add(), ast.Constant(1))
        yield ast.BinOp(bound, ast.Sub(), ast.Constant(1))


def is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def mutants(source: str) -> list[Mutant]:  # noqa: C901 - one branch for each kind
    """Return all mutants of a module."""
    result: list[Mutant] = []
    unchanged = ast.parse(source)

    def visit(node: ast.AST, path: list[tuple[str, int | None]], function: str, lines: frozenset[int]) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}" if function else node.name
        elif not function and is_size(node):
            return
        elif isinstance(node, ast.stmt):
            lines = lines_of(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for changed in changes(node):
                tree = replaced(unchanged, path, changed)
                at = next((x.lineno for x in ast.walk(node) if hasattr(x, "lineno")), min(lines))
                result.append(Mutant(f"{function}: {headline(node)}  ->  {headline(changed)}", at, lines, tree))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "op", "ops", "ctx"):
                continue
            children = enumerate(value) if isinstance(value, list) else [(None, value)]
            for i, child in children:
                if isinstance(child, ast.AST):
                    visit(child, [*path, (field, i)], function, lines)

    visit(unchanged, [], "", frozenset())
    return result


def is_size(node: ast.AST) -> bool:
    """Whether a statement sets a constant such as ``PAGE = 500``. Another number serves, as tests read it by name."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return False
    return node.targets[0].id.isupper() and not node.targets[0].id.startswith("_")


def lines_of(statement: ast.stmt) -> frozenset[int]:
    """Return the lines of a statement, without those of the statements in it."""
    end = statement.end_lineno or statement.lineno
    if isinstance(body := getattr(statement, "body", None), list):
        end = max(statement.lineno, body[0].lineno - 1)
    return frozenset(range(statement.lineno, end + 1))


def headline(node: ast.AST) -> str:
    """Return the first line of a node as text."""
    if isinstance(node, ast.comprehension):
        return f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}" + "".join(
            f" if {ast.unparse(x)}" for x in node.ifs
        )
    return ast.unparse(node).partition("\n")[0]


def replaced(tree: ast.Module, path: Sequence[tuple[str, int | None]], changed: ast.AST) -> ast.Module:
    """Return a copy of a tree with another node at the end of a path."""
    node: Any = (tree := copy.deepcopy(tree))
    for field, i in path[:-1]:
        node = getattr(node, field) if i is None else getattr(node, field)[i]
    field, i = path[-1]
    old = getattr(node, field) if i is None else getattr(node, field)[i]
    changed = copy.deepcopy(changed)
    if hasattr(old, "lineno"):
        ast.copy_location(changed, old)
    if i is None:
        setattr(node, field, changed)
    else:
        getattr(node, field)[i] = changed
    return ast.fix_missing_locations(tree)


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a tree."""

    def __init__(self, module: str, path: Path, tree: ast.Module) -> None:
        self.module, self.path, self.tree = module, path, tree

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, self.path, "exec"), module.__dict__)


def search_without_shrinking() -> None:
    no_shrinking = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutation", hypothesis.settings(), phases=no_shrinking)
    hypothesis.settings.load_profile("mutation")


class Chosen:
    """A pytest plugin: run these tests, in this order, and look for examples without making them smaller."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {test: i for i, test in enumerate(tests)}

    def pytest_sessionstart(self) -> None:
        search_without_shrinking()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((x for x in items if x.nodeid in self.order), key=lambda x: self.order[x.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            note_failure(report.nodeid)


class Traced:
    """A pytest plugin: note how long each test takes, and run none that needs a database."""

    def __init__(self, cov: coverage.Coverage) -> None:
        self.cov = cov
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "pg_server" not in getattr(item, "fixturenames", ())]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.cov.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def run_pytest(paths: Sequence[str], plugin: object) -> int:
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-o", "timeout=30"]
    return int(pytest.main([*quiet, *OPTIONS, *paths], plugins=[plugin]))


def run_tests(tests: Sequence[str]) -> int:
    """Run tests until one fails. Return the exit code, 0 if there are none."""
    return run_pytest(list(dict.fromkeys(test.partition("::")[0] for test in tests)), Chosen(tests)) if tests else 0


OPTIONS = ["-p", "no:anyio", "--import-mode=importlib", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def note_failure(test: str) -> None:
    """Write which test failed in this process, for :func:`failures`."""
    with (Path(FAILURES.name) / str(os.getpid())).open("a") as file:
        file.write(f"{test}\n")


def failures(pid: int) -> list[str]:
    """Return the tests that failed in a fork."""
    file = Path(FAILURES.name) / str(pid)
    return list(dict.fromkeys(file.read_text().splitlines())) if file.exists() else []


def deadliest_first(tests: Iterable[str], kills: Mapping[str, int], seconds: Mapping[str, float]) -> list[str]:
    """Return tests in the order in which they run: those that kill the most mutants in a second, then the fastest."""
    return sorted(tests, key=lambda test: (-kills[test] / (seconds[test] + 0.1), seconds[test]))


def forked(work: Callable[[], int]) -> int:
    """Start work in a fork of this process, and return its id. Its output goes nowhere."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = FAULT
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nowhere, fd)
        code = work()
    finally:
        os._exit(code)


def trace(files: dict[str, Path], tests: Sequence[str]) -> dict[str, Any]:
    """Run all tests once. Return the tests of each line, the seconds of each test, and the loaded modules."""
    reader, writer = os.pipe()

    def work() -> int:
        cov = coverage.Coverage(data_file=None, include=[str(path) for path in files.values()], config_file=False)
        traced = Traced(cov)
        cov.start()
        code = run_pytest(tests, traced)
        cov.stop()
        data = cov.get_data()
        lines = {module: data.contexts_by_lineno(str(path)) for module, path in files.items()}
        loaded = [name for name, module in sys.modules.items() if foreign(module)]
        result = {"lines": lines, "seconds": traced.seconds, "failed": traced.failed, "loaded": loaded, "code": code}
        with os.fdopen(writer, "w") as out:
            json.dump(result, out)
        return code

    pid = forked(work)
    os.close(writer)
    with os.fdopen(reader) as found:
        text = found.read()
    os.waitpid(pid, 0)
    result: dict[str, Any] = json.loads(text or f'{{"code": {FAULT}, "failed": []}}')
    if result["code"]:
        sys.exit(f"the tests fail without a mutant: pytest exits with {result['code']}, {result['failed']}")
    return result


def foreign(module: ModuleType) -> bool:
    """Whether a module is neither ours nor a test."""
    path = getattr(module, "__file__", None)
    return path is not None and (not Path(path).is_relative_to(Path.cwd()) or "site-packages" in path)


def file_of(module: str) -> Path:
    path = Path(*module.split(".")).with_suffix(".py").absolute()
    if not path.is_file():
        sys.exit(f"{module} is not a module below {Path.cwd()}.")
    return path


def tests_of(mutant: Mutant, traced: dict[str, Any], module: str) -> set[str]:
    """Return the tests that reach the change. If it runs at import: all that reach the module."""
    lines: dict[str, list[str]] = traced["lines"][module]
    tests = set().union(*(set(lines.get(str(line), ())) for line in mutant.lines))
    if "" in tests:
        tests = {test for tests in lines.values() for test in tests}
    return tests - {""}


def equivalent_mutants() -> dict[str, dict[str, str]]:
    return tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))


def own_file(module: str) -> str:
    return f"test_{module.rpartition('.')[2]}.py::"


def killed(module: str, path: Path, made: Sequence[Mutant], traced: dict[str, Any], jobs: int) -> Iterator[Mutant]:
    """Run the tests of each mutant. Yield those that fail."""
    running: dict[int, Mutant] = {}
    waiting, kills = list(made), Counter[str]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            tests = deadliest_first(tests_of(mutant, traced, module), kills, traced["seconds"])

            def work(mutant: Mutant = mutant, tests: list[str] = tests) -> int:
                sys.meta_path.insert(0, Loader(module, path, mutant.tree))
                own = [test for test in tests if own_file(module) in test]
                return run_tests(own) or run_tests([test for test in tests if test not in own])

            if tests:
                running[forked(work)] = mutant
        if running:
            pid, status = os.wait()
            mutant = running.pop(pid)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) in (FAULT, pytest.ExitCode.NO_TESTS_COLLECTED):
                sys.exit(f"the tests of a mutant did not run: {mutant.name}")
            kills.update(failures(pid))
            if status:
                yield mutant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="such as sio_pg_adapter.log.verdict")
    parser.add_argument("--tests", nargs="+", default=["tests/unit"], help="files or folders of tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants that run at a time")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    files = {module: file_of(module) for module in options.modules}
    traced = trace(files, options.tests)
    for name in traced["loaded"]:  # so that no mutant has to load them
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    unexplained = 0
    for module, path in files.items():
        begun = time.monotonic()
        made = mutants(path.read_text(encoding="utf-8"))
        dead = {id(x) for x in killed(module, path, made, traced, options.jobs)}
        survivors = [x for x in made if id(x) not in dead]
        explained = equivalent_mutants().get(module, {})
        equivalent = [x for x in survivors if x.name in explained]
        for mutant in survivors:
            if mutant not in equivalent:
                reached = "" if tests_of(mutant, traced, module) else "  (no test reaches it)"
                print(f"{module}:{mutant.line} {mutant.name}{reached}", flush=True)
        for name in explained.keys() - {x.name for x in survivors}:
            print(f"no survivor, but listed as equivalent: {name}")
            unexplained += 1
        unexplained += len(survivors) - len(equivalent)
        print(
            f"{module}: {len(made)} mutants, {len(dead)} killed, {len(survivors) - len(equivalent)} survivors, "
            f"{len(equivalent)} equivalent, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
