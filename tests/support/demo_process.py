"""``Demo``: `sio-pg demo` as a process. ``children`` and ``alive`` look at processes."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
import time

TIMEOUT = 60.0  # seconds. An idle machine needs five


class Demo:
    """The demo as a process. `lines` is its output so far."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "sio_pg_adapter", "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # as in a terminal. The tests may run in a shell's background job, which ignores the signal
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - calls nothing else
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put(None)

    def wait_for(self, pattern: str) -> str:
        """Wait for a line and return the pattern's first group in it."""
        end = time.monotonic() + TIMEOUT
        while True:
            try:
                line = self._queue.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line matches {pattern}:\n" + "".join(self.lines)) from None
            assert line is not None, "the demo ended:\n" + "".join(self.lines)
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match[1]

    def wait(self) -> int:
        """Wait for its end; then `lines` is complete."""
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()


def children(of: int) -> set[int]:
    pids = set()
    for line in subprocess.check_output(["ps", "-e", "-o", "pid=,ppid="], text=True).splitlines():
        pid, parent = map(int, line.split())
        if parent == of:
            pids.add(pid)
    return pids


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip() not in {"", "Z", "Zs"}  # a container's init may reap nobody
