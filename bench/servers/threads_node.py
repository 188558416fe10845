"""One synchronous python-socketio server under werkzeug's threaded server, with the commands of python_node.py.

``kind`` is "ours-threads" or "socketio-threads-redis". Emits come from threads that each wait for their own.
"""

from __future__ import annotations

import json
import logging
import resource
import socket
import sys
import threading
import time
from typing import Any

import socketio
from payloads import payload, room
from werkzeug.serving import WSGIRequestHandler, make_server

Config = dict[str, Any]


class PatientRedisManager(socketio.RedisManager):
    """Waits for one of 100 connections: redis-py's own pool of 100 refuses, and what is more at once is lost."""

    def _redis_connect(self) -> None:
        import redis  # noqa: PLC0415 - peers must not need it

        pool = redis.BlockingConnectionPool.from_url(self.redis_url, max_connections=100, timeout=None)
        self.redis = redis.Redis(connection_pool=pool)
        self.pubsub = self.redis.pubsub(ignore_subscribe_messages=True)
        self.connected = True


def build(config: Config) -> Any:
    if config["kind"] == "ours-threads":
        from sio_pg_adapter import PostgresManager, Server  # noqa: PLC0415 - peers must not need it

        manager = PostgresManager(
            config["dsn"], schema=config["schema"], durability=config.get("durability", "flush")
        )
        sio = Server(client_manager=manager, connection_state_recovery=True)
        sio.start()
        return sio
    return socketio.Server(async_mode="threading", client_manager=PatientRedisManager(config["redis"]))


def handlers(sio: Any) -> None:
    @sio.event
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        if auth and "room" in auth:
            sio.enter_room(sid, auth["room"])

    @sio.event
    def relay(sid: str, data: Any, *_: Any) -> None:
        sio.emit("n", data, room=data.get("room", "bench"))


def emit(
    sio: Any, count: int, inflight: int, size: int = 200, due: int | None = None, rate: float = 0
) -> dict[str, Any]:
    """Emit to the room "bench", as python_node.py does it, in so many threads as ``inflight`` says."""
    events = [(payload(size, i), room(i, count, due)) for i in range(count)]
    numbers, taking, begun = iter(range(count)), threading.Lock(), time.monotonic_ns()

    def work() -> None:
        while True:
            with taking:
                i = next(numbers, None)
            if i is None:
                return
            if rate:
                time.sleep(max(0.0, begun / 1e9 + i / rate - time.monotonic()))
            data, to = events[i]
            sio.emit("n", data, room=to)

    threads = [threading.Thread(target=work) for _ in range(inflight)]
    begun = time.monotonic_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"begun": begun, "ended": time.monotonic_ns()}


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Log no requests."""


def main(config: Config) -> None:
    logging.basicConfig(level=logging.ERROR)
    sio = build(config)
    handlers(sio)
    # By its protocol's number: for a socket of protocol 0 asyncio leaves TCP_NODELAY off, and replies wait 40 ms
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(4096)
    server = make_server(
        "127.0.0.1", 0, socketio.WSGIApp(sio), threaded=True, request_handler=Handler, fd=listening.fileno()
    )
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        command.pop("op")  # there is only emit
        try:
            answer: dict[str, Any] = {"value": emit(sio, **command)}
        except Exception as e:  # noqa: BLE001 - returned to the caller
            answer = {"error": repr(e)}
        print(json.dumps(answer), flush=True)
    sio.shutdown()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    threading.stack_size(256 * 1024)  # the threading server has some for each client
    main(json.loads(sys.argv[1]))
