"""Measure what docs/benchmark.md and REPORT.md publish: `python bench/published.py`.

The figures of all repeats go to figures/. A test compares them with both pages. The tables are printed. It takes 25
minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FIGURES = HERE / "figures"
EMITTERS = "ours,ours-memory,socketio-redis,node-redis-streams,node-redis-streams-fsync"
PYTHON = "ours,ours-memory,socketio-redis"
RECOVERING = "ours,node-redis-streams,node-memory"

RUNS = {
    "emits": f"--only latency,sequential,inflight --peers {EMITTERS},node-memory,postgres",
    "at_once": f"--only inflight50k --peers {EMITTERS}",
    "tuned": f"--only inflight50k --tuned --peers {PYTHON}",
    "clients": "--only fanout,storm --storms 500 --peers ours,socketio-redis,node-redis-streams,node-memory",
    "recovery": f"--only recovery --peers {RECOVERING}",
    "threads": "--only inflight,fanout --peers ours-threads,socketio-threads-redis",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}. Without it all of them")
    parser.add_argument("--repeats", default="5")
    options = parser.parse_args()
    if unknown := set(options.runs) - RUNS.keys():
        parser.error(f"unknown: {', '.join(unknown)}. There are {', '.join(RUNS)}")
    for name in options.runs or RUNS:
        into = FIGURES / f"{name}.json"
        command = [sys.executable, "run.py", "--repeats", options.repeats, "--json", str(into), *RUNS[name].split()]
        subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "report.py", *sorted(map(str, FIGURES.glob("*.json")))], cwd=HERE, check=True)


if __name__ == "__main__":
    main()
