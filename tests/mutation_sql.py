"""Mutation tests of the database's functions: change one thing in a function, and see whether a test fails.

``python tests/mutation_sql.py sio_claim sio_due`` prints each mutant that survives. It changes no file. A mutant
replaces the function in the template of the tests' databases. The tests are collected once, and run in a fork for
each mutant. A first run notes which tests reach which statement.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from mutation import CPU_SECONDS, Mutation, failures, forked
from sio_pg_adapter.embedded import EmbeddedPostgres
from sio_pg_adapter.migrate import statements
from sio_pg_adapter.schema_names import in_schema
from support.roles import OWNER

SQL = Path(__file__).parents[1] / "migrations" / "sql" / "0001"

TESTS = [
    *(
        "appends",
        "bounds",
        "claims",
        "ends",
        "epochs",
        "expiry",
        "expiry_functions",
        "fitness",
        "floors",
        "joins",
        "keys",
        "log",
        "losses",
        "members_model",
    ),
    *(
        "plans",
        "poison",
        "positions",
        "properties_sql",
        "pruner",
        "relay",
        "relay_functions",
        "replay",
        "rooms",
        "rooms_of_the_log",
    ),
    *("scans", "seam", "segments", "session_blocks", "sessions", "since", "skip_rooms", "strays", "transactions"),
    *(
        "emit_functions",
        "outbox_functions",
        "room_changes",
        "room_functions",
        "transactions_rooms",
        "transactions_sql",
    ),
]
"""The modules of tests/integration that run by default: those about what the functions do."""

TOKEN = re.compile(
    r"""--[^\n]*|\s+|'(?:[^']|'')*'|"[^"]*"|\d+(?:\.\d+)?|\w+|::|:=|=>|->>|->|<=|>=|<>|\|\||>>|\$\$|.""", re.DOTALL
)
SWAPPED = {
    "<": ["<=", ">="],
    "<=": ["<", ">"],
    ">": [">=", "<="],
    ">=": [">", "<"],
    "=": ["<>"],
    "<>": ["="],
    "+": ["-"],
    "-": ["+"],
    "AND": ["OR"],
    "OR": ["AND"],
    "ANY": ["ALL"],
    "ALL": ["ANY"],
    "true": ["false"],
    "false": ["true"],
    "greatest": ["least"],
    "least": ["greatest"],
    "max": ["min"],
    "min": ["max"],
    "bool_and": ["bool_or"],
}
CLAUSES = {"ORDER", "LIMIT", "OFFSET", "HAVING", "FILTER", "FOR", "SKIP", "NOWAIT", "DESC", "DISTINCT", "UNION", "ON"}
"""Words at which a clause begins that may be left out."""

