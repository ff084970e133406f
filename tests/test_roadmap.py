"""docs/roadmap.md is what its table says, and every name in the table exists."""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import sys
from collections import Counter
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sona.cli import main

ROOT = Path(__file__).parents[1]
# How many names of each kind the roadmap has: a row cannot vanish unnoticed.
COUNTS = {
    "component": 12,
    "principle": 7,
    "file": 19,
    "type": 41,
    "method": 54,
    "default": 23,
    "deliverable": 52,
    "test": 12,
    "benchmark": 2,
    "criterion": 13,
    "risk": 10,
}


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_roadmap", ROOT / "docs" / "make_roadmap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_roadmap"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_roadmap = _load()
ROWS = make_roadmap.rows()
PYTHON = re.compile(r"sona(\.\w+)*(\(\w+\))?")


def names(column: str) -> list[str]:
    return sorted({part for row in ROWS for part in make_roadmap.parts(getattr(row, column))})


def resolve(dotted: str) -> Any:
    """The object of a dotted name: as much of it as is a module is imported, the rest are attributes."""
    path = dotted.split(".")
    for cut in range(len(path), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(path[:cut]))
            for name in path[cut:]:
                found = getattr(found, name)
            return found
    raise AssertionError(f"{dotted} is not there")


def default_of(name: str) -> Any:
    """Of Class(parameter), of a dataclass's Class.field, or the value of a constant."""
    if name.endswith(")"):
        owner, parameter = name[:-1].split("(")
        return inspect.signature(resolve(owner)).parameters[parameter].default
    owner, last = name.rsplit(".", 1)
    home = resolve(owner)
    if is_dataclass(home):
        return {field.name: field.default for field in fields(home)}[last]
    return getattr(home, last)


@cache
def headers() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "csrc/include/sona").glob("*.h")))


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def definitions(path: Path) -> set[str]:
    """Functions, classes and Class::method or Class.method of a Python file, without importing it."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found |= {f"{node.name}{mark}{method}" for method in methods for mark in ("::", ".")}
    return found


def is_there(place: str) -> bool:
    """path or path::definition"""
    path, _, name = place.partition("::")
    file = ROOT / path
    return file.is_file() and (not name or name in definitions(file))


def test_the_page_is_generated():
    assert (ROOT / "docs/roadmap.md").read_text(encoding="utf-8") == make_roadmap.render(), "run docs/make_roadmap.py"


def test_no_row_has_vanished():
    assert Counter(row.kind for row in ROWS) == COUNTS
    assert len({(row.section, row.name) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_complete(row: Any):
    assert row.state in make_roadmap.STATES
    assert bool(row.why) == (row.state != "done"), "a reason where something is replaced or missing, and only there"
    if row.state == "done":
        assert row.ours != "none"
    if row.state == "done" and row.kind in ("type", "method", "test", "risk") and "make " not in row.ours:
        assert row.test != "none"
    if row.kind == "benchmark" and row.state == "done":
        assert row.figure != "none"
    if row.kind == "criterion" and row.state == "done":
        assert (row.figure, row.test) != ("none", "none")


@pytest.mark.parametrize("name", names("ours"))
def test_ours_is_there(name: str, capsys: pytest.CaptureFixture[str]):
    if name.startswith("make "):
        assert name.removeprefix("make ") in make_targets()
    elif name.startswith("sona "):
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stop:
            main([*shlex.split(name)[1:], "--help"])
        assert stop.value.code == 0
    elif re.fullmatch(r"sona_\w+(\.\w+)?|SONA_\w+", name):
        for part in name.split("."):
            assert re.search(rf"\b{part}\b", headers())
    elif PYTHON.fullmatch(name):
        assert (default_of(name) if name.endswith(")") else resolve(name)) is not inspect.Parameter.empty
    else:
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("place", names("test"))
def test_named_tests_are_there(place: str):
    assert is_there(place)
    assert place.startswith(("tests/", "csrc/tests/"))


@pytest.mark.parametrize("place", names("figure"))
def test_named_figures_are_there(place: str):
    assert is_there(place)
    assert place.startswith(("asv_benchmarks/", "csrc/tests/bench_"))


@pytest.mark.parametrize("row", [row for row in ROWS if row.fields], ids=lambda row: row.name)
def test_fields_are_those_of_the_roadmap(row: Any):
    cls = resolve(row.ours)
    assert [field for field in row.fields if not (hasattr(cls, field) or field in getattr(cls, "__annotations__", {}))] == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind == "default"], ids=lambda row: row.name)
def test_defaults_are_those_of_the_code(row: Any):
    assert row.roadmap is not None
    if row.ours == "none":
        assert row.value is None
        return
    assert row.value == default_of(row.ours)
    assert (row.state == "done") == (row.value == row.roadmap)


def test_a_wrong_name_would_be_found():
    assert not is_there("tests/test_roadmap.py::test_that_nobody_wrote")
    assert not is_there("tests/test_nothing.py")
    with pytest.raises((AssertionError, AttributeError)):
        resolve("sona.MicroLoRA.forward_simd")
