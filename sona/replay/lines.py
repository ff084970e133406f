"""Bounded, numbered lines of a user's text file, and what becomes of the bad ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sona.errors import SonaValueError

MAX_LINE = 1 << 20
MAX_FIRST_LINE = 1 << 26  # may hold every arm's vector
KEPT_MESSAGES = 5


class BadLines:
    """Raises on the first bad line, or counts them and keeps the first few messages.

    Attributes
    ----------
    count : int
    messages : list of str
        "line 7: ..." of the first five.
    """

    def __init__(self, path: str | os.PathLike[str], *, skip: bool) -> None:
        self._path = os.fspath(path)
        self._skip = skip
        self.count = 0
        self.messages: list[str] = []

    def add(self, number: int, problem: object, unit: str = "line") -> None:
        if not self._skip:
            raise SonaValueError(f"{self._path}, {unit} {number}: {problem}")
        self.count += 1
        if len(self.messages) < KEPT_MESSAGES:
            self.messages.append(f"{unit} {number}: {problem}")


def numbered_lines(path: str | os.PathLike[str], bad: BadLines) -> Iterator[tuple[int, str]]:
    """Each line that is not blank with its number, counted from 1; lines that are too long or not UTF-8 go to ``bad``.

    No more than one line is in memory, however long the file or the line.
    """
    if not os.path.isfile(path):
        what = "expected a regular file, got" if os.path.exists(path) else "no such file:"
        raise SonaValueError(f"{what} {os.fspath(path)!r}")
    with open(path, "rb") as file:
        number = 0
        while True:
            number += 1
            limit = MAX_FIRST_LINE if number == 1 else MAX_LINE
            raw = file.readline(limit + 1)
            if not raw:
                return
            if len(raw) > limit:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE)
                bad.add(number, f"expected at most {limit} bytes")
                continue
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                bad.add(number, f"expected UTF-8, got byte 0x{raw[error.start]:02x} at column {error.start + 1}")
                continue
            if text:
                yield number, text