ENDS = {
    *("AND", "OR", "THEN", "ELSE", "END", "WHEN", "ORDER", "GROUP", "HAVING", "LIMIT", "OFFSET", "RETURNING"),
    *("UNION", "LOOP", "WINDOW", "INTO", "WHERE", "IF", "ELSIF", "ON", "RETURN", "SELECT", "USING", "JOIN", "LEFT"),
    *("CROSS", "AS", "FOR", "DESC", "ROWS", "FROM", "SET", "BY", ",", ";", ":=", "$$"),
}
"""What an expression, or a clause, ends at."""


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed function.

    :ivar name: the text of the line, and the change.
    :ivar line: the line in the function.
    :ivar point: the statement that a test must reach to see it.
    """

    function: str
    name: str
    line: int
    point: int
    ddl: str


class Function:
    """A function of the migrations.

    :ivar points: where each statement begins, and its number. 0 is the beginning of the function.
    :ivar removable: the first and the last token of each statement that can be left out.
    """

    def __init__(self, ddl: str) -> None:
        self.ddl = ddl[re.search(r"^CREATE FUNCTION", ddl, re.MULTILINE).start() :].replace(
            "CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1
        )
        self.name = re.search(r"sio\.(sio_\w+)", self.ddl)[1]
        self.is_plpgsql = "LANGUAGE plpgsql" in self.ddl
        depth, tokens = 0, []
        for part in TOKEN.finditer(self.ddl):
            if part[0].isspace() or part[0].startswith("--"):
                continue
            depth -= part[0] in (")", "]")
            tokens.append(Token(part[0], part.start(), part.end(), depth))
            depth += part[0] in ("(", "[")
        self.tokens = tokens
        self.body = next(i for i, token in enumerate(tokens) if token.text == "$$") + 1
        self.points: list[tuple[int, int]] = [(0, 0)]
        self.insertions: list[int] = [self.tokens[self.body].start]
        self.removable: list[tuple[int, int]] = []
        if self.is_plpgsql:
            self._split()

    def _split(self) -> None:
        """Find the statements."""
        tokens = self.tokens
        i = next(i for i in range(self.body, len(tokens)) if tokens[i].text == "BEGIN") + 1
        self.insertions = [tokens[i].start]
        owners: list[int] = []
        while tokens[i].text != "$$" and tokens[i + 1].text != "$$":
            word, begin = tokens[i].text, i
            if word == "END":
                i = self._after(i, ";")
                if owners:
                    owners.pop()
                continue
            if word in ("ELSE", "LOOP", "EXCEPTION"):
                i += 1
                continue
            if word in ("ELSIF", "WHEN"):
                self.points.append((tokens[i].start, owners[-1] if owners else 0))
                i = self._after(i, "THEN")
                continue
            self.points.append((tokens[i].start, len(self.insertions)))
            self.insertions.append(tokens[i].start)
            if word in ("IF", "FOR", "WHILE", "CASE", "BEGIN"):
                owners.append(len(self.insertions) - 1)
                if word == "CASE":
                    i = next(j for j in range(i, len(tokens)) if tokens[j].text == "WHEN")
                else:
                    i = i + 1 if word == "BEGIN" else self._after(i, "THEN" if word == "IF" else "LOOP")
                continue
            i = self._after(i, ";")
            is_last = tokens[i].text in ("END", "EXCEPTION") and not owners
            if not (word == "RETURN" and is_last) and word != "NULL":
                self.removable.append((begin, i - 1))

    def _after(self, i: int, text: str) -> int:
        """Return the index behind the next token with that text that is in no expression."""
        cases, depth = 0, self.tokens[i].depth
        while True:
            i += 1
            token = self.tokens[i]
            if token.text == text and not cases and token.depth == depth:
                return i + 1
            cases += (token.text == "CASE") - (token.text == "END" and cases > 0)

    def point(self, position: int) -> int:
        return max((start, number) for start, number in self.points if start <= position)[1]

    def traced(self) -> str:
        """Return the function with a line in the server's log at each statement. ASSERT leaves FOUND as it is."""
        ddl, call = self.ddl, "ASSERT" if self.is_plpgsql else "SELECT"
        for number, position in sorted(enumerate(self.insertions), key=lambda x: (-x[1], -x[0])):
            ddl = f"{ddl[:position]}{call} public.reached('{self.name} {number}'); {ddl[position:]}"
        return ddl

    def mutants(self) -> list[Mutant]:
        """Return all mutants, each once."""
        result: dict[str, Mutant] = {}
        for first, last, text in self._changes():
            start, end = self.tokens[first].start, self.tokens[last].end
            ddl = self.ddl[:start] + text + self.ddl[end:]
            text_of_line = " ".join(self.ddl[self.ddl.rfind("\n", 0, start) + 1 :].partition("\n")[0].split())
            old, new = self._shown(first, last, text)
            line = self.ddl.count("\n", 0, start) + 1
            result[ddl] = Mutant(self.name, f"{text_of_line} | {old} -> {new}", line, self.point(start), ddl)
        return list(result.values())

    def _shown(self, first: int, last: int, text: str) -> tuple[str, str]:
        old = " ".join(self.ddl[self.tokens[first].start : self.tokens[last].end].split())
        if len(old) > 60:
            old = f"{old[:57]}..."
        if first == last:
            before, after = self.tokens[first - 1].text, self.tokens[last + 1].text
            return f"{before} {old} {after}", f"{before} {text} {after}"
        if len(text) > 60:
            text = f"{text[:57]}..."
        return old, text or "nothing"

    def _changes(self) -> Iterator[tuple[int, int, str]]:  # noqa: C901, PLR0912 - a list of cases
        """Yield the first and the last token of each change, and what takes their place."""
        tokens = self.tokens
        for first, last in self.removable:
            yield first, last, "NULL;"
        for i in range(self.body, len(tokens) - 2):
            text, former, later = tokens[i].text, tokens[i - 1].text, tokens[i + 1].text
            if text in ("+", "-") and not is_value(former):
                yield i, i, ""
            elif text in ("AND", "OR"):
                yield from self._operands(i)
            elif text in SWAPPED and not (text == "ALL" and former == "UNION"):
                for other in SWAPPED[text]:
                    yield i, i, other
            elif text.isdecimal() and int(text) < 1 << 40 and former != "BY" and tokens[i - 2].text != "bit":
                yield i, i, str(int(text) + 1)
                if int(text):
                    yield i, i, str(int(text) - 1)
            elif text == "IS":
                yield (i, i + 1, "IS") if later == "NOT" else (i, i, "IS NOT")
            elif text == "NOT" and former != "IS" and later != "FOUND":
                yield i, i, ""
            elif text == "EXISTS" and former != "NOT":
                yield i, i, "NOT EXISTS"
            elif text in ("IF", "ELSIF") and tokens[i + 2].text == "THEN" and later != ";":
                yield i + 1, i + 1, f"NOT {later}"
            elif text == "FOUND":
                yield i - 1, i, "FOUND"
            elif text in CLAUSES:
                yield from self._clause(i)
            if text in ("greatest", "least", "coalesce"):
                yield from self._arguments(i)

    def _operands(self, i: int) -> Iterator[tuple[int, int, str]]:
        """Swap AND and OR, and leave out what is to the right, or the first to the left."""
        begin = i - 1
        while not self._ends(begin, self.tokens[i].depth):
            begin -= 1
        if any(token.text == "BETWEEN" and token.depth == self.tokens[i].depth for token in self.tokens[begin:i]):
            return
        yield i, i, "OR" if self.tokens[i].text == "AND" else "AND"
        yield i, self._end(i + 1, self.tokens[i].depth), ""
        if self.tokens[begin].text not in ("AND", "OR"):
            yield begin + 1, i, ""

    def _ends(self, i: int, depth: int) -> bool:
        token = self.tokens[i]
        if token.depth < depth:
            return True
        return token.depth == depth and token.text in ENDS and not (
            token.text == "FROM" and self.tokens[i - 1].text == "DISTINCT"
        )  # fmt: skip

    def _end(self, i: int, depth: int) -> int:
        """Return the last token of an expression."""
        while not self._ends(i, depth):
            if self.tokens[i].text == "CASE":
                cases = 1
                while cases:
                    i += 1
                    cases += (self.tokens[i].text == "CASE") - (self.tokens[i].text == "END")
            i += 1
        return i - 1

    def _clause(self, i: int) -> Iterator[tuple[int, int, str]]:  # noqa: C901 - a list of cases
        tokens = self.tokens
        text, former, later, depth = tokens[i].text, tokens[i - 1].text, tokens[i + 1].text, tokens[i].depth
        match text:
            case "DESC" | "NOWAIT":
                yield i, i, ""
            case "DISTINCT" if former not in ("IS", "NOT"):
                yield i, i, ""
            case "SKIP":
                yield i, i + 1, ""
            case "FOR" if later in ("UPDATE", "SHARE"):
                yield i, i + 3 if tokens[i + 2].text == "SKIP" else i + 1, ""
            case "FILTER" | "HAVING" | "LIMIT" | "OFFSET":
                yield i, self._end(i + 1, depth), ""
            case "ORDER":
                end = i + 2
                while tokens[end].depth > depth or tokens[end].text in (",", "DESC") or not self._ends(end, depth):
                    end += 1
                yield i, end - 1, ""
            case "ON" if later == "CONFLICT":
                end = i
                while tokens[end].depth >= depth and tokens[end].text not in ("RETURNING", ";", "$$"):
                    end += 1
                yield i, end - 1, ""
            case "UNION":
                end = i + 2
                while tokens[end].depth >= depth and tokens[end].text not in ("UNION", ";", "$$", "ORDER"):
                    end += 1
                yield i, end - 1, ""

    def _arguments(self, i: int) -> Iterator[tuple[int, int, str]]:
        """Replace a call by each of its arguments."""
        depth = self.tokens[i + 1].depth
        begin = end = i + 2
        while self.tokens[end].depth > depth:
            end += 1
        for j in range(begin, end + 1):
            if j == end or (self.tokens[j].text == "," and self.tokens[j].depth == depth + 1):
                yield i, end, f"({self.ddl[self.tokens[begin].start : self.tokens[j - 1].end]})"
                begin = j + 1


