"""``Newcomer``: a reader of the documents, with an empty directory, a database, and this environment's programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.documents import block


class Newcomer:
    """A directory, and the programs of this environment run in it."""

    def __init__(self, at: Path, dsn: str) -> None:
        self.at = at
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "SIO_PG_DSN": dsn,
            "PYTHONUNBUFFERED": "1",
        }

    def here(self, text: str) -> str:
        """Return the text with this test's own port in place of 8000."""
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def write(self, name: str, path: str = "README.md") -> None:
        """Copy a file out of a document, from the block whose first line names it."""
        language, first = ("html", f"<!-- {name} -->\n") if name.endswith(".html") else ("python", f"# {name}\n")
        (self.at / name).write_text(self.here(block(language, first, path)), encoding="utf-8")

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.at, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, *command: str) -> Iterator[Printing]:
        one = Printing(
            subprocess.Popen(
                command,
                cwd=self.at,
                env=self.env,
                stdin=subprocess.PIPE,  # a terminal that nobody types in
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
        try:
            yield one
        finally:
            one.process.kill()
            one.process.wait()
            one.process.stdout.close()
            one.process.stdin.close()


class Printing:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        os.set_blocking(process.stdout.fileno(), False)
        self.said = ""

    def says(self, what: str) -> str:
        """Wait until it has printed that, after what was waited for before; returns what came between."""
        end = time.monotonic() + 60
        while what not in self.said:
            assert time.monotonic() < end, f"no {what!r} in {self.said!r}"
            self.said += (self.process.stdout.read() or b"").decode()
            time.sleep(0.01)
        between, _, self.said = self.said.partition(what)
        return between
