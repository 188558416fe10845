"""``sio-pg check``: compare what clients received in a run with what they were due.

A history is a file of JSON lines: what each emitter was answered, what each client received, and the log that the run
left. docs/histories.md describes the lines. This package knows the rules of delivery only from the documentation. It
imports nothing of the package but its errors, so it does not repeat a fault of the code that it checks.

:mod:`.history` reads the lines, :mod:`.log` has the rules of who is due what, and :mod:`.verdict` compares.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sio_pg_adapter.errors import ConfigurationError

from .history import FORMAT, WRITE_ONE, Finding, FindingKind, History, Outcome
from .verdict import Verdict

__all__ = ["FORMAT", "Finding", "FindingKind", "Outcome", "Verdict", "check_file", "main"]


def check_file(path: Path) -> Verdict:
    """Check a history.

    :param path: its file.
    :raises ConfigurationError: it cannot be read, or a line is not one of a history. The message names the line.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as e:
        reason = f"{e.strerror[:1].lower()}{e.strerror[1:]}" if e.strerror else str(e)
        raise ConfigurationError(f"{path} cannot be read: {reason}. {WRITE_ONE}") from e
    return Verdict(History([line.decode("utf-8", errors="replace") for line in lines]))


def main(args: argparse.Namespace) -> int:
    """Check a file, and print the result. The exit code is 0 if nothing is wrong."""
    verdict = check_file(Path(args.history))
    sys.stdout.write(verdict.report(args.show) + "\n")
    return 1 if verdict.findings else 0
