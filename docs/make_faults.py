"""Writes docs/faults.md from docs/faults.toml: ``python docs/make_faults.py``."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEAD = """# Bad input and faults

Generated from `docs/faults.toml` by `docs/make_faults.py`; `tests/test_faults.py` checks that every test named here exists.

What can be wrong with an argument, a file, a process, a clock or a disk, and what sona does then. In general: an argument that cannot be
used is a `SonaValueError` or `SonaTypeError` (in C a status) that says what was expected and what came, and nothing has changed; what is
not finite never reaches a weight; what was acknowledged is on the disk; a damaged file is named and never read as something else; a
disk, a database or a callback that fails costs what it holds and never the answer to a request.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case; see the head of docs/faults.toml."""

    section: str
    number: int
    case: str
    does: str
    tests: tuple[str, ...] = ()
    why: str = ""


def rows() -> list[Row]:
    """The table, in its order; cases are numbered from 1."""
    with open(HERE / "faults.toml", "rb") as file:
        sections = tomllib.load(file)["section"]
    listed = [(section["title"], row) for section in sections for row in section["rows"]]
    return [
        Row(section=title, number=number, **{**row, "tests": tuple(row.get("tests", ()))}) for number, (title, row) in enumerate(listed, 1)
    ]


def _line(row: Row) -> str:
    shown = ", ".join(f"`{test}`" for test in row.tests)
    shown = "; ".join(filter(None, (shown, row.why)))
    return f"| {row.number} | {row.case} | {row.does} | {shown} |".replace("\n", " ")


def render() -> str:
    """The text of docs/faults.md."""
    table = rows()
    tested = sum(bool(row.tests) for row in table)
    without = "; of the others it is said why not" if tested < len(table) else ""
    lines = [HEAD, f"{tested} of {len(table)} cases have tests, in `tests/` or `csrc/tests/`{without}."]
    for section in dict.fromkeys(row.section for row in table):
        lines += ["", f"## {section}", "", "| | case | what sona does | shown by |", "|---|---|---|---|"]
        lines += [_line(row) for row in table if row.section == section]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "faults.md").write_text(render(), encoding="utf-8")
