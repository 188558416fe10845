"""Mutation tests: change one thing in a module, and see whether a unit test fails.

``python tests/mutation.py sio_pg_adapter.log.verdict`` prints each mutant that survives. It changes no file. The
tests are collected once. Each mutant has a fork of that process, in which the code of the functions is replaced. It
runs the tests that reach the changed line until one fails, those first that killed the most mutants.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import json
import os
import re
import resource
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeGuard

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

UNTRACED = "test_handler_threads.py"
"""Its tests raise exceptions in other threads. If the process is traced, Python 3.11 then hangs."""

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
    :ivar is_import: whether the change runs when the module is imported.
    """

    module: str
    name: str
    line: int
    lines: frozenset[int]
    is_import: bool
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


Steps = list[tuple[str, int | None]]
"""The way from a module to a node: fields, and indices of lists."""


def shifted(bound: ast.expr | None) -> Iterator[ast.expr]:
    if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):  # those are changed themselves
        yield ast.BinOp(bound, ast.Add(), ast.Constant(1))
        yield ast.BinOp(bound, ast.Sub(), ast.Constant(1))


def is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def mutants(module: str, source: str) -> list[Mutant]:  # noqa: C901 - one branch for each kind
    """Return all mutants of a module."""
    result: list[Mutant] = []
    unchanged = ast.parse(source)

    def visit(node: ast.AST, path: Steps, function: str, lines: frozenset[int], in_function: bool) -> None:  # noqa: C901
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_enum(node):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}" if function else node.name
        elif not function and is_size(node):
            return
        if isinstance(node, ast.stmt):
            lines = lines_of(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for changed in changes(node):
                tree = replaced(unchanged, path, changed)
                at = next((x.lineno for x in ast.walk(node) if hasattr(x, "lineno")), min(lines))
                name = f"{function}: {headline(node)}  ->  {headline(changed)}"
                result.append(Mutant(module, name, at, lines, not in_function, tree))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "op", "ops", "ctx"):
                continue
            inner = in_function or (is_function and field == "body")
            children = enumerate(value) if isinstance(value, list) else [(None, value)]
            for i, child in children:
                if isinstance(child, ast.AST):
                    visit(child, [*path, (field, i)], function, lines, inner)

    visit(unchanged, [], "", frozenset(), False)
    return result


def is_enum(node: ast.AST) -> TypeGuard[ast.ClassDef]:
    """Whether a class is an enumeration. Its values are those of the log and of the wire, which tests compare."""
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in node.bases)


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


def put_in_place(module: ModuleType, path: Path, tree: ast.Module) -> None:
    """Give the functions, and what else a module has, the code of a changed module. All who imported them have it."""
    fresh = ModuleType(module.__name__)
    fresh.__dict__.update({"__file__": str(path), "__package__": module.__package__, "__builtins__": __builtins__})
    enums = [node for node in tree.body if is_enum(node)]  # not made twice: their members are compared with `is`
    fresh.__dict__.update({node.name: vars(module)[node.name] for node in enums})
    rest = ast.Module([node for node in tree.body if node not in enums], tree.type_ignores)
    exec(compile(rest, path, "exec"), fresh.__dict__)
    for name, new in vars(fresh).items():
        if name.startswith("__") or merged(old := vars(module).get(name), new):
            continue
        for other in list(sys.modules.values()):
            if vars(other).get(name) is old:
                setattr(other, name, new)


def merged(old: Any, new: Any) -> bool:
    """Give an object the code of another one. Return whether it has code, or is equal."""
    if isinstance(old, type) and isinstance(new, type):
        for name, value in vars(new).items():
            if not name.startswith("__") or isinstance(value, FunctionType):
                former = vars(old).get(name)
                if not merged(former, value) and isinstance(former, int | str | float | tuple):
                    setattr(old, name, value)
        return True
    if isinstance(old, property):
        return all(merged(getattr(old, name), getattr(new, name)) for name in ("fget", "fset"))
    if isinstance(old, classmethod | staticmethod):
        return merged(old.__func__, new.__func__)
    if hasattr(old, "__wrapped__"):
        return merged(old.__wrapped__, new.__wrapped__)
    if isinstance(old, FunctionType):
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
        return True
    return bool(old == new) or not isinstance(old, int | str | float | tuple | dict | frozenset | re.Pattern)


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


