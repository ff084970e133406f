"""The table of policies that ``sona demo`` and ``sona replay`` print, and the plain text that names from a file become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sona.simulate import FIRST, LAST, Latency, Summary

MAX_NAME = 60


def policy_table(summaries: Mapping[str, Summary], rounds: int) -> str:
    """One line per policy, in the order given; latencies are p50 / p99 in microseconds."""
    header = [
        "",
        f"first {min(FIRST, rounds)}",
        f"last {min(LAST, rounds)}",
        "regret",
        "held-out",
        "route p50/p99 us",
        "feedback p50/p99 us",
        "learned state",
    ]
    rows = [
        [
            name,
            accuracy(line.first),
            accuracy(line.last),
            f"{line.regret:.0f}",
            "-" if line.held_out is None else accuracy(line.held_out),
            latency(line.route),
            latency(line.feedback),
            size(line.state_bytes),
        ]
        for name, line in summaries.items()
    ]
    return aligned([header, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns: the first to the left, the rest to the right, a rule under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:]])


def accuracy(share: float) -> str:
    return f"{share:.3f}"


def latency(measured: Latency | None) -> str:
    return "-" if measured is None else f"{_microseconds(measured.p50_us)} / {_microseconds(measured.p99_us)}"


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def size(count: int) -> str:
    """1536 -> '1.5 kB' (1 kB = 1024 bytes)."""
    if count < 1024:
        return f"{count} B"
    value, unit = (count / 1024, "kB") if count < 1024**2 else (count / 1024**2, "MB")
    return f"{value:.1f} {unit}"


def one_line(text: str) -> str:
    """Text from outside as it may stand in a terminal: one line, control characters escaped."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)


def shown(name: str) -> str:
    """A name from a file: one line, long ones cut."""
    escaped = one_line(name)
    return escaped if len(escaped) <= MAX_NAME else escaped[: MAX_NAME - 3] + "..."
