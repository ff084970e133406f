"""Imports point one way, from the command line down to the core; a Cython module ships what others compile with."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sona

ROOT = Path(__file__).parents[1]

# From the bottom up. Modules of one layer may import each other, except where each is a station of its own.
LAYERS = {
    "core": (
        "_version",
        "_arrays",
        "_c",
        "_fields",
        "_files",
        "_kernels",
        "_locks",
        "_status",
        "_vector",
        "config",
        "errors",
        "log",
        "types",
    ),
    "stations": ("adapters", "ewc", "memory", "patterns", "store", "trajectory"),
    "loops": ("loops",),
    "engine": ("engine",),
    "router": ("ranker", "router"),
    "evaluation": ("contents", "health", "metrics", "progress", "report", "simulate"),
    "programs": ("demo", "ext", "replay", "sidecar"),
    "command line": ("__main__", "cli"),
}
HEIGHT = {part: height for height, parts in enumerate(LAYERS.values()) for part in parts}
APART = (*LAYERS["stations"], *LAYERS["programs"])

# from x import y / cimport y, import x / cimport x; names may go on over lines in brackets
CYTHON_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+c?import[ \t]+(?:\(([^)]*)\)|([^\n#]*))", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^[ \t]*c?import[ \t]+([^\n#]+)", re.MULTILINE)


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_imports(text: str, package: str) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of every import statement, also inside functions; `package` is what relative ones start from."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            yield from ((".".join([*base, *filter(None, [node.module])]), alias.name) for alias in node.names)


def cython_imports(text: str) -> Iterator[tuple[str, str | None]]:
    code = re.sub(r'"""(?:.|\n)*?"""', "", text)
    code = re.sub(r"#.*", "", code)
    for module, bracketed, plain in CYTHON_FROM.findall(code):
        yield from ((module, name.split()[0]) for name in (bracketed or plain).split(",") if name.strip())
    for modules in CYTHON_IMPORT.findall(code):
        yield from ((name.split()[0], None) for name in modules.split(",") if name.strip())


def part_of(module: str, name: str | None = None) -> str | None:
    """First name below sona of what an import brings; None for other packages and for what sona/__init__.py itself defines."""
    if module == "sona" and name is not None:
        module = sona._HOME_OF.get(name, f"sona.{name}" if (ROOT / "sona" / name).exists() or name in HEIGHT else "sona")
    top, _, below = module.partition(".")
    return below.split(".")[0] if top == "sona" and below else None


def imports(root: Path) -> Iterator[tuple[str, str, str, str]]:
    """(module, its part, imported module, its part) of every import of sona in root/sona, except those of the lazy sona/__init__.py."""
    for path in sorted((root / "sona").rglob("*")):
        if path.suffix not in (".py", ".pyx", ".pxd") or path == root / "sona" / "__init__.py":
            continue
        module, text = module_of(path, root), path.read_text(encoding="utf-8")
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        found = python_imports(text, package) if path.suffix == ".py" else cython_imports(text)
        for target, name in found:
            part = part_of(target, name)
            if part is not None:
                own = part_of(module)
                assert own is not None
                yield module, own, target if target != "sona" else f"sona.{part}", part


def violations(root: Path) -> list[str]:
    result = []
    for module, own, target, part in imports(root):
        unknown = [p for p in (own, part) if p not in HEIGHT]
        if unknown:
            result.append(f"{module} imports {target}: {unknown[0]} has no layer")
        elif HEIGHT[part] > HEIGHT[own]:
            result.append(f"{module} imports {target}, which is above it")
        elif own != part and own in APART and part in APART and HEIGHT[own] == HEIGHT[part]:
            result.append(f"{module} imports {target}, which stands beside it")
    return result


def test_imports_point_one_way() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(found)


def test_the_walk_sees_what_is_there() -> None:
    seen = {(module, target) for module, _, target, _ in imports(ROOT)}
    assert {
        ("sona.router", "sona.engine"),
        ("sona.loops._policy", "sona.adapters._lora"),  # cimport
        ("sona.adapters._lora", "sona._c"),  # cimport over several lines
        ("sona.cli.learning", "sona.demo"),  # inside a function
        ("sona.health", "sona._kernels"),  # a name of the lazy package
    } <= seen


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("adapters/bad.py", "from sona.store import SqliteStore", "sona.adapters.bad imports sona.store, which stands beside it"),
        ("adapters/bad.py", "from ..store.rows import DecisionRow", "sona.adapters.bad imports sona.store.rows, which stands beside it"),
        ("store/bad.py", "def f():\n    import sona.trajectory", "sona.store.bad imports sona.trajectory, which stands beside it"),
        ("store/bad.py", "from sona import Ring", "sona.store.bad imports sona.trajectory, which stands beside it"),
        ("loops/bad.py", "from sona import engine", "sona.loops.bad imports sona.engine, which is above it"),
        ("loops/bad.py", "from sona import Router", "sona.loops.bad imports sona.router, which is above it"),
        ("engine.py", "import numpy, sona.cli", "sona.engine imports sona.cli, which is above it"),
        ("types.py", "from sona.adapters import Adapter", "sona.types imports sona.adapters, which is above it"),
        ("demo/bad.py", "from sona.replay.log import Arms", "sona.demo.bad imports sona.replay.log, which stands beside it"),
        (
            "store/_bad.pyx",
            "from sona.adapters._lora cimport (\n    Adapter,\n    rows_of,\n)",
            "sona.store._bad imports sona.adapters._lora",
        ),
        ("trajectory/_bad.pxd", "cimport sona.loops._policy as p", "sona.trajectory._bad imports sona.loops._policy, which is above it"),
        ("novel/bad.py", "from sona.errors import SonaError", "sona.novel.bad imports sona.errors: novel has no layer"),
    ],
)
def test_a_violation_names_both_modules(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = tmp_path / "sona" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n", encoding="utf-8")
    found = violations(tmp_path)
    assert found
    assert all(each.startswith(message) for each in found), found


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {
        p.stem for p in (ROOT / "sona").iterdir() if p.suffix in (".py", ".pyx", ".pxd") or (p.is_dir() and (p / "__init__.py").exists())
    }
    assert parts - {"__init__"} <= HEIGHT.keys()


# ---- Cython modules ----

PYX = sorted((ROOT / "sona").rglob("*.pyx"))
SHOWN = re.compile(r"^(?:cdef class|class|def|cpdef)\s+(?!.*\bnoexcept nogil\b)", re.MULTILINE)
COMPILED = re.compile(r"^(?:cdef class|cpdef|cdef (?!extern|class|enum|struct)[\w *]+\()", re.MULTILINE)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PYX, ids=named)
def test_a_cython_module_has_a_stub_when_python_sees_it_and_a_pxd_when_cython_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.with_suffix(".pyi").exists() == bool(SHOWN.search(text))
    assert path.with_suffix(".pxd").exists() == bool(COMPILED.search(text))
    if path.with_suffix(".pxd").exists():
        assert (path.parent / "__init__.pxd").exists()


def test_stubs_and_declarations_belong_to_a_module() -> None:
    for path in [*(ROOT / "sona").rglob("*.pyi"), *(ROOT / "sona").rglob("*.pxd")]:
        if named(path) == "sona/_c.pxd":  # the C headers, a module of none
            continue
        suffixes = (".pyx",) if path.suffix == ".pyi" else (".pyx", ".py")
        assert any(path.with_suffix(s).exists() for s in suffixes), named(path)


def test_one_file_declares_the_c_headers() -> None:
    naming = [p for p in (ROOT / "sona").rglob("*.p*") if p.suffix in (".pyx", ".pxd") and 'from "sona/' in p.read_text(encoding="utf-8")]
    assert [named(p) for p in naming] == ["sona/_c.pxd"]
    declared = set(re.findall(r'cdef extern from "(sona/\w+\.h)"', (ROOT / "sona/_c.pxd").read_text(encoding="utf-8")))
    assert declared <= {f"sona/{h.name}" for h in (ROOT / "csrc/include/sona").glob("*.h")}


def public(names: Iterator[str] | list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("path", [p for p in PYX if p.with_suffix(".pyi").exists()], ids=named)
def test_a_stub_says_what_the_module_has(path: Path) -> None:
    if named(path).startswith("sona/ext/torch/"):
        pytest.importorskip("torch")
    module = importlib.import_module(module_of(path, ROOT))
    body = ast.parse(path.with_suffix(".pyi").read_text(encoding="utf-8")).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__ and callable(value)]
    assert public([*classes, *functions]) == public(own)
    for name, node in classes.items():
        stated = {m.name for m in node.body if isinstance(m, ast.FunctionDef)}
        stated |= {m.target.id for m in node.body if isinstance(m, ast.AnnAssign) and isinstance(m.target, ast.Name)}
        assert public(list(stated)) == public(list(vars(getattr(module, name)))), name
        assert all(inspect.getattr_static(getattr(module, name), m, None) is not None for m in stated), name
