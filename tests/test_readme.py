"""The documents say what is true: examples run, links and names resolve, constants are those of the sources."""

import contextlib
import inspect
import io
import re
import subprocess
import sys
from dataclasses import is_dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

import pytest

import sona
from sona.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))))
SECTIONS = ("Install, and see it learn", "Example", "Measured", "From C", "Threads", "Limits", "Alternatives", "More")
ROUTER = sona.Router(["a", "b"], dim=2)
OBJECTS = {"router": ROUTER, "ranker": sona.Ranker([[1.0, 0.0]]), "engine": ROUTER.engine, "store": sona.SqliteStore, "sona": sona}


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(document), re.MULTILINE | re.DOTALL)


def printed(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "example", "exec"), names)
    return out.getvalue()


def test_python_example_prints_what_the_readme_says():
    (code,) = blocks("README.md", "python")
    assert len(code.splitlines()) <= 13
    assert printed(code, {}) == blocks("README.md", "text")[0]


def test_c_example_is_the_tested_program():
    (code,) = blocks("README.md", "c")
    assert code == text("csrc/tests/test_readme.c")


def test_c_commands_build_what_prints_what_the_readme_says(tmp_path: Path):
    (commands,) = (b for b in blocks("README.md", "sh") if "-o readme" in b)
    commands = commands.replace("-o readme", f"-o {tmp_path}/readme").replace("./readme", f"{tmp_path}/readme")
    done = subprocess.run(["sh", "-euc", commands], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith(blocks("README.md", "text")[1])


def test_store_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/store.md", "python")
    names: dict[str, object] = {"sona": sona, "arms": {"a": [1.0, 0.0], "b": [0.0, 1.0]}}
    printed(code, names)
    for name in ("router", "store"):
        names[name].close()  # type: ignore[attr-defined]
    assert (tmp_path / "sona.db").exists()


def test_the_metrics_example_runs():
    (code,) = blocks("docs/operations.md", "python")
    shown = "print(prometheus_client.generate_latest().decode())"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{shown}"], capture_output=True, text=True, check=True)
    assert 'sona_requests_total{router="faq"} 0.0' in done.stdout


def test_the_examples_of_watching_run():
    log, metrics, spans = blocks("docs/observe.md", "python")
    said = "print(prometheus_client.generate_latest(registry).decode())"
    for package, code, expected in (
        ("json", log, '"event": "background.cycle"'),
        ("prometheus_client", f"{metrics}\n{said}", 'sona_work_total{status="skipped",work="background_cycle"} 0.0'),
        ("opentelemetry.sdk", spans, blocks("docs/observe.md", "text")[0]),
    ):
        if find_spec(package.partition(".")[0]) is not None:
            done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
            assert expected in done.stdout


@pytest.mark.parametrize(
    "document",
    [
        "docs/background.md",
        "docs/dashboard.md",
        "docs/dreams.md",
        "docs/ewc.md",
        "docs/export.md",
        "docs/gate.md",
        "docs/memory.md",
        "docs/phi.md",
        "docs/ranker.md",
        "docs/sklearn.md",
        "docs/sources.md",
        "docs/tutorials/migrate.md",
        "docs/tutorials/router_costs.md",
        "docs/tutorials/search.md",
    ],
)
def test_an_example_prints_what_its_document_says(document: str):
    (code,) = blocks(document, "python")
    assert [printed(code, {})] == blocks(document, "text")


def test_readme_order_and_marks():
    readme = text("README.md")
    assert tuple(re.findall(r"^## (.*)$", readme, re.MULTILINE)) == SECTIONS
    marks = re.findall(r"<!-- (bench|learning):(begin|end) -->", readme)
    assert marks == [("bench", "begin"), ("bench", "end"), ("learning", "begin"), ("learning", "end")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str):
    for target in re.findall(r"\]\(([^)#]+)\)", text(document)):
        assert target.startswith("https://") or (ROOT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str):
    named = re.findall(r"`((?:sona|csrc|tests|asv_benchmarks|docs)/[^`* ]*\.[a-z]+)`", text(document))
    assert [path for path in named if not any((ROOT / base / path).exists() for base in ("", "csrc/include"))] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist(document: str, capsys: pytest.CaptureFixture[str]):
    body = text(document)
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", body, re.MULTILINE)) <= targets
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^ {4}([a-z]+)", capsys.readouterr().out, re.MULTILINE))
    assert set(re.findall(r"`sona ([a-z]+)", body)) <= commands


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_names_exist(document: str):
    events = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (?:debug|info|warning|error) ", text("docs/observe.md"), re.MULTILINE)
    for owner, name in re.findall(r"`([A-Za-z]+)\.([a-z_A-Z0-9]+)", text(document)):
        home = OBJECTS.get(owner, getattr(sona, owner, None))
        if home is not None and f"{owner}.{name}" not in ("sona.db", *events):  # a file, and names in the log
            assert hasattr(home, name) or (owner == "sona" and find_spec(f"sona.{name}") is not None), f"{owner}.{name}"


def threads_by_class() -> dict[str, set[str]]:
    """Names in each class's rows of docs/threads.md."""
    found: dict[str, set[str]] = {}
    current: set[str] = set()
    for cells in re.findall(r"^\| (.*?) \|", text("docs/threads.md"), re.MULTILINE):
        if cells.startswith("**"):
            current = set()
            found |= {name: current for name in cells.strip("*").split(", ")}
        else:
            current.update(re.findall(r"`([a-z_]+)`", cells))
    return found


def public_classes() -> list[type]:
    values = (getattr(sona, name) for name in sona.__all__)
    return [v for v in values if isinstance(v, type) and not issubclass(v, Exception | Enum) and not is_dataclass(v)]


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_threads_has_a_row_for_every_method(cls: type):
    mine = {name for base in cls.__mro__ if base.__module__.startswith("sona") for name in vars(base) if not name.startswith("_")}
    listed = threads_by_class()[cls.__name__]
    siblings = {name for other in public_classes() if issubclass(other, cls) for name in dir(other)}
    assert mine - listed == set()
    assert {name for name in listed if name not in siblings and not inspect.getattr_static(cls, name, None)} == set()


def test_threads_names_every_header():
    headers = {f"sona/{path.name}" for path in (ROOT / "csrc/include/sona").glob("*.h") if not path.stem.endswith("_inline")}
    assert set(re.findall(r"`(sona/[a-z0-9_]+\.h)`", text("docs/threads.md"))) == headers


def constants() -> list[tuple[str, str, str]]:
    return re.findall(r"^\| [^|]+ \| ([0-9.e-]+) \| `(\w+)` in `([^`]+)` \|$", text("docs/learning.md"), re.MULTILINE)


def test_the_table_of_constants_is_read():
    assert len(constants()) >= 20


@pytest.mark.parametrize(("value", "name", "path"), constants(), ids=lambda part: part)
def test_constants_are_those_of_the_sources(value: str, name: str, path: str):
    got = re.findall(rf"\b{name}\b[^=<>\n;,(]*=\s*([0-9.]+(?:e-?[0-9]+)?)", text(path))
    assert float(got[0]) == float(value)


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^   (\w+)$", text("docs/reference/python.rst"), re.MULTILINE)
    assert sorted(listed) == sorted(set(sona.__all__) - {"__version__"})


def test_every_public_name_says_in_a_line_what_it_is():
    first = {name: (inspect.getdoc(getattr(sona, name)) or "").strip().split("\n\n")[0] for name in set(sona.__all__) - {"__version__"}}
    assert [name for name, line in first.items() if not line or "\n---" in line] == []


def test_the_reference_has_every_header():
    listed = re.findall(r"include/(sona/\w+\.h)", text("docs/reference/c.md"))
    assert sorted(listed) == sorted(f"sona/{p.name}" for p in (ROOT / "csrc/include/sona").glob("*.h"))
