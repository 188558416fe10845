"""``tests/mutation_sql.py`` makes the mutants of a function, and knows which statement each of them is in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mutation_sql import SQL, Function, functions

DDL = """
-- A comment.
CREATE FUNCTION sio.sio_example(p_kind integer) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE;  -- 1 lock
    IF p_kind < 2 THEN
        PERFORM FROM sio.sio_log FOR SHARE SKIP LOCKED;
    ELSIF p_kind IS NULL AND NOT FOUND THEN
        RETURN -(SELECT max(id) FROM sio.sio_sessions);
    END IF;
    RETURN 0;
END $$
"""


def test_a_function_has_a_mutant_for_each_thing_that_can_change():
    names = [(mutant.point, mutant.name.partition(" | ")[2]) for mutant in Function(DDL).mutants()]
    assert sorted(names) == [
        (1, "LOCK TABLE sio.sio_lock IN EXCLUSIVE MODE; -> NULL;"),
        (2, "< 2 THEN -> < 1 THEN"),
        (2, "< 2 THEN -> < 3 THEN"),
        (2, "AND NOT FOUND -> nothing"),
        (2, "NOT FOUND -> FOUND"),
        (2, "NULL AND NOT -> NULL OR NOT"),
        (2, "p_kind < 2 -> p_kind <= 2"),
        (2, "p_kind < 2 -> p_kind >= 2"),
        (2, "p_kind IS NULL -> p_kind IS NOT NULL"),
        (2, "p_kind IS NULL AND -> nothing"),
        (3, "FOR SHARE SKIP LOCKED -> nothing"),
        (3, "PERFORM FROM sio.sio_log FOR SHARE SKIP LOCKED; -> NULL;"),
        (3, "SKIP LOCKED -> nothing"),
        (4, "RETURN - ( -> RETURN  ("),
        (4, "RETURN -(SELECT max(id) FROM sio.sio_sessions); -> NULL;"),
        (4, "SELECT max ( -> SELECT min ("),
        (5, "RETURN 0 ; -> RETURN 1 ;"),
    ]


def test_each_function_of_the_migrations_is_read():
    files = "".join(file.read_text() for file in SQL.glob("*.sql"))
    created = re.findall(r"^CREATE FUNCTION sio\.(\w+)", files, re.MULTILINE)
    assert sorted(functions()) == sorted(created)
    for function in functions().values():
        assert function.ddl not in [mutant.ddl for mutant in function.mutants()]


ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(sio_\w+)` \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


def test_the_page_on_proof_accounts_for_each_function_that_has_mutants():
    rows = {name: tuple(map(int, numbers)) for name, *numbers in ROW.findall((ROOT / "docs/proof.md").read_text())}
    equivalent = tomllib.loads((ROOT / "tests/equivalent_mutants.toml").read_text())
    assert rows.keys() == {name for name, function in functions().items() if function.mutants()}
    for name, (mutants, killed, same) in rows.items():
        names = [mutant.name for mutant in functions()[name].mutants()]
        assert killed + same == mutants <= len(names), name  # PostgreSQL refuses some
        assert same == sum(each in equivalent.get(name, {}) for each in names), name
        assert equivalent.get(name, {}).keys() <= set(names), name
