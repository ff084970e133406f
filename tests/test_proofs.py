"""The proofs in csrc/proofs hold, as far as the tools are installed; docs/proofs.md says what each is worth."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from conftest import RunPython

PROOFS = Path(__file__).parents[1] / "csrc" / "proofs"
C_TESTS = PROOFS.parent / "tests"
PACKAGES = {
    "spin": "spin",
    "/usr/include/relacy/relacy.hpp": "relacy-dev",
    "clang": "clang libclang-rt-14-dev",
    "qemu-x86_64": "qemu-user",
    "qemu-aarch64": "qemu-user",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "valgrind": "valgrind",
    "gcov": "gcc",
    "g++": "g++",
    "gcc": "gcc",
    "make": "make",
}


def make(where: Path, *arguments: str, needs: tuple[str, ...], seconds: int = 1800) -> str:
    """Standard output of a make that has to succeed; skipped where a tool is missing."""
    for tool in ("make", "gcc", *needs):
        if not (shutil.which(tool) or Path(tool).exists()):
            pytest.skip(f"{tool} is not installed: apt-get install {PACKAGES[tool]}")
    # Under `make test` this make is a child of another: without its flags and its job server.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BIN", "MODE", "CC")
    }
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(where), *arguments], env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def twins(name: str) -> list[str]:
    """Broken twins that a model says it has."""
    head = (PROOFS / f"{name}.pml").read_text().split("*/")[0]
    return [line.split()[1].removeprefix("-D") for line in head.splitlines() if line.startswith(" *   -D")]


def check_protocols(names: tuple[str, ...]) -> None:
    out = make(PROOFS, "spin", f"PROTOCOLS={' '.join(names)}", needs=("spin",)).splitlines()
    for name in names:
        assert sum(line.startswith(f"{name}: ") and line.endswith("nothing found") for line in out) == 1
        assert len(twins(name)) >= 4
        for twin in twins(name):
            assert sum(line.startswith(f"{name} {twin}: assertion violated") for line in out) == 1


@pytest.mark.slow
def test_the_protocol_between_processes_holds_in_every_interleaving() -> None:
    check_protocols(("shared_ring",))


@pytest.mark.slow
def test_the_other_protocols_hold_in_every_interleaving() -> None:
    check_protocols(tuple(path.stem for path in sorted(PROOFS.glob("*.pml")) if path.stem != "shared_ring"))


@pytest.mark.slow
def test_every_memory_order_is_strong_enough_and_every_weaker_one_is_found() -> None:
    out = make(PROOFS, "relacy", "RUNS=100000", needs=("g++", "/usr/include/relacy/relacy.hpp"))
    models = sorted(PROOFS.glob("model_*.c"))
    assert out.count("runs, nothing found") == len(models) >= 6
    assert out.count("weaker orders, 0 not told from the right ones") == len(models) - 1  # weights: by the sequence lock alone
    assert "acquire load in sona_shared_look_at_tail as relaxed: " in out


@pytest.mark.slow
def test_what_fuzzing_has_kept_breaks_no_promise() -> None:
    out = make(PROOFS, "seeds", needs=()).splitlines()
    targets = sorted(path.name for path in (PROOFS / "seeds").iterdir())
    assert sorted(line.split(":")[0] for line in out) == targets
    for line in out:
        name, said = line.split(": ")
        assert said == f"{len(list((PROOFS / 'seeds' / name).iterdir()))} files"
        assert not said.startswith("0")


@pytest.mark.slow
def test_a_few_seconds_of_fuzzing_find_nothing() -> None:
    out = make(PROOFS, "fuzz", "FUZZ_SECONDS=5", needs=("clang",))
    assert out.count("nothing found") == len(list((PROOFS / "seeds").iterdir()))


@pytest.mark.parametrize("name", sorted(fuzz.targets()))
def test_a_moment_of_fuzzing_the_parsers_finds_nothing(name: str) -> None:
    runs, kept = fuzz.fuzz(name, 0.3)
    assert runs >= 20
    assert kept >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(fuzz.targets()))
def test_some_seconds_of_fuzzing_the_parsers_find_nothing(name: str) -> None:
    runs, kept = fuzz.fuzz(name, 10, seed=1)
    assert runs > 500
    assert kept > 3


def test_the_fuzzer_finds_what_is_not_ours() -> None:
    """A target that fails for a rare word is found, and the input is in the note."""

    def planted(data: bytes) -> None:
        if b"NaN" in data:
            raise KeyError("planted")

    known = fuzz.targets
    try:
        fuzz.targets = lambda: {"planted": (planted, [b"0123456789"])}  # type: ignore[assignment]
        with pytest.raises(KeyError) as caught:
            fuzz.fuzz("planted", 20)
    finally:
        fuzz.targets = known
    assert "NaN" in caught.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "needs"),
    [("neon", ("aarch64-linux-gnu-gcc", "qemu-aarch64")), ("old", ("qemu-x86_64",)), ("valgrind", ("valgrind",)), ("cover", ("gcov",))],
)
def test_the_c_tests_pass_elsewhere(target: str, needs: tuple[str, ...]) -> None:
    out = make(C_TESTS, target, needs=needs)
    assert f"{target}: all " in out
    if target in ("neon", "old"):
        assert ("kernels scalar neon: ok" if target == "neon" else "kernels scalar: ok") in out.splitlines()


@pytest.mark.slow
def test_the_kernels_agree_where_scalar_is_the_default(run_python: RunPython) -> None:
    tests = [str(Path(__file__).parent / f"test_{name}.py") for name in ("adapters", "kernels", "instant", "router", "policy")]
    run_python(
        f"import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', 'not slow', *{tests!r}]))", SONA_ISA="scalar"
    )


def test_the_driver_says_what_it_did() -> None:
    driver = Path(fuzz.__file__)
    done = subprocess.run(
        [sys.executable, str(driver), "factors", "--seconds", "0.2"],
        env={**os.environ, "PYTHONPATH": str(Path(fuzz.PACKAGE).parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("factors: ")
    assert done.stdout.endswith("nothing found\n")
