"""What the tests share: kernel tables, seeded randomness, child processes."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from postgres import _second, own_server, postgres_server  # noqa: F401
from stores import Place, PostgresPlace, SqlitePlace

import sona

# Deadlines measure the machine, not the code: two shared cores pause for seconds.
settings.register_profile("sona", deadline=None, max_examples=40, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sona")

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
StartPython = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=sona.isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each kernel table that this machine can run."""
    return str(request.param)


@pytest.fixture(params=["sqlite", "postgres", pytest.param("postgres-bytes", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where a store can be made: a file, a schema of a server, or one of a server without pgvector."""
    if request.param == "sqlite":
        return SqlitePlace(tmp_path)
    server = request.getfixturevalue("postgres_server")
    if request.param == "postgres-bytes":
        monkeypatch.setattr("sona.store.postgres.schema.EXTENSION", "no_such_extension")
    return PostgresPlace(server.url())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240711)


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[StartPython]:
    """Start a script in a fresh interpreter, with `tests` and the package of this process on its path; killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
        roots = [str(Path(__file__).parent), str(Path(sona.__file__).parent.parent)]
        path = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_python(start_python: StartPython) -> RunPython:
    """Run a script to its end as `start_python` does; `code` is its exit status."""

    def run(script: str, *arguments: object, code: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
        process = start_python(script, *arguments, **environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, f"exit status {process.returncode}, expected {code}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
