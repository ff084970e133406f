"""How long from a reward to the weights?  `sona learn` beside a process that commits rewards and adopts what comes of them.

    python asv_benchmarks/sidecar_table.py [--quick] [--json FILE]

Adoption: this process commits a reward for a trajectory, looks every 50 us whether there are new weights, adopts them, and stops the clock
when they have changed the output for that request. With `load`, other trajectories with rewards, for another layer, come at that rate
meanwhile. Saves go on all the time. Sustained: this process commits as fast as the ring takes; records per second that are learned and
durable, the last save and release included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from row import HEAD, Row, print_lines, within
from table import machine

from sona import Adapter, SonaConfig, TrajectoryBuilder
from sona.sidecar import SharedRing, Weights

F32 = NDArray[np.float32]

WITHIN = 10e-3  # s from the commit of a reward to its adoption
LOOK = 50e-6
COMMAND = "from sona.cli import main; raise SystemExit(main())"


def record(x: F32, v: F32, *, layer: int = 0, reward: float | None = None) -> bytes:
    """A trajectory of one step as a C program writes it."""
    builder = TrajectoryBuilder(0, x)
    builder.add_step(v, None, reward, expected=0.5, layer=layer)
    data = bytearray(builder.end())
    data[8:12] = bytes(4)
    return bytes(data)


def feedback(sequence: int, reward: float) -> bytes:
    return b"SFBK" + (24).to_bytes(4, "little") + sequence.to_bytes(8, "little") + np.float64(reward).tobytes()


@contextmanager
def sidecar(dim: int, preset: str | None, capacity: int) -> Iterator[tuple[SharedRing, Path, list[dict[str, Any]]]]:
    """A ring to put things into, the weights' file, and, afterwards, what the sidecar reports."""
    reports: list[dict[str, Any]] = []
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=fast) as files, tempfile.TemporaryDirectory(dir=".") as disk:
        ring = SharedRing(Path(files, "ring"), "producer", capacity)
        command = [sys.executable, "-c", COMMAND, "learn", "--ring", f"{files}/ring", "--weights", f"{files}/weights"]
        command += ["--store", f"{disk}/sona.db", "--dim", str(dim), "--layers", "2", "--json"]
        command += [] if preset is None else ["--preset", preset]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(3.0)  # the weights are there, and what has to be imported is
        assert process.poll() is None
        yield ring, Path(files, "weights"), reports
        process.terminate()
        out, _ = process.communicate()
        reports.append(json.loads(out))


def vectors(rng: np.random.Generator, dim: int) -> tuple[F32, F32]:
    x, v = rng.normal(size=(2, dim)).astype(np.float32)
    return x / np.linalg.norm(x), v


def adoption(dim: int, preset: str | None, load: int, count: int) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Seconds of each reward from its commit to the adoption; what the sidecar reports."""
    rng, took = np.random.default_rng(0), []
    others = [record(*vectors(rng, dim), layer=1, reward=float(rng.random())) for _ in range(256)]
    with sidecar(dim, preset, 8 << 20) as (ring, path, reports):
        reader = Weights.reader(path, layers=2, dim=dim)
        adapters = [Adapter(dim, rank=8), Adapter(dim, rank=8)]
        start, sent = time.perf_counter(), 0

        def others_until(end: float) -> None:
            nonlocal sent
            while (now := time.perf_counter()) < end:
                while sent < load * (now - start):
                    ring.push(others[sent % len(others)])
                    sent += 1
                time.sleep(LOOK)

        for _ in range(count):
            x, v = vectors(rng, dim)
            sequence = ring.push(record(x, v))
            others_until(time.perf_counter() + rng.uniform(0.002, 0.012))
            reader.adopt(adapters)
            before = adapters[0].apply(x).tobytes()
            epoch = reader.epoch
            began = time.perf_counter()
            assert sequence is not None
            assert ring.push(feedback(sequence, 1.0)) is not None
            while True:
                if reader.epoch != epoch:
                    epoch = reader.epoch
                    reader.adopt(adapters)
                    if adapters[0].apply(x).tobytes() != before:
                        break
                assert time.perf_counter() < began + 10
                others_until(time.perf_counter() + LOOK)
            took.append(time.perf_counter() - began)
    return np.array(took), reports[0]


def sustained(dim: int, preset: str | None, seconds: float) -> tuple[float, dict[str, Any]]:
    """Records per second; what the sidecar reports."""
    rng = np.random.default_rng(0)
    pairs = [record(*vectors(rng, dim), layer=n % 2, reward=float(rng.random())) for n in range(256)]
    sent = 0
    with sidecar(dim, preset, 32 << 20) as (ring, _, reports):
        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            if ring.used > ring.capacity - (1 << 20):  # a producer that waits, so that nothing is dropped
                time.sleep(0.001)
                continue
            sequence = ring.push(pairs[sent % len(pairs)])
            sent += 1
            if sequence is not None and sent % 4 == 0:
                ring.push(feedback(sequence, 1.0))
                sent += 1
        while ring.used:
            time.sleep(0.001)
        took = time.perf_counter() - start
    return sent / took, reports[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rewards")
    parser.add_argument("--json", metavar="FILE", help="write everything measured here")
    arguments = parser.parse_args()
    count, seconds = (150, 2.0) if arguments.quick else (1000, 10.0)
    print(machine())
    print(f"rank up to {SonaConfig().base_lora_rank_max}, two layers, one step a trajectory, SQLite in {os.getcwd()}\n")
    rows, lines, measured = [], [["d", "preset", "load", "p50", "p90", "p99", "p99.9", "longest", "saves"]], []
    for dim, preset, load in ((128, None, 0), (384, None, 0), (384, None, 1000), (384, "max_throughput", 1000)):
        took, report = adoption(dim, preset, load, count)
        p = np.percentile(took, [50, 90, 99, 99.9, 100])
        lines.append([str(dim), preset or "default", f"{load}/s", *(f"{value * 1e3:.2f} ms" for value in p), str(report["saves"])])
        rows.append(within("reward to adoption, p99", f"d={dim} {preset or 'default'}, {load} others a second", float(p[2]), WITHIN))
        measured.append({"dim": dim, "preset": preset, "load": load, "seconds": took.tolist(), "report": report})
    print_lines(lines)
    print()
    for dim, preset in ((384, None), (384, "max_throughput")):
        rate, report = sustained(dim, preset, seconds)
        rows.append(Row("learned and durable", f"d={dim} {preset or 'default'}", f"{rate:,.0f} records/s"))
        measured.append({"dim": dim, "preset": preset, "rate": rate, "report": report})
    print_lines([HEAD, *(row.cells for row in rows)])
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": [asdict(row) for row in rows], "measured": measured}), encoding="utf-8")


if __name__ == "__main__":
    main()
