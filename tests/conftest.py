"""What the tests share: kernel tables, seeded randomness, child processes."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import sona

# Deadlines measure the machine, not the code: two shared cores pause for seconds.
settings.register_profile("sona", deadline=None, max_examples=40, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sona")

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=sona.isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each kernel table that this machine can run."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240711)


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run a script in a fresh interpreter, with `tests` and the package of this process on its path; `code` is its exit status."""

    def run(script: str, *arguments: object, code: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
        roots = [str(Path(__file__).parent), str(Path(sona.__file__).parent.parent)]
        path = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, f"exit status {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
        return done

    return run
