"""The examples as their READMEs say: the owner migrates, the role of the nodes serves, and a customer gets events."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from support.documents import ROOT, block
from support.newcomer import Newcomer
from support.roles import NODE, grants, node_dsn

OWN = (
    "SELECT relname FROM pg_class WHERE relkind = %s AND relnamespace = 'public'::regnamespace AND relname !~ '^sio_'"
)
"""The tables, or the sequences, of the application itself."""

EXAMPLES = {
    "orders": ("postgresql+asyncpg", "startup complete"),
    "django": ("postgresql", "startup complete"),
    "flask": ("postgresql+psycopg", "Listening at"),
}
"""For each example: the scheme of its URL, and what its server prints when it serves."""


def variables(dsn: str, scheme: str) -> dict[str, str]:
    """Return the variables that lead an example to its database."""
    at = conninfo_to_dict(dsn)
    url = dsn.replace("postgresql", scheme, 1)
    return {
        "DATABASE_URL": url,
        "PGHOST": at["host"],
        "PGPORT": at["port"],
        "PGUSER": at["user"],
        "PGDATABASE": at["dbname"],
        "PGPASSWORD": at.get("password", ""),
    }


def admit_nodes(owner_dsn: str) -> None:
    """Give NODE its documented rights, and the use of the application's own tables."""
    with psycopg.connect(owner_dsn) as owner:
        owner.execute(grants(NODE))
        for kind, rights in (("r", "SELECT, INSERT, UPDATE, DELETE"), ("S", "USAGE")):
            for (name,) in owner.execute(OWN, [kind]).fetchall():
                owner.execute(f"GRANT {rights} ON {name} TO {NODE}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(tmp_path: Path, pg_empty_dsn: str, name: str):
    scheme, ready = EXAMPLES[name]
    readme = f"examples/{name}/README.md"
    example = tmp_path / name
    shutil.copytree(ROOT / "examples" / name, example, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    newcomer = Newcomer(example, "")

    export, *migrating, serving = block("sh", "export ", readme).splitlines()
    assert set(re.findall(r"(\w+)=", export)) <= variables(pg_empty_dsn, scheme).keys()
    newcomer.env |= variables(pg_empty_dsn, scheme)
    for command in migrating:
        newcomer.run(*shlex.split(command.removeprefix("uv run ")))
    admit_nodes(pg_empty_dsn)

    newcomer.env |= variables(node_dsn(pg_empty_dsn), scheme)
    serving = re.sub(r"\b800\d\b", str(newcomer.port), serving.removeprefix("uv run "))
    if str(newcomer.port) not in serving:  # it serves on the default port
        serving += f" --port {newcomer.port}"
    serve = shlex.split(serving)
    with newcomer.running(*serve) as server:
        server.says(ready)
        customer = str(ROOT / "examples" / "customer.py")
        with newcomer.running(sys.executable, customer, "ada", str(newcomer.port)) as ada:
            ada.says("orders []\n" if name == "flask" else "connected with a new session\n")
            for line in block("sh", "curl ", readme).splitlines():
                method, url, comment = re.fullmatch(r"curl -X (\w+) '(.+)' +# (.+)", line).groups()
                refused = comment.startswith("not enough credit")
                url = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{newcomer.port}", url)
                assert httpx.request(method, url).is_success != refused, line
                if event := re.search(r"ada receives: (.+)", comment):
                    assert ada.says(f"{event[1]}\n") == ""
