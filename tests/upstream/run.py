"""Run the test suites of python-socketio and Flask-SocketIO with the classes of this package in place of theirs.

    uv run python tests/upstream/run.py                     # all suites
    uv run python tests/upstream/run.py common -k test_emit # one of them, with options of pytest

The suites are in the source distributions on PyPI, of the versions in ``uv.lock``. They run as they are, see
``substitutes.py``. A test may fail only if ``differences.toml`` lists it, and a listed test must fail.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from sio_pg_adapter import migrate
from sio_pg_adapter.embedded import EmbeddedPostgres

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sio-pg-ci" / "suites"
SUITES = {
    "common": ("python-socketio", "tests/common"),
    "async": ("python-socketio", "tests/async"),
    "flask": ("flask-socketio", "test_socketio.py"),
}
NOT_OURS = ("test_packet", "test_msgpack_packet", "test_middleware", "test_pubsub_manager", "test_redis_manager")
"""Modules about classes that this package uses as they are, and about the buses that it replaces."""


def unpacked(project: str, directory: Path) -> Path:
    """Return the root of a source distribution, which is unpacked in a directory."""
    lock = tomllib.loads((HERE.parent.parent / "uv.lock").read_text())
    package = next(package for package in lock["package"] if package["name"] == project)
    archive, checksum = CACHE / package["sdist"]["url"].rpartition("/")[2], package["sdist"]["hash"]
    if not archive.exists() or f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}" != checksum:
        wanted = directory / "wanted.txt"
        wanted.write_text(f"{project}=={package['version']} --hash={checksum}\n")
        download = ("pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "--require-hashes")
        subprocess.run(["uvx", *download, f"--dest={CACHE}", f"--requirement={wanted}"], check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
        return directory / tar.getnames()[0].partition("/")[0]


def main() -> int:
    """Run the suites. Return 1 if one differs in another way than is listed."""
    suites = [sys.argv[1]] if sys.argv[1:] and sys.argv[1] in SUITES else list(SUITES)
    options = [argument for argument in sys.argv[1:] if argument not in suites]
    failed = False
    with tempfile.TemporaryDirectory() as scratch, EmbeddedPostgres() as postgres:
        dsn = postgres.dsn()
        migrate.upgrade(dsn)
        for suite in suites:
            project, tests = SUITES[suite]
            root = unpacked(project, Path(scratch))
            ignored = [f"--ignore-glob=*/{module}.py" for module in NOT_OURS]
            pytest = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "substitutes",
                "-p",
                "no:anyio",
                "-p",
                "no:cacheprovider",
            ]
            environment = {**os.environ, "SIO_PG_DSN": dsn, "SUITE": suite, "PYTHONPATH": f"{HERE}{os.pathsep}{root}"}
            print(f"--- {root.name}: {tests}", flush=True)
            done = subprocess.run([*pytest, *ignored, *options, tests], cwd=root, env=environment, check=False)
            failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
