"""CPU profile of a node: `python bench/profile_fanout.py [--path fanout|sequential|inflight|storm]`.

Samples our node (or with --peer another system's) with py-spy, including native frames. Prints the functions with
the largest shares, on their own and with everything they call. Without py-spy on the path it uses cProfile, which
makes calls more expensive than they are, so read those shares with care.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import pstats
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import install

install.everything()  # before the imports that need it

from children import Child
from measure import BENCH, Bench, Sizes
from peers import PEERS, Backends, Cluster, Peer


async def fanout(cluster: Cluster, load: Child, sizes: Sizes) -> None:
    for _ in range(3):
        await load.ask("watch", group="b")
        await cluster.nodes[0].ask("emit", count=sizes.fanout_events, inflight=1)
        await load.ask("arrived", group="b", count=sizes.fanout_events * sizes.clients)


async def sequential(cluster: Cluster, _load: Child, sizes: Sizes) -> None:
    await cluster.nodes[0].ask("emit", count=sizes.sequential * 3, inflight=1)


async def inflight(cluster: Cluster, _load: Child, sizes: Sizes) -> None:
    await cluster.nodes[0].ask("emit", count=sizes.inflight * 10, inflight=100)


async def storm(cluster: Cluster, load: Child, sizes: Sizes) -> None:
    await cluster.nodes[0].ask("emit", count=1, inflight=1)
    for _ in range(5):
        await load.ask("storm", group="b")


PATHS = {path.__name__: path for path in (fanout, sequential, inflight, storm)}


@contextlib.asynccontextmanager
async def sampled(pid: int, into: Path, rate: int) -> AsyncIterator[None]:
    program = shutil.which("py-spy")
    if program is None:
        yield
        return
    command = [program, "record", "--pid", str(pid), "--native", "--rate", str(rate), "--format", "raw"]
    spy = await asyncio.create_subprocess_exec(*command, "--output", str(into), stdout=-3, stderr=-3)
    try:
        await asyncio.sleep(1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            spy.send_signal(signal.SIGINT)
        await spy.wait()


def shares(folded: str) -> tuple[int, collections.Counter[str], collections.Counter[str]]:
    """Samples in all, those of each function alone, and those in which it is on the stack."""
    alone: collections.Counter[str] = collections.Counter()
    within: collections.Counter[str] = collections.Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        names = [name.rsplit(":", 1)[0] + ")" if ":" in name else name for name in stack.split(";")]
        alone[names[-1]] += int(count)
        for name in set(names):
            within[name] += int(count)
    return alone.total(), alone, within


def show(folded: str, lines: int) -> None:
    total, alone, within = shares(folded)
    for title, counter in (("self", alone), ("with what it calls", within)):
        print(f"\n{title}, of {total} samples on CPU")
        for name, count in counter.most_common(lines):
            print(f"{count / total:7.1%}  {name}")


async def profile(bench: Bench, peer: Peer, path: str, sizes: Sizes, rate: int, lines: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "profile"
        if shutil.which("py-spy") is None:
            os.environ["BENCH_PROFILE"] = str(file)
        clients = {"fanout": sizes.clients, "storm": sizes.storms[0]}.get(path, 1)
        async with bench.running(peer, 1) as (cluster, load):
            await load.ask("connect", group="b", urls=cluster.urls, count=clients, auth=BENCH)
            before = cluster.cpu()[0]
            async with sampled(cluster.nodes[0].pid, file, rate):
                await PATHS[path](cluster, load, sizes)
            print(f"{path} of {peer.name}: {cluster.cpu()[0] - before:.2f} CPU seconds of the node")
        if "BENCH_PROFILE" in os.environ:
            pstats.Stats(str(file)).sort_stats("tottime").print_stats(lines).sort_stats("cumtime").print_stats(lines)
        else:
            show(file.read_text(), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", choices=PATHS, default="fanout")
    parser.add_argument("--peer", choices=[n for n, p in PEERS.items() if p.nodes and not p.node_js], default="ours")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rate", type=int, default=500, help="samples a second")
    parser.add_argument("--lines", type=int, default=30)
    options = parser.parse_args()
    sizes = Sizes(clients=options.clients, storms=(options.clients,))
    backends = Backends()
    with backends.stack:
        asyncio.run(
            profile(Bench(backends, sizes), PEERS[options.peer], options.path, sizes, options.rate, options.lines)
        )


if __name__ == "__main__":
    main()
