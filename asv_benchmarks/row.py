"""One line of the table of measurements, and how the other tables print theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """
    Attributes
    ----------
    what : str
    case : str
        Sizes.
    measured : str
        With its unit.
    peer : str
        What it was measured against in the same run; "" for none.
    ratio : float or None
    target : str
    met : bool or None
        None where there is no target or the peer is missing.
    short : bool
        Whether the README shows it.
    """

    what: str
    case: str
    measured: str
    peer: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    short: bool = True

    @property
    def cells(self) -> tuple[str, ...]:
        verdict = {True: "yes", False: "no", None: ""}[self.met]
        return (self.what, self.case, self.measured, self.peer, "" if self.ratio is None else f"{self.ratio:.3g}x", self.target, verdict)


HEAD = ("what", "case", "measured", "peer", "ratio", "target", "met")


def seconds(value: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def faster(what: str, case: str, own: float, peer: str, ratio: float, at_least: float | None = None, *, short: bool = True) -> Row:
    """`ratio` times faster than the peer."""
    target = "" if at_least is None else f">= {at_least:g}x faster"
    return Row(what, case, seconds(own), peer, ratio, target, None if at_least is None else ratio >= at_least, short)


def near(what: str, case: str, own: float, limit: str, ratio: float, at_most: float, *, short: bool = True) -> Row:
    """`ratio` times as long as a limit that cannot be beaten by much."""
    return Row(what, case, seconds(own), limit, ratio, f"<= {at_most:g}x as long", ratio <= at_most, short)


def within(what: str, case: str, own: float, bound: float | None = None, *, short: bool = True) -> Row:
    """An absolute time."""
    return Row(
        what,
        case,
        seconds(own),
        target="" if bound is None else f"<= {seconds(bound)}",
        met=None if bound is None else own <= bound,
        short=short,
    )


def missing(what: str, case: str, own: float, peer: str) -> Row:
    """The peer is not installed."""
    return Row(what, case, seconds(own), f"{peer}: not installed")


def print_lines(lines: Sequence[Sequence[str]]) -> None:
    """A Markdown table in columns; the first line is its header."""
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in (lines[0], ["-" * w for w in width], *lines[1:]):
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)) + " |")
