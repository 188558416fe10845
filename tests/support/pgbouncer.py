"""``pgbouncer``: a PgBouncer before a database."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

SETTINGS = """
[databases]
{database} = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 8
min_pool_size = 4
server_round_robin = 1
{more}
"""


@contextlib.contextmanager
def pgbouncer(dsn: str, mode: str, more: str = "") -> Iterator[str]:
    """Run a PgBouncer before a database in a `with` block, which gets the DSN through it.

    It hands out its servers in turn. Without PgBouncer on this machine the test is skipped, except in CI.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        message = "pgbouncer is not on the path: apt-get install pgbouncer"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    at = conninfo_to_dict(dsn)
    target = " ".join(f"{k}={at[k]}" for k in ("host", "port", "user", "password") if k in at)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="siopg-bouncer-"))
    directory.chmod(0o755)  # it refuses to run as root, and must read this as somebody else
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        SETTINGS.format(database=at["dbname"], target=target, port=port, mode=mode, more=more), encoding="utf-8"
    )
    user = "nobody" if os.geteuid() == 0 else None
    process = subprocess.Popen([program, "-q", settings], user=user, stderr=subprocess.PIPE)
    through = f"postgresql://app@127.0.0.1:{port}/{at['dbname']}"
    try:
        for _ in range(500):
            try:
                psycopg.connect(through, connect_timeout=5).close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None, process.stderr.read()
        yield through
    finally:
        process.kill()  # SIGTERM would wait for clients
        process.communicate()
        shutil.rmtree(directory)
