"""The embedded server: start, stop, and restarts on one cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from sio_pg_adapter.embedded import EmbeddedPostgres, EmbeddedPostgresError


async def value(pg: EmbeddedPostgres, query: str):
    connection = await asyncpg.connect(pg.admin_dsn())
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def directories(pg: EmbeddedPostgres) -> list[Path]:
    return [pg._dir, pg._data]


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_serves_and_leaves_nothing(tcp):
    with EmbeddedPostgres(tcp=tcp, settings={"work_mem": "5MB"}) as pg:
        assert await value(pg, "SELECT current_setting('work_mem')") == "5MB"
        left = directories(pg)
        assert all(path.is_dir() for path in left)
    assert not any(path.exists() for path in left)
    pg.stop()  # twice is safe


async def test_the_role_of_its_dsn_owns_its_database_and_has_no_other_right():
    with EmbeddedPostgres() as pg:
        connection = await asyncpg.connect(pg.dsn())
        try:
            role = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = session_user")
            rights = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
            assert [role[right] for right in rights] == [False] * 5
            owner = "SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()"
            assert await connection.fetchval(owner) == "app"
        finally:
            await connection.close()


def test_stop_before_start_is_safe():
    EmbeddedPostgres().stop()


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_restarts_on_the_same_cluster_and_address(tcp):
    with EmbeddedPostgres(tcp=tcp) as pg:
        dsn, pid = pg.dsn(), pg.pid
        await value(pg, "CREATE TABLE kept AS SELECT 7 AS x")
        await value(pg, "CREATE UNLOGGED TABLE forgotten AS SELECT 7 AS x")
        await value(pg, "CHECKPOINT")

        pg.restart()
        assert (pg.dsn(), await value(pg, "SELECT x FROM kept")) == (dsn, 7)
        assert await value(pg, "SELECT count(*) FROM forgotten") == 1
        assert pg.pid != pid

        pg.restart("immediate")
        assert (pg.dsn(), await value(pg, "SELECT x FROM kept")) == (dsn, 7)
        assert await value(pg, "SELECT count(*) FROM forgotten") == 0  # as after a crash
        left = directories(pg)
    assert not any(path.exists() for path in left)


async def test_kill_and_start_with_a_backend_at_work():
    with EmbeddedPostgres() as pg:
        await value(pg, "CREATE TABLE kept AS SELECT 7 AS x")
        await value(pg, "CHECKPOINT")
        connection = await asyncpg.connect(pg.admin_dsn())
        pg.kill()
        with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
            await value(pg, "SELECT 1")
        pg.start()
        assert await value(pg, "SELECT x FROM kept") == 7
        connection.terminate()


def test_starts_once():
    with EmbeddedPostgres() as pg, pytest.raises(EmbeddedPostgresError, match="already running"):
        pg.start()


def test_a_server_that_is_not_running_cannot_be_killed():
    with pytest.raises(EmbeddedPostgresError, match="is not running"):
        EmbeddedPostgres().kill()


def test_a_failed_start_shows_the_log_of_the_server_and_leaves_nothing():
    pg = EmbeddedPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        pg.start()
    assert directories(pg) == [None, None]


def test_another_installation_by_argument_and_by_environment(tmp_path, monkeypatch):
    with pytest.raises(EmbeddedPostgresError, match=str(tmp_path)):
        EmbeddedPostgres(bin_dir=tmp_path).start()
    monkeypatch.setenv("SIO_PG_EMBEDDED_BIN", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match=str(tmp_path)):
        EmbeddedPostgres().start()


OWNER = """
import sys
from sio_pg_adapter.embedded import EmbeddedPostgres

pg = EmbeddedPostgres(tcp=True).start()
if sys.argv[1] == "restarted":
    pg.restart()
print(pg.port, pg._dir, pg._data, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("life", ["started", "restarted"])
def test_a_killed_owner_leaves_no_server_and_no_files(life):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, life], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        port, *paths = owner.stdout.readline().split()
        socket.create_connection(("127.0.0.1", int(port))).close()
        owner.kill()
    end = time.monotonic() + 30
    while any(Path(path).exists() for path in paths):  # removed when the server is gone
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))
