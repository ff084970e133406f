"""The C tests pass: plain with every run, under the sanitizers with the slow ones."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[1] / "csrc" / "tests"
PROGRAMS = sorted(path.stem.removeprefix("test_") for path in SUITE.glob("test_*.c"))


@pytest.mark.parametrize(
    ("target", "mode"),
    [
        pytest.param("check", "plain", marks=pytest.mark.slow),  # `make test` has run it
        pytest.param("asan", "asan", marks=pytest.mark.slow),
        pytest.param("tsan", "tsan", marks=pytest.mark.slow),
    ],
)
def test_every_c_program_passes(target: str, mode: str) -> None:
    for tool in ("make", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    # Under `make test` this make is a child of another: without its flags and its job server.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BIN", "MODE")}
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(SUITE), target], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    *lines, last = done.stdout.splitlines()
    assert last == f"{mode}: all {len(PROGRAMS)} test programs passed"
    assert sorted(re.split("[ :]", line)[0] for line in lines) == PROGRAMS
