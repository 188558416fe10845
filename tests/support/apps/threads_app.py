"""`gunicorn -k gthread support.apps.threads_app:app`, or `python -m support.apps.threads_app PORT SERVER`."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections import Counter
from typing import Any

import socketio
import waitress
from flask import Flask
from werkzeug.serving import make_server

from sio_pg_adapter import PostgresManager, Server

sio = Server(
    client_manager=PostgresManager(),
    connection_state_recovery=True,
    ping_interval=float(os.environ.get("PING_INTERVAL", "25")),
)
pages = Flask(__name__)


@sio.event
def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
    sio.enter_room(sid, "all")


@sio.event
def disconnect(sid: str, reason: str) -> None:
    sio.emit("left", sid, room="all")
    print(f"the disconnect handler ran for {sid}")


@sio.event
def threads(sid: str) -> tuple[int, dict[str, int]]:
    """The process that serves the client, and how many threads it has of each kind."""
    return os.getpid(), Counter(re.sub(r"[-_ ]*[\d_]+$", "", thread.name) for thread in threading.enumerate())


@pages.get("/health")
def health() -> dict[str, bool]:
    return {"ok": sio.manager.health().ok}


@pages.post("/shout")
def shout() -> dict[str, bool]:
    sio.emit("shouted", "by HTTP")
    return {}


app = socketio.WSGIApp(sio, pages)
if "PRELOADED" not in os.environ:  # else support/apps/preloaded.py does it
    sio.start()
if __name__ == "__main__":
    port, server = int(sys.argv[1]), sys.argv[2]
    if server == "waitress":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # or it would end the process at once
        waitress.serve(app, host="127.0.0.1", port=port, threads=8)
    else:
        tls = "adhoc" if server == "werkzeug over TLS" else None
        serving = make_server("127.0.0.1", port, app, threaded=True, ssl_context=tls)
        # Not by sys.exit(): if it has just accepted a connection, socketserver would close that under its thread.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=serving.shutdown).start())
        serving.serve_forever()
