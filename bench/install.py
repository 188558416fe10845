"""Install what the benchmarks need in addition to the package below this directory, if it is missing."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
JS = HERE / "js"
PYTHON = HERE / ".python"
REDIS = HERE / ".redis"
WHEELS = ("psutil>=6", "redis>=5")
REDIS_PACKAGES = ("redis-server", "redis-tools", "liblzf1", "libjemalloc2", "libatomic1")


def everything() -> None:
    """Install what is missing, one process at a time."""
    with (HERE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _python()
        _javascript()
        redis_server()


@functools.cache
def node() -> str:
    """The path of node; its version is in the report. Not of a script that starts it: its CPU time is to be read."""
    found = shutil.which("node")
    if found is None:
        raise SystemExit("bench: Node.js (20 or later) and npm must be on the path")
    return subprocess.check_output([found, "-p", "process.execPath"], text=True).strip()


def redis_server() -> tuple[str, dict[str, str]]:
    """The path of redis-server, and what its environment takes."""
    if found := shutil.which("redis-server"):
        return found, {}
    program = REDIS / "usr" / "bin" / "redis-server"
    if not program.exists():
        _redis_from_apt()
    libraries = ":".join(str(path) for path in (REDIS / "usr" / "lib").glob("*-linux-gnu"))
    return str(program), {"LD_LIBRARY_PATH": libraries}


def python_path() -> str:
    """PYTHONPATH for the servers: what is set, this repository, and what is not among its own requirements."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE.parent), str(PYTHON)]))


def _python() -> None:
    mark = PYTHON / ".installed"
    wanted = " ".join(WHEELS)
    if not (mark.exists() and mark.read_text() == wanted):
        uv, pip = shutil.which("uv"), shutil.which("pip")
        if uv:
            command = [uv, "pip", "install", "--python", sys.executable]
        elif pip:
            command = [pip, "--python", sys.executable, "install", "--disable-pip-version-check"]
        else:
            raise SystemExit(f"bench: uv or pip must be on the path, to install {wanted}")
        _run([*command, "--quiet", "--target", str(PYTHON), *WHEELS])
        mark.write_text(wanted)
    sys.path.append(str(PYTHON))


def _javascript() -> None:
    wanted = hashlib.sha256((JS / "package-lock.json").read_bytes()).hexdigest()
    mark = JS / "node_modules" / ".installed"
    if not (mark.exists() and mark.read_text() == wanted):
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit("bench: npm must be on the path")
        _run([npm, "ci", "--no-audit", "--no-fund"], cwd=JS)
        mark.write_text(wanted)


def _redis_from_apt() -> None:
    """Unpacked, not installed: no service starts, and it takes no rights."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise SystemExit("bench: put redis-server (7 or later) on the path; there is no apt to fetch it with")
    packages = REDIS / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", *REDIS_PACKAGES], cwd=packages)
    for package in packages.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(REDIS)])
    shutil.rmtree(packages)


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
