"""The code in the README works as printed: its blocks are run in the order in which a newcomer runs them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from sio_pg_adapter import AsyncPostgresManager, ConnectionStateRecovery
from support import nodejs
from support.documents import ROOT, block, document
from support.newcomer import Newcomer, Printing

CLUSTER = "docs/cluster.md"
IMPORT = 'import { io } from "socket.io-client";'
SILENT = "No new upgrade operations detected"


@pytest.fixture
def newcomer(tmp_path: Path, pg_empty_dsn: str) -> Newcomer:
    return Newcomer(tmp_path, pg_empty_dsn)


def test_the_code_that_the_readme_opens_with():
    names: dict[str, object] = {}
    exec(block("python", "app = socketio.ASGIApp(sio)\n"), names)
    assert names["sio"].manager.recovery == ConnectionStateRecovery()
    assert set(names["sio"].handlers["/"]) == {"say"}


def test_the_branch_of_an_own_history(newcomer):
    """`alembic init`, and what docs/alembic.md adds to its two files."""
    page = "docs/alembic.md"
    newcomer.run("alembic", "init", "-t", "async", "migrations")
    dsn = newcomer.env["SIO_PG_DSN"].replace("postgresql://", "postgresql+asyncpg://").replace("%", "%%")
    ini = newcomer.at / "alembic.ini"
    text = re.sub(r"^path_separator.*\n", "", ini.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^sqlalchemy.url = .*$", lambda _: f"sqlalchemy.url = {dsn}", text, flags=re.MULTILINE)
    ini.write_text(text.replace("[alembic]\n", "[alembic]\n" + block("ini", "path_separator", page), 1))
    importing, configuring = filter(None, block("python", "target_metadata=target_metadata", page).splitlines())
    env = newcomer.at / "migrations" / "env.py"
    before = "context.configure(connection=connection, target_metadata=target_metadata)"
    assert env.read_text().count(before) == 1
    text = (
        env.read_text().replace(before, configuring).replace("target_metadata = None", "target_metadata = MetaData()")
    )
    env.write_text(f"from sqlalchemy import MetaData\n{importing}\n{text}")
    for command in block("sh", "--head=base", page).splitlines():
        newcomer.run(*command.split())
    assert len(list((newcomer.at / "migrations" / "versions").glob("*_first.py"))) == 1
    newcomer.run("alembic", "revision", "--autogenerate", "-m", "second", "--head=orders@head")
    newcomer.run("alembic", "upgrade", "heads")
    assert SILENT in newcomer.run("alembic", "check")
    with pytest.raises(AssertionError, match=r"Another Alembic history has made the tables.*alembic upgrade heads"):
        newcomer.run("sio-pg", "migrate")


def test_the_quickstart(newcomer):
    for name in ("app.py", "client.py", "pay.py"):
        newcomer.write(name)
    export, migrate, serve = block("sh", "uvicorn app:app").splitlines()
    assert export.startswith("export SIO_PG_DSN=")
    newcomer.run(*migrate.split())
    serve = [*serve.split(), "--port", str(newcomer.port)]

    node = nodejs.executable("node")
    script = newcomer.at / "client.cjs"
    cut = 'process.stdin.on("data", () => socket.io.engine.close());'
    library = str(nodejs.install() / "node_modules" / "sio-4-8")
    program = block("js", "io(")
    assert program.count(IMPORT) == 1
    program = program.replace(IMPORT, f"const {{ io }} = require({library!r});")
    script.write_text(newcomer.here(f"{program}{cut}\n"))

    with newcomer.running(*serve) as server:
        server.says("startup complete")
        with newcomer.running(sys.executable, "client.py") as python:
            python.says("new: fetch the state")
            feed, teller = os.pipe()
            javascript = subprocess.Popen(
                [node, str(script)], stdin=feed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=newcomer.env
            )
            clients = (python, Printing(javascript))
            try:
                clients[1].says("new: fetch the state")
                for one in clients:
                    one.says("said hello")
                newcomer.run(sys.executable, "pay.py")
                for one in clients:
                    one.says("said order 7 is paid")
                os.write(teller, b"cut\n")
                clients[1].says("back, nothing was missed")

                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(60) in (0, -signal.SIGTERM)
                newcomer.run(sys.executable, "pay.py")  # no server is there: the log is
                with newcomer.running(*serve):
                    for one in clients:
                        one.says("back, nothing was missed")
                        one.says("said order 7 is paid")
            finally:
                javascript.kill()
                javascript.wait()
                javascript.stdout.close()
                os.close(feed)
                os.close(teller)


def test_all_servers_at_once(newcomer):
    for name in ("app.py", "client.py"):
        newcomer.write(name)
    newcomer.write("cluster.py", CLUSTER)
    with (newcomer.at / "app.py").open("a") as app:
        app.write(block("python", "# app.py, further down\n", CLUSTER))
    newcomer.run("sio-pg", "migrate")
    with newcomer.running("uvicorn", "app:app", "--port", str(newcomer.port)) as server:
        server.says("startup complete")
        with newcomer.running(sys.executable, "client.py") as client:
            client.says("new: fetch the state")
            servers, connected, answers = newcomer.run(sys.executable, "cluster.py").splitlines()
            pid = server.process.pid
    [node] = re.findall(rf"^2 servers; pids of the others: \{{'([0-9a-f]{{32}})': {pid}\}}$", servers)
    [sid] = re.findall(rf"^connected: (\S+) \('\S+', 'news'\) \{{\}} at {node}$", connected)
    assert answers == f"answers by sid: {{{sid!r}: None}}"


def test_the_options_are_all_there_with_their_defaults():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.MULTILINE))
    defaults = {field.name: field.default for field in fields(ConnectionStateRecovery)}
    defaults |= {name: parameter.default for name, parameter in signature(AsyncPostgresManager).parameters.items()}
    documented = {name: eval(value.strip("`").replace(" MB", " * 1024 * 1024")) for name, value in rows.items()}
    assert documented == defaults


@pytest.mark.parametrize(
    "path",
    [
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "README.md",
        "bench/README.md",
        "bench/REPORT.md",
        "examples/django/README.md",
        "examples/flask/README.md",
        "examples/orders/README.md",
    ],
)
def test_links_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (ROOT / path).parent.joinpath(link).exists(), link


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("orders", ("app.py", "models.py", "alembic.ini", "migrations/env.py")),
        ("flask", ("app.py", "migrations/env.py", "migrations/alembic.ini")),
        ("django", ("shop/asgi.py", "shop/models.py", "shop/settings.py", "shop/urls.py", "shop/views.py")),
    ],
)
def test_the_diff_of_an_example_is_the_one_that_made_it(tmp_path, name, files):
    """Taken back, it leaves an application that knows nothing of this package and still compiles."""
    example = tmp_path / name
    shutil.copytree(ROOT / "examples" / name, example, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    [diff] = [one.text for one in document(f"examples/{name}/README.md") if one.language == "diff"]
    done = subprocess.run(
        ["git", "apply", "-R", "--unidiff-zero", "-"],
        cwd=example,
        input=diff,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for file in files:
        text = (example / file).read_text(encoding="utf-8")
        assert not re.search(r"sio[._]|socketio|version_locations", text), file
        if file.endswith(".py"):
            compile(text, file, "exec")