def is_value(text: str) -> bool:
    return text in (")", "]") or ((text[0] in "\"'" or text[0].isalnum()) and text not in ENDS | {"VALUES", "IN"})


def functions() -> dict[str, Function]:
    result = {}
    for file in sorted(SQL.glob("*.sql")):
        for ddl in statements(file.read_text(encoding="utf-8")):
            if re.search(r"^CREATE FUNCTION", ddl, re.MULTILINE):
                function = Function(ddl)
                result[function.name] = function
    return result


class FunctionMutation(Mutation):
    """The mutants of functions of the database.

    :ivar slots: the templates. Each has one mutant at a time.
    """

    def __init__(
        self, server: EmbeddedPostgres, chosen: Sequence[Function], slots: Sequence[str], limit: float
    ) -> None:
        super().__init__(slots, limit)
        self.server, self.chosen = server, {function.name: function for function in chosen}
        self.reached: dict[str, set[str]] = defaultdict(set)
        self.changed: dict[str, str] = {}
        self.template = ""
        for slot in slots:
            self.make_template(slot)

    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Any:
        if fixturedef.argname != "pg_template":
            return None
        at = {"host": self.server.host, "port": self.server.port, "user": "postgres", "password": None}
        template = SimpleNamespace(**at, maintenance_dbname="postgres", template_dbname=self.template)
        fixturedef.cached_result = (template, fixturedef.cache_key(request), None)
        return template

    def wants(self, item: pytest.Item) -> bool:
        return "pg_template" in getattr(item, "fixturenames", ())

    def make_template(self, name: str) -> None:
        from conftest import migrate  # noqa: PLC0415 - it loads a profile of hypothesis

        with psycopg.connect(self.server.admin_dsn(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        migrate(self.server.host, self.server.port, "postgres", name, None)

    def replace(self, template: str, *ddl: str) -> None:
        with psycopg.connect(self.server.admin_dsn(template), autocommit=True) as connection:
            connection.execute(f"SET ROLE {OWNER}")
            for text in ddl:
                connection.execute(in_schema(text, "public"))

    def log(self, line: str) -> None:
        """Write a line to the server's log."""
        with psycopg.connect(self.server.admin_dsn(), autocommit=True) as admin:
            admin.execute(f"DO $$ BEGIN RAISE LOG '%', $line${line}$line$; END $$")

    def trace(self) -> None:
        self.template = "mutation_trace"
        self.make_template(self.template)
        reached = "CREATE FUNCTION public.reached(text) RETURNS boolean LANGUAGE plpgsql AS "
        body = "$$ BEGIN RAISE LOG 'reached %', $1; RETURN true; END $$"
        self.replace(self.template, reached + body, *(function.traced() for function in self.chosen.values()))

        def work() -> int:
            for test in self.items:
                self.log(f"test {time.monotonic()} {test}")
                self.run([test])
                self.session.testsfailed = 0
            self.log(f"test {time.monotonic()} ")
            return 0

        pid = forked(work, 10 * CPU_SECONDS)
        if os.waitpid(pid, 0)[1]:
            sys.exit("the tests did not run")
        for test in failures(pid):
            print(f"left out, since it fails without a mutant: {test}", flush=True)
        self.read_log(set(failures(pid)))

    def read_log(self, failed: set[str]) -> None:
        test, begun = "", 0.0
        with (Path(self.server.host) / "log").open(errors="replace") as log:
            for line in log:
                if line.startswith("LOG:  reached ") and test not in failed:
                    self.reached[line[14:].strip()].add(test)
                elif line.startswith("LOG:  test "):
                    now, _, later = line[11:].strip().partition(" ")
                    self.seconds[test] = float(now) - (begun or float(now))
                    test, begun = later, float(now)

    def subjects(self) -> Iterator[tuple[str, list[Mutant]]]:
        for name, function in self.chosen.items():
            yield name, function.mutants()

    def prepare(self, mutant: Mutant, slot: str) -> Callable[[], None] | None:
        former, self.changed[slot] = self.changed.get(slot, mutant.function), mutant.function
        try:
            self.replace(slot, self.chosen[former].ddl, mutant.ddl)
        except psycopg.Error:
            return None
        return lambda: setattr(self, "template", slot)

    def reaching(self, mutant: Mutant) -> set[str]:
        return self.reached[f"{mutant.function} {mutant.point}"]


def main() -> int:
    tests = [f"tests/integration/test_{name}.py" for name in TESTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("functions", nargs="+", metavar="FUNCTION", help="such as sio_claim")
    parser.add_argument("--tests", nargs="+", default=tests, help="files or folders of tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants that run at a time")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the tests of one mutant may take")
    options = parser.parse_args()
    known = functions()
    chosen = [known[name] for name in options.functions]
    settings = {"log_error_verbosity": "terse", "log_min_error_statement": "panic", "log_line_prefix": ""}
    with EmbeddedPostgres(settings=settings) as server:
        os.environ["SIO_PG_TEST_DSN"] = server.admin_dsn()
        slots = [f"mutation_{i}" for i in range(options.jobs)]
        return FunctionMutation(server, chosen, slots, options.seconds).main(options.tests)


if __name__ == "__main__":
    sys.exit(main())
