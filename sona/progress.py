"""A progress line on standard error: redrawn in place on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

REDRAW_S = 0.1
LINE_S = 5.0
BAR = 16  # leaves 80 columns room for three accuracies


class Progress:
    """Counts to ``total``; call :meth:`update` as often as you like, by default it writes at most ten times a second. A context
    manager: leaving it leaves the terminal on a fresh line.

    Parameters
    ----------
    total : int
        Rounds to come, at least 1.
    stream : TextIO, optional
        Standard error by default.
    clock : callable, optional
        Seconds, monotonic.
    redraw : float
        Least seconds between two drawings on a terminal; 0 where each step is one that should be seen.
    """

    def __init__(
        self, total: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, redraw: float = REDRAW_S
    ) -> None:
        self._total = max(total, 1)
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._redraw = redraw
        self._next = clock() + (0.0 if self._terminal else LINE_S)
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._terminal and self._drawn:
            self._stream.write("\n")
            self._stream.flush()

    def due(self, done: int) -> bool:
        """Whether :meth:`update` would write now: lets the caller skip building a note that nobody sees."""
        return self._clock() >= self._next or (self._terminal and done >= self._total)

    def update(self, done: int, note: str = "") -> None:
        if not self.due(done):
            return
        self._next = self._clock() + (self._redraw if self._terminal else LINE_S)
        share = min(done / self._total, 1.0)
        if self._terminal:
            filled = round(share * BAR)
            text = f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{self._total}  {note}"
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + text[:width].ljust(width))
        else:
            self._stream.write(f"{done}/{self._total} ({share:.0%})  {note}".rstrip() + "\n")
        self._stream.flush()
        self._drawn = True
