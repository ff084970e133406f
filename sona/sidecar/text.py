"""What ``sona learn`` says."""

import shutil
import sys
from types import TracebackType
from typing import Any, Self, TextIO


def line(report: dict[str, Any]) -> str:
    """`Sidecar.report` in a line."""
    if "ring" not in report:
        return "nothing is open yet"
    ring, bad = report["ring"], sum(report["bad"].values())
    said = f"{report['trajectories']} trajectories, {report['feedback']} rewards, epoch {report['epoch']}"
    said += f", ring {ring['used'] / ring['capacity']:.0%} full"
    for count, what in ((bad, "bad"), (ring["dropped"], "dropped"), (report["owed"], "waiting for the store")):
        said += f", {count} {what}" if count else ""
    return said + (", NOT SAVED" if report["store_error"] is not None else "")


def text(report: dict[str, Any]) -> str:
    """The same at the end."""
    said = [line(report), f"{report['saves']} saves, {report['again']} records that were learned before, {report['seconds']:.1f} s"]
    if report["bad"]:
        said.append("bad records: " + ", ".join(f"{count} {reason}" for reason, count in sorted(report["bad"].items())))
    if "ring" in report and report["ring"]["damaged"]:
        said.append(f"the ring was damaged {report['ring']['damaged']} times")
    return "\n".join(said)


class StatusLine:
    """A line on standard error that is written again and again; nothing where that is not a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._drawn = False

    def update(self, report: dict[str, Any]) -> None:
        if self._stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + line(report)[:width].ljust(width))
            self._stream.flush()
            self._drawn = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._drawn:
            self._stream.write("\n")
