"""A configuration file of gunicorn for `--preload`, as docs/threads.md has it."""

from __future__ import annotations


def post_worker_init(worker: object) -> None:
    from support.apps.threads_app import sio  # noqa: PLC0415 - gunicorn loads the application after this file

    sio.start()
