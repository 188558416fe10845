"""Measure our server and its peers in one run: `python bench/run.py --help`. README.md describes the measurements."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import install

install.everything()  # before the imports that need it

import postgres
import report
from measure import ITEMS, Bench, Sizes, applies
from peers import PEERS, Backends

QUICK = Sizes(
    latencies=300,
    sequential=1_000,
    inflight=3_000,
    at_once=10_000,
    clients=300,
    fanout_events=50,
    others=(1_000, 10_000),
    recoveries=3,
    storms=(200,),
    idle_seconds=15,
    many_idle_clients=1_000,
    postgres_rows=20_000,
)
TINY = dataclasses.replace(
    QUICK,
    latencies=50,
    sequential=100,
    inflight=300,
    at_once=1_000,
    clients=30,
    fanout_events=10,
    others=(200,),
    recoveries=2,
    storms=(20,),
    quiet_seconds=0.5,
    idle_seconds=2,
    idle_clients=4,
    many_idle_clients=20,
    postgres_rows=2_000,
)


async def run(bench: Bench, items: list[str], peers: list[str], repeats: int, file: Path | None) -> report.Runs:
    runs: report.Runs = {item: {name: [] for name in peers if applies(item, PEERS[name])} for item in items}
    for repeat in range(repeats):
        for item in items:
            for name in runs[item]:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(600):
                        figures = await ITEMS[item](bench, PEERS[name])
                except Exception as e:  # noqa: BLE001 - report the failure, and measure the others
                    say(f"{repeat + 1}/{repeats} {item} {name} FAILED: {e!r}")
                    continue
                runs[item][name].append(figures)
                took = time.monotonic() - begun
                shown = ", ".join(f"{k} {v:.6g}" for k, v in figures.items() if v is not None)
                say(f"{repeat + 1}/{repeats} {item} {name}: {shown} [{took:.0f} s]")
        if file is not None:
            file.write_text(json.dumps(runs, indent=1))
    return runs


async def versions(bench: Bench, peers: list[str]) -> dict[str, Any]:
    names = ("python-socketio", "python-engineio", "uvicorn", "websockets", "asyncpg", "redis")
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
    }
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["node"] = subprocess.check_output([install.node(), "--version"], text=True).strip()
    for name in ("socket.io", "socket.io-client", "@socket.io/redis-streams-adapter", "ws"):
        found[name] = json.loads((install.JS / "node_modules" / name / "package.json").read_text())["version"]
    if "ours" in peers or "postgres" in peers:
        found["postgres"] = await postgres.version(bench.backends.postgres())
    if any("redis" in name for name in peers):
        program, env = install.redis_server()
        said = subprocess.check_output([program, "--version"], text=True, env={**os.environ, **env})
        found["redis-server"] = said.split("v=")[1].split()[0]
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    listed = {"type": lambda text: text.split(","), "metavar": "NAME,..."}
    parser.add_argument("--only", default=list(ITEMS), help=f"of {', '.join(ITEMS)}", **listed)
    parser.add_argument(
        "--peers",
        default=[name for name, peer in PEERS.items() if not peer.threads],
        help=f"of {', '.join(PEERS)}; without it all that are not in threads",
        **listed,
    )
    parser.add_argument("--repeats", type=int, default=5)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smaller sizes: a look, no measurement")
    size.add_argument("--tiny", action="store_true", help="does the harness work?")
    parser.add_argument("--dsn", help="a PostgreSQL to use, of a superuser, instead of the embedded one")
    parser.add_argument("--clients", type=int, help="of the fan-out, instead of 1,000")
    parser.add_argument(
        "--storms",
        type=lambda text: tuple(map(int, text.split(","))),
        metavar="COUNT,...",
        help="sizes of the storms, instead of 500, 2,000 and 5,000",
    )
    parser.add_argument(
        "--uvicorn", type=json.loads, default={}, help='its options for all Python peers: {"ws": ...}'
    )
    parser.add_argument(
        "--tuned", action="store_true", help="all Python peers with the garbage collector of docs/tuning.md"
    )
    parser.add_argument("--json", type=Path, help="where the figures of all repeats go")
    options = parser.parse_args()
    for given, known in ((options.only, ITEMS), (options.peers, PEERS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def main() -> None:
    options = arguments()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sizes = QUICK if options.quick else TINY if options.tiny else Sizes()
    if options.clients:
        sizes = dataclasses.replace(sizes, clients=options.clients)
    if options.storms:
        sizes = dataclasses.replace(sizes, storms=options.storms)
    backends = Backends(dsn=options.dsn)
    config = {"uvicorn": options.uvicorn, "tuned": options.tuned}
    bench = Bench(backends, sizes, {name: value for name, value in config.items() if value})
    items = [item for item in ITEMS if item in options.only]
    peers = [name for name in PEERS if name in options.peers]
    with backends.stack:
        found = asyncio.run(versions(bench, peers))
        runs = asyncio.run(run(bench, items, peers, options.repeats, options.json))
    if options.json is not None:
        options.json.write_text(
            json.dumps(
                {"versions": found, "sizes": dataclasses.asdict(sizes), "tuned": options.tuned, "runs": runs},
                indent=1,
            )
        )
    print(report.table(runs))
    print()
    print(report.targets(runs))
    print()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
