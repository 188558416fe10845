"""Is in the sdist what git has, or would have, but for what is left out on purpose, and nothing else?"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import PurePosixPath

LEFT_OUT = (
    ".ci/",
    "sio_pg_adapter/migrations",
)  # the latter: a link to migrations/, which the wheel gets in its place
MADE = {"PKG-INFO"}


def main(path: str) -> None:
    """Compare, and end with 1 and what differs."""
    with tarfile.open(path) as sdist:
        there = {str(PurePosixPath(*PurePosixPath(one.name).parts[1:])) for one in sdist if not one.isdir()}
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wanted = {name for name in tracked.split("\0") if name and not name.startswith(LEFT_OUT)}
    if missing := sorted(wanted - there):
        sys.exit(f"not in the sdist: {', '.join(missing)}")
    if more := sorted(there - wanted - MADE):
        sys.exit(f"in the sdist, and not in git: {', '.join(more)}")


if __name__ == "__main__":
    main(sys.argv[1])