def forked(work: Callable[[], int], cpu_seconds: int = CPU_SECONDS) -> int:
    """Start work in a fork of this process, and return its id. Its output goes nowhere."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = FAULT
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nowhere, fd)
        code = work()
    finally:
        os._exit(code)


def file_of(module: str) -> Path:
    path = Path(*module.split(".")).with_suffix(".py").absolute()
    if not path.is_file():
        sys.exit(f"{module} is not a module below {Path.cwd()}.")
    return path


def equivalent_mutants() -> dict[str, dict[str, str]]:
    return tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))


class Mutation:
    """A pytest plugin that runs the collected tests once for each mutant.

    :ivar slots: as many as mutants run at a time. Each mutant has one of them to itself.
    :ivar seconds: how long each test takes.
    :ivar unexplained: how many mutants survived that are not listed as equivalent, or are listed and were killed.
    """

    test_seconds = 120
    """A test that takes longer fails."""

    def __init__(self, slots: Sequence[str], limit: float) -> None:
        self.slots, self.limit = slots, limit
        self.seconds: dict[str, float] = {}
        self.unexplained = 0

    # -- what the subclasses have ------------------------------------------------------------------------
    def wants(self, item: pytest.Item) -> bool:
        """Whether a test may see a mutant."""
        raise NotImplementedError

    def trace(self) -> None:
        """Run all tests once. Note how long each takes, and what it reaches."""
        raise NotImplementedError

    def subjects(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Yield the name and the mutants of each module or function."""
        raise NotImplementedError

    def prepare(self, mutant: Any, slot: str) -> Callable[[], None] | None:
        """Return what the fork does before the tests. ``None`` if there can be no such mutant."""
        raise NotImplementedError

    def reaching(self, mutant: Any) -> set[str]:
        """Return the tests that reach a mutant."""
        raise NotImplementedError

    # -- hooks -------------------------------------------------------------------------------------------
    def pytest_sessionstart(self) -> None:
        no_shrinking = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutation", hypothesis.settings(), phases=no_shrinking)
        hypothesis.settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self.wants(item)]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            sys.exit("the tests cannot be collected")
        self.session, self.items = session, {item.nodeid: item for item in session.items}
        self.trace()
        for name, made in self.subjects():
            self.mutate(name, made)
        return True

    # -- runs --------------------------------------------------------------------------------------------
    def run(self, tests: Sequence[str]) -> int:
        """Run tests in this process until one fails, and note that one. Return the exit code."""
        items = [self.items[test] for test in tests]
        for item, later in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=later)
            if self.session.testsfailed:
                note_failure(item.nodeid)
                return 1
        return 0

    def tests_of(self, mutant: Any, kills: Mapping[str, int]) -> list[str]:
        """Return the tests of a mutant, as many as there is time for."""
        total, result = 0.0, []
        for test in deadliest_first(self.reaching(mutant), kills, self.seconds):
            total += self.seconds[test]
            if total <= self.limit:
                result.append(test)
        return result

    def mutate(self, name: str, made: Sequence[Any]) -> None:
        """Run the tests of each mutant, and print the survivors."""
        begun, kills = time.monotonic(), Counter[str]()
        waiting, free, running = list(made), list(self.slots), dict[int, tuple[Any, str]]()
        dead, survivors = 0, []
        while waiting or running:
            if waiting and free:
                mutant = waiting.pop(0)
                if not (tests := self.tests_of(mutant, kills)):
                    survivors.append(mutant)
                elif prepare := self.prepare(mutant, free[-1]):
                    work = functools.partial(self.run_mutant, prepare, tests)
                    running[forked(work)] = mutant, free.pop()
                continue
            pid, status = os.wait()
            mutant, slot = running.pop(pid)
            free.append(slot)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FAULT:
                sys.exit(f"the tests of a mutant did not run: {mutant.name}")
            kills.update(failures(pid))
            dead += status != 0
            if not status:
                survivors.append(mutant)
        self.report(name, dead, survivors, time.monotonic() - begun)

    def run_mutant(self, prepare: Callable[[], None], tests: Sequence[str]) -> int:
        try:
            prepare()
        except Exception:  # noqa: BLE001 - the changed module cannot be loaded
            return 1
        return self.run(tests)

    def report(self, name: str, dead: int, survivors: Sequence[Any], seconds: float) -> None:
        explained = equivalent_mutants().get(name, {})
        names = {mutant.name for mutant in survivors}
        equivalent = sum(mutant.name in explained for mutant in survivors)
        unreached = 0
        for mutant in survivors:
            if mutant.name not in explained:
                is_reached = bool(self.reaching(mutant))
                unreached += not is_reached
                note = "" if is_reached else "  (no test reaches it)"
                print(f"{name}:{mutant.line} {mutant.name}{note}", flush=True)
        stale = explained.keys() - names
        for mutant_name in stale:
            print(f"no survivor, but listed as equivalent: {mutant_name}")
        self.unexplained += len(survivors) - equivalent + len(stale)
        print(
            f"{name}: {dead + len(survivors)} mutants, {dead} killed, {len(survivors) - equivalent - unreached} "
            f"survivors, {unreached} not reached, {equivalent} equivalent, {seconds:.0f} s",
            flush=True,
        )

    def main(self, tests: Sequence[str]) -> int:
        quiet = ["-s", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
        quiet += ["-o", f"timeout={self.test_seconds}"]
        code = pytest.main([*quiet, *OPTIONS, "-m", "not soak and not field", *tests], plugins=[self])
        return 1 if self.unexplained or code not in (0, pytest.ExitCode.NO_TESTS_COLLECTED) else 0


class ModuleMutation(Mutation):
    """The mutants of modules of Python."""

    test_seconds = 30

    def __init__(self, files: dict[str, Path], slots: Sequence[str], limit: float) -> None:
        super().__init__(slots, limit)
        self.files = files
        self.lines: dict[str, dict[str, list[str]]] = {}

    def wants(self, item: pytest.Item) -> bool:
        return "pg_server" not in getattr(item, "fixturenames", ()) and item.path.name != UNTRACED

    def trace(self) -> None:
        reader, writer = os.pipe()

        def work() -> int:
            cov = coverage.Coverage(data_file=None, include=[str(x) for x in self.files.values()], config_file=False)
            cov.start()
            for test in self.items:
                cov.switch_context(test)
                begun = time.monotonic()
                if self.run([test]):
                    return 1
                self.seconds[test] = time.monotonic() - begun
            cov.stop()
            data = cov.get_data()
            lines = {module: data.contexts_by_lineno(str(path)) for module, path in self.files.items()}
            with os.fdopen(writer, "w") as out:
                json.dump([self.seconds, lines], out)
            return 0

        pid = forked(work, 10 * CPU_SECONDS)
        os.close(writer)
        with os.fdopen(reader) as traced:
            text = traced.read()
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"the tests fail without a mutant: {failures(pid)}")
        self.seconds, self.lines = json.loads(text)

    def subjects(self) -> Iterator[tuple[str, list[Mutant]]]:
        for module, path in self.files.items():
            source = path.read_text(encoding="utf-8")
            self.check_unchanged(module, source)
            yield module, mutants(module, source)

    def check_unchanged(self, module: str, source: str) -> None:
        """Check that the tests pass if the code of a module is replaced by itself."""
        everything = frozenset(int(line) for line in self.lines[module])
        unchanged = Mutant(module, "nothing", 1, everything, False, ast.parse(source))
        tests = self.tests_of(unchanged, Counter())
        pid = forked(functools.partial(self.run_mutant, self.prepare(unchanged, ""), tests))
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"the tests of {module} fail if its code is replaced by itself: {failures(pid)}")

    def prepare(self, mutant: Mutant, slot: str) -> Callable[[], None]:
        return lambda: put_in_place(sys.modules[mutant.module], self.files[mutant.module], mutant.tree)

    def reaching(self, mutant: Mutant) -> set[str]:
        """Return the tests that reach the change.

        If it runs at import, these are all tests in the files that reach the module, as the methods of a dataclass
        have no lines.
        """
        lines = self.lines[mutant.module]
        if mutant.is_import:
            files = {test.partition("::")[0] for tests in lines.values() for test in tests if test}
            return {test for test in self.seconds if test.partition("::")[0] in files}
        return {test for line in mutant.lines for test in lines.get(str(line), ()) if test}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="such as sio_pg_adapter.log.verdict")
    parser.add_argument("--tests", nargs="+", default=["tests/unit"], help="files or folders of tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants that run at a time")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the tests of one mutant may take")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    files = {module: file_of(module) for module in options.modules}
    return ModuleMutation(files, [str(i) for i in range(options.jobs)], options.seconds).main(options.tests)


if __name__ == "__main__":
    sys.exit(main())
