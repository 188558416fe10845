"""Copies of a PostgreSQL server: standbys, and backups that are started in its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sio_pg_adapter.embedded import EmbeddedPostgres

REPLICATED = {
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "synchronous_commit": "on",
    "wal_receiver_status_interval": "1",
}
"""Settings of a server that can be copied."""


@contextlib.contextmanager
def client_programs() -> Iterator[Path]:
    """The directory of pg_basebackup and similar programs.

    They are with the server, or in the wheel if the server's package does not have them.
    """
    server = EmbeddedPostgres()
    if server._given_bin and not (server._given_bin / "pg_dump").exists():
        server._given_bin = None
    server._prepare()
    try:
        yield server._bin
    finally:
        server.stop()


def prepared(settings: dict[str, str]) -> EmbeddedPostgres:
    """A server that has its address and no data yet."""
    server = EmbeddedPostgres(settings=settings)
    server._prepare()
    return server


def _empty(server: EmbeddedPostgres) -> None:
    for path in server._data.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy_files(server: EmbeddedPostgres, source: EmbeddedPostgres) -> None:
    """Replace the data of a server that does not run by the files of another one that does not run either.

    Unlike a base backup they have the rows of unlogged tables.
    """
    _empty(server)
    subprocess.run(["cp", "-a", f"{source._data}/.", server._data], check=True)


def copy_into(server: EmbeddedPostgres, source: EmbeddedPostgres, programs: Path, *, standby: bool) -> None:
    """Replace the data of a server that does not run by a base backup. As a standby it follows the source."""
    _empty(server)
    base = [programs / "pg_basebackup", "-D", server._data, "-X", "stream", "-c", "fast", "--no-sync"]
    at = ["-h", source.host, "-p", str(source.port), "-U", "postgres"]
    done = subprocess.run([*base, *at], check=False, capture_output=True, cwd="/", **server._account)
    assert done.returncode == 0, done.stderr.decode()
    if standby:  # not by -R, which writes settings that only its own version knows
        (server._data / "standby.signal").touch()
        if server._account:
            os.chown(server._data / "standby.signal", server._account["user"], server._account["group"])
        with (server._data / "postgresql.auto.conf").open("a") as more:
            more.write(f"primary_conninfo = 'host={source.host} port={source.port} user=postgres'\n")


def shut_down(server: EmbeddedPostgres) -> None:
    """Stop a server in an orderly manner. Its data and its address stay."""
    server._halt("INT")


def _processes(server: EmbeddedPostgres) -> list[int]:
    """The first process, and its children."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == server.pid:
                children.append(int(stat.parent.name))
    return [server.pid, *children]


def freeze(server: EmbeddedPostgres) -> None:
    """Make the server fall silent. It closes no connection and answers nothing."""
    for pid in _processes(server):  # the first process first: it makes no more children
        os.kill(pid, signal.SIGSTOP)


def thaw(server: EmbeddedPostgres) -> None:
    """Let a frozen server go on."""
    for pid in reversed(_processes(server)):
        os.kill(pid, signal.SIGCONT)
