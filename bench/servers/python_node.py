"""One python-socketio server: `python servers/python_node.py '{"kind": "ours", "dsn": ..., "schema": ...}'`.

``kind`` is "ours", "socketio" (no bus) or "socketio-redis". Commands come as JSON lines on the standard input:
"emit", see :func:`emit`, and "stall", see :class:`Stalls`. js/server.mjs is the same for Node.js.
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import gc
import json
import os
import resource
import socket
import sys
import time
from typing import Any

import socketio
import uvicorn
from counting import CountingLoop, counts
from payloads import payload, room

Config = dict[str, Any]


class PatientRedisManager(socketio.AsyncRedisManager):
    """Waits for one of 100 connections: redis-py's own pool of 100 refuses, and what is more at once is lost."""

    def _redis_connect(self) -> None:
        from redis import asyncio as redis  # noqa: PLC0415 - as the other one

        pool = redis.BlockingConnectionPool.from_url(self.redis_url, max_connections=100, timeout=None)
        self.redis = redis.Redis(connection_pool=pool)
        self.pubsub = self.redis.pubsub(ignore_subscribe_messages=True)
        self.connected = True


def build(config: Config) -> socketio.AsyncServer:
    kind = config["kind"]
    if kind == "ours":
        from sio_pg_adapter import AsyncPostgresManager, AsyncServer  # noqa: PLC0415 - peers must not need it
        from sio_pg_adapter.store import commits  # noqa: PLC0415

        if config.get("ring_only"):
            commits.carried = lambda _entries: None  # notifications then hold offsets alone
        manager = AsyncPostgresManager(
            config["dsn"], schema=config["schema"], durability=config.get("durability", "flush")
        )
        return AsyncServer(async_mode="asgi", client_manager=manager, connection_state_recovery=True)
    manager = PatientRedisManager(config["redis"]) if kind == "socketio-redis" else None
    return socketio.AsyncServer(async_mode="asgi", client_manager=manager)


def handlers(sio: socketio.AsyncServer) -> None:
    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        if auth and "room" in auth:
            await sio.enter_room(sid, auth["room"])

    @sio.event
    async def relay(sid: str, data: Any, *_: Any) -> None:
        await sio.emit("n", data, room=data.get("room", "bench"))


async def emit(
    sio: socketio.AsyncServer, count: int, inflight: int, size: int = 200, due: int | None = None, rate: float = 0
) -> dict[str, Any]:
    """Emit to the room "bench".

    :param inflight: how many emits are awaited side by side; 0: all of them.
    :param due: only so many of them go there, evenly spread; the others to the room "other".
    :param rate: events per second; 0: as fast as it goes.
    """
    events = [(payload(size, i), room(i, count, due)) for i in range(count)]
    numbers = iter(range(count))
    begun = time.monotonic_ns()

    async def work() -> None:
        for i in numbers:
            if rate:
                await asyncio.sleep(max(0.0, begun / 1e9 + i / rate - time.monotonic()))
            data, to = events[i]
            await sio.emit("n", data, room=to)

    if inflight:
        await asyncio.gather(*(work() for _ in range(inflight)))
    else:
        await asyncio.gather(*(sio.emit("n", data, room=to) for data, to in events))
    return {"begun": begun, "ended": time.monotonic_ns()}


class Stalls:
    """How long the event loop keeps a timer of 10 ms waiting, and what it computes meanwhile.

    The second figure leaves out the time that other processes had the processor.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest = self._most = 0.0
        self._sleep()

    def _sleep(self) -> None:
        self._due, self._cpu = self._loop.time() + 0.01, time.thread_time()
        self._loop.call_at(self._due, self._wake)

    def _wake(self) -> None:
        self._longest = max(self._longest, self._loop.time() - self._due)
        self._most = max(self._most, time.thread_time() - self._cpu)
        self._sleep()

    async def since(self, _: object) -> dict[str, float]:
        """The longest wait since the last call, and the most CPU time in one, in ms."""
        answer = {"ms": self._longest * 1000, "cpu_ms": self._most * 1000}
        self._longest = self._most = 0.0
        return answer


async def obey(sio: socketio.AsyncServer, server: uvicorn.Server) -> None:
    commands = {"emit": emit, "stall": Stalls().since, "counts": counts}
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        op = command.pop("op")
        try:
            answer: dict[str, Any] = {"value": await commands[op](sio, **command)}
        except Exception as e:  # noqa: BLE001 - returned to the caller
            answer = {"error": repr(e)}
        print(json.dumps(answer), flush=True)
    server.should_exit = True


async def serve(config: Config) -> None:
    sio = build(config)
    handlers(sio)
    ours = config["kind"] == "ours"
    app = socketio.ASGIApp(sio, on_startup=sio.manager.start if ours else None, on_shutdown=sio.shutdown)
    # By its protocol's number: for a socket of protocol 0 asyncio leaves TCP_NODELAY off, and replies wait 40 ms
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            lifespan="on",
            backlog=4096,
            timeout_graceful_shutdown=3,
            **config.get("uvicorn", {}),
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if serving.done():
        await serving
        raise SystemExit("the server did not start")
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    obeying = asyncio.create_task(obey(sio, server))
    await serving
    obeying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await obeying


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    given = json.loads(sys.argv[1])
    loop_factory = uvicorn.Config(None, **given.get("uvicorn", {})).get_loop_factory()
    if given.get("tuned"):  # as docs/tuning.md advises
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
    if given.get("counting"):
        loop_factory = CountingLoop
    profile = os.environ.get("BENCH_PROFILE")  # a file for cProfile's figures
    with contextlib.ExitStack() as stack:
        if profile:
            profiler = cProfile.Profile()
            stack.callback(profiler.dump_stats, profile)
            stack.enter_context(profiler)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(serve(given))
