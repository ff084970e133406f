"""Measures everything that sona promises about time and memory, each against its peer in the same run, and prints one table.

    python asv_benchmarks/table.py [--quick] [--json FILE] [--readme]

Ratios are medians over rounds in which own code and peer take turns; absolute times depend on the machine and on what else runs there.
Load is printed with the table: on a busy machine run it again before believing a missed target.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from row import HEAD, Row, faster, near, within

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "scipy", "torch", "faiss-cpu")

# bench of the C programs -> what the table calls it, what it is measured against, the cases that the README shows
KERNELS = {
    "lora_forward/limit": ("micro forward from C", "loading everything once", ("r=1 d=256", "r=1 d=1024", "r=2 d=256", "r=2 d=4096")),
    "lora_forward/one_accumulator": ("micro forward from C", "single-accumulator AVX2 loop", ("r=1 d=384", "r=2 d=384")),
    "fisher_update/limit": ("Fisher update in C", "loading everything once", ("n=10240",)),
    "ewc_pull/limit": ("EWC pull in C", "loading everything once", ("n=10240",)),
    "ewc_scale/limit": ("EWC scale in C", "loading everything once", ()),
    "ewc_scale/divider": ("EWC scale in C", "one division per element", ("n=10240",)),
    "gemv/limit": ("scores in C", "reading the matrix once", ()),
    "reader/kernel": ("adapter forward in C", "bare kernel", ("r=2 d=256",)),
    "top_k/limit": ("exact scan in C", "reading the matrix once", ("10000x384",)),
}


def c_rows() -> Iterator[Row]:
    """The programs csrc/tests/bench_*.c, one JSON object a line."""
    command = ["make", "-s", "-C", str(ROOT / "csrc/tests"), "MODE=plain", "bench", "BENCH=--json"]
    for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        found = json.loads(line)
        bench, case, own = found["bench"], found["case"], found["ns"] * 1e-9
        if bench in KERNELS:
            what, peer, shown = KERNELS[bench]
            make = faster if bench.endswith("one_accumulator") else near
            yield make(what, case, own, peer, found["ratio"], found["target"], short=case in shown)
        elif bench == "ring":
            size, mode = case.split(", ")
            yield faster(f"ring in C, {mode}", size, own, found["peer"], found["ratio"], found["target"], short=mode == "one size")
        else:
            bound = found["target_ns"]
            yield within(f"{bench} in C", case, own, bound and bound * 1e-9, short=bound is not None)


def python_rows(quick: bool) -> Iterator[Row]:
    from python_benches import BENCHES, QUICK, Effort

    for bench in BENCHES:
        yield from bench(QUICK if quick else Effort())


def first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def machine() -> dict[str, str]:
    import sona

    compiler = shutil.which(os.environ.get("CC", "cc"))
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "load": f"{os.getloadavg()[0]:.2f} at the start",
        "compiler": first_line(compiler, "--version") if compiler else "none",
        "versions": ", ".join([f"sona {sona.__version__}", f"Python {platform.python_version()}", *map(version, PACKAGES)]),
        "kernels": sona.isas()[-1],
        "command": " ".join(["python", *(os.path.relpath(a, ROOT) if a == sys.argv[0] else a for a in sys.argv)]),
    }


def aligned(rows: list[Row]) -> str:
    lines = [HEAD, *(row.cells for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    lines = [HEAD, tuple("---" for _ in HEAD), *(row.cells for row in rows if row.short)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{about['machine']}; {about['compiler']}; {about['versions']}; `{about['command']}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine to FILE too")
    parser.add_argument("--readme", action="store_true", help="print the Markdown table of the README")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read when numpy and scipy are loaded: every peer gets one thread, as sona takes
    about = machine()
    rows = [*c_rows(), *python_rows(options.quick)]
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if options.readme:
        print(markdown(rows, about))
        return
    for name, value in about.items():
        print(f"{name}: {value}")
    print()
    print(aligned(rows))
    missed = [row for row in rows if row.met is False]
    print(f"\n{sum(row.met is True for row in rows)} targets met, {len(missed)} missed")


if __name__ == "__main__":
    main()
