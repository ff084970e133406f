"""What is committed builds into a package that is complete, contains nothing else, and loads only what is used."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import RunPython

import sona

ROOT = Path(__file__).parents[1]
HEAVY = ("sklearn", "scipy", "networkx", "matplotlib")


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def tracked() -> list[str]:
    """Paths under version control that are there."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed: no list of the package's files")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0 or "setup.py" not in done.stdout:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@dataclass(frozen=True)
class Built:
    """A source archive, the wheel that was built from it, and where that is installed."""

    files: list[str]
    sdist: Path
    wheel: Path
    site: Path

    @property
    def content(self) -> set[str]:
        """Paths in the wheel."""
        return set(zipfile.ZipFile(self.wheel).namelist())


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("build", reason="the package `build` is not installed")
    files = tracked()
    tmp = tmp_path_factory.mktemp("package")
    for name in files:
        (tmp / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp / "source" / name)
    building = (sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp / "dist", tmp / "source")
    run(*building, cwd=tmp, SONA_CFLAGS="-O0")  # what it holds, not how fast it is
    (sdist,) = (tmp / "dist").glob("*.tar.gz")
    (wheel,) = (tmp / "dist").glob("*.whl")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    run(*pip, "--target", tmp / "site", wheel, cwd=tmp)
    return Built(files, sdist, wheel, tmp / "site")


def installed(built: Built, script: str, cwd: Path) -> str:
    return run(sys.executable, "-W", "error", "-c", script, cwd=cwd, PYTHONPATH=str(built.site))


# ---- the wheel ----


@pytest.mark.slow
def test_wheel_has_every_file_of_the_package(built: Built) -> None:
    sources = {name for name in built.files if name.startswith("sona/")}
    headers = {f"sona/include/{name.removeprefix('csrc/include/')}" for name in built.files if name.startswith("csrc/include/")}
    assert {"sona/py.typed", "sona/_c.pxd", "sona/adapters/_lora.pyi", "sona/adapters/__init__.pxd"} <= sources
    assert "sona/include/sona/sona.h" in headers
    assert sources | headers <= built.content


@pytest.mark.slow
def test_wheel_has_nothing_else(built: Built) -> None:
    compiled = {name for name in built.content if name.endswith(".so")}
    assert {name.split(".")[0] for name in compiled} == {name.removesuffix(".pyx") for name in built.files if name.endswith(".pyx")}
    rest = {name for name in built.content - compiled if not name.startswith(("sona/include/", f"sona-{sona.__version__}.dist-info/"))}
    assert rest == {name for name in built.files if name.startswith("sona/")}
    assert not [name for name in built.content if name.endswith((".c", ".cpp", ".o", ".a"))]


@pytest.mark.slow
def test_wheel_has_no_debug_information(built: Built) -> None:
    """It would be five sixths of it: Python asks for it wherever Python itself was compiled so."""
    with zipfile.ZipFile(built.wheel) as wheel:
        compiled = [name for name in built.content if name.endswith(".so")]
        assert compiled
        assert [name for name in compiled if b".debug_info" in wheel.read(name)] == []


def test_the_wheels_that_are_made_are_for_the_versions_that_are_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    made = [name.removeprefix("cp3").removesuffix("-*") for name in project["tool"]["cibuildwheel"]["build"]]
    assert project["project"]["requires-python"] == f">=3.{made[0]}"
    assert made == [str(minor) for minor in range(int(made[0]), int(made[-1]) + 1)]
    script = (ROOT / "tests/wheel.sh").read_text(encoding="utf-8")
    named = re.findall(r"test_\w+\.py", script)
    assert "wheel.sh" in project["tool"]["cibuildwheel"]["test-command"]
    assert named
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.slow
def test_wheel_says_what_it_is(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        info = f"sona-{sona.__version__}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
        licence = wheel.read(f"{info}/licenses/LICENSE").decode()
    assert (metadata["Name"], metadata["Version"]) == ("sona", sona.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licence == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "sona = sona.cli:main" in scripts
    assert {name.split(">")[0] for name in metadata.get_all("Requires-Dist", []) if "extra" not in name} == {
        "numpy",
        "scipy",
        "scikit-learn",
        "networkx",
        "safetensors",
    }


@pytest.mark.slow
def test_source_archive_has_the_c_core_and_no_generated_c(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    core = {name for name in built.files if name.startswith("csrc/") and not name.startswith("csrc/tests/")}
    assert {"csrc/Makefile", "csrc/CMakeLists.txt", "csrc/package/sona.pc.in"} <= core
    assert core <= names
    assert {name for name in names if name.endswith(".c")} <= core
    assert not [name for name in names if name.startswith(("tests", "csrc/tests", "build"))]


# ---- installed ----


@pytest.mark.slow
def test_installed_package_routes_and_finds_its_headers(built: Built, tmp_path: Path) -> None:
    script = f"""
import pathlib, sona
site = pathlib.Path({str(built.site)!r})
assert pathlib.Path(sona.__file__).is_relative_to(site), sona.__file__
include = pathlib.Path(sona.get_include())
assert include.is_relative_to(site), include
assert (include / "sona" / "sona.h").is_file()
assert sona.__version__ == {sona.__version__!r}
assert all(getattr(sona, name) is not None for name in sona.__all__)
with sona.Router({{"a": [1.0, 0.0], "b": [0.0, 1.0]}}, store="sona.db") as router:
    d = router.route([1.0, 0.2])
    assert d.arm == "a"
    assert router.feedback(d.id, 1.0, sync=True)
assert pathlib.Path("sona.db").is_file()
print("routed")
"""
    assert installed(built, script, tmp_path) == "routed\n"


@pytest.mark.slow
def test_installed_command_line(built: Built, tmp_path: Path) -> None:
    script = "import sys; from sona.cli import main; sys.argv = ['sona', '--version']; main()"
    done = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(built.site))
    assert sona.__version__ in done


# ---- what an import loads ----


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sona", (*HEAVY, "numpy", "sqlite3", "safetensors")),
        ("import sona; sona.get_include(); sona.SonaError; dir(sona); sona.__version__", (*HEAVY, "numpy", "sqlite3", "safetensors")),
        ("import sona; sona.Router", HEAVY),
        ("import sona; r = sona.Router({'a': [1., 0.], 'b': [0., 1.]}); r.feedback(r.route([1., 2.]).id, 1.)", HEAVY),
        ("import sona.cli", (*HEAVY, "numpy", "sqlite3")),
    ],
)
def test_import_loads_only_what_is_used(run_python: RunPython, statement: str, absent: tuple[str, ...]) -> None:
    script = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}} & set({absent!r})))"
    assert run_python(script).stdout.split() == []
