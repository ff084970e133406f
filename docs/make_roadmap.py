"""Writes docs/roadmap.md from docs/roadmap.toml: ``python docs/make_roadmap.py``."""

import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STATES = ("done", "replaced", "not yet")
HEAD = """# Roadmap

Generated from `docs/roadmap.toml` by `docs/make_roadmap.py`; `tests/test_roadmap.py` checks every name in it.

sona was specified by a roadmap written for another language and another host. This table has a row for each of its components, files,
types, methods, defaults, deliverables, tests, benchmarks, success criteria and risks, in its order and by its names. *ours* is what
answers to the name, *test* what proves it, *figure* the benchmark that measures it. *replaced* means that something else does the
work, and why; [learning.md](learning.md) says why the roadmap's update rule itself is not used.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One name of the roadmap; see the head of docs/roadmap.toml."""

    section: str
    name: str
    kind: str
    ours: str = "none"
    test: str = "none"
    figure: str = "none"
    state: str = "done"
    why: str = ""
    fields: tuple[str, ...] = ()
    roadmap: Any = None
    value: Any = None


def rows() -> list[Row]:
    """The table, in its order."""
    with open(HERE / "roadmap.toml", "rb") as file:
        sections = tomllib.load(file)["section"]
    return [Row(section=s["title"], **{**row, "fields": tuple(row.get("fields", ()))}) for s in sections for row in s["rows"]]


def parts(cell: str) -> list[str]:
    """The separate names of a cell; empty for none."""
    return [] if cell == "none" else [part.strip() for part in cell.split(",")]


def _cell(names: str) -> str:
    return ", ".join(f"`{part}`" for part in parts(names)) or "–"


def _line(row: Row) -> str:
    name = row.name.replace("|", "\\|")
    if row.roadmap is not None:
        name += f" = {row.roadmap}"
    ours = _cell(row.ours) + (f" = {row.value}" if row.value is not None else "")
    state = f"{row.state}: {row.why}" if row.why else row.state
    return f"| {name} | {row.kind} | {ours} | {_cell(row.test)} | {_cell(row.figure)} | {state} |"


def render() -> str:
    """The text of docs/roadmap.md."""
    table = rows()
    count = Counter((row.kind, row.state) for row in table)
    lines = [HEAD, f"| kind | {' | '.join(STATES)} |", "|---|---|---|---|"]
    for kind in dict.fromkeys(row.kind for row in table):
        lines.append(f"| {kind} | {' | '.join(str(count[kind, state]) for state in STATES)} |")
    for section in dict.fromkeys(row.section for row in table):
        lines += ["", f"## {section}", "", "| roadmap | kind | ours | test | figure | state |", "|---|---|---|---|---|---|"]
        lines += [_line(row) for row in table if row.section == section]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "roadmap.md").write_text(render(), encoding="utf-8")
