"""The long run: ``python -m tests.soak --deliveries 1000000 --clients 100``.

Clients, nodes and PostgreSQL are disturbed as in the chaos test, and a hot standby takes over from a killed primary.
The run ends when the clients have received so many events. It writes a history, which ``sio-pg check`` judges. With
``--write`` it also puts its result into the documentation, if nothing was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does: for `support` and `field`

from field.pair import Pair
from sio_pg_adapter.check import check_file
from sio_pg_adapter.demo.history import HistoryWriter
from sio_pg_adapter.embedded import EmbeddedPostgres
from support.chaos import Chaos
from support.js_driver import JSDriver
from support.nodejs import executable, install
from support.replicas import client_programs

PAGE = Path(__file__).parents[1] / "docs" / "histories.md"
RESULT = re.compile(r"(?s)(<!-- written by tests/soak.py -->\n```text\n).*?(```\n)")
"""Where the result is on the page."""

STALLED = 120.0
"""Seconds without a delivery after which the run fails."""


async def soak(history: HistoryWriter, deliveries: int, clients: int, seed: int) -> str:
    """Run, and return a report."""
    modules = await asyncio.to_thread(install)
    with client_programs() as programs:
        pair = Pair(programs)
        try:
            await pair.start()

            async def fail_over() -> EmbeddedPostgres:
                await pair.wait_for(synchronous=True)
                await asyncio.to_thread(pair.primary.kill)
                await pair.promote()
                await asyncio.to_thread(pair.make_standby)  # two primaries would lose commits
                return pair.primary

            async with JSDriver(modules, executable("node")) as js:
                chaos = Chaos(pair.primary, pair.dsns[0], js, seed, history, fail_over)
                try:
                    await chaos.start(clients=clients)
                    await chaos.run(_received(chaos, deliveries), writers=4)
                    await chaos.write_log()
                finally:
                    await chaos.end()
                return chaos.report()
        finally:
            pair.stop()


async def _received(chaos: Chaos, deliveries: int) -> None:
    last, since = 0, time.monotonic()
    while (now := chaos.deliveries) < deliveries:
        if now > last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > STALLED:
            raise RuntimeError(f"no event was delivered for {STALLED:.0f} s, after {now:,}")
        sys.stderr.write(f"\r{now:,} of {deliveries:,} deliveries ")
        await asyncio.sleep(1)
    sys.stderr.write("\n")


def main() -> int:
    """Run, check, and print both reports."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--deliveries", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--history", type=Path, default=Path("history.jsonl"))
    parser.add_argument(
        "--write", action="store_true", help=f"write the result into docs/{PAGE.name}, if it is clean"
    )
    args = parser.parse_args()
    began = time.monotonic()
    command = f"python -m tests.soak --deliveries {args.deliveries} --clients {args.clients} --seed {args.seed}"
    with HistoryWriter(args.history, command=command, seed=args.seed) as history:
        report = asyncio.run(soak(history, args.deliveries, args.clients, args.seed))
    verdict = check_file(args.history)
    digest = hashlib.sha256(args.history.read_bytes()).hexdigest()
    lines = [
        command,
        f"{time.monotonic() - began:.0f} s",
        report,
        verdict.report(),
        f"{args.history.name}: sha256 {digest}",
    ]
    result = "\n".join(lines) + "\n"
    sys.stdout.write(result)
    if args.write and not verdict.findings:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(RESULT.sub(lambda place: place[1] + result + place[2], page), encoding="utf-8")
    return 1 if verdict.findings else 0


if __name__ == "__main__":
    sys.exit(main())
