"""What exports of a large store take: seconds, bytes and the memory of a process that does nothing else.

    python asv_benchmarks/export_table.py [--decisions 1000000] [--dim 64] [--store FILE]

The store is made by a Router of 20 arms whose decisions are rewarded, and kept where FILE is given. Each export is `sona export` in a
process of its own; "inspect" opens the store and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sona import Router
from sona.simulate import cpu_name

ARMS, SEED = 20, 0
EXPORTS = [("--decisions", "d.parquet"), ("--decisions", "d.jsonl"), ("--preferences", "p.jsonl")]
MEASURE = """
import resource, sys
from sona.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def fill(path: Path, decisions: int, dim: int) -> None:
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((2000, dim)).astype(np.float32)  # requests come again: preferences need pairs of the same
    with Router(rng.standard_normal((ARMS, dim)), store=path, seed=SEED, precondition="identity") as router:
        for n in range(decisions):
            decision = router.route(x[n % len(x)])
            router.feedback(decision.id, float(decision.index == n % ARMS))
            if n % 5000 == 0:
                router.flush()


def run(*arguments: str) -> tuple[float, int, str]:
    """Seconds, kilobytes at most, and what was said."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, int(done.stderr.split()[-1]), done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--store", type=Path, help="made where it does not exist, and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = arguments.store or Path(scratch) / "sona.db"
        if not path.exists():
            fill(path, arguments.decisions, arguments.dim)
        print(f"{cpu_name()}, {os.cpu_count()} cores; {path.stat().st_size / 1e6:.0f} MB of store")
        print(f"inspect: {run('inspect', str(path), '--json')[1] / 1024:.0f} MB of memory")
        for option, name in EXPORTS:
            target = Path(scratch) / name
            seconds, kilobytes, said = run("export", str(path), option, str(target))
            said = said.rsplit(": ", 1)[-1]
            print(f"{option} {name}: {said}, {seconds:.1f} s, {target.stat().st_size / 1e6:.0f} MB, memory {kilobytes / 1024:.0f} MB")
            target.unlink()


if __name__ == "__main__":
    main()
